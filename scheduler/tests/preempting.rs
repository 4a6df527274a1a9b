//! A leader whose pods fit nowhere unless others go: whom it has leave, when, and who gets the
//! room.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::time::Duration;

use common::world::{World, id, ms};
use common::{pod, uid};
use k8s_openapi::api::core::v1::Pod;
use megacluster_scheduler::core::pod::PodUid;
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::evict::{Ended, EvictOutcome};
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report::Report;

const SECOND: Duration = Duration::from_secs(1);

fn of_priority(number: usize, priority: i32) -> Pod {
    let mut pod = pod(number, "1");
    pod.spec.get_or_insert_default().priority = Some(priority);
    pod
}

/// A full cluster: pods 0 and 1, of priority 1 and 2, on the two nodes. Returns the nodes.
fn full() -> (World, [String; 2]) {
    let mut world = World::new();
    let nodes = [0, 1].map(|shard: usize| {
        let (machine, _) = &world.shards[shard];
        machine.table().node_names().next().expect("its node").to_string()
    });
    for (number, node) in nodes.iter().enumerate() {
        let mut there = of_priority(number, i32::try_from(number).expect("few") + 1);
        there.spec.get_or_insert_default().node_name = Some(node.clone());
        world.shards.iter_mut().for_each(|(shard, _)| shard.pod_applied(&there));
    }
    (world, nodes)
}

impl World {
    fn leave(&mut self, number: usize, node: &str) {
        let mut gone = pod(number, "1");
        gone.spec.get_or_insert_default().node_name = Some(node.to_owned());
        self.shards.iter_mut().for_each(|(shard, _)| shard.pod_deleted(&gone));
    }

    fn ended(&mut self, pod: usize, ended: Ended, leaving: &[usize]) {
        let outcome = EvictOutcome {
            ended,
            promised: None,
            evicted: leaving.iter().map(|number| id(*number)).collect(),
            leaving: leaving.iter().map(|number| PodUid::new(&uid(*number))).collect(),
        };
        let actions = self.leader.evicted(self.now, &id(pod), outcome);
        self.take(actions);
    }
}

#[test]
fn the_least_important_goes_and_its_room_is_kept_for_whom_it_went() {
    let (mut world, nodes) = full();
    world.show(&of_priority(5, 10));
    world.pass(SECOND);
    assert_eq!(world.orders.len(), 1);
    let order = world.orders[0].clone();
    assert_eq!((order.preemptor, &*order.node), (id(5), &*nodes[0]));
    assert_eq!((order.victims, order.priority), (vec![PodUid::new(&uid(0))], 10));
    // Said as kube-scheduler says it of a pod that waits for its victims.
    assert_eq!(world.failures(), ["0/2 nodes are available: 2 Insufficient cpu."]);
    // Nothing more happens until the requests are sent, nor until the victim has left.
    world.pass(5 * SECOND);
    world.ended(5, Ended::Done, &[0]);
    let told = |report: &&Report| matches!(report, Report::Preempted { .. });
    assert_eq!(world.reports.iter().filter(told).count(), 1);
    world.pass(400 * SECOND);
    assert_eq!((world.orders.len(), world.binds.len()), (1, 0));
    let last = *world.failures().last().expect("tried again");
    assert!(
        last.ends_with("not eligible due to a terminating pod on the nominated node."),
        "{last}"
    );
    // A less important pod doesn't get the room.
    world.show(&of_priority(6, 9));
    world.leave(0, &nodes[0]);
    world.pass(20 * SECOND);
    assert_eq!(world.binds, [(id(5), nodes[0].as_str().into())]);
}

#[test]
fn nobody_is_evicted_while_a_shard_is_silent() {
    let (mut world, _) = full();
    world.pass(SECOND);
    world.shards[1].1 = false;
    world.show(&of_priority(5, 10));
    world.pass(60 * SECOND);
    assert!(world.orders.is_empty() && world.failures().is_empty());
    world.shards[1].1 = true;
    world.pass(20 * SECOND);
    assert_eq!(world.orders.len(), 1);
}

