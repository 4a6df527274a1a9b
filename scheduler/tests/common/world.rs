//! A leader and two shards with a node of one CPU each, without sockets: messages are answered at
//! once, unless a shard is silent.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::queue::QueueConfig;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::protocol::{PodId, Refusal, Request, Response};
use megacluster_scheduler::relay::coordinator::{Action, Coordinator, CoordinatorConfig};
use megacluster_scheduler::relay::evict::Order;
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::mount::MountOrder;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report::Report;
use megacluster_scheduler::relay::tree;
use megacluster_scheduler::shard::machine::{ShardConfig, ShardMachine};

use super::{node, pod, uid};

pub(crate) const TTL: Duration = Duration::from_secs(90);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn shard(
    name: &str,
    membership: &Membership,
    incarnation: u64,
    nodes: &[&str],
) -> ShardMachine {
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
    machine.without_volumes();
    machine
}

pub(crate) fn id(number: usize) -> PodId {
    PodId { uid: uid(number).into(), namespace: "d".into(), name: format!("p{number}").into() }
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) membership: Membership,
    pub(crate) leader: Coordinator,
    pub(crate) shards: Vec<(ShardMachine, bool)>,
    pub(crate) binds: Vec<(PodId, Arc<str>)>,
    pub(crate) reports: Vec<Report>,
    pub(crate) lists: u32,
    pub(crate) orders: Vec<Order>,
    pub(crate) mounts: Vec<MountOrder>,
    pub(crate) compiler: Compiler,
    /// A shard that answers so many more messages and then no more.
    pub(crate) silent_after: Option<(usize, usize)>,
}

impl World {
    /// Two shards with one node of 1 CPU each.
    pub(crate) fn new() -> Self {
        Self::holding(QueueConfig::default().max_pending)
    }

    /// The same, whose leader holds so many waiting pods at most.
    pub(crate) fn holding(max_pending: usize) -> Self {
        let membership = Membership::new(0, ["a", "b"]);
        let of = |shard: &str| {
            let names = (0..).map(|i| format!("n{i}"));
            names.into_iter().find(|name| membership.owns(shard, name)).expect("one of many")
        };
        let shards = ["a", "b"].map(|name| (shard(name, &membership, 1, &[&of(name)]), true));
        let config = CoordinatorConfig {
            membership: membership.clone(),
            relays: Vec::new(),
            max_binds: 8,
            deadline: ms(1000),
            queue: QueueConfig { max_pending, ..QueueConfig::default() },
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
            lists: 0,
            orders: Vec::new(),
            mounts: Vec::new(),
            compiler: Compiler::default(),
            silent_after: None,
        }
    }

    pub(crate) fn add(&mut self, number: usize) {
        self.show(&pod(number, "1"));
    }

    /// The watch of waiting pods shows one.
    pub(crate) fn show(&mut self, pod: &Pod) {
        let waiting = self.compiler.waiting(pod);
        self.leader.intake(self.now, Intake::Applied(Box::new(waiting)));
    }

    /// Lets time pass, with answers at once.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let actions = self.leader.poll(self.now);
            self.take(actions);
            self.now += ms(50);
        }
    }

    pub(crate) fn take(&mut self, mut actions: Vec<Action>) {
        while let Some(action) = actions.pop() {
            match action {
                Action::Exchange { id, request } => {
                    let response = self.answer(&request);
                    actions.extend(self.leader.exchanged(self.now, id, response));
                    actions.extend(self.leader.poll(self.now));
                }
                Action::Bind { pod, node } => self.binds.push((pod, node)),
                Action::Evict(order) => self.orders.push(*order),
                Action::Mount(order) => self.mounts.push(*order),
                Action::Report(report) => self.reports.push(report),
                Action::List => self.lists += 1,
            }
        }
    }

    pub(crate) fn answer(&mut self, request: &Request) -> Response {
        let mut answered = Vec::new();
        let mut silent = None;
        if let Some((shard, left)) = &mut self.silent_after {
            silent = (*left == 0).then(|| self.shards[*shard].0.name().clone());
            *left = left.saturating_sub(1);
        }
        for part in tree::split(request, &self.membership, 10) {
            let name = &part.request.targets[0].shard;
            let (machine, up) = self
                .shards
                .iter_mut()
                .find(|(machine, _)| machine.name() == name)
                .expect("a shard of ours");
            let silenced = silent.as_ref() == Some(machine.name());
            let response = if *up && !silenced {
                machine.exchange(self.now, &part.request)
            } else {
                let refusal = Refusal::Unreachable("silent".to_owned());
                Response::refused(&part.request.targets, &refusal)
            };
            answered.push((part.places, response));
        }
        tree::join(&request.operations, answered)
    }

    pub(crate) fn failures(&self) -> Vec<&str> {
        let mut messages = Vec::new();
        for report in &self.reports {
            if let Report::Failed { message, .. } = report {
                messages.push(message.as_str());
            }
        }
        messages
    }
}
