//! Leadership under everything that happens: candidates with clocks of their own, an apiserver
//! and connections between them are simulated, and broken in every way, by seed.
//!
//! `MEGACLUSTER_SEEDS=100000 cargo test -p megacluster-service --test leadership` runs more of
//! them; `MEGACLUSTER_SEED=7` one, and prints what happens.
#![cfg(feature = "leadership")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "leadership/chaos.rs"]
mod chaos;
#[path = "leadership/connections.rs"]
mod connections;
#[path = "leadership/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Event, MS, SECOND, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `test` with many seeds on all cores.
fn seeds(default: u64, test: impl Fn(u64) + Sync) {
    if let Some(seed) = number("MEGACLUSTER_SEED") {
        return test(seed);
    }
    let (count, next) = (number("MEGACLUSTER_SEEDS").unwrap_or(default), AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    test(seed);
                }
            });
        }
    });
}

/// Whatever happens: never two actors at one instant, never two in one epoch, never an old epoch
/// after a new one; and when it is over, one leads again within the bound.
#[test]
fn never_two_and_always_one_again() {
    seeds(40_000, |seed| {
        let mut world = World::new(seed, 2 + (seed % 2) as usize);
        let until = chaos::plan(&mut world);
        world.run_until(until);
        world.calm();
        let bound = world.bound();
        world.run_while(until + bound, |world| world.actor().is_none());
        assert!(
            world.actor().is_some(),
            "seed {seed}: nobody leads {bound} us after the last fault"
        );
    });
}

/// From a steady state: how long nobody acts.
fn gap(world: &mut World, fault: impl FnOnce(&mut World, usize)) -> u64 {
    let steady = world.now() + 20 * SECOND;
    world.run_while(steady, |world| !world.steady());
    assert!(world.steady(), "never steady");
    let (old, at) = (world.actor().unwrap(), world.now());
    fault(world, old);
    world.run_while(at + 20 * SECOND, |world| world.actor().is_none_or(|actor| actor == old));
    assert!(world.actor().is_some_and(|actor| actor != old), "nobody took over");
    world.now() - at
}

#[test]
fn a_death_costs_no_more_than_the_calls() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        let took = gap(&mut world, World::crash);
        assert!(took < 200 * MS, "seed {seed}: {took} us");
    });
}

#[test]
fn a_handover_costs_one_write() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        world.run_while(20 * SECOND, |world| !world.steady());
        // The standby has seen what the leader wrote last.
        let seen = world.now() + 300 * MS;
        world.run_until(seen);
        let took = gap(&mut world, World::terminate);
        // A line to the standby, and a request and its answer; a look as well would be 16 ms more.
        assert!(took < 25 * MS, "seed {seed}: {took} us");
    });
}

#[test]
fn a_silent_leader_costs_little_more_than_the_delay() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        let took = gap(&mut world, |world, leader| world.pause(leader, 30 * SECOND));
        assert!(took < 1_300 * MS, "seed {seed}: {took} us");
    });
}

/// The standby can't reach the leader, but both reach the apiserver: the leader goes on.
#[test]
fn a_cut_between_them_changes_nothing() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        world.run_while(20 * SECOND, |world| !world.steady());
        let (leader, epoch) = (world.actor().unwrap(), world.epoch());
        world.cut(0, 1, 60 * SECOND);
        let end = world.now() + 30 * SECOND;
        world.run_until(end);
        assert_eq!((world.actor(), world.epoch()), (Some(leader), epoch), "seed {seed}");
        // And once it is dead, the Lease's duration bounds the gap.
        let at = world.now();
        world.crash(leader);
        world.run_while(at + 20 * SECOND, |world| world.actor().is_none());
        assert!(world.now() - at < 6_500 * MS, "seed {seed}: {} us", world.now() - at);
    });
}

/// The reverse: they reach each other, but the leader does not reach the apiserver.
#[test]
fn a_leader_without_the_apiserver_is_replaced() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        let took = gap(&mut world, |world, leader| world.isolate(leader, 60 * SECOND));
        assert!(took < 7 * SECOND, "seed {seed}: {took} us");
    });
}

#[test]
fn nobody_leads_without_the_apiserver_and_one_does_after() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        world.run_while(20 * SECOND, |world| !world.steady());
        let at = world.now();
        world.outage(at, 30 * SECOND);
        world.run_until(at + 4 * SECOND);
        assert_eq!(world.actor(), None, "seed {seed}: somebody leads blindly");
        world.run_until(at + 30 * SECOND - 1);
        assert_eq!(world.actor(), None, "seed {seed}");
        let back = at + 30 * SECOND;
        world.run_while(back + 10 * SECOND, |world| world.actor().is_none());
        assert!(world.now() - back < 3 * SECOND, "seed {seed}: {} us", world.now() - back);
    });
}

#[test]
fn a_deleted_lease_comes_back_with_a_new_epoch() {
    seeds(200, |seed| {
        let mut world = World::new(seed, 2);
        world.calm();
        world.run_while(20 * SECOND, |world| !world.steady());
        let (at, epoch) = (world.now(), world.epoch());
        world.at(at, Event::Delete);
        world.run_until(at + 2 * SECOND);
        world.run_while(at + 10 * SECOND, |world| world.actor().is_none());
        assert!(world.epoch() > epoch, "seed {seed}");
        assert!(world.now() - at < 6 * SECOND, "seed {seed}: {} us", world.now() - at);
    });
}
