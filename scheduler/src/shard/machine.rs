//! A shard without I/O: the nodes it owns, what is taken on them, and the answers to a relay.
//!
//! A reservation is never dropped on a guess. It ends when the watch shows the pod somewhere, when
//! all that it was made by, again and again perhaps, have released it, or when its time is up and the apiserver says that the pod
//! is not bound to the node ([`ShardMachine::due`], [`ShardMachine::checked`]).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::core::event::{EventSet, KINDS};
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::core::pod::{PodRequest, PodUid};
use crate::core::pool::{Asked, Pool};
use crate::core::preempt::preempt;
use crate::core::queue::Moment;
use crate::core::search;
use crate::core::survey::Survey;
use crate::core::table::{NodeTable, Stage, Unfit};
use crate::core::volumes::storage::{Change, Kind};
use crate::protocol::{Answer, Incarnation, Operation, PodId, Refusal, Request, Reservation};
use crate::protocol::{Response, ShardReport};

/// Time since the process began.
pub type Time = Moment;

/// Reservations that a shard holds at most; more are refused.
const MAX_RESERVATIONS: usize = 100_000;
/// Pods that one evaluation looks ahead for at most.
const MAX_AHEAD: u32 = 256;
/// A term is forgotten when its leader has been silent for this long: the Lease may have been
/// deleted, which starts the terms anew. Much longer than any Lease lasts.
const TERM_MEMORY: Duration = Duration::from_mins(2);
/// Claims to one reservation that are told apart; with more it is left to expire.
const MAX_CLAIMS: usize = 16;
/// Pause before an apiserver that did not answer is asked again about a reservation.
const RECHECK: Duration = Duration::from_secs(5);

/// Who a shard is.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its name, one of the membership's.
    pub name: Arc<str>,
    /// All shards.
    pub membership: Membership,
    /// This run.
    pub incarnation: Incarnation,
    /// A reservation's time to live. Must be well above the time that a relay spends on a bind and
    /// above the apiserver's request time-out (60 s): a bind may be carried out that late.
    pub ttl: Duration,
}

#[derive(Debug)]
struct Held {
    pod: PodId,
    node: Arc<str>,
    /// The tokens that it was made by and that were not released. The bind of an earlier one may
    /// have gone unanswered and still be carried out when that of a later one is known to have
    /// failed.
    claims: Vec<u64>,
    class: Arc<PodRequest>,
    /// The relay says that the pod is bound; the watch has not shown it.
    confirmed: bool,
    expires: Time,
    checking: bool,
}

/// A reservation whose time is up: ask the apiserver whether the pod is bound to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiring {
    /// Which pod.
    pub pod: PodId,
    /// Where it has a share.
    pub node: Arc<str>,
}

/// The shard.
#[derive(Debug)]
pub struct ShardMachine {
    config: ShardConfig,
    table: NodeTable,
    nodes_synced: bool,
    pods_synced: bool,
    term: u64,
    term_at: Time,
    last_token: u64,
    held: HashMap<PodUid, Held>,
    /// Reservations on other nodes that a pod has beside its last one, by the names under which they
    /// are held.
    others: HashMap<PodUid, Vec<PodUid>>,
    /// Counts changes that may help a waiting pod, and when each kind came last.
    changes: u64,
    last_change: [u64; KINDS],
}

