//! A relay, its shards and their surroundings. Nothing stands between relay and shards, unless the
//! wire is asked for; binds succeed at once, and the watch shows them a little later. The machines
//! are those that run in earnest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};

use super::error::SimulateError;
use super::wire::{Flying, Wire};
use super::workload::Workload;
use crate::core::directory::{self, Change, Kind};
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::core::pod::PodUid;
use crate::core::policy::Policy;
use crate::core::queue::{Moment, QueueConfig};
use crate::core::volumes::storage;
use crate::metrics::Metrics;
use crate::protocol::{PodId, Refusal, Request, Response};
use crate::relay::bind::BindOutcome;
use crate::relay::coordinator::{Action, Coordinator, CoordinatorConfig};
use crate::relay::evict::{Ended, EvictOutcome};
use crate::relay::intake::Compiler;
use crate::relay::lookup::News;
use crate::relay::mount::MountOutcome;
use crate::relay::pods::Intake;
use crate::relay::report::Report;
use crate::relay::tree;
use crate::shard::local::LocalShard;
use crate::shard::machine::{ShardConfig, ShardMachine};

/// Binds that the watch shows together.
const LAG: usize = 4096;
/// Binds under way at most, as by default.
const MAX_BINDS: usize = 1024;
/// Simulated time after which a pod that still isn't settled is given up.
const PATIENCE: Duration = Duration::from_hours(1);

/// What became of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing yet.
    #[default]
    Open,
    /// It has a node.
    Placed(Arc<str>),
    /// It has none, and why.
    Failed(Arc<str>),
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Reading waiting pods into the queue.
    pub(super) intake: Duration,
    /// The relay: queue, messages, choices, binds.
    pub(super) relay: Duration,
    /// The shards: surveys, evaluations, reservations. With the wire, how long the relay has nothing
    /// to do but to wait for them.
    pub(super) shards: Duration,
    /// What the watch shows of the binds.
    pub(super) watch: Duration,
    /// The same with the making of what it shows; nothing else happens meanwhile.
    pub(super) showing: Duration,
}

impl Spent {
    pub(super) fn deciding(self) -> Duration {
        self.relay + self.shards
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            intake: self.intake.saturating_sub(before.intake),
            relay: self.relay.saturating_sub(before.relay),
            shards: self.shards.saturating_sub(before.shards),
            watch: self.watch.saturating_sub(before.watch),
            showing: self.showing.saturating_sub(before.showing),
        }
    }
}

/// A message and its answer.
enum Asked {
    Answered(Response),
    Flying(Flying),
}

/// All of it.
pub(super) struct World {
    membership: Membership,
    shards: Vec<Arc<LocalShard>>,
    wire: Option<Wire>,
    places: HashMap<Arc<str>, usize>,
    coordinator: Coordinator,
    compiler: Compiler,
    now: Moment,
    numbers: HashMap<PodUid, u32>,
    unseen: Vec<(PodUid, Arc<str>)>,
    reasons: HashMap<String, Arc<str>>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) attempts: u64,
    pub(super) messages: u64,
    pub(super) spent: Spent,
}

impl World {
    pub(super) fn new(shards: u16, policy: &Arc<Policy>, seed: u64) -> Self {
        let names: Vec<String> = (0..shards).map(|shard| format!("shard-{shard}")).collect();
        let membership = Membership::new(0, &names);
        let shard = |name: &Arc<str>| {
            let mut machine = ShardMachine::new(ShardConfig {
                name: Arc::clone(name),
                membership: membership.clone(),
                incarnation: 1,
                ttl: Duration::from_secs(90),
            });
            machine.node_list_begins();
            machine.pod_list_begins();
            Arc::new(LocalShard::new(machine, Metrics::unregistered()))
        };
        let shards: Vec<Arc<LocalShard>> = membership.names().map(shard).collect();
        let places = shards.iter().enumerate().map(|(i, s)| (Arc::clone(s.name()), i)).collect();
        let config = CoordinatorConfig {
            membership: membership.clone(),
            relays: Vec::new(),
            max_binds: MAX_BINDS,
            deadline: Duration::from_secs(1),
            queue: QueueConfig { max_pending: usize::MAX, ..QueueConfig::default() },
            await_directory: true,
            seed,
        };
        Self {
            coordinator: Coordinator::new(config, Metrics::unregistered()),
            compiler: Compiler::new(Arc::clone(policy)),
            membership,
            shards,
            wire: None,
            places,
            now: Moment::ZERO,
            numbers: HashMap::default(),
            unseen: Vec::new(),
            reasons: HashMap::default(),
            outcomes: Vec::new(),
            attempts: 0,
            messages: 0,
            spent: Spent::default(),
        }
    }

