//! Watches that are held: what an update costs each, and what they take while nothing happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use http_body_util::BodyExt;

use super::source::{Template, Writer};
use super::{NODES, cpu, filled, pods, resident};
use crate::cluster::{Cluster, PROTOBUF, until};
use crate::frames::{Frames, list};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_an_update_costs() {
    let Some(pods) = pods() else { return };
    let (cluster, door, template) = filled(pods).await;
    fan_out("front door", &cluster, door.id(), door.address, &template).await;
    let (process, address) = (cluster.process(), cluster.direct_address());
    fan_out("kube-apiserver", &cluster, process, address, &template).await;
}

/// 10,000 watchers of all pods, and a few updates.
async fn fan_out(what: &str, cluster: &Cluster, process: u32, address: SocketAddr, of: &Template) {
    const CONNECTIONS: usize = 100;
    // As many as kube-apiserver allows on one (`k8s.io/apiserver/pkg/server/secure_serving.go`).
    const STREAMS: usize = 100;
    const UPDATES: usize = 20;
    let seen = Arc::new(AtomicUsize::new(0));
    let mut direct = cluster.direct(&cluster.admin()).await;
    let (_, bytes) = direct.read("/api/v1/pods?limit=1", PROTOBUF).await;
    let path = format!("/api/v1/pods?watch=1&resourceVersion={}", list(&bytes).version);
    let before = resident(process);
    let opened = (0..CONNECTIONS).map(|_| async {
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
        user
    });
    let _users = join_all(opened).await;
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
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_held_watches_cost() {
    const STREAMS: usize = 500;
    let Some(pods) = pods() else { return };
    let watches = std::env::var("FIGURES_WATCHES").ok().and_then(|text| text.parse().ok());
    let connections = watches.unwrap_or(100_000) / STREAMS;
    let watches = connections * STREAMS;
    let (cluster, door, _) = filled(pods).await;
    let mut users = super::connections(&cluster, door.address, connections).await;
    for user in &mut users {
        user.read("/api/v1/namespaces/a/pods/p-000000", PROTOBUF).await;
    }
    let (before, start) = (resident(door.id()), Instant::now());
    let cpu_before = cpu(door.id());
    let opened = users.iter_mut().enumerate().map(|(place, user)| async move {
        let mut bodies = Vec::with_capacity(STREAMS);
        for stream in 0..STREAMS {
            let path = format!(
                "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                 &allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dn-{:04}",
                (place * STREAMS + stream) % NODES
            );
            let mut frames = Frames::new(user.open(&path).await.into_body());
            while frames.next(Duration::from_mins(1)).await.unwrap().kind != "BOOKMARK" {}
            bodies.push(frames);
        }
        bodies
    });
    let _bodies = join_all(opened).await;
    let each = resident(door.id()).saturating_sub(before) * 1024 / watches;
    #[allow(clippy::cast_precision_loss, reason = "for a person")]
    let each_cpu = (cpu(door.id()) - cpu_before) * 1_000.0 / watches as f64;
    println!(
        "front door: {watches} held watches of a kubelet on {connections} connections: {each} bytes \
         each beside the connections, {} KiB resident in all; begun in {:?}, cpu {each_cpu:.3} ms each",
        resident(door.id()),
        start.elapsed()
    );
}
