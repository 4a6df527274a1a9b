//! What a leader makes of shards that are silent, and a shard of messages that come late.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{node, pod, uid};
use megacluster_scheduler::core::directory::DefaultSpread;
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::queue::QueueConfig;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::protocol::{
    Answer, Operation, PodId, Refusal, Request, Reservation, Response, Target,
};
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::{Action, Coordinator, CoordinatorConfig};
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report::Report;
use megacluster_scheduler::relay::tree;
use megacluster_scheduler::shard::machine::{ShardConfig, ShardMachine};

const TTL: Duration = Duration::from_secs(90);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn shard(name: &str, membership: &Membership, incarnation: u64, nodes: &[&str]) -> ShardMachine {
    let mut machine = ShardMachine::new(ShardConfig {
        name: name.into(),
        membership: membership.clone(),
        incarnation,
        ttl: TTL,
    });
    machine.node_list_begins();
    for name in nodes {
        machine.node_applied(&node(name, 1));
    }
    machine.node_list_ends();
    machine.pod_list_begins();
    machine.pod_list_ends();
    machine
}

fn id(number: usize) -> PodId {
    PodId { uid: uid(number).into(), namespace: "d".into(), name: format!("p{number}").into() }
}

struct World {
    now: Duration,
    membership: Membership,
    leader: Coordinator,
    shards: Vec<(ShardMachine, bool)>,
    binds: Vec<(PodId, Arc<str>)>,
    reports: Vec<Report>,
    compiler: Compiler,
}

impl World {
    /// Two shards with one node of 1 CPU each.
    fn new() -> Self {
        let membership = Membership::new(0, ["a", "b"]);
        let of = |shard: &str| {
            let names = (0..).map(|i| format!("n{i}"));
            names.into_iter().find(|name| membership.owns(shard, name)).expect("one of many")
        };
        let shards = ["a", "b"].map(|name| (shard(name, &membership, 1, &[&of(name)]), true));
        let config = CoordinatorConfig {
            profile: "default-scheduler".to_owned(),
            membership: membership.clone(),
            relays: Vec::new(),
            max_binds: 8,
            deadline: ms(1000),
            queue: QueueConfig::default(),
            default_spread: DefaultSpread::default(),
            await_directory: false,
            seed: 1,
        };
        let mut leader = Coordinator::new(config, Metrics::unregistered());
        leader.lead(ms(0), 1);
        Self {
            now: ms(0),
            membership,
            leader,
            shards: shards.into(),
            binds: Vec::new(),
            reports: Vec::new(),
            compiler: Compiler::default(),
        }
    }

    fn add(&mut self, number: usize) {
        let waiting = self.compiler.waiting(&pod(number, "1"));
        self.leader.intake(self.now, Intake::Applied(Box::new(waiting)));
    }

    /// Lets time pass, with answers at once.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let mut actions = self.leader.poll(self.now);
            while let Some(action) = actions.pop() {
                match action {
                    Action::Exchange { id, request } => {
                        let response = self.answer(&request);
                        actions.extend(self.leader.exchanged(self.now, id, response));
                        actions.extend(self.leader.poll(self.now));
                    }
                    Action::Bind { pod, node } => self.binds.push((pod, node)),
                    Action::Report(report) => self.reports.push(report),
                }
            }
            self.now += ms(50);
        }
    }

    fn answer(&mut self, request: &Request) -> Response {
        let mut answered = Vec::new();
        for part in tree::split(request, &self.membership, 10) {
            let name = &part.request.targets[0].shard;
            let (machine, up) = self
                .shards
                .iter_mut()
                .find(|(machine, _)| machine.name() == name)
                .expect("a shard of ours");
            let response = if *up {
                machine.exchange(self.now, &part.request)
            } else {
                let silent = Refusal::Unreachable("silent".to_owned());
                Response::refused(&part.request.targets, &silent)
            };
            answered.push((part.places, response));
        }
        tree::join(&request.operations, answered)
    }

    fn failures(&self) -> Vec<&str> {
        let mut messages = Vec::new();
        for report in &self.reports {
            if let Report::Failed { message, .. } = report {
                messages.push(message.as_str());
            }
        }
        messages
    }
}

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
