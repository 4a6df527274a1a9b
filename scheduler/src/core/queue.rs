//! The pods that wait: ready, backing off, unschedulable or gated.

use std::sync::Arc;
use std::time::Duration;

use super::diagnosis::PluginSet;
use super::event::EventSet;
use super::pod::{PodRequest, PodUid};

/// A moment: the time since some fixed one, handed in by the caller and never decreasing.
pub type Moment = Duration;

/// The queue's times, kube-scheduler's by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The pause after the first failure; each further one doubles it.
    pub initial_backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// How long an unschedulable pod waits for an event before it is tried all the same.
    pub max_unschedulable: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
            max_unschedulable: Duration::from_secs(300),
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

/// The pods that wait.
#[derive(Debug, Default)]
pub struct Queue {}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(_config: QueueConfig) -> Self {
        Self {}
    }

    /// Takes over the newest version of a pod without a node.
    pub fn upsert(&mut self, _pod: PendingPod, _now: Moment) {}

    /// Forgets a pod that was deleted or got a node; in flight it is forgotten when it comes back.
    pub fn remove(&mut self, _uid: PodUid) {}

    /// The next pod to try.
    pub fn pop(&mut self, _now: Moment) -> Option<Attempt> {
        None
    }

    /// The pod was bound or needn't be tried again.
    pub fn done(&mut self, _uid: PodUid) {}

    /// Plugins rejected the pod on every node: it waits for an event that may help, or is tried
    /// again after a pause if one came meanwhile.
    pub fn unschedulable(&mut self, _uid: PodUid, _rejected_by: PluginSet, _now: Moment) {}

    /// Something went wrong that has nothing to do with the pod (a failed binding, a shard that
    /// didn't answer): it is tried again after a pause.
    pub fn retry(&mut self, _uid: PodUid, _now: Moment) {}

    /// Wakes the pods that something which happened may help; returns how many.
    pub fn notify(&mut self, _events: EventSet, _now: Moment) -> usize {
        0
    }

    /// When [`Self::pop`] may have something again though nothing happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Moment> {
        None
    }

    /// How many pods are where.
    #[must_use]
    pub fn depths(&self) -> Depths {
        Depths::default()
    }
}
