//! The pods that wait: ready, backing off, unschedulable or gated
//! (`pkg/scheduler/backend/queue/scheduling_queue.go`).
//!
//! Three things differ from it: namespaces take turns ([`ready`]), equal pods that came at about the
//! same time may follow each other though others came between ([`Queue::pop_like`]), and an event is
//! tried out with one of many equal pods ([`parked`]).
//!
//! Memory: one entry for each pod without a node, a few hundred bytes beside its shared request.
//! Events that pass while a pod is in flight cost nothing: each kind keeps the number of its last
//! one alone.

mod parked;
mod ready;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use self::parked::{Group, Parked, ParkedKey};
use self::ready::{Class, Ready, ReadyKey};
use super::diagnosis::PluginSet;
use super::event::{EventLog, EventSet};
use super::pod::{PodRequest, PodUid};
use crate::core::maps::HashMap;

/// A moment: the time since some fixed one, handed in by the caller and never decreasing.
pub type Moment = Duration;

/// Pods of a group that are tried next for each one that got a node.
const SPREADING: usize = 4;

/// Pauses end on whole seconds, so that pods whose pauses end within one are ordered by priority
/// (`backoffQOrderingWindowDuration`).
const WINDOW: Duration = Duration::from_secs(1);
/// Equal pods may overtake others that came less than this before them. Pods that are made at once
/// reach a watch in any order.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The queue's times, kube-scheduler's by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The pause after the first failure; each further one doubles it.
    pub initial_backoff: Duration,
    /// The longest pause; zero for none at all.
    pub max_backoff: Duration,
    /// How long an unschedulable pod waits for an event before it is tried all the same.
    pub max_unschedulable: Duration,
    /// Whether a pod that waits out the pause of a rejection is tried early when nothing else is
    /// ready (`SchedulerPopFromBackoffQ`). A pod that waits because of an error never is.
    pub pop_from_backoff: bool,
    /// Pods that are held at most. Who holds them leaves the others with the apiserver meanwhile.
    pub max_pending: usize,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
            max_unschedulable: Duration::from_mins(5),
            pop_from_backoff: true,
            max_pending: 1_000_000,
        }
    }
}

/// A pod without a node, as the watch shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingPod {
    /// Its identity.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `spec.schedulingGates` by name; not empty: the pod isn't tried.
    pub gates: Vec<String>,
    /// What filters and scores read of it.
    pub request: Arc<PodRequest>,
}

/// A pod taken out to be placed. It must come back by [`Queue::done`], [`Queue::unschedulable`] or
/// [`Queue::retry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The pod in its newest version.
    pub pod: PendingPod,
    /// Which try this is, from 1.
    pub number: u32,
    /// When the pod was first ready to be tried.
    pub first_ready: Moment,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// Ready to be tried.
    pub active: usize,
    /// Waiting out a pause.
    pub backoff: usize,
    /// Waiting for an event.
    pub unschedulable: usize,
    /// Waiting for their gates to go.
    pub gated: usize,
    /// Taken out and not back yet.
    pub in_flight: usize,
}

/// Whose pause ends first, then highest priority, then who waits longest, then who came first.
type BackoffKey = (Moment, Reverse<i32>, Moment, u64, PodUid);

/// Where an entry is, with the key under which its index knows it.
#[derive(Clone, Copy, Debug)]
enum Place {
    Active(Class, ReadyKey),
    Backoff(BackoffKey),
    ErrorBackoff(BackoffKey),
    Unschedulable(Group, ParkedKey),
    Gated,
    InFlight {
        /// The last event before the pod was taken out.
        since: u64,
        /// The pod's request changed meanwhile.
        changed: bool,
        /// The pod went meanwhile.
        removed: bool,
    },
}

#[derive(Debug)]
struct Entry {
    pod: PendingPod,
    place: Place,
    /// Orders entries by arrival.
    arrival: u64,
    /// When it came, or came back from its last try.
    since: Moment,
    first_ready: Option<Moment>,
    attempts: u32,
    /// Tries that ended in a rejection.
    rejected: u32,
    /// Errors since the last rejection.
    errors: u32,
    rejected_by: PluginSet,
    /// The pods that are tried next if this one gets a node.
    tried_for: Option<Group>,
}

