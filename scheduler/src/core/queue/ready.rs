//! The pods that are ready to be tried, in the order in which they are.
//!
//! By priority, as in kube-scheduler; among pods of one priority, namespaces take turns of
//! [`TURN`] pods, so that a namespace with a flood of pods delays the others' by no more than that
//! for each namespace. Where a single namespace has pods, or none has more than a turn, this is
//! kube-scheduler's order but for whose turn began first. It is start-time fair queueing (Goyal,
//! Vin, Cheng 1996), by pods.
//!
//! Equal pods are decided together, so a pod may be taken before its turn when an equal one is
//! tried ([`Ready::like`]): out of the next turns of its namespace alone where others have pods.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::Moment;
use crate::core::maps::HashMap;
use crate::core::pod::PodUid;

/// Pods of one namespace that follow each other while others wait. Equal pods one behind the other
/// are decided together, which turns of one pod would prevent.
pub(super) const TURN: u32 = 32;
/// Turns after the present one out of which pods are taken beforehand, where several namespaces
/// have pods: 128 pods of one namespace may then follow each other.
const BEFOREHAND: u64 = 3;

/// Highest priority first, then whose turn it is, then which namespace began its turn first, then
/// who waits longest, then who came first.
pub(super) type ReadyKey = (Reverse<i32>, u64, u64, Moment, u64, PodUid);

/// What tells equal pods: the address of the request that they share.
pub(super) type Class = usize;

/// Ready pods.
#[derive(Debug, Default)]
pub(super) struct Ready {
    keys: BTreeSet<ReadyKey>,
    /// The same by class.
    alike: HashMap<Class, BTreeSet<ReadyKey>>,
    levels: HashMap<i32, Level>,
    begun: u64,
}

/// Ready pods of one priority.
#[derive(Debug, Default)]
struct Level {
    /// The turn of the pod that was tried last.
    turn: u64,
    namespaces: HashMap<Arc<str>, Share>,
}

/// A namespace's part in a level; kept while it has ready pods.
#[derive(Debug, Default)]
struct Share {
    /// The turn of its last pod, when that turn began for it, and its pods in it.
    turn: u64,
    begun: u64,
    taken: u32,
    ready: usize,
}

impl Ready {
    /// A pod of this namespace, behind those that have a better claim.
    pub(super) fn insert(
        &mut self,
        namespace: &Arc<str>,
        priority: i32,
        class: Class,
        (since, arrival, uid): (Moment, u64, PodUid),
    ) -> ReadyKey {
        let level = self.levels.entry(priority).or_default();
        let share = level.namespaces.entry(namespace.clone()).or_default();
        let turn = if share.ready == 0 || share.turn < level.turn {
            Some(level.turn)
        } else if share.taken == TURN {
            Some(share.turn + 1)
        } else {
            None
        };
        if let Some(turn) = turn {
            self.begun += 1;
            (share.turn, share.begun, share.taken) = (turn, self.begun, 0);
        }
        share.taken += 1;
        share.ready += 1;
        let key = (Reverse(priority), share.turn, share.begun, since, arrival, uid);
        self.keys.insert(key);
        self.alike.entry(class).or_default().insert(key);
        key
    }

    /// The pod asks for something else now.
    pub(super) fn reclass(&mut self, key: &ReadyKey, from: Class, to: Class) {
        self.unclass(key, from);
        self.alike.entry(to).or_default().insert(*key);
    }

    fn unclass(&mut self, key: &ReadyKey, class: Class) {
        if let Some(keys) = self.alike.get_mut(&class) {
            keys.remove(key);
            if keys.is_empty() {
                self.alike.remove(&class);
            }
        }
    }

    /// The pod isn't ready any more.
    pub(super) fn remove(&mut self, namespace: &Arc<str>, class: Class, key: &ReadyKey) {
        self.keys.remove(key);
        self.unclass(key, class);
        let priority = key.0.0;
        let Some(level) = self.levels.get_mut(&priority) else { return };
        if let Some(share) = level.namespaces.get_mut(namespace) {
            share.ready -= 1;
            if share.ready == 0 {
                level.namespaces.remove(namespace);
            }
        }
        if level.namespaces.is_empty() {
            self.levels.remove(&priority);
        }
    }

    /// The pod whose turn it is. It has to be removed next.
    pub(super) fn first(&mut self) -> Option<PodUid> {
        let key = self.keys.first()?;
        if let Some(level) = self.levels.get_mut(&key.0.0) {
            level.turn = key.1;
        }
        Some(key.5)
    }

    /// The first pod of a class, if it waits since `until` or longer and its turn is not too far
    /// off. Pods of a class are of one namespace and priority.
    pub(super) fn like(&self, class: Class, until: Moment) -> Option<PodUid> {
        let key = self.alike.get(&class)?.first()?;
        let level = self.levels.get(&key.0.0)?;
        let near = level.namespaces.len() == 1 || key.1 <= level.turn + BEFOREHAND;
        (near && key.3 <= until).then_some(key.5)
    }

    /// The pod with the weakest claim.
    pub(super) fn last(&self) -> Option<(i32, PodUid)> {
        self.keys.last().map(|key| (key.0.0, key.5))
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