#[test]
fn a_shard_that_falls_silent_between_two_questions_spares_all() {
    let (mut world, _) = full();
    world.pass(SECOND);
    world.show(&of_priority(5, 10));
    // Evaluation and survey are answered, the question of whom to evict is not.
    world.silent_after = Some((1, 2));
    world.pass(ms(50));
    assert!(world.orders.is_empty() && world.failures().is_empty());
    world.silent_after = None;
    world.pass(20 * SECOND);
    assert_eq!(world.orders.len(), 1);
}

#[test]
fn a_policy_of_never_evicts_nobody_and_equals_stay() {
    let (mut world, _) = full();
    let mut never = of_priority(5, 10);
    never.spec.get_or_insert_default().preemption_policy = Some("Never".to_owned());
    world.show(&never);
    world.show(&of_priority(6, 1));
    world.pass(5 * SECOND);
    assert!(world.orders.is_empty());
    let failures = world.failures();
    let said = |text: &str| failures.iter().any(|message| message.contains(text));
    assert!(said("preemption: not eligible due to preemptionPolicy=Never."), "{failures:?}");
    assert!(said("2 No preemption victims found for incoming pod"), "{failures:?}");
}

#[test]
fn a_leader_counts_promises_that_it_did_not_make() {
    let (mut world, nodes) = full();
    let mut promised = of_priority(5, 10);
    promised.status.get_or_insert_default().nominated_node_name = Some(nodes[1].clone());
    world.show(&promised);
    // The last leader's victim has left already: the other node's pod need not go.
    world.leave(1, &nodes[1]);
    world.show(&of_priority(6, 9));
    world.pass(SECOND);
    assert_eq!(world.binds, [(id(5), nodes[1].as_str().into())]);
    assert!(world.orders.iter().all(|order| order.preemptor == id(6)));
}

#[test]
fn a_less_important_pod_loses_its_promise_and_is_told() {
    let (mut world, nodes) = full();
    world.show(&of_priority(5, 3));
    world.pass(SECOND);
    world.ended(5, Ended::Done, &[0]);
    world.show(&of_priority(6, 10));
    world.pass(SECOND);
    let order = world.orders[1].clone();
    assert_eq!((order.preemptor, &*order.node), (id(6), &*nodes[0]));
    assert_eq!(order.withdrawn, [id(5)]);
    // Until that is written it has nobody else leave: its new promise might be taken back instead.
    world.pass(400 * SECOND);
    assert_eq!(world.orders.len(), 2);
    world.ended(6, Ended::Done, &[0]);
    world.pass(400 * SECOND);
    let order = world.orders[2].clone();
    assert_eq!((order.preemptor, &*order.node), (id(5), &*nodes[1]));
}

#[test]
fn what_came_to_nothing_is_tried_again() {
    let (mut world, nodes) = full();
    world.show(&of_priority(5, 10));
    world.pass(SECOND);
    world.ended(5, Ended::Failed("busy".to_owned()), &[]);
    world.pass(20 * SECOND);
    assert_eq!(world.orders.len(), 2);
    // One that is deleted meanwhile leaves nothing behind: the room is anybody's.
    world.leader.intake(world.now, Intake::Gone(PodUid::new(&uid(5))));
    world.ended(5, Ended::Gone, &[]);
    world.leave(0, &nodes[0]);
    world.show(&of_priority(6, 0));
    world.pass(2 * SECOND);
    assert_eq!(world.binds.len(), 1);
    assert!(world.leader.depths().in_flight <= 1);
    world.leader.bound(world.now, &id(6), BindOutcome::Bound);
    assert!(world.leader.is_idle());
}

#[test]
fn one_that_steps_down_evicts_no_more() {
    let (mut world, _) = full();
    world.show(&of_priority(5, 10));
    world.leader.step_down(world.now);
    world.pass(10 * SECOND);
    assert!(world.orders.is_empty());
    world.leader.lead(world.now, 2);
    world.pass(SECOND);
    assert_eq!(world.orders.len(), 1);
    world.leader.step_down(world.now);
    world.ended(5, Ended::Fenced, &[]);
    world.leader.lead(world.now, 3);
    world.pass(20 * SECOND);
    assert_eq!(world.orders.len(), 2);
}
