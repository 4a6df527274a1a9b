//! Why a pod is Pending, shard by shard.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::pod;
use common::world::World;
use megacluster_scheduler::core::maps::HashMap;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::relay::explain::{Explanation, explain};
use megacluster_scheduler::relay::fanout::{Fanout, Shard};
use megacluster_scheduler::shard::local::LocalShard;
use megacluster_scheduler::shard::machine::ShardMachine;

async fn ask(mut world: World, name: &str) -> Option<Explanation> {
    let dossier = world.leader.dossier("d", name)?;
    let local = |(machine, up): (ShardMachine, bool)| {
        let shard = LocalShard::new(machine, Metrics::unregistered());
        up.then(|| (shard.name().clone(), Shard::Local(Arc::new(shard))))
    };
    let shards = world.shards.into_iter().filter_map(local).collect();
    let metrics = Metrics::unregistered();
    let fanout = Fanout::new(world.membership, shards, HashMap::default(), 10, metrics);
    Some(explain(&fanout, dossier).await)
}

fn waiting() -> World {
    let mut world = World::new();
    let large = pod(7, "3");
    world.show(&large);
    world.pass(Duration::from_secs(3));
    world
}

#[tokio::test]
async fn each_shard_says_which_plugin_rejects_how_many_of_its_nodes() {
    let explanation = ask(waiting(), "p7").await.expect("it waits");
    assert_eq!((&*explanation.pod, &*explanation.queue), ("d/p7", "unschedulable"));
    assert_eq!((explanation.attempts, explanation.shards.len()), (1, 2));
    assert!(explanation.message.as_ref().is_some_and(|said| said.contains("2 Insufficient cpu")));
    for says in &explanation.shards {
        assert_eq!((says.nodes, says.feasible, &says.trouble), (1, 0, &None));
        let rejected = &says.rejected[0];
        assert_eq!((&*rejected.plugin, rejected.nodes), ("NodeResourcesFit", 1));
    }
    let text = explanation.to_string();
    assert!(text.contains("1 NodeResourcesFit: Insufficient cpu"), "{text}");
    let json = serde_json::to_string(&explanation).expect("JSON");
    assert_eq!(serde_json::from_str::<Explanation>(&json).expect("JSON"), explanation);
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    let mut world = waiting();
    let silent = world.shards[1].0.name().to_string();
    // The leader doesn't know yet.
    world.shards[1].1 = false;
    let explanation = ask(world, "p7").await.expect("it waits");
    let says = explanation.shards.iter().find(|says| says.shard == silent).expect("asked");
    assert!(says.trouble.is_some());
    // It does.
    let mut world = waiting();
    world.shards[1].1 = false;
    world.pass(Duration::from_secs(3));
    let explanation = ask(world, "p7").await.expect("it waits");
    assert_eq!((explanation.left_out, explanation.shards.len()), (vec![silent], 1));
}

#[tokio::test]
async fn one_that_does_not_lead_says_so_and_strangers_are_unknown() {
    let mut world = waiting();
    world.leader.step_down(world.now);
    let explanation = ask(world, "p7").await.expect("it waits");
    assert!(explanation.trouble.is_some_and(|trouble| trouble.contains("doesn't lead")));
    assert!(ask(waiting(), "p8").await.is_none());
}
