//! The world: processes, what happens in it, and when.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::queue::QueueConfig;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::protocol::{PodId, Request, Response};
use megacluster_scheduler::relay::asking::Asking;
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::{Coordinator, CoordinatorConfig};
use megacluster_scheduler::relay::evict::{Ended, EvictOutcome, Order};
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::mount::MountOutcome;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::shard::machine::{Expiring, ShardConfig, ShardMachine};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::api::{Api, budgets, node};
use crate::claims::Writing;
use crate::transcript::Transcript;
use crate::{COPIES, FAULTS_END, NODES, SHARDS, Time, ms};

/// A process that follows the apiserver.
pub(crate) struct Process<T> {
    pub(crate) state: T,
    /// Tells this run's events from an earlier run's.
    pub(crate) run: u64,
    /// How much of the history it has seen.
    pub(crate) cursor: usize,
}

pub(crate) struct Relay {
    pub(crate) coordinator: Coordinator,
    pub(crate) compiler: Compiler,
    pub(crate) term: Option<u64>,
    /// Still acts in its term although it holds the Lease no more.
    pub(crate) fenced: bool,
    /// The pods of its orders in this term, by the pod that they were evicted for.
    pub(crate) orders: BTreeMap<u32, Order>,
    /// How much of the history of claims and volumes it has seen.
    pub(crate) stored: usize,
    /// The copy of each shard that is asked.
    pub(crate) active: [usize; SHARDS],
}

pub(crate) enum Event {
    /// Things that happen by themselves.
    Chaos,
    /// A process looks at the clock.
    Wake,
    Tick,
    Watch,
    Arrive {
        exchange: u64,
        leaf: usize,
        copy: usize,
        request: Arc<Request>,
    },
    Answer {
        exchange: u64,
        leaf: usize,
        copy: usize,
        response: Response,
    },
    /// A copy is silent, or others are.
    Silence {
        exchange: u64,
        leaf: usize,
    },
    Deadline {
        exchange: u64,
    },
    BindArrives {
        pod: u32,
        node: String,
    },
    BindEnds {
        relay: usize,
        run: u64,
        pod: PodId,
        outcome: Option<BindOutcome>,
        node: String,
    },
    /// The next request of an order.
    EvictStep(Evicting),
    EvictEnds {
        evicting: Evicting,
        ended: Ended,
    },
    /// The next request of an order for claims.
    MountStep(Writing),
    MountEnds {
        writing: Writing,
        outcome: MountOutcome,
    },
    /// The controllers look at a pod's claim.
    Settle(u32),
    /// An evicted pod has ended.
    Ended(u32),
    Checked {
        shard: usize,
        run: u64,
        expiring: Expiring,
        lost: bool,
    },
    RestartShard(usize),
    RestartRelay(usize),
    Elect,
}

/// One message on its way through the tree.
pub(crate) struct Exchange {
    pub(crate) relay: usize,
    pub(crate) run: u64,
    pub(crate) id: u64,
    pub(crate) request: Request,
    pub(crate) sent: Time,
    pub(crate) leaves: Vec<Leaf>,
}

/// The part of a message that goes to one shard.
pub(crate) struct Leaf {
    pub(crate) request: Arc<Request>,
    pub(crate) shard: usize,
    pub(crate) asking: Asking,
    /// Copies that have not answered.
    pub(crate) silent: Vec<usize>,
    pub(crate) response: Option<Response>,
}

/// An order that a relay carries out.
pub(crate) struct Evicting {
    pub(crate) relay: usize,
    pub(crate) run: u64,
    pub(crate) order: Order,
    /// Whether the promise is written.
    pub(crate) promised: bool,
    /// Victims that have been told.
    pub(crate) told: usize,
    pub(crate) outcome: EvictOutcome,
}

