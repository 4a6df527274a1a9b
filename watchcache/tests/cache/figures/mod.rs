//! What reads cost: a front door's own process beside the kube-apiserver's, on one store, in one
//! run. `bench/run watchcache` runs this, optimised; nothing else does.

mod source;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

use self::source::{KeyValue, Source, Template, Writer};
use crate::cluster::{Cluster, PROTOBUF, User, free_port, until};
use crate::frames::{Frames, list};

const NODES: usize = 1_000;
/// Pods with one label's value: those of one Deployment, say.
const GROUP: usize = 40;
/// The kernel's clock ticks.
const TICK: f64 = 0.01;

/// A front door in a process of its own.
struct Door {
    process: Child,
    address: SocketAddr,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Door {
    async fn start(cluster: &Cluster, resource: &str, store: SocketAddr) -> Self {
        let address = ([127, 0, 0, 1], free_port()).into();
        let path = |name: &str| cluster.certificates.path(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_megacluster-watchcache"));
        command.args([
            format!("--listen-address={address}"),
            "--admin-listen-address=127.0.0.1:0".to_owned(),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("client-ca.pem")),
            format!("--config={}", path("config.yaml")),
            "--goaway-chance=0".to_owned(),
            format!("--cache-resource={resource}"),
            "--cache-review-group=system:masters".to_owned(),
            format!("--etcd-servers=http://{store}"),
        ]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let door = Self { process, address };
        until("the front door listens", || std::net::TcpStream::connect(address).is_ok()).await;
        door
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    /// A client, once the cache answers with so many objects: its kube-apiserver is known then.
    async fn reader(&self, cluster: &Cluster, path: &str, objects: usize) -> User {
        let mut reader = cluster.at(&cluster.admin(), self.address).await;
        let mut seen = usize::MAX;
        while seen != objects {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (status, bytes) = reader.read(path, PROTOBUF).await;
            seen = if status.is_success() { list(&bytes).items.len() } else { usize::MAX };
        }
        reader
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

async fn measured(
    what: &str,
    process: u32,
    user: &mut User,
    paths: &[String],
    (watch, accept): (bool, &str),
) {
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
            bytes += user.read(path, accept).await.1.len();
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

/// Makes pods by one that kube-apiserver has stored.
async fn fill(cluster: &Cluster, pods: usize) -> Template {
    let mut user = cluster.direct(&cluster.admin()).await;
    let pod = json!({
        "metadata": {"name": "p-000000", "labels": {"app": "g00000", "tier": "front"}},
        "spec": {"nodeName": "n-0000",
                 "containers": [{"name": "c", "image": "registry.example/image:1",
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]},
    });
    user.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
    let mut writer = Writer::connect(cluster.store.address).await;
    let value = writer.get("/registry/pods/a/p-000000").await;
    let template =
        Arc::new(Template::new(value, &[("p-000000", 1), ("g00000", GROUP), ("n-0000", 1)]));
    let mut makers = Vec::new();
    for maker in 0..32 {
        let (mut writer, template) = (writer.clone(), template.clone());
        makers.push(tokio::spawn(async move {
            for number in (maker..pods).step_by(32) {
                let key = format!("/registry/pods/a/p-{number:06}");
                writer.put(key, template.of(number)).await;
            }
        }));
    }
    for maker in makers {
        maker.await.unwrap();
    }
    Arc::into_inner(template).unwrap()
}

fn number(text: Option<String>, default: usize) -> usize {
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_reads_cost() {
    let Ok(pods) = std::env::var("FIGURES_PODS") else { return };
    let pods: usize = pods.parse().unwrap();
    let watches = number(std::env::var("FIGURES_WATCHES").ok(), 100_000);
    let cluster = Cluster::start().await;
    // Without a pod, what is left is the program.
    let door = Door::start(&cluster, "pods", cluster.store.address).await;
    let _ = door.reader(&cluster, "/api/v1/pods", 0).await;
    let (empty, stock_empty) = (resident(door.id()), resident(cluster.process()));
    drop(door);
    let start = Instant::now();
    let template = fill(&cluster, pods).await;
    println!("{pods} pods on {NODES} nodes, made in {:?}", start.elapsed());
    let door = Door::start(&cluster, "pods", cluster.store.address).await;
    let mut reader = door.reader(&cluster, "/api/v1/pods?resourceVersion=0", pods).await;
    let mut direct = cluster.direct(&cluster.admin()).await;
    let (full, stock_full) = (resident(door.id()), resident(cluster.process()));
    let stored = template.of(0).len();
    println!("stored bytes of a pod: {stored}");
    for (what, empty, full) in
        [("front door", empty, full), ("kube-apiserver", stock_empty, stock_full)]
    {
        let each = full.saturating_sub(empty) * 1024 / pods;
        println!(
            "{what}: resident {empty} KiB without pods, {full} KiB with them: {each} bytes each, \
             {:.2} x stored beyond what is stored",
            ratio(each.saturating_sub(stored), stored)
        );
    }
    reads(&cluster, &door, &mut direct, &mut reader).await;
    fan_out("kube-apiserver", &cluster, cluster.process(), cluster.direct_address(), &template)
        .await;
    fan_out("front door", &cluster, door.id(), door.address, &template).await;
    held(&cluster, &door, watches).await;
}

#[allow(clippy::cast_precision_loss, reason = "for a person")]
fn ratio(part: usize, of: usize) -> f64 {
    part as f64 / of as f64
}

/// One request after the other.
async fn reads(cluster: &Cluster, door: &Door, direct: &mut User, reader: &mut User) {
    let watches: Vec<String> = (0..300)
        .map(|node| {
            format!(
                "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                 &allowWatchBookmarks=true&timeoutSeconds=600&fieldSelector=spec.nodeName%3Dn-{node:04}"
            )
        })
        .collect();
    let selected: Vec<String> =
        (0..200).map(|group| format!("/api/v1/pods?labelSelector=app%3Dg{group:05}")).collect();
    let gets: Vec<String> =
        (0..500).map(|pod| format!("/api/v1/namespaces/a/pods/p-{pod:06}")).collect();
    let whole = vec!["/api/v1/pods".to_owned(); 5];
    let (stock, own) = (cluster.process(), door.id());
    let json = "application/json";
    for (what, paths, watch, accept) in [
        ("a kubelet's watch-list", &watches, true, PROTOBUF),
        ("list of 40 pods by a label", &selected, false, PROTOBUF),
        ("the same in JSON", &selected, false, json),
        ("get of a pod", &gets, false, PROTOBUF),
        ("the same in JSON", &gets, false, json),
        ("list of all pods", &whole, false, PROTOBUF),
        ("the same in JSON", &whole, false, json),
    ] {
        let form = (watch, accept);
        measured(&format!("kube-apiserver: {what}"), stock, direct, paths, form).await;
        // Once before: whether the client may read it is asked once in 10 s.
        measured(&format!("front door, access not known: {what}"), own, reader, paths, form).await;
        measured(&format!("front door: {what}"), own, reader, paths, form).await;
    }
}

/// 10,000 watchers of all pods, and a few updates.
async fn fan_out(what: &str, cluster: &Cluster, process: u32, address: SocketAddr, of: &Template) {
    const CONNECTIONS: usize = 50;
    const STREAMS: usize = 200;
    const UPDATES: usize = 20;
    let (seen, mut users) = (Arc::new(AtomicUsize::new(0)), Vec::new());
    let mut direct = cluster.direct(&cluster.admin()).await;
    let (_, bytes) = direct.read("/api/v1/pods?limit=1", PROTOBUF).await;
    let path = format!("/api/v1/pods?watch=1&resourceVersion={}", list(&bytes).version);
    let before = resident(process);
    for _ in 0..CONNECTIONS {
        let mut user = cluster.at(&cluster.admin(), address).await;
        for _ in 0..STREAMS {
            let mut body = user.open(&path).await.into_body();
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    // An update is one frame: they come one by one.
                    seen.fetch_add(usize::from(frame.is_data()), Ordering::Relaxed);
                }
            });
        }
        users.push(user);
    }
    let watchers = CONNECTIONS * STREAMS;
    let each = resident(process).saturating_sub(before) * 1024 / watchers;
    let mut writer = Writer::connect(cluster.store.address).await;
    let (start, mut times) = (cpu(process), Vec::new());
    for update in 0..UPDATES {
        let begin = Instant::now();
        writer.put("/registry/pods/a/p-000000".to_owned(), of.of(0)).await;
        until("all have seen it", || seen.load(Ordering::Relaxed) >= (update + 1) * watchers).await;
        times.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    times.sort_unstable();
    let each_cpu = (cpu(process) - start) * 1e6;
    #[allow(clippy::cast_precision_loss, reason = "for a person")]
    let each_cpu = each_cpu / (watchers * UPDATES) as f64;
    println!(
        "{what}: an update to {watchers} watchers of all pods: cpu {each_cpu:.2} us each, all have it \
         after {:?}; resident {each} bytes for each watcher",
        times[UPDATES / 2]
    );
}

/// Watches of one node's pods, as kubelets hold them.
async fn held(cluster: &Cluster, door: &Door, watches: usize) {
    const STREAMS: usize = 500;
    let mut users = Vec::new();
    for _ in 0..watches / STREAMS {
        let mut user = cluster.at(&cluster.admin(), door.address).await;
        user.read("/api/v1/namespaces/a/pods/p-000000", PROTOBUF).await;
        users.push(user);
    }
    let (before, start) = (resident(door.id()), Instant::now());
    let (cpu_before, mut bodies) = (cpu(door.id()), Vec::new());
    let mut number = 0;
    for user in &mut users {
        for _ in 0..STREAMS {
            let path = format!(
                "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                 &allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dn-{:04}",
                number % NODES
            );
            number += 1;
            let mut frames = Frames::new(user.open(&path).await.into_body());
            while frames.next(Duration::from_secs(30)).await.unwrap().kind != "BOOKMARK" {}
            bodies.push(frames);
        }
    }
    let each = resident(door.id()).saturating_sub(before) * 1024 / watches;
    #[allow(clippy::cast_precision_loss, reason = "for a person")]
    let each_cpu = (cpu(door.id()) - cpu_before) * 1_000.0 / watches as f64;
    println!(
        "front door: {watches} held watches of a kubelet on {} connections: {each} bytes each beside \
         the connections, {} KiB resident in all; begun in {:?}, cpu {each_cpu:.3} ms each",
        users.len(),
        resident(door.id()),
        start.elapsed()
    );
}

/// How fast one shard takes events in: from a store that does nothing but tell them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_events_cost() {
    const OBJECTS: usize = 20_000;
    const EVENTS: usize = 1_000_000;
    if std::env::var_os("FIGURES_PODS").is_none() {
        return;
    }
    let cluster = Cluster::start().await;
    let mut user = cluster.direct(&cluster.admin()).await;
    let pod = json!({
        "metadata": {"name": "x-000000", "labels": {"app": "g00000", "tier": "front"}},
        "spec": {"nodeName": "n-0000", "containers": [{"name": "c", "image": "i"}]},
    });
    user.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
    let lease = json!({"metadata": {"name": "x-000000"}, "spec": {"holderIdentity": "x-000000",
        "leaseDurationSeconds": 40, "renewTime": "2026-01-02T03:04:05.000006Z"}});
    let path = "/apis/coordination.k8s.io/v1/namespaces/a/leases";
    user.write(Method::POST, path, &lease).await;
    let mut writer = Writer::connect(cluster.store.address).await;
    for (what, resource, prefix, path) in [
        ("leases", "leases.coordination.k8s.io", "/registry/leases/a/", path),
        ("pods", "pods", "/registry/pods/a/", "/api/v1/namespaces/a/pods"),
    ] {
        let value = writer.get(&format!("{prefix}x-000000")).await;
        let texts = [("x-000000", 1), ("g00000", 40), ("n-0000", 1)];
        let texts = if what == "pods" { &texts[..] } else { &texts[..1] };
        let template = Template::new(value, texts);
        let kv = |number: usize, revision: usize| KeyValue {
            key: format!("{prefix}x-{:06}", number % OBJECTS).into(),
            mod_revision: i64::try_from(revision).unwrap(),
            value: template.of(number % OBJECTS),
        };
        let objects: Vec<_> = (0..OBJECTS).map(|number| kv(number, 1)).collect();
        // As a busy store tells them: some hundreds at a time.
        let batches = (0..EVENTS / 500).map(|batch| {
            (0..500).map(|at| kv((batch * 500 + at) * 7, 2 + batch * 500 + at)).collect()
        });
        let source = Source::start(objects, batches.collect()).await;
        let door = Door::start(&cluster, resource, source.address).await;
        let all = format!("{path}?resourceVersion=0");
        let mut reader = door.reader(&cluster, &all, OBJECTS).await;
        let last = format!("{path}/x-000000?resourceVersion={}", EVENTS + 1);
        let (before, start) = (cpu(door.id()), Instant::now());
        source.go.notify_one();
        while reader.read(&last, PROTOBUF).await.0 != StatusCode::OK {}
        let (time, spent) = (start.elapsed(), cpu(door.id()) - before);
        #[allow(clippy::cast_precision_loss, reason = "for a person")]
        let (rate, each) = (EVENTS as f64 / time.as_secs_f64(), spent * 1e6 / EVENTS as f64);
        println!(
            "front door: {EVENTS} updates of {OBJECTS} {what} taken in by one shard: {rate:.0}/s, \
             cpu {each:.2} us each, {} bytes each",
            template.of(0).len()
        );
    }
}
