//! Reads that come alone, one after the other: what is left is waking, the question to the store
//! and the way through the door. `FIGURES_ROUNDS` repeats each, for a profiler.

use super::reads::{Read, STORM, watch_lists};
use super::{connections, filled, pods};
use crate::cluster::PROTOBUF;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_lone_reads_cost() {
    let Some(pods) = pods() else { return };
    let rounds = std::env::var("FIGURES_ROUNDS").ok().and_then(|text| text.parse().ok());
    let (cluster, door, _) = filled(pods).await;
    let mut readers = connections(&cluster, door.address, STORM).await;
    let watches = watch_lists();
    let gets: Vec<String> =
        (0..1_000).map(|pod| format!("/api/v1/namespaces/a/pods/p-{pod:06}")).collect();
    let read = |what, paths, watch| Read { what, paths, watch, accept: PROTOBUF };
    for (what, paths, watch) in
        [("a kubelet's watch-list", &watches, true), ("get of a pod", &gets, false)]
    {
        let all = read(what, paths, watch);
        let unknown = "front door, access not known";
        all.measure(unknown, door.id(), &mut readers).await;
        all.measure("front door", door.id(), &mut readers).await;
        all.measure(unknown, door.id(), &mut readers[..1]).await;
        for _ in 0..rounds.unwrap_or(3) {
            all.measure("front door", door.id(), &mut readers[..1]).await;
        }
    }
}