pub(crate) struct Simulation {
    pub(crate) random: SmallRng,
    pub(crate) now: Time,
    pub(crate) sequence: u64,
    pub(crate) events: BinaryHeap<std::cmp::Reverse<(Time, u64)>>,
    pub(crate) payloads: BTreeMap<u64, Event>,
    pub(crate) api: Api,
    pub(crate) membership: Membership,
    /// The copies of the first shard, then those of the next.
    pub(crate) shards: Vec<Option<Process<ShardMachine>>>,
    pub(crate) relays: Vec<Option<Process<Relay>>>,
    pub(crate) exchanges: BTreeMap<u64, Exchange>,
    pub(crate) next_exchange: u64,
    pub(crate) runs: u64,
    pub(crate) terms: u64,
    pub(crate) next_pod: u32,
    pub(crate) wake_at: Option<Time>,
    pub(crate) transcript: Transcript,
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        let names: Vec<String> = (0..SHARDS).map(|i| format!("s{i}")).collect();
        let mut simulation = Self {
            random: SmallRng::seed_from_u64(seed),
            now: Time::ZERO,
            sequence: 0,
            events: BinaryHeap::new(),
            payloads: BTreeMap::new(),
            api: Api::default(),
            membership: Membership::new(0, &names),
            shards: (0..SHARDS * COPIES).map(|_| None).collect(),
            relays: vec![None, None],
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            runs: 0,
            terms: 0,
            next_pod: 0,
            wake_at: None,
            transcript: Transcript::default(),
        };
        simulation.api.claims.begin();
        (0..SHARDS * COPIES).for_each(|shard| simulation.start_shard(shard));
        (0..2).for_each(|relay| simulation.start_relay(relay));
        simulation.at(ms(10), Event::Elect);
        simulation.at(ms(20), Event::Chaos);
        simulation.at(ms(20), Event::Tick);
        simulation.at(ms(20), Event::Watch);
        simulation
    }

    pub(crate) fn at(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(std::cmp::Reverse((self.now + after, self.sequence)));
        self.payloads.insert(self.sequence, event);
    }

    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.random.random_range(0..1000) < per_mille
    }

    pub(crate) fn faulty(&mut self, per_mille: u32) -> bool {
        self.now < FAULTS_END && self.chance(per_mille)
    }

    pub(crate) fn start_shard(&mut self, shard: usize) {
        self.runs += 1;
        let name: Arc<str> = format!("s{}", shard / COPIES).into();
        let mut machine = ShardMachine::new(ShardConfig {
            name,
            membership: self.membership.clone(),
            incarnation: self.runs,
            ttl: Duration::from_secs(90),
        });
        machine.node_list_begins();
        (0..NODES).for_each(|number| machine.node_applied(&node(number)));
        machine.node_list_ends();
        machine.pod_list_begins();
        for (number, _) in self.api.live() {
            machine.pod_applied(&self.api.object(*number));
        }
        machine.pod_list_ends();
        machine.without_volumes();
        let cursor = self.api.history.len();
        self.shards[shard] = Some(Process { state: machine, run: self.runs, cursor });
    }

    pub(crate) fn start_relay(&mut self, relay: usize) {
        self.runs += 1;
        // Sometimes there are more pods than are held.
        let max_pending = if self.random.random_bool(0.2) { 4 } else { 1_000 };
        let config = CoordinatorConfig {
            membership: self.membership.clone(),
            relays: vec!["r8".into(), "r9".into()],
            max_binds: 8,
            deadline: Duration::from_secs(1),
            queue: QueueConfig { max_pending, ..QueueConfig::default() },
            await_directory: false,
            seed: self.random.random(),
        };
        let coordinator = Coordinator::new(config, Metrics::unregistered());
        let mut relay_state = Relay {
            coordinator,
            compiler: Compiler::default(),
            term: None,
            fenced: false,
            orders: BTreeMap::new(),
            stored: self.api.claims.history.len(),
            active: [0; SHARDS],
        };
        for change in self.api.claims.all() {
            relay_state.coordinator.intake(self.now, Intake::Storage(Box::new(change)));
        }
        relay_state.coordinator.intake(self.now, Intake::Budgets(budgets()));
        self.relays[relay] = Some(Process { state: relay_state, run: self.runs, cursor: 0 });
        self.list(relay);
    }

    /// A relay lists the pods that wait, and its watch goes on from there.
    pub(crate) fn list(&mut self, relay: usize) {
        let Some(process) = &mut self.relays[relay] else { return };
        let Relay { coordinator, compiler, .. } = &mut process.state;
        coordinator.intake(self.now, Intake::Begin);
        for (number, pod) in self.api.live() {
            if pod.node.is_none() {
                let mut waiting = compiler.waiting(&self.api.object(*number));
                waiting.version = self.api.version();
                coordinator.intake(self.now, Intake::Applied(Box::new(waiting)));
            }
        }
        coordinator.intake(self.now, Intake::End);
        process.cursor = self.api.history.len();
    }
}
