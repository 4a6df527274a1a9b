//! Preemption: on which of a table's nodes evicting pods of lower priority makes room, and at what
//! price (`plugins/defaultpreemption`, `framework/preemption`). Every node that eviction may help is
//! tried, where kube-scheduler tries a sample of them.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::{Deserialize, Serialize};

use super::affinity::Identity;
use super::columns::Slot;
use super::diagnosis::{Preemption, Rejections};
use super::hash;
use super::labels::Selector;
use super::maps::HashSet;
use super::nominate::{self, Delta, Effect, Nominee, Promised, Rules};
use super::pod::{PodRequest, PodUid};
use super::survey::Survey;
use super::table::{Guest, NodeTable};

/// What preemption reads of a pod on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenure {
    /// When it started, in seconds; the largest number for one that hasn't.
    pub(super) start: i64,
    /// Hash of its name; 0 where it isn't known.
    pub(super) name: u64,
    /// Being deleted because a scheduler preempts it.
    pub(super) preempted: bool,
}

impl Default for Tenure {
    fn default() -> Self {
        Self { start: i64::MAX, name: 0, preempted: false }
    }
}

impl Tenure {
    pub(super) fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let start = status.and_then(|status| status.start_time.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let target = conditions.into_iter().flatten().find(|c| c.type_ == "DisruptionTarget");
        let by_scheduler = target.is_some_and(|condition| {
            condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        });
        Self {
            start: start.map_or(i64::MAX, |start| start.0.as_second()),
            name: hash::hash(pod.metadata.name.as_deref().unwrap_or_default().as_bytes()),
            preempted: by_scheduler && pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A `PodDisruptionBudget`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    namespace: Arc<str>,
    selector: Selector,
    allowed: i32,
    /// Hashes of the names of pods whose disruption is counted already, sorted.
    disrupted: Vec<u64>,
}

impl Budget {
    /// Reads a budget; `None` for one that means no pod.
    #[must_use]
    pub fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let spec = budget.spec.as_ref()?;
        let selector = Selector::of(spec.selector.as_ref()).ok()?;
        if selector.is_everything() || selector == Selector::Nothing {
            return None;
        }
        let status = budget.status.as_ref();
        let pods = status.and_then(|status| status.disrupted_pods.as_ref());
        let names = pods.into_iter().flat_map(|pods| pods.keys());
        let mut disrupted: Vec<u64> = names.map(|name| hash::hash(name.as_bytes())).collect();
        disrupted.sort_unstable();
        Some(Self {
            namespace: budget.metadata.namespace.as_deref().unwrap_or_default().into(),
            selector,
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or_default(),
            disrupted,
        })
    }

    fn means(&self, identity: &Identity, tenure: Tenure) -> bool {
        self.namespace == identity.namespace
            && identity.labels.iter().next().is_some()
            && self.selector.matches(&identity.labels)
            && self.disrupted.binary_search(&tenure.name).is_err()
    }
}

/// A node that evictions make room on, and their price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: Arc<str>,
    /// Who has to go, the most important first.
    pub victims: Vec<PodUid>,
    /// How many of them a budget protects.
    pub violations: u64,
    /// The highest priority among them.
    pub highest: i32,
    /// The sum of their priorities, each raised by 2³¹ so that none is negative.
    pub sum: i64,
    /// The earliest start among those of the highest priority, in seconds.
    pub start: i64,
    /// Decides among equals, whatever the division into shards.
    pub lot: u64,
}

impl Candidate {
    /// The less, the better (`pickOneNodeForPreemption`).
    #[must_use]
    pub fn price(&self) -> (u64, i32, i64, usize, Reverse<i64>) {
        (self.violations, self.highest, self.sum, self.victims.len(), Reverse(self.start))
    }

    fn order(&self) -> impl Ord + '_ {
        (self.price(), Reverse(self.lot), &self.node)
    }
}

/// What is asked of a shard.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The pod that wants room.
    pub request: &'a PodRequest,
    /// Who it is.
    pub uid: PodUid,
    /// The node that it is promised already.
    pub nominated: Option<&'a str>,
    /// Pods that were evicted from that node for it: they may not look so here yet.
    pub evicted: &'a [PodUid],
    /// The survey of all shards, with domains of single nodes.
    pub survey: &'a Survey,
    /// All pods that are promised a node.
    pub nominees: &'a [Nominee],
    /// All budgets.
    pub budgets: &'a [Budget],
    /// Decides among equals; the same for all shards.
    pub seed: u64,
}

