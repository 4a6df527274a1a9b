//! A front door that is killed while others write and many watch: for how long its clients hear
//! nothing, and whether they miss anything or hear anything twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use http_body_util::BodyExt;
use serde_json::Value;

use super::source::Writer;
use super::{Door, filled, pods};
use crate::certificates::Pair;
use crate::cluster::{Cluster, PROTOBUF};
use crate::frames::list;

const WATCHERS: usize = 50;
const WRITES: usize = 800;
const EVERY: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_a_death_costs() {
    let Some(pods) = pods() else { return };
    let (cluster, first, template) = filled(pods).await;
    let second = Door::start(&cluster, "pods", cluster.store.address).await;
    let _ = second.reader(&cluster, "/api/v1/pods?resourceVersion=0", pods).await;
    let mut user = cluster.direct(&cluster.admin()).await;
    let (_, bytes) = user.read("/api/v1/pods?limit=1", PROTOBUF).await;
    let pair = Arc::new(cluster.admin());
    let (cluster, version) = (Arc::new(cluster), list(&bytes).version);
    let addresses = [first.address, second.address];
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|_| tokio::spawn(follow((cluster.clone(), pair.clone()), addresses, version)))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut writer = Writer::connect(cluster.store.address).await;
    let mut first = Some(first);
    for write in 0..WRITES {
        if write == WRITES / 2 {
            // By SIGKILL.
            first = None;
        }
        writer.put("/registry/pods/a/p-000000".to_owned(), template.of(0)).await;
        tokio::time::sleep(EVERY).await;
    }
    drop(first);
    let mut gaps: Vec<_> = join_all(watchers).await.into_iter().map(Result::unwrap).collect();
    gaps.sort_unstable();
    println!(
        "front door: killed under {WATCHERS} watchers of {pods} pods and a write every {EVERY:?}: they \
         hear nothing for {:?} (p50), {:?} at most; of {WRITES} events none is missed or told twice",
        gaps[WATCHERS / 2],
        gaps[WATCHERS - 1]
    );
}

/// Watches at the first address until that dies, then goes on at the other; the longest time
/// between two events.
async fn follow(
    (cluster, pair): (Arc<Cluster>, Arc<Pair>),
    addresses: [SocketAddr; 2],
    from: u64,
) -> Duration {
    let (mut version, mut seen, mut gap) = (from, 0, Duration::ZERO);
    let mut last = None;
    for address in addresses {
        let mut user = cluster.at(&pair, address).await;
        let path = format!(
            "/api/v1/namespaces/a/pods?watch=1&resourceVersion={version}\
             &fieldSelector=metadata.name%3Dp-000000"
        );
        let mut body = user.open_as(&path, "application/json").await.into_body();
        let mut read = Vec::new();
        while seen < WRITES {
            let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await;
            let Some(Ok(frame)) = frame.expect("an event in time") else { break };
            read.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let text = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
                let told: u64 = text.parse().unwrap();
                assert!(told > version, "{told} after {version}");
                let now = Instant::now();
                gap = gap.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
                (version, seen) = (told, seen + 1);
            }
        }
    }
    assert_eq!(seen, WRITES, "all events, each once");
    gap
}
