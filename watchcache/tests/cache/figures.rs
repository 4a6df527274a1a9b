//! What reads cost: a front door's own process beside the kube-apiserver's, on one store, in one
//! run. `bench/run watchcache` runs this, optimised; nothing else does.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF, User, free_port, until};
use crate::frames::{Frames, list};

const NODES: usize = 1_000;
/// Pods with one label's value: those of one Deployment, say.
const GROUP: usize = 40;
/// The kernel's clock ticks.
const TICK: f64 = 0.01;

/// A front door in a process of its own.
struct Door(Child);

impl Drop for Door {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of CPU that a process has used.
fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * TICK).sum()
}

/// Resident memory in KiB.
fn resident(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn measured(what: &str, process: u32, user: &mut User, paths: &[String], watch: bool) {
    let (before, mut times, mut bytes) = (cpu(process), Vec::new(), 0);
    for path in paths {
        let start = Instant::now();
        if watch {
            let mut frames = Frames::new(user.open(path).await.into_body());
            while let Some(frame) = frames.next(Duration::from_secs(30)).await {
                bytes += frame.bytes.len();
                if frame.kind == "BOOKMARK" {
                    break;
                }
            }
        } else {
            bytes += user.read(path, PROTOBUF).await.1.len();
        }
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let millis = |place: usize| times[times.len() * place / 100].as_secs_f64() * 1_000.0;
    #[allow(clippy::cast_precision_loss, reason = "for a person")]
    let each = (cpu(process) - before) * 1_000.0 / paths.len() as f64;
    println!(
        "{what:<58} cpu {each:>8.3} ms  p50 {:>8.2} ms  p99 {:>8.2} ms  {} bytes each, {} requests",
        millis(50),
        millis(99),
        bytes / paths.len(),
        paths.len()
    );
}

async fn fill(cluster: &Cluster, pods: usize) {
    let admin = cluster.admin();
    let mut makers = Vec::new();
    for maker in 0..8 {
        let mut user = cluster.direct(&admin).await;
        makers.push(tokio::spawn(async move {
            for number in (maker..pods).step_by(8) {
                let pod = json!({
                    "metadata": {"name": format!("p-{number}"), "labels": {
                        "app": format!("g{}", number / GROUP), "tier": "front"}},
                    "spec": {"nodeName": format!("n-{}", number % NODES),
                             "containers": [{"name": "c", "image": "registry.example/image:1",
                                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]},
                });
                user.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
            }
        }));
    }
    for maker in makers {
        maker.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_reads_cost() {
    let Ok(pods) = std::env::var("FIGURES_PODS") else { return };
    let pods: usize = pods.parse().unwrap();
    let cluster = Cluster::start().await;
    let start = Instant::now();
    fill(&cluster, pods).await;
    println!("{pods} pods on {NODES} nodes, made in {:?}", start.elapsed());
    let port = free_port();
    let path = |name: &str| cluster.certificates.path(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_megacluster-watchcache"));
    command.args([
        format!("--listen-address=127.0.0.1:{port}"),
        "--admin-listen-address=127.0.0.1:0".to_owned(),
        format!("--tls-cert-file={}", path("server.crt")),
        format!("--tls-private-key-file={}", path("server.key")),
        format!("--client-ca-file={}", path("client-ca.pem")),
        format!("--config={}", path("config.yaml")),
        "--goaway-chance=0".to_owned(),
        "--cache-resource=pods".to_owned(),
        "--cache-review-group=system:masters".to_owned(),
        format!("--etcd-servers=http://{}", cluster.store.address),
    ]);
    let door = Door(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let address = ([127, 0, 0, 1], port).into();
    until("the front door listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    let mut reader = cluster.at(&admin, address).await;
    // Until the cache has all, and its kube-apiserver is known to be ready.
    let mut seen = 0;
    while seen < pods {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (status, bytes) = reader.read("/api/v1/pods?resourceVersion=0", PROTOBUF).await;
        seen = if status.is_success() { list(&bytes).items.len() } else { 0 };
    }
    let own = door.0.id();
    let (_, all) = reader.read("/api/v1/pods", PROTOBUF).await;
    println!("stored bytes, as a list: {} KiB", all.len() / 1024);
    println!(
        "resident: front door {} KiB, kube-apiserver {} KiB",
        resident(own),
        resident(cluster.process())
    );
    let watches: Vec<String> = (0..300)
        .map(|node| {
            format!(
                "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                 &allowWatchBookmarks=true&timeoutSeconds=600&fieldSelector=spec.nodeName%3Dn-{node}"
            )
        })
        .collect();
    let selected: Vec<String> =
        (0..200).map(|group| format!("/api/v1/pods?labelSelector=app%3Dg{group}")).collect();
    let gets: Vec<String> =
        (0..500).map(|pod| format!("/api/v1/namespaces/a/pods/p-{pod}")).collect();
    let whole = vec!["/api/v1/pods".to_owned(); 10];
    let whole_old = vec!["/api/v1/pods?resourceVersion=0".to_owned(); 10];
    let stock = cluster.process();
    for (what, paths, watch) in [
        ("a kubelet's watch-list", &watches, true),
        ("list of 40 pods by a label", &selected, false),
        ("get of a pod", &gets, false),
        ("list of all pods", &whole, false),
        ("list of all pods, resourceVersion=0", &whole_old, false),
    ] {
        measured(&format!("kube-apiserver: {what}"), stock, &mut direct, paths, watch).await;
        measured(&format!("front door, access not known: {what}"), own, &mut reader, paths, watch)
            .await;
        measured(&format!("front door: {what}"), own, &mut reader, paths, watch).await;
    }
    // Held watches, 100 on each connection.
    let before = resident(own);
    let (mut users, mut held) = (Vec::new(), Vec::new());
    for connection in 0..20 {
        let mut user = cluster.at(&admin, address).await;
        for watch in 0..100 {
            let node = (connection * 100 + watch) % NODES;
            let path = format!(
                "/api/v1/pods?watch=1&resourceVersion=0&timeoutSeconds=600\
                                &fieldSelector=spec.nodeName%3Dn-{node}"
            );
            held.push(user.open(&path).await);
        }
        users.push(user);
    }
    let each = resident(own).saturating_sub(before) * 1024 / held.len();
    println!(
        "front door: {} held watches on {} connections: {each} bytes each",
        held.len(),
        users.len()
    );
}