/// What a shard answers, or several together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// All nodes.
    pub nodes: u64,
    /// Nodes that take the pod as they are: it needs no preemption.
    pub feasible: u64,
    /// Nodes that no eviction helps.
    pub unresolvable: u64,
    /// Nodes without a pod of lower priority.
    pub no_victims: u64,
    /// Why the others don't take the pod even without all pods of lower priority.
    pub rejections: Rejections,
    /// The node that the pod is promised still waits for pods to end that were evicted.
    pub waiting: bool,
    /// The best node.
    pub best: Option<Candidate>,
}

impl Trial {
    /// Adds another shard's.
    pub fn absorb(&mut self, other: Self) {
        // Saturating: the numbers come from other processes.
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.feasible = self.feasible.saturating_add(other.feasible);
        self.unresolvable = self.unresolvable.saturating_add(other.unresolvable);
        self.no_victims = self.no_victims.saturating_add(other.no_victims);
        for (reason, nodes) in other.rejections {
            let count = self.rejections.entry(reason).or_default();
            *count = count.saturating_add(nodes);
        }
        self.waiting |= other.waiting;
        if let Some(theirs) = other.best {
            self.offer(theirs);
        }
    }

    /// What to say where there is no such node.
    #[must_use]
    pub fn refusal(&self) -> Preemption {
        if self.waiting {
            return Preemption::Terminating;
        }
        Preemption::Unhelpful {
            unresolvable: self.unresolvable,
            no_victims: self.no_victims,
            rejections: self.rejections.clone(),
            nodes: self.nodes,
        }
    }

    fn offer(&mut self, candidate: Candidate) {
        if self.best.as_ref().is_none_or(|best| candidate.order() < best.order()) {
            self.best = Some(candidate);
        }
    }
}

/// A pod that may have to go.
struct Victim {
    guest: Guest,
    effect: Effect,
}

/// Tries preemption on every node of the table, in thought: the table is left as it was.
#[must_use]
pub fn preempt(table: &mut NodeTable, question: &Question<'_>) -> Trial {
    let request = question.request;
    let rules = Rules::new(request, question.survey);
    let mut trial = Trial { nodes: table.node_count() as u64, ..Trial::default() };
    let nominees = nominate::by_node(table, request, Some(question.uid), question.nominees);
    let columns = table.columns();
    let slots: Vec<Slot> = match &request.pinned {
        Some(names) => names.iter().filter_map(|name| columns.find(name)).collect(),
        None => columns.slots().collect(),
    };
    trial.unresolvable = trial.nodes - slots.len() as u64;
    let nominated = question.nominated.and_then(|name| columns.find(name));
    for slot in slots {
        let promised = nominees.get(&slot).map(Vec::as_slice).unwrap_or_default();
        let promised = Promised::of(request, promised);
        let included = rules.inclusion(table.columns(), slot);
        match promised.check(table, slot, &rules, &included, &Delta::default()) {
            Ok(()) => trial.feasible += 1,
            Err((_, true)) => {
                trial.unresolvable += 1;
                continue;
            }
            Err((_, false)) => {}
        }
        let below = |guest: &Guest| guest.share.priority < request.priority;
        let guests: Vec<Guest> = table.guests(slot).filter(below).collect();
        if nominated == Some(slot) {
            let leaves =
                |guest: &Guest| guest.tenure.preempted || question.evicted.contains(&guest.uid);
            trial.waiting |= guests.iter().any(leaves);
        }
        if guests.is_empty() {
            trial.no_victims += 1;
            continue;
        }
        let mut attempt = Attempt { table, slot, rules: &rules, included, promised };
        match attempt.select(question, guests) {
            Ok(candidate) => trial.offer(candidate),
            Err(rejections) => {
                for (reason, nodes) in rejections {
                    *trial.rejections.entry(reason).or_default() += nodes;
                }
            }
        }
    }
    trial
}

/// One node.
struct Attempt<'a, 'r> {
    table: &'a mut NodeTable,
    slot: Slot,
    rules: &'a Rules<'r>,
    included: Vec<bool>,
    promised: Promised,
}

