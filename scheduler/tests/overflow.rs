//! More pods wait than a leader holds: none is lost, and the important ones go first.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::time::Duration;

use common::world::{World, id};
use common::{pod, uid};
use megacluster_scheduler::core::pod::PodUid;
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report::Report;

const SECOND: Duration = Duration::from_secs(1);

/// What the watch of a cluster shows in which these pods wait: a new list.
fn list(world: &mut World, waiting: &[(usize, i32)]) {
    world.lists = 0;
    world.leader.intake(world.now, Intake::Begin);
    for (number, priority) in waiting {
        show(world, *number, *priority);
    }
    world.leader.intake(world.now, Intake::End);
}

fn show(world: &mut World, number: usize, priority: i32) {
    let mut pod = pod(number, "1");
    pod.spec.get_or_insert_default().priority = Some(priority);
    world.show(&pod);
}

/// Binds succeed, and the watch says so.
fn bind(world: &mut World) -> Vec<usize> {
    let mut bound = Vec::new();
    for (pod, _) in std::mem::take(&mut world.binds) {
        world.leader.bound(world.now, &pod, BindOutcome::Bound);
        world.leader.intake(world.now, Intake::Gone(PodUid::new(&pod.uid)));
        bound.push((0..100).find(|number| id(*number) == pod).expect("one of ours"));
    }
    bound
}

#[test]
fn the_important_are_held_and_the_others_come_later() {
    let mut world = World::holding(3);
    list(&mut world, &[(1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(world.leader.left_out(), 1);
    // One of a higher priority takes the place of one that is ready, one of a lower does not.
    show(&mut world, 5, 7);
    show(&mut world, 6, -1);
    assert_eq!(world.leader.left_out(), 3);
    assert_eq!(world.leader.depths().active, 3);
    world.pass(SECOND);
    let mut bound = bind(&mut world);
    assert_eq!(bound.len(), 2, "two nodes of one CPU");
    assert!(bound.contains(&5), "{bound:?}");
    // There is room: the list is asked for once, and shows those that were left out.
    world.pass(SECOND);
    assert_eq!(world.lists, 1);
    let waiting: Vec<(usize, i32)> = [(1, 0), (2, 0), (3, 0), (4, 0), (6, -1)]
        .into_iter()
        .filter(|(number, _)| !bound.contains(number))
        .collect();
    list(&mut world, &waiting);
    assert_eq!(world.leader.left_out(), waiting.len() - 3);
    bound.clear();
}

#[test]
fn what_was_tried_in_vain_yields_to_what_was_not() {
    let mut world = World::holding(2);
    let full: Vec<(usize, i32)> = (1..=2).map(|number| (number, 0)).collect();
    list(&mut world, &full);
    world.pass(SECOND);
    assert_eq!(bind(&mut world).len(), 2);
    // The nodes are full from now on: the first ones are tried in vain.
    let waiting: Vec<(usize, i32)> = (3..=6).map(|number| (number, 0)).collect();
    list(&mut world, &waiting);
    assert_eq!(world.leader.left_out(), 2);
    world.pass(SECOND);
    assert_eq!(world.leader.depths().unschedulable, 2);
    // Without room it is listed again only after a while; then all have their turn.
    world.pass(10 * SECOND);
    assert_eq!(world.lists, 0);
    let mut tried = world.reports.len();
    world.pass(300 * SECOND);
    assert_eq!(world.lists, 1);
    list(&mut world, &waiting);
    world.pass(SECOND);
    tried = world.reports.len() - tried;
    assert!(tried > 0, "those that were left out were tried");
    // A pod that goes away is no place lost.
    for number in 3..=6 {
        world.leader.intake(world.now, Intake::Gone(PodUid::new(&uid(number))));
    }
    assert_eq!(world.leader.depths().unschedulable, 0);
}

#[test]
fn each_has_its_turn_though_none_fits() {
    let mut world = World::holding(2);
    list(&mut world, &[(1, 0), (2, 0)]);
    world.pass(SECOND);
    assert_eq!(bind(&mut world).len(), 2);
    let waiting: Vec<(usize, i32)> = (3..=11).map(|number| (number, 0)).collect();
    let mut tried = std::collections::BTreeSet::new();
    list(&mut world, &waiting);
    for _ in 0..5 {
        world.pass(SECOND);
        for report in std::mem::take(&mut world.reports) {
            if let Report::Failed { pod, .. } = report {
                tried.insert(pod.name);
            }
        }
        world.pass(30 * SECOND);
        assert_eq!(world.lists, 1, "a short list is read again soon");
        list(&mut world, &waiting);
    }
    assert_eq!(tried.len(), waiting.len(), "{tried:?}");
}

#[test]
fn who_yields_untried_has_not_had_its_turn() {
    let mut world = World::holding(2);
    list(&mut world, &[(1, 9), (2, 9)]);
    world.pass(SECOND);
    assert_eq!(bind(&mut world).len(), 2);
    // The nodes are full. The fourth is still ready when it yields to one of a higher priority, the
    // third was tried in vain when it yields to one of its own.
    list(&mut world, &[(3, 0), (4, 0)]);
    show(&mut world, 5, 7);
    world.pass(SECOND);
    assert!(!tried(&mut world).contains(&4));
    show(&mut world, 6, 0);
    world.pass(SECOND);
    assert!(tried(&mut world).contains(&6));
    // The next list comes before the third has a claim again; the fourth has not lost its own.
    world.pass(40 * SECOND);
    list(&mut world, &[(3, 0), (4, 0), (5, 7), (6, 0)]);
    world.pass(SECOND);
    let tried = tried(&mut world);
    assert!(tried.contains(&4) && !tried.contains(&3), "{tried:?}");
}

/// The pods that were found to fit nowhere since.
fn tried(world: &mut World) -> Vec<usize> {
    let failed = std::mem::take(&mut world.reports).into_iter().filter_map(|report| match report {
        Report::Failed { pod, .. } => (0..100).find(|number| id(*number) == pod),
        _ => None,
    });
    failed.collect()
}