impl ShardMachine {
    /// A shard that knows nothing yet.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        Self {
            config,
            table: NodeTable::new(),
            nodes_synced: false,
            pods_synced: false,
            term: 0,
            term_at: Time::ZERO,
            last_token: 0,
            held: HashMap::default(),
            others: HashMap::default(),
            changes: 0,
            last_change: [0; KINDS],
        }
    }

    /// The shard's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Whether all nodes and pods have been read, and what pods' volumes hang on.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.nodes_synced && self.pods_synced && self.table.knows_volumes()
    }

    /// The nodes and what is taken on them.
    #[must_use]
    pub fn table(&self) -> &NodeTable {
        &self.table
    }

    /// Reservations without a known binding.
    #[must_use]
    pub fn reservations(&self) -> usize {
        self.held.len()
    }

    /// A list of all nodes begins.
    pub fn node_list_begins(&mut self) {
        self.table.begin_node_list();
    }

    /// A list of all nodes is complete.
    pub fn node_list_ends(&mut self) {
        self.table.end_node_list();
        self.table.prepare();
        self.nodes_synced = true;
    }

    /// A node is there, in this version.
    pub fn node_applied(&mut self, node: &Node) {
        let Some(name) = node.metadata.name.as_deref() else { return };
        if self.owns(name) {
            let events = self.table.upsert_node(node);
            self.changed(events);
        }
    }

    /// A node is gone.
    pub fn node_deleted(&mut self, name: &str) {
        if self.owns(name) {
            let events = self.table.remove_node(name);
            self.changed(events);
        }
    }

    /// A list of all assigned pods begins.
    pub fn pod_list_begins(&mut self) {
        self.table.begin_pod_list();
    }

    /// A list of all assigned pods is complete.
    pub fn pod_list_ends(&mut self) {
        let events = self.table.end_pod_list();
        self.table.prepare();
        self.changed(events);
        self.pods_synced = true;
    }

    /// A pod is there, in this version. The shard must be told of pods on all nodes: one that is
    /// bound elsewhere ends its reservation here.
    pub fn pod_applied(&mut self, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if node.is_empty() {
            return;
        }
        let uid = PodUid::of(pod);
        self.forget_others(uid);
        let events = if self.owns(node) {
            self.table.upsert_pod(pod)
        } else if self.held.contains_key(&uid) {
            self.table.forget(uid)
        } else {
            return;
        };
        self.held.remove(&uid);
        self.changed(events);
    }

    /// A pod is gone or has ended.
    pub fn pod_deleted(&mut self, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let uid = PodUid::of(pod);
        if self.owns(node) || self.held.contains_key(&uid) {
            self.held.remove(&uid);
            let events = self.table.remove_pod(uid);
            self.changed(events);
        }
        self.forget_others(uid);
    }

    /// News of what pods' volumes hang on. What isn't of a node is kept whosever it is.
    pub fn volumes_changed(&mut self, change: &Change) {
        let config = &self.config;
        let owns = |node: &str| config.membership.owns(&config.name, node);
        let events = self.table.apply_volumes(change, owns);
        self.changed(events);
    }

    /// There are no volumes, claims or drivers.
    pub fn without_volumes(&mut self) {
        for kind in Kind::COUNTED {
            self.volumes_changed(&Change::Replace(kind, Vec::new()));
        }
    }

    /// Answers a relay.
    pub fn exchange(&mut self, now: Time, request: &Request) -> Response {
        let mine = request.targets.iter().find(|target| target.shard == self.config.name);
        let Some(target) = mine else {
            let refusal = Refusal::Malformed(format!("this is shard {}", self.config.name));
            return Response::refused(&request.targets, &refusal);
        };
        let refusal = self.refusal(now, request, target.incarnation);
        let answers = match refusal {
            None => request.operations.iter().map(|o| self.carry_out(now, o)).collect(),
            Some(_) => Vec::new(),
        };
        let report = ShardReport {
            shard: self.config.name.clone(),
            incarnation: self.config.incarnation,
            changes: self.changes,
            events: self.events_since(target.changes),
            keeps_domains_free: self.table.keeps_domains_free(),
            last_token: self.last_token,
            pools: true,
            refusal,
        };
        Response { shards: vec![report], answers }
    }

    /// Reservations whose time is up, each given once until [`Self::checked`] is called for it.
    pub fn due(&mut self, now: Time) -> Vec<Expiring> {
        let up = |held: &&mut Held| held.expires <= now && !held.checking;
        self.held
            .values_mut()
            .filter(up)
            .map(|held| {
                held.checking = true;
                Expiring { pod: held.pod.clone(), node: held.node.clone() }
            })
            .collect()
    }

    /// What the apiserver says about a reservation whose time is up: `None` when it doesn't answer.
    /// The answer must be newer than the call of [`Self::due`].
    pub fn checked(&mut self, now: Time, expired: &Expiring, bound: Option<bool>) {
        let Some(uid) = self.holds(&expired.pod.uid, &expired.node) else { return };
        let Some(held) = self.held.get_mut(&uid) else { return };
        held.checking = false;
        match bound {
            // Renewed meanwhile by a relay that tries again.
            _ if held.expires > now => {}
            None => held.expires = now + RECHECK,
            // The watch will show it, or that it is gone.
            Some(true) => {
                held.confirmed = true;
                held.expires = now + self.config.ttl;
            }
            Some(false) => self.give_up(uid, &expired.pod.uid),
        }
    }

    fn owns(&self, node: &str) -> bool {
        self.config.membership.owns(&self.config.name, node)
    }

    fn changed(&mut self, events: EventSet) {
        if events.is_empty() {
            return;
        }
        self.changes += 1;
        for (bit, last) in self.last_change.iter_mut().enumerate() {
            if events.bits() & (1 << bit) != 0 {
                *last = self.changes;
            }
        }
    }

    fn events_since(&self, changes: u64) -> EventSet {
        // A count from another run says nothing.
        if changes > self.changes {
            return EventSet::ALL;
        }
        let later = self.last_change.iter().enumerate().filter(|(_, last)| **last > changes);
        EventSet::from_bits(later.fold(0, |bits, (bit, _)| bits | (1 << bit)))
    }

    fn refusal(&mut self, now: Time, request: &Request, known: Incarnation) -> Option<Refusal> {
        let membership = self.config.membership.fingerprint();
        if request.membership != membership {
            return Some(Refusal::StaleMembership { current: membership });
        }
        if request.term < self.term && now.saturating_sub(self.term_at) < TERM_MEMORY {
            return Some(Refusal::StaleTerm { current: self.term });
        }
        self.term = request.term;
        self.term_at = now;
        if !self.is_synced() {
            return Some(Refusal::NotSynced);
        }
        (known != self.config.incarnation).then_some(Refusal::NewIncarnation)
    }

    fn carry_out(&mut self, now: Time, operation: &Operation) -> Answer {
        match operation {
            Operation::Survey { class, full } => {
                Answer::Survey(Box::new(search::survey(&mut self.table, class, *full)))
            }
            Operation::Evaluate { class, seed, count, survey, nominees } => {
                let survey = survey.as_deref();
                let ahead = self.ahead(*count, survey);
                let table = &mut self.table;
                let evaluation = search::look_ahead(table, class, *seed, survey, ahead, nominees);
                Answer::Evaluations(vec![evaluation])
            }
            Operation::Draw { asked, seed } => Answer::Pool(Box::new(self.draw(asked, *seed))),
            Operation::Preempt(asked) => {
                Answer::Trial(Box::new(preempt(&mut self.table, &asked.question())))
            }
            Operation::Reserve(reservation) => Answer::Outcome(self.reserve(now, reservation)),
            Operation::Restore(reservation) => Answer::Outcome(self.restore(now, reservation)),
            // The bind is a fact, whichever reservation it came from. It still expires: the pod
            // may have been deleted before this run of the shard read its list.
            Operation::Confirm(settlement) => {
                let uid = self.holds(&settlement.uid, &settlement.node);
                if let Some(held) = uid.and_then(|uid| self.held.get_mut(&uid)) {
                    held.confirmed = true;
                }
                Answer::Outcome(Ok(()))
            }
            Operation::Release(settlement) => {
                if let Some(uid) = self.holds(&settlement.uid, &settlement.node)
                    && let Some(held) = self.held.get_mut(&uid)
                    && held.release(settlement.token)
                {
                    self.give_up(uid, &settlement.uid);
                }
                Answer::Outcome(Ok(()))
            }
        }
    }

    fn draw(&mut self, asked: &[Asked], seed: u64) -> Pool {
        let ahead = |asked: &Asked| self.ahead(asked.count, asked.survey.as_deref());
        let ahead: Vec<usize> = asked.iter().map(ahead).collect();
        Pool::of(&mut self.table, asked, &ahead, seed)
    }

    /// How far to look ahead where so many pods wait: about as far as the share of them goes that
    /// falls to this shard and, where they are spread, to one domain, and somewhat further, since
    /// shares are never even.
    fn ahead(&self, count: u32, survey: Option<&Survey>) -> usize {
        let count = usize::try_from(count.clamp(1, MAX_AHEAD)).unwrap_or(1);
        let domains = survey.and_then(|survey| survey.hard.first()).map_or(1, |s| s.domains.len());
        let share = count.div_ceil(self.config.membership.len().max(1) * domains.max(1));
        count.min(share + 3 * share.isqrt() + 3)
    }

    fn reserve(&mut self, now: Time, reservation: &Reservation) -> Result<(), String> {
        if self.held.len() >= MAX_RESERVATIONS {
            return Err(format!("the shard holds {MAX_RESERVATIONS} reservations already"));
        }
        let uid = PodUid::new(&reservation.pod.uid);
        self.table
            .assume_class(uid, &reservation.node, &reservation.class)
            .map_err(|unfit| unfit.to_string())?;
        self.hold(now, uid, reservation);
        Ok(())
    }

    fn restore(&mut self, now: Time, reservation: &Reservation) -> Result<(), String> {
        let mut uid = PodUid::new(&reservation.pod.uid);
        if let Some(held) = self.held.get(&uid)
            && held.node != reservation.node
            && !held.confirmed
            && self.table.placement(uid).is_some_and(|(_, stage)| stage == Stage::Assumed)
        {
            // Not the watch's word: a message that another copy of the shard was thought to have
            // carried out alone, or a bind that went unanswered before the pod was tried elsewhere.
            if held.claims.iter().all(|claim| *claim < reservation.token) {
                self.set_aside(uid);
            } else {
                uid = self.beside(uid, reservation);
            }
        }
        match self.table.restore(uid, &reservation.node, &reservation.class) {
            Ok(()) => {}
            // The watch knows better than the relay.
            Err(Unfit::Placed(_) | Unfit::PodGone) => return Ok(()),
            Err(unfit) => return Err(unfit.to_string()),
        }
        if self.table.placement(uid).is_some_and(|(_, stage)| stage == Stage::Assumed) {
            self.hold(now, uid, reservation);
        }
        Ok(())
    }

    /// Under which name a pod's reservation on a node is held.
    fn holds(&self, pod: &str, node: &str) -> Option<PodUid> {
        let uid = PodUid::new(pod);
        let is_there = |uid: &&PodUid| self.held.get(*uid).is_some_and(|held| *held.node == *node);
        std::iter::once(&uid)
            .chain(self.others.get(&uid).into_iter().flatten())
            .find(is_there)
            .copied()
    }

    /// A name for a reservation that a pod has beside its last one. Each may come to be the pod's
    /// place, so each keeps its share until the watch shows which, or its time is up.
    fn beside(&mut self, uid: PodUid, reservation: &Reservation) -> PodUid {
        let other = PodUid::new(&format!("{}@{}", reservation.pod.uid, reservation.node));
        let others = self.others.entry(uid).or_default();
        if !others.contains(&other) {
            others.push(other);
        }
        other
    }

    /// The pod's last reservation becomes one beside the one that comes.
    fn set_aside(&mut self, uid: PodUid) {
        let Some(held) = self.held.remove(&uid) else { return };
        let events = self.table.forget(uid);
        self.changed(events);
        let other = PodUid::new(&format!("{}@{}", held.pod.uid, held.node));
        if self.table.restore(other, &held.node, &held.class).is_ok() {
            self.held.insert(other, held);
            self.others.entry(uid).or_default().push(other);
        }
    }

    /// A pod's reservation that is held under this name is over.
    fn give_up(&mut self, uid: PodUid, pod: &str) {
        self.held.remove(&uid);
        let events = self.table.forget(uid);
        self.changed(events);
        let pod = PodUid::new(pod);
        if let Some(others) = self.others.get_mut(&pod) {
            others.retain(|other| *other != uid);
            if others.is_empty() {
                self.others.remove(&pod);
            }
        }
    }

    /// Where the pod is, or that it is nowhere, is known.
    fn forget_others(&mut self, uid: PodUid) {
        for other in self.others.remove(&uid).unwrap_or_default() {
            self.held.remove(&other);
            let events = self.table.forget(other);
            self.changed(events);
        }
    }

    fn hold(&mut self, now: Time, uid: PodUid, reservation: &Reservation) {
        self.last_token = self.last_token.max(reservation.token);
        let before = self.held.remove(&uid);
        let confirmed = before.as_ref().is_some_and(|held| held.confirmed);
        let mut claims = before.map(|held| held.claims).unwrap_or_default();
        if claims.len() < MAX_CLAIMS && !claims.contains(&reservation.token) {
            claims.push(reservation.token);
        }
        let held = Held {
            pod: reservation.pod.clone(),
            node: reservation.node.clone(),
            claims,
            class: reservation.class.clone(),
            confirmed,
            expires: now + self.config.ttl,
            checking: false,
        };
        self.held.insert(uid, held);
    }
}

impl Held {
    /// Takes one claim back. Whether it was the last, of a pod that isn't known to be bound.
    fn release(&mut self, token: u64) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| *claim != token);
        self.claims.is_empty() && before > 0 && !self.confirmed
    }
}