/// A pod that is missed less than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Least {
    /// Which.
    pub uid: PodUid,
    /// Whether it had its turn, in vain.
    pub tried: bool,
}

/// The pods that wait.
#[derive(Debug)]
pub struct Queue {
    config: QueueConfig,
    entries: HashMap<PodUid, Entry>,
    active: Ready,
    backoff: BTreeSet<BackoffKey>,
    error_backoff: BTreeSet<BackoffKey>,
    unschedulable: Parked,
    gated: usize,
    in_flight: usize,
    arrivals: u64,
    events: EventLog,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(QueueConfig::default())
    }
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(config: QueueConfig) -> Self {
        Self {
            config,
            entries: HashMap::default(),
            active: Ready::default(),
            backoff: BTreeSet::new(),
            error_backoff: BTreeSet::new(),
            unschedulable: Parked::default(),
            gated: 0,
            in_flight: 0,
            arrivals: 0,
            events: EventLog::default(),
        }
    }

    /// The bound of [`QueueConfig::max_pending`].
    #[must_use]
    pub fn max_pending(&self) -> usize {
        self.config.max_pending
    }

    /// Takes over the newest version of a pod without a node. A new one, or one whose last gate
    /// went, is ready at once; an unschedulable one is tried again if what it asks for changed.
    pub fn upsert(&mut self, pod: PendingPod, now: Moment) {
        let uid = pod.uid;
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.arrivals += 1;
            let entry = Entry {
                pod,
                place: Place::Gated,
                arrival: self.arrivals,
                since: now,
                first_ready: None,
                attempts: 0,
                rejected: 0,
                errors: 0,
                rejected_by: PluginSet::EMPTY,
                tried_for: None,
            };
            return self.ready(entry, now);
        };
        if let Place::InFlight { removed, .. } = &mut entry.place {
            *removed = false;
        }
        if entry.pod.request == pod.request && entry.pod.gates == pod.gates {
            // Pods of a group go on sharing what they ask for.
            let request = entry.pod.request.clone();
            entry.pod = PendingPod { request, ..pod };
            return;
        }
        entry.pod = pod;
        let tried_for = entry.tried_for.take();
        match &mut entry.place {
            Place::InFlight { changed, .. } => *changed = true,
            // The priority can't change, so the old key still holds.
            Place::Active(class, key) => {
                let before = std::mem::replace(class, class_of(&entry.pod));
                self.active.reclass(key, before, *class);
            }
            Place::Backoff(_) | Place::ErrorBackoff(_) => {}
            Place::Gated => {
                if let Some(entry) = self.take(uid) {
                    self.ready(entry, now);
                }
            }
            Place::Unschedulable(..) => {
                if let Some(entry) = self.take(uid) {
                    self.ready_after_pause(entry, now);
                }
            }
        }
        // It says nothing about the others any more.
        self.pass_on(tried_for, 1, now);
    }

    /// Forgets a pod that was deleted or got a node. One in flight is forgotten when it comes back.
    pub fn remove(&mut self, uid: PodUid, now: Moment) {
        let Some(mut entry) = self.take(uid) else { return };
        let tried_for = entry.tried_for.take();
        if let Place::InFlight { since, changed, .. } = entry.place {
            self.put(entry, Place::InFlight { since, changed, removed: true });
        }
        self.pass_on(tried_for, 1, now);
    }

    /// Forgets the pods that a full list of pods without a node doesn't show.
    pub fn retain(&mut self, listed: impl Fn(PodUid) -> bool, now: Moment) {
        let gone: Vec<PodUid> = self.entries.keys().copied().filter(|uid| !listed(*uid)).collect();
        for uid in gone {
            self.remove(uid, now);
        }
    }

    /// Whether the pod is anywhere in the queue and hasn't been removed.
    #[must_use]
    pub fn contains(&self, uid: PodUid) -> bool {
        let entry = self.entries.get(&uid);
        entry.is_some_and(|entry| !matches!(entry.place, Place::InFlight { removed: true, .. }))
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Moment) -> Option<Attempt> {
        self.end_pauses(now);
        self.flush_unschedulable(now);
        let early = || self.backoff.first().map(|key| key.4);
        let uid =
            self.active.first().or_else(|| early().filter(|_| self.config.pop_from_backoff))?;
        self.take_off(uid, now)
    }

    /// The next pod to try that asks for the same as one that has just been taken: it may come
    /// before others that came at about the same time.
    pub fn pop_like(&mut self, first: PodUid, now: Moment) -> Option<Attempt> {
        let first = self.entries.get(&first)?;
        let uid = self.active.like(class_of(&first.pod), first.since + AT_ONCE)?;
        self.take_off(uid, now)
    }

    fn take_off(&mut self, uid: PodUid, now: Moment) -> Option<Attempt> {
        let mut entry = self.take(uid)?;
        entry.attempts = entry.attempts.saturating_add(1);
        let attempt = Attempt {
            pod: entry.pod.clone(),
            number: entry.attempts,
            first_ready: *entry.first_ready.get_or_insert(now),
        };
        let since = self.events.now();
        self.put(entry, Place::InFlight { since, changed: false, removed: false });
        Some(attempt)
    }

    /// The pod was bound, or needn't be tried again.
    pub fn done(&mut self, uid: PodUid, now: Moment) {
        if self.is_in_flight(uid)
            && let Some(entry) = self.take(uid)
        {
            self.pass_on(entry.tried_for, SPREADING, now);
        }
    }

    /// Plugins rejected the pod on every node: it waits for an event that may help, or is tried
    /// again after a pause if one came meanwhile. Without plugins it is as [`Self::retry`]. `alone`:
    /// the verdict says nothing of other pods that ask for the same, nor theirs of this one.
    pub fn unschedulable(&mut self, uid: PodUid, rejected_by: PluginSet, alone: bool, now: Moment) {
        if rejected_by.is_empty() {
            return self.retry(uid, now);
        }
        let Some((mut entry, since, changed)) = self.come_back(uid, now) else { return };
        entry.rejected = entry.rejected.saturating_add(1);
        entry.errors = 0;
        entry.rejected_by = rejected_by;
        if changed || self.events.since(since).may_help(rejected_by) {
            self.ready_after_pause(entry, now);
        } else {
            self.park(entry, alone);
        }
    }

    /// Something went wrong that has nothing to do with the pod (a failed binding, a shard that
    /// didn't answer): it is tried again after a pause.
    pub fn retry(&mut self, uid: PodUid, now: Moment) {
        let Some((mut entry, ..)) = self.come_back(uid, now) else { return };
        entry.errors = entry.errors.saturating_add(1);
        entry.rejected_by = PluginSet::EMPTY;
        self.ready_after_pause(entry, now);
    }

    /// What went wrong may be over (a shard is there again): pods that wait out a pause because of
    /// an error are tried at once. Their next pause is as long as if they had waited. Returns how
    /// many those are.
    pub fn end_error_pauses(&mut self, now: Moment) -> usize {
        let waiting: Vec<PodUid> = self.error_backoff.iter().map(|key| key.4).collect();
        for uid in &waiting {
            if let Some(entry) = self.take(*uid) {
                self.ready(entry, now);
            }
        }
        waiting.len()
    }

    /// Wakes pods that something which happened may help: of equal ones the first, which the others
    /// follow if it gets a node. Returns how many.
    pub fn notify(&mut self, events: EventSet, now: Moment) -> usize {
        self.events.record(events);
        let woken = self.unschedulable.woken_by(events);
        for (uid, group) in &woken {
            self.wake(*uid, *group, now);
        }
        woken.len()
    }

    /// What a pod hangs on has changed: it is tried again if one of these plugins rejected it, now
    /// or in the try under way.
    pub fn touch(&mut self, uid: PodUid, plugins: PluginSet, now: Moment) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        match &mut entry.place {
            Place::InFlight { changed, .. } => *changed = true,
            Place::Unschedulable(..) if entry.rejected_by.intersects(plugins) => {
                if let Some(entry) = self.take(uid) {
                    self.ready_after_pause(entry, now);
                }
            }
            _ => {}
        }
    }

    /// When [`Self::pop`] may have something though nothing happens; zero for at once.
    #[must_use]
    pub fn next_wake(&self) -> Option<Moment> {
        let early = self.config.pop_from_backoff && !self.backoff.is_empty();
        if early || !self.active.is_empty() {
            return Some(Moment::ZERO);
        }
        let pauses = [self.backoff.first(), self.error_backoff.first()];
        let pauses = pauses.into_iter().flatten().map(|key| key.0 + WINDOW);
        let parked = self.unschedulable.oldest();
        pauses.chain(parked.map(|since| since + self.config.max_unschedulable)).min()
    }

    /// Where a pod is, how often it was tried, and what it asks for.
    #[must_use]
    pub fn whereabouts(&self, uid: PodUid) -> Option<(&'static str, u32, Arc<PodRequest>)> {
        let entry = self.entries.get(&uid)?;
        let place = match entry.place {
            Place::Active(..) => "active",
            Place::Backoff(_) | Place::ErrorBackoff(_) => "backoff",
            Place::Unschedulable(..) => "unschedulable",
            Place::Gated => "gated",
            Place::InFlight { .. } => "in-flight",
        };
        Some((place, entry.attempts, entry.pod.request.clone()))
    }

    /// The pod that is missed less than a new one of this priority: one that was tried in vain, of
    /// the same priority at most, or else a ready one of a lower priority.
    #[must_use]
    pub fn least(&self, priority: i32) -> Option<Least> {
        let with_priority =
            |key: ParkedKey| Some((self.entries.get(&key.2)?.pod.request.priority, Reverse(key)));
        // Of equal ones the last to come.
        let parked = self.unschedulable.latest_of_each().filter_map(with_priority).min();
        let parked = parked.filter(|(theirs, _)| *theirs <= priority);
        let parked = parked.map(|(_, Reverse(key))| Least { uid: key.2, tried: true });
        let tried = |uid| self.entries.get(&uid).is_some_and(|entry| entry.attempts > 0);
        let ready = || self.active.last().filter(|least| least.0 < priority);
        parked.or_else(|| ready().map(|(_, uid)| Least { uid, tried: tried(uid) }))
    }

    /// How many pods are where.
    #[must_use]
    pub fn depths(&self) -> Depths {
        Depths {
            active: self.active.len(),
            backoff: self.backoff.len() + self.error_backoff.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated,
            in_flight: self.in_flight,
        }
    }

    fn is_in_flight(&self, uid: PodUid) -> bool {
        self.entries.get(&uid).is_some_and(|entry| matches!(entry.place, Place::InFlight { .. }))
    }

    /// A pod back from its try: the entry, the last event before the try and whether its request
    /// changed meanwhile. Nothing if it wasn't in flight or went.
    fn come_back(&mut self, uid: PodUid, now: Moment) -> Option<(Entry, u64, bool)> {
        if !self.is_in_flight(uid) {
            return None;
        }
        let mut entry = self.take(uid)?;
        entry.since = now;
        match entry.place {
            Place::InFlight { since, changed, removed: false } => Some((entry, since, changed)),
            _ => None,
        }
    }

    /// To the ready pods, unless gates hold it.
    fn ready(&mut self, mut entry: Entry, now: Moment) {
        if entry.pod.gates.is_empty() {
            entry.first_ready.get_or_insert(now);
            let claim = (entry.since, entry.arrival, entry.pod.uid);
            let priority = entry.pod.request.priority;
            let class = class_of(&entry.pod);
            let key = self.active.insert(&entry.pod.namespace, priority, class, claim);
            self.put(entry, Place::Active(class, key));
        } else {
            self.put(entry, Place::Gated);
        }
    }

    /// To the ready pods if its pause is over, else to those that wait it out.
    fn ready_after_pause(&mut self, entry: Entry, now: Moment) {
        match self.pause_end(&entry) {
            Some(end) if end >= window(now) && entry.pod.gates.is_empty() => {
                let priority = Reverse(entry.pod.request.priority);
                let key = (end, priority, entry.since, entry.arrival, entry.pod.uid);
                let error = entry.rejected_by.is_empty();
                self.put(entry, if error { Place::ErrorBackoff(key) } else { Place::Backoff(key) });
            }
            _ => self.ready(entry, now),
        }
    }

    fn park(&mut self, mut entry: Entry, alone: bool) {
        let key = (entry.since, entry.arrival, entry.pod.uid);
        let group = Group::new(entry.rejected_by, &entry.pod.request, alone);
        entry.tried_for = None;
        self.put(entry, Place::Unschedulable(group, key));
    }

    /// Tries a parked pod, for itself and for its group.
    fn wake(&mut self, uid: PodUid, group: Group, now: Moment) {
        if let Some(mut entry) = self.take(uid) {
            entry.tried_for = Some(group);
            self.ready_after_pause(entry, now);
        }
    }

    /// Others of the group that the pod was tried for have their turn: it got a node, or will not
    /// say any more whether there is one.
    fn pass_on(&mut self, tried_for: Option<Group>, count: usize, now: Moment) {
        let Some(group) = tried_for else { return };
        for uid in self.unschedulable.next_of(group, count) {
            self.wake(uid, group, now);
        }
    }

    /// The window in which the pod's pause ends (`getBackoffTime`).
    fn pause_end(&self, entry: &Entry) -> Option<Moment> {
        let failures = if entry.errors > 0 { entry.errors } else { entry.rejected };
        if failures == 0 || self.config.max_backoff.is_zero() {
            return None;
        }
        let factor = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let pause = self.config.initial_backoff.saturating_mul(factor);
        Some(window(entry.since + pause.min(self.config.max_backoff)))
    }

    fn end_pauses(&mut self, now: Moment) {
        let over = |queue: &BTreeSet<BackoffKey>| {
            queue.first().filter(|key| key.0 < window(now)).map(|key| key.4)
        };
        while let Some(uid) = over(&self.backoff).or_else(|| over(&self.error_backoff)) {
            let Some(entry) = self.take(uid) else { return };
            self.ready(entry, now);
        }
    }

    fn flush_unschedulable(&mut self, now: Moment) {
        let Some(since) = now.checked_sub(self.config.max_unschedulable) else { return };
        for uid in self.unschedulable.waiting_since(since) {
            if let Some(entry) = self.take(uid) {
                self.ready_after_pause(entry, now);
            }
        }
    }

    /// Takes an entry out of the queue and of the index that holds it.
    fn take(&mut self, uid: PodUid) -> Option<Entry> {
        let entry = self.entries.remove(&uid)?;
        match &entry.place {
            Place::Active(class, key) => self.active.remove(&entry.pod.namespace, *class, key),
            Place::Backoff(key) => drop(self.backoff.remove(key)),
            Place::ErrorBackoff(key) => drop(self.error_backoff.remove(key)),
            Place::Unschedulable(group, key) => self.unschedulable.remove(*group, key),
            Place::Gated => self.gated -= 1,
            Place::InFlight { .. } => self.in_flight -= 1,
        }
        Some(entry)
    }

    /// Puts an entry that isn't in the queue where it belongs now.
    fn put(&mut self, mut entry: Entry, place: Place) {
        match place {
            // It is where its key was made.
            Place::Active(..) => {}
            Place::Backoff(key) => drop(self.backoff.insert(key)),
            Place::ErrorBackoff(key) => drop(self.error_backoff.insert(key)),
            Place::Unschedulable(group, key) => self.unschedulable.insert(group, key),
            Place::Gated => self.gated += 1,
            Place::InFlight { .. } => self.in_flight += 1,
        }
        entry.place = place;
        self.entries.insert(entry.pod.uid, entry);
    }
}

fn class_of(pod: &PendingPod) -> Class {
    Arc::as_ptr(&pod.request).addr()
}

fn window(moment: Moment) -> Moment {
    Moment::from_secs(moment.as_secs())
}
