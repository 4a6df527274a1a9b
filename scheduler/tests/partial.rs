//! What a leader makes of shards that are silent, and a shard of messages that come late.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::pod;
use common::world::{TTL, World, id, ms, shard};
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::protocol::{Answer, Operation, Request, Reservation, Target};
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::Action;
use megacluster_scheduler::shard::machine::ShardMachine;

#[test]
fn nobody_is_unschedulable_while_a_shard_is_silent() {
    let mut world = World::new();
    world.pass(ms(500));
    assert_eq!(world.leader.shards_up(), (2, 2));
    world.shards[1].1 = false;
    (0..3).for_each(|number| world.add(number));
    world.pass(Duration::from_secs(20));
    // One pod goes to the shard that answers; nothing is said about the others.
    assert_eq!(world.binds.len(), 1);
    assert!(world.failures().is_empty(), "{:?}", world.failures());
    world.shards[1].1 = true;
    world.pass(Duration::from_secs(20));
    assert_eq!(world.binds.len(), 2);
    assert_eq!(world.failures().len(), 1);
    assert!(world.failures()[0].starts_with("0/2 nodes are available: 2 Insufficient cpu."));
}

#[test]
fn room_wakes_a_pod_within_a_second_or_two() {
    let mut world = World::new();
    (0..3).for_each(|number| world.add(number));
    world.pass(Duration::from_secs(3));
    assert_eq!((world.binds.len(), world.failures().len()), (2, 1));
    let (bound, _) = world.binds[0].clone();
    // The apiserver refuses the bind: the share is free again.
    world.leader.bound(world.now, &bound, BindOutcome::Gone);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.binds.len(), 3);
}

#[test]
fn a_restarted_shard_hears_of_binds_under_way() {
    let mut world = World::new();
    (0..2).for_each(|number| world.add(number));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.binds.len(), 2);
    // One bind is done, one is under way, and neither is in the lists that the new runs read.
    let (pod, _) = world.binds[0].clone();
    world.leader.bound(world.now, &pod, BindOutcome::Bound);
    for index in 0..2 {
        let (old, _) = &world.shards[index];
        let nodes: Vec<String> = old.table().node_names().map(ToString::to_string).collect();
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let name = old.name().to_string();
        world.shards[index].0 = shard(&name, &world.membership, 2, &names);
    }
    world.add(2);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.binds.len(), 2, "a node was given twice");
    assert_eq!(world.failures().len(), 1);
}

#[test]
fn pods_are_tried_again_once_the_shard_is_there() {
    let mut world = World::new();
    world.pass(ms(500));
    let (old, _) = &world.shards[1];
    let nodes: Vec<String> = old.table().node_names().map(ToString::to_string).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let name = old.name().to_string();
    // As when another copy of the shard takes over: the leader hears of it by its next message,
    // whose pods can't be decided.
    world.shards[1].0 = shard(&name, &world.membership, 2, &names);
    (0..2).for_each(|number| world.add(number));
    world.pass(ms(200));
    assert_eq!(world.binds.len(), 2, "they wait out a pause");
}

#[test]
fn pods_of_a_round_that_a_joining_shard_missed_are_tried_again() {
    let mut world = World::new();
    // Longer than a new leader waits for all shards.
    world.pass(Duration::from_secs(6));
    let (old, _) = &world.shards[1];
    let nodes: Vec<String> = old.table().node_names().map(ToString::to_string).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let name = old.name().to_string();
    world.shards[1].0 = shard(&name, &world.membership, 2, &names);
    let next = |world: &mut World| {
        let exchange = |action| match action {
            Action::Exchange { id, request } => (id, request),
            other => panic!("no message: {other:?}"),
        };
        world.leader.poll(world.now).into_iter().map(exchange).collect::<Vec<_>>()
    };
    let answer = |world: &mut World, (id, request): &(u64, Request)| {
        let response = world.answer(request);
        let actions = world.leader.exchanged(world.now, *id, response);
        world.take(actions);
    };
    world.add(0);
    let lost = next(&mut world);
    let [lost] = lost.as_slice() else { panic!("{lost:?}") };
    // Its answer tells that the shard is in a new run. Nothing is sent before the next pod is there.
    let response = world.answer(&lost.1);
    assert!(world.leader.exchanged(world.now, lost.0, response).is_empty());
    world.add(1);
    let both = next(&mut world);
    let [greeting, round] = both.as_slice() else { panic!("{both:?}") };
    assert_eq!(round.1.targets.len(), 1, "the new run is not asked yet");
    answer(&mut world, greeting);
    answer(&mut world, round);
    world.pass(ms(200));
    assert_eq!(world.binds.len(), 2, "one waits out a pause");
}

#[test]
fn one_that_steps_down_binds_no_more() {
    let mut world = World::new();
    world.pass(ms(500));
    world.leader.step_down(world.now);
    world.add(0);
    world.pass(Duration::from_secs(5));
    assert!(world.binds.is_empty());
    world.leader.lead(world.now, 2);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.binds.len(), 1);
}

