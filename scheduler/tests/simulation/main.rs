//! Relays and shards against an apiserver, all simulated with one clock and one seed: messages are
//! lost, late or answered too late; watches lag; shards and the leader crash; each shard has two
//! copies, of which one or the other is asked; an old leader goes on for a while; binds go unanswered and are carried out later. What must hold all the same: no node
//! takes more than it has, nobody believes in a bind that did not happen, no pod is forgotten, pods
//! that keep others away are left alone, and nobody is evicted but by every shard's word, for a more
//! important pod that is promised the node, and not while others already leave it for that pod; no
//! volume is meant for two claims, and no pod is bound before its claim is.
//!
//! `SIMULATION_SEEDS` sets how many seeds are run, `SIMULATION_SEED` runs a single one.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod api;
mod chaos;
mod claims;
mod course;
mod evictions;
mod messages;
mod transcript;
mod watches;
mod world;

use std::time::Duration;

use megacluster_scheduler::protocol::PodId;

use crate::world::Simulation;

type Time = Duration;

const NODES: u32 = 12;
const SLOTS: u32 = 4;
const SHARDS: usize = 3;
/// Of each shard.
const COPIES: usize = 2;
const FAULTS_END: Time = Duration::from_mins(4);
const END: Time = Duration::from_secs(640);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn number(pod: &PodId) -> u32 {
    pod.name.trim_start_matches('p').parse().expect("a pod of ours")
}

#[test]
fn nothing_is_overcommitted_believed_or_forgotten() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(seed) = variable("SIMULATION_SEED") {
        Simulation::new(seed).run();
        return;
    }
    let seeds = variable("SIMULATION_SEEDS").unwrap_or(20);
    let mut evictions: u64 = 0;
    let mut bound = (0, 0);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| Simulation::new(seed).run());
        let outcome = outcome.unwrap_or_else(|_| panic!("failed: SIMULATION_SEED={seed}"));
        evictions += u64::from(outcome.evictions);
        bound = (bound.0 + outcome.bound.0, bound.1 + outcome.bound.1);
    }
    println!("{evictions} evictions, {} claims bound, {} volumes made", bound.0, bound.1);
    assert!(evictions > seeds, "{evictions} evictions in {seeds} runs");
    assert!(u64::from(bound.0.min(bound.1)) > seeds, "{bound:?} claims in {seeds} runs");
}
