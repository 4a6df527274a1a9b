//! Gets, lists and watch-lists, one after the other and from many clients at once.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::{Door, NODES, connections, cpu, fill, pods, ratio, resident};
use crate::cluster::{Cluster, PROTOBUF, User};
use crate::forms::TABLE;
use crate::frames::Frames;

/// Clients that ask at once, where kubelets come in a storm.
pub(super) const STORM: usize = 50;

/// One kind of read.
pub(super) struct Read<'a> {
    pub(super) what: &'a str,
    pub(super) paths: &'a [String],
    pub(super) watch: bool,
    pub(super) accept: &'a str,
}

impl Read<'_> {
    /// Reads one; how many bytes it was, and how long it took.
    async fn one(&self, user: &mut User, path: &str) -> (usize, Duration) {
        let (start, mut bytes) = (Instant::now(), 0);
        if self.watch {
            let mut frames = Frames::new(user.open(path).await.into_body());
            while let Some(frame) = frames.next(Duration::from_secs(30)).await {
                bytes += frame.bytes.len();
                if frame.kind == "BOOKMARK" {
                    break;
                }
            }
        } else {
            bytes += user.read(path, self.accept).await.1.len();
        }
        (bytes, start.elapsed())
    }

    /// Reads all, divided among the clients.
    pub(super) async fn measure(&self, who: &str, process: u32, users: &mut [User]) {
        let (count, before) = (users.len(), cpu(process));
        let reads = users.iter_mut().enumerate().map(|(place, user)| async move {
            let mut read = Vec::new();
            for path in self.paths.iter().skip(place).step_by(count) {
                read.push(self.one(user, path).await);
            }
            read
        });
        let read: Vec<_> = join_all(reads).await.into_iter().flatten().collect();
        let mut times: Vec<_> = read.iter().map(|(_, time)| *time).collect();
        times.sort_unstable();
        let millis = |place: usize| times[times.len() * place / 100].as_secs_f64() * 1_000.0;
        #[allow(clippy::cast_precision_loss, reason = "for a person")]
        let each = (cpu(process) - before) * 1_000.0 / read.len() as f64;
        let at_once = if count > 1 { format!(", {count} at once") } else { String::new() };
        println!(
            "{:<66} cpu {each:>8.3} ms  p50 {:>8.2} ms  p99 {:>8.2} ms  {} bytes each, {} requests",
            format!("{who}: {}{at_once}", self.what),
            millis(50),
            millis(99),
            read.iter().map(|(bytes, _)| bytes).sum::<usize>() / read.len(),
            read.len()
        );
    }
}

/// What both take for each pod. The front door is started twice: without a pod, what is left is the
/// program.
async fn memory(cluster: &Cluster, pods: usize) -> Door {
    let door = Door::start(cluster, "pods", cluster.store.address).await;
    let _ = door.reader(cluster, "/api/v1/pods", 0).await;
    let (empty, stock_empty) = (resident(door.id()), resident(cluster.process()));
    drop(door);
    let start = Instant::now();
    let stored = fill(cluster, pods).await.of(0).len();
    println!("{pods} pods on {NODES} nodes, made in {:?}", start.elapsed());
    let door = Door::start(cluster, "pods", cluster.store.address).await;
    let _ = door.reader(cluster, "/api/v1/pods?resourceVersion=0", pods).await;
    let (full, stock_full) = (resident(door.id()), resident(cluster.process()));
    println!("stored bytes of a pod: {stored}");
    for (what, empty, full) in
        [("kube-apiserver", stock_empty, stock_full), ("front door", empty, full)]
    {
        let each = full.saturating_sub(empty) * 1024 / pods;
        println!(
            "{what}: resident {empty} KiB without pods, {full} KiB with them: {each} bytes each, \
             {:.2} x stored beyond what is stored",
            ratio(each.saturating_sub(stored), stored)
        );
    }
    door
}

/// A kubelet's of each node.
pub(super) fn watch_lists() -> Vec<String> {
    let one = |node| {
        format!(
            "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
             &allowWatchBookmarks=true&timeoutSeconds=600&fieldSelector=spec.nodeName%3Dn-{node:04}"
        )
    };
    (0..NODES).map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_reads_cost() {
    let Some(pods) = pods() else { return };
    let cluster = Cluster::start().await;
    let door = memory(&cluster, pods).await;
    let (stock, own) = (cluster.process(), door.id());
    let mut direct = connections(&cluster, cluster.direct_address(), STORM).await;
    let mut readers = connections(&cluster, door.address, STORM).await;
    let watches = watch_lists();
    // kube-apiserver looks at all pods for each.
    let (few, fewer) = (&watches[..200], &watches[..(2_000_000 / pods).min(200)]);
    let selected: Vec<String> =
        (0..200).map(|group| format!("/api/v1/pods?labelSelector=app%3Dg{group:05}")).collect();
    let gets: Vec<String> =
        (0..500).map(|pod| format!("/api/v1/namespaces/a/pods/p-{pod:06}")).collect();
    let whole = vec!["/api/v1/pods".to_owned(); 5];
    let json = "application/json";
    let read = |what, paths, watch, accept| Read { what, paths, watch, accept };
    let storm = |paths| read("a kubelet's watch-list", paths, true, PROTOBUF);
    storm(few).measure("front door, access not known", own, &mut readers).await;
    storm(fewer).measure("kube-apiserver", stock, &mut direct).await;
    storm(&watches).measure("front door, access not known", own, &mut readers).await;
    storm(&watches).measure("front door", own, &mut readers).await;
    for (what, paths, watch, accept) in [
        ("a kubelet's watch-list", few, true, PROTOBUF),
        ("list of 40 pods by a label", &selected, false, PROTOBUF),
        ("the same in JSON", &selected, false, json),
        ("the same as a table", &selected, false, TABLE),
        ("get of a pod", &gets, false, PROTOBUF),
        ("the same in JSON", &gets, false, json),
        ("list of all pods", &whole, false, PROTOBUF),
        ("the same in JSON", &whole, false, json),
        ("the same as a table", &whole, false, TABLE),
    ] {
        let all = read(what, paths, watch, accept);
        let less = paths.get(..2_000_000 / pods).filter(|_| watch).unwrap_or(paths);
        let one = read(what, less, watch, accept);
        one.measure("kube-apiserver", stock, &mut direct[..1]).await;
        // Once before: whether the client may read it is asked once in 10 s.
        all.measure("front door, access not known", own, &mut readers[..1]).await;
        all.measure("front door", own, &mut readers[..1]).await;
    }
}