impl Attempt<'_, '_> {
    fn fits(&mut self, delta: &Delta) -> Result<(), Rejections> {
        self.promised
            .check(self.table, self.slot, self.rules, &self.included, delta)
            .map_err(|(rejections, _)| rejections)
    }

    /// `SelectVictimsOnNode`: all pods of lower priority go, then as many as possible come back,
    /// first those that a budget protects, the most important first.
    fn select(
        &mut self,
        question: &Question<'_>,
        guests: Vec<Guest>,
    ) -> Result<Candidate, Rejections> {
        let request = question.request;
        let effect = |guest: &Guest| {
            let identity = self.table.population().identity(guest.identity);
            let effect = identity.map(|identity| Effect::of(request, identity));
            effect.unwrap_or_default().mounting(request, guest.share.mounts.as_ref())
        };
        let mut victims: Vec<Victim> =
            guests.into_iter().map(|guest| Victim { effect: effect(&guest), guest }).collect();
        victims.sort_by_key(|victim| importance(&victim.guest));
        let mut delta = Delta::default();
        for victim in &victims {
            self.table.columns_mut().subtract(self.slot, &victim.guest.share);
            delta.add(&victim.effect, -1);
        }
        if let Err(rejections) = self.fits(&delta) {
            for victim in &victims {
                self.table.columns_mut().add(self.slot, &victim.guest.share);
            }
            return Err(rejections);
        }
        let protected = self.protected(question.budgets, &victims);
        let mut gone: Vec<usize> = Vec::new();
        let mut violations = 0;
        let order = protected.iter().copied();
        let free = (0..victims.len()).filter(|number| !protected.contains(number));
        let order: Vec<usize> = order.chain(free).collect();
        for number in order {
            let victim = &victims[number];
            self.table.columns_mut().add(self.slot, &victim.guest.share);
            delta.add(&victim.effect, 1);
            if self.fits(&delta).is_err() {
                self.table.columns_mut().subtract(self.slot, &victim.guest.share);
                delta.add(&victim.effect, -1);
                gone.push(number);
                violations += u64::from(protected.contains(&number));
            }
        }
        gone.sort_unstable();
        for number in &gone {
            self.table.columns_mut().add(self.slot, &victims[*number].guest.share);
        }
        let gone: Vec<&Guest> = gone.into_iter().map(|number| &victims[number].guest).collect();
        let Some(first) = gone.first() else { return Err(Rejections::default()) };
        let name = Arc::clone(self.table.columns().name(self.slot));
        let raised = |guest: &&Guest| i64::from(guest.share.priority) + (1 << 31);
        Ok(Candidate {
            violations,
            highest: first.share.priority,
            sum: gone.iter().map(raised).sum(),
            // The most important is the earliest of the highest priority.
            start: first.tenure.start,
            victims: gone.iter().map(|guest| guest.uid).collect(),
            lot: hash::mix(question.seed ^ hash::hash(name.as_bytes())),
            node: name,
        })
    }

    /// Those whose eviction a budget doesn't allow any more, by place (`filterPodsWithPDBViolation`).
    fn protected(&self, budgets: &[Budget], victims: &[Victim]) -> Vec<usize> {
        let namespaces: HashSet<&Arc<str>> = victims
            .iter()
            .filter_map(|v| self.table.population().identity(v.guest.identity))
            .map(|identity| &identity.namespace)
            .collect();
        let concerned = budgets.iter().filter(|budget| namespaces.contains(&budget.namespace));
        let mut left: Vec<(&Budget, i64)> =
            concerned.map(|budget| (budget, i64::from(budget.allowed))).collect();
        let mut protected = Vec::new();
        for (number, victim) in victims.iter().enumerate() {
            let guest = &victim.guest;
            let Some(identity) = self.table.population().identity(guest.identity) else { continue };
            let mut violated = false;
            for (_, left) in left.iter_mut().filter(|(b, _)| b.means(identity, guest.tenure)) {
                *left -= 1;
                violated |= *left < 0;
            }
            if violated {
                protected.push(number);
            }
        }
        protected
    }
}

/// The most important first: higher priority, then longer there (`MoreImportantPod`).
fn importance(guest: &Guest) -> (Reverse<i32>, i64, PodUid) {
    (Reverse(guest.share.priority), guest.tenure.start, guest.uid)
}