fn one_shard() -> (ShardMachine, Membership) {
    let membership = Membership::new(0, ["a"]);
    (shard("a", &membership, 1, &["n"]), membership)
}

fn reservation(number: usize, token: u64) -> Reservation {
    let class = Arc::new(PodRequest::compile(&pod(number, "1")));
    Reservation { pod: id(number), node: "n".into(), class, token }
}

fn tell(shard: &mut ShardMachine, membership: &Membership, operation: Operation) -> Answer {
    let request = Request {
        term: 1,
        membership: membership.fingerprint(),
        targets: vec![Target { shard: "a".into(), incarnation: 1, changes: 0 }],
        relays: Vec::new(),
        deadline: ms(1),
        operations: vec![operation],
    };
    shard.exchange(ms(0), &request).answers.remove(0)
}

fn is_done(answer: &Answer) -> bool {
    matches!(answer, Answer::Outcome(Ok(())))
}

#[test]
fn a_late_release_undoes_no_later_reservation() {
    let (mut shard, membership) = one_shard();
    let mut tell = |operation| tell(&mut shard, &membership, operation);
    assert!(is_done(&tell(Operation::Reserve(reservation(1, 5)))));
    assert!(is_done(&tell(Operation::Reserve(reservation(1, 7)))), "repeated");
    tell(Operation::Release(reservation(1, 5).settlement()));
    assert!(!is_done(&tell(Operation::Reserve(reservation(2, 8)))), "still taken");
    tell(Operation::Release(reservation(1, 7).settlement()));
    assert!(is_done(&tell(Operation::Reserve(reservation(2, 9)))));
    // What is confirmed is not released.
    tell(Operation::Confirm(reservation(2, 9).settlement()));
    tell(Operation::Release(reservation(2, 9).settlement()));
    assert!(!is_done(&tell(Operation::Reserve(reservation(3, 10)))));
}

#[test]
fn a_release_undoes_no_earlier_reservation() {
    let (mut shard, membership) = one_shard();
    let mut tell = |operation| tell(&mut shard, &membership, operation);
    // The first bind goes unanswered and may still be carried out; the second one is refused.
    assert!(is_done(&tell(Operation::Reserve(reservation(1, 5)))));
    assert!(is_done(&tell(Operation::Reserve(reservation(1, 7)))));
    tell(Operation::Release(reservation(1, 7).settlement()));
    assert!(!is_done(&tell(Operation::Reserve(reservation(2, 8)))), "the first may still come");
    // Nor does the release of one that never arrived.
    tell(Operation::Release(reservation(1, 9).settlement()));
    assert!(!is_done(&tell(Operation::Reserve(reservation(2, 8)))));
    tell(Operation::Release(reservation(1, 5).settlement()));
    assert!(is_done(&tell(Operation::Reserve(reservation(2, 8)))));
}

#[test]
fn a_reservation_ends_when_the_apiserver_says_so_and_not_before() {
    let (mut shard, membership) = one_shard();
    assert!(is_done(&tell(&mut shard, &membership, Operation::Reserve(reservation(1, 1)))));
    assert!(shard.due(TTL.saturating_sub(ms(1))).is_empty());
    let due = shard.due(TTL);
    assert_eq!(due.len(), 1);
    assert!(shard.due(TTL).is_empty(), "asked once");
    shard.checked(TTL, &due[0], None);
    assert_eq!(shard.reservations(), 1);
    let later = TTL + Duration::from_secs(6);
    let due = shard.due(later);
    shard.checked(later, &due[0], Some(true));
    assert_eq!(shard.reservations(), 1, "bound, and not shown yet");
    let later = later + TTL;
    let due = shard.due(later);
    shard.checked(later, &due[0], Some(false));
    assert_eq!((shard.reservations(), shard.table().pod_count()), (0, 0));
}

#[test]
fn a_pod_bound_elsewhere_ends_its_reservation() {
    let membership = Membership::new(0, ["a", "b"]);
    let names: Vec<String> = (0..100).map(|i| format!("n{i}")).collect();
    let find = |shard: &str| names.iter().find(|name| membership.owns(shard, name));
    let (ours, theirs) = (find("a").expect("ours"), find("b").expect("theirs"));
    let mut shard = shard("a", &membership, 1, &[ours]);
    let reserve = Reservation { node: ours.as_str().into(), ..reservation(1, 1) };
    assert!(is_done(&tell(&mut shard, &membership, Operation::Reserve(reserve))));
    let mut bound = pod(1, "1");
    bound.spec.get_or_insert_default().node_name = Some(theirs.clone());
    shard.pod_applied(&bound);
    assert_eq!((shard.reservations(), shard.table().placement(PodUid::of(&bound))), (0, None));
}