    /// Messages go over connections from now on.
    pub(super) fn by_wire(&mut self) -> Result<(), SimulateError> {
        self.wire = Some(Wire::new(&self.shards, &self.membership)?);
        Ok(())
    }

    pub(super) fn node(&self, node: &Node) {
        let owner = self.membership.owner(node.metadata.name.as_deref().unwrap_or_default());
        // The others would only find out that it isn't theirs.
        if let Some(place) = owner.and_then(|owner| self.places.get(owner)) {
            self.shards[*place].lock().node_applied(node);
        }
    }

    pub(super) fn nodes_end(&self) {
        self.shards.iter().for_each(|shard| shard.lock().node_list_ends());
    }

    pub(super) fn running(&self, pod: &Pod) {
        for shard in &self.shards {
            shard.lock().pod_applied(pod);
        }
    }

    pub(super) fn pods_end(&self) {
        self.shards.iter().for_each(|shard| shard.lock().pod_list_ends());
    }

    pub(super) fn node_count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().table().node_count()).sum()
    }

    pub(super) fn pod_count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().table().pod_count()).sum()
    }

    /// The relay begins to lead.
    pub(super) fn lead(
        &mut self,
        mut lookups: HashMap<Kind, Vec<(directory::Key, directory::Value)>>,
        mut stored: HashMap<storage::Kind, Vec<(directory::Key, storage::Object)>>,
    ) {
        for kind in Kind::ALL {
            let objects = lookups.remove(&kind).unwrap_or_default();
            let change = Change::Replace(kind, objects);
            self.coordinator.intake(self.now, Intake::Directory(change));
        }
        for kind in storage::Kind::COUNTED {
            let objects = stored.get(&kind).cloned().unwrap_or_default();
            let change = storage::Change::Replace(kind, objects);
            self.shards.iter().for_each(|shard| shard.lock().volumes_changed(&change));
        }
        for kind in storage::Kind::ALL {
            let objects = stored.remove(&kind).unwrap_or_default();
            let change = storage::Change::Replace(kind, objects);
            self.coordinator.intake(self.now, Intake::Storage(Box::new(change)));
        }
        self.coordinator.intake(self.now, Intake::Budgets(News::All(Vec::new())));
        self.coordinator.intake(self.now, Intake::Begin);
        self.coordinator.intake(self.now, Intake::End);
        self.coordinator.lead(self.now, 1);
    }

    /// A pod waits from now on.
    pub(super) fn submit(&mut self, number: usize, pod: &Pod) {
        let begun = Instant::now();
        let waiting = self.compiler.waiting(pod);
        let uid = waiting.pending.uid;
        self.coordinator.intake(self.now, Intake::Applied(Box::new(waiting)));
        self.spent.intake += begun.elapsed();
        self.numbers.insert(uid, u32::try_from(number).unwrap_or(u32::MAX));
        if self.outcomes.len() <= number {
            self.outcomes.resize(number + 1, Outcome::Open);
        }
    }

    /// Goes on until every pod has a node or has been refused by all of them.
    pub(super) fn settle(&mut self, workload: &Workload) {
        let end = self.now + PATIENCE;
        let mut actions = VecDeque::new();
        loop {
            // The next message first, then what came of the last one, as in earnest.
            let begun = Instant::now();
            let next = self.coordinator.poll(self.now);
            self.spent.relay += begun.elapsed();
            if actions.is_empty() && next.is_empty() {
                let depths = self.coordinator.depths();
                if depths.active + depths.backoff + depths.in_flight == 0 || self.now > end {
                    break;
                }
                let wake = self.coordinator.next_wake(self.now);
                self.now = wake.max(self.now + Duration::from_millis(1));
            }
            let mut asked = Vec::new();
            for action in next {
                match action {
                    Action::Exchange { id, request } => asked.push((id, self.ask(request))),
                    other => actions.push_back(other),
                }
            }
            while let Some(action) = actions.pop_front() {
                actions.extend(self.act(action));
            }
            let begun = Instant::now();
            self.coordinator.prepare(self.now);
            self.spent.relay += begun.elapsed();
            for (id, answer) in asked {
                let response = self.answer(answer);
                let begun = Instant::now();
                actions.extend(self.coordinator.exchanged(self.now, id, response));
                self.spent.relay += begun.elapsed();
            }
            // Between messages, so that nobody decides meanwhile.
            if self.unseen.len() >= LAG {
                self.watch(workload);
            }
        }
    }

    /// The watch shows the binds since the last time.
    pub(super) fn watch(&mut self, workload: &Workload) {
        let showing = Instant::now();
        for (uid, node) in std::mem::take(&mut self.unseen) {
            let Some(number) = self.numbers.remove(&uid) else { continue };
            let mut pod = workload.pod(number as usize);
            pod.spec.get_or_insert_default().node_name = Some(node.to_string());
            let begun = Instant::now();
            for shard in &self.shards {
                shard.lock().pod_applied(&pod);
            }
            self.coordinator.intake(self.now, Intake::Gone(uid));
            self.spent.watch += begun.elapsed();
        }
        self.spent.showing += showing.elapsed();
    }

    fn act(&mut self, action: Action) -> Vec<Action> {
        match action {
            Action::Bind { pod, node } => {
                self.attempts += 1;
                let uid = PodUid::new(&pod.uid);
                self.came_to(&pod, Outcome::Placed(Arc::clone(&node)));
                self.unseen.push((uid, node));
                let begun = Instant::now();
                let actions = self.coordinator.bound(self.now, &pod, BindOutcome::Bound);
                self.spent.relay += begun.elapsed();
                actions
            }
            Action::Report(Report::Failed { pod, message, .. }) => {
                self.attempts += 1;
                let reason = self.reason(message);
                self.came_to(&pod, Outcome::Failed(reason));
                Vec::new()
            }
            Action::Mount(order) => self.coordinator.mounted(self.now, &order, MountOutcome::Ready),
            // Nobody is evicted here: the pod stays where it would wait for its victims to go.
            Action::Evict(order) => {
                let outcome = EvictOutcome {
                    ended: Ended::Done,
                    promised: None,
                    evicted: Vec::new(),
                    leaving: order.victims.clone(),
                };
                self.coordinator.evicted(self.now, &order.preemptor, outcome)
            }
            // Messages are sent before anything else is done, and here every pod is held.
            Action::Exchange { .. }
            | Action::List
            | Action::Report(Report::Scheduled { .. } | Report::Preempted { .. }) => Vec::new(),
        }
    }

    /// Sends a message. Without the wire the answer is there at once.
    fn ask(&mut self, request: Request) -> Asked {
        self.messages += 1;
        let Some(wire) = &self.wire else { return Asked::Answered(self.exchange(&request)) };
        let begun = Instant::now();
        let flying = wire.exchange(request);
        self.spent.relay += begun.elapsed();
        Asked::Flying(flying)
    }

    fn answer(&mut self, asked: Asked) -> Response {
        let begun = Instant::now();
        let response = match asked {
            Asked::Answered(response) => return response,
            Asked::Flying(flying) => flying.answer(),
        };
        self.spent.shards += begun.elapsed();
        response
    }

    fn exchange(&mut self, request: &Request) -> Response {
        let begun = Instant::now();
        let parts = tree::split(request, &self.membership, self.shards.len());
        let mut answered = Vec::with_capacity(parts.len());
        let asking = Instant::now();
        for part in parts {
            let tree::Branch::Shard(name) = &part.to else { continue };
            let response = if let Some(place) = self.places.get(name) {
                self.shards[*place].lock().exchange(self.now, &part.request)
            } else {
                let refusal = Refusal::Malformed(format!("no shard {name}"));
                Response::refused(&part.request.targets, &refusal)
            };
            answered.push((part.places, response));
        }
        let asked = asking.elapsed();
        let response = tree::join(&request.operations, answered);
        self.spent.shards += asked;
        self.spent.relay += begun.elapsed().saturating_sub(asked);
        response
    }

    fn came_to(&mut self, pod: &PodId, outcome: Outcome) {
        let number = self.numbers.get(&PodUid::new(&pod.uid));
        if let Some(place) = number.and_then(|number| self.outcomes.get_mut(*number as usize)) {
            *place = outcome;
        }
    }

    /// Pods fail for few reasons.
    fn reason(&mut self, message: String) -> Arc<str> {
        if let Some(known) = self.reasons.get(&message) {
            return Arc::clone(known);
        }
        let shared: Arc<str> = message.as_str().into();
        // Counts in messages change as nodes fill up.
        if self.reasons.len() < 10_000 {
            self.reasons.insert(message, Arc::clone(&shared));
        }
        shared
    }
}
