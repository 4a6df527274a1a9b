//! Which waiting pods are promised a node (`pkg/scheduler/backend/queue/nominator.go`): by
//! `status.nominatedNodeName`, or by a preemption of ours that the watch has not shown yet.

use std::sync::Arc;

use crate::core::maps::HashMap;
use crate::core::nominate::Nominee;
use crate::core::pod::{PodRequest, PodUid};

/// Promises kept at most. Beyond it no preemption begins, and what pods' status says is left
/// unread: such a pod competes like any other.
pub const MAX_PROMISES: usize = 4096;

#[derive(Debug)]
struct Promise {
    class: Arc<PodRequest>,
    /// As the watch showed it last, and in which version of the pod.
    shown: Option<Arc<str>>,
    shown_at: u64,
    node: Option<Arc<str>>,
    ours: Ours,
    /// Pods that were evicted from the node for this one.
    evicted: Arc<[PodUid]>,
}

/// Whether the node is of our choice and the watch has not caught up with it: what it shows till
/// then is from before. That it shows the same node doesn't say that it has caught up: the pod may
/// have been promised this node earlier, and have lost it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    /// The watch is right.
    No,
    /// Being written.
    Writing,
    /// Written, in this version of the pod. Where nobody knows which, the watch has caught up when
    /// it shows the node.
    Written(Option<u64>),
}

/// All promises.
#[derive(Debug, Default)]
pub struct Nominations {
    promises: HashMap<PodUid, Promise>,
}

impl Nominations {
    /// Takes over what the watch shows. A promise of ours outlives versions of the pod from before
    /// it.
    pub fn shown(
        &mut self,
        uid: PodUid,
        class: &Arc<PodRequest>,
        node: Option<Arc<str>>,
        version: u64,
    ) {
        let Some(known) = self.promises.get_mut(&uid) else {
            if node.is_some() && self.has_room() {
                let promise = Promise {
                    class: class.clone(),
                    shown: node.clone(),
                    shown_at: version,
                    node,
                    ours: Ours::No,
                    evicted: none(),
                };
                self.promises.insert(uid, promise);
            }
            return;
        };
        known.class = class.clone();
        let changed = known.shown != node;
        known.shown.clone_from(&node);
        known.shown_at = version;
        if known.ours != Ours::No {
            known.catch_up();
        } else if changed {
            known.move_to(node);
        }
        self.tidy(uid);
    }

    /// Promises a pod a node, which is still to be written.
    pub fn promise(&mut self, uid: PodUid, class: &Arc<PodRequest>, node: Arc<str>) {
        let promise = self.promises.entry(uid).or_insert_with(|| Promise {
            class: class.clone(),
            shown: None,
            shown_at: 0,
            node: None,
            ours: Ours::Writing,
            evicted: none(),
        });
        promise.ours = Ours::Writing;
        promise.move_to(Some(node));
    }

    /// The promise of that node is written, in this version of the pod if anybody knows; and these
    /// have been told to leave the node for it.
    pub fn written(&mut self, uid: PodUid, node: &str, version: Option<u64>, victims: Vec<PodUid>) {
        let promise = self.promises.get_mut(&uid);
        let Some(promise) = promise.filter(|promise| promise.node.as_deref() == Some(node)) else {
            return;
        };
        if !victims.is_empty() {
            promise.evicted = victims.into();
        }
        if promise.ours == Ours::Writing {
            promise.ours = Ours::Written(version);
            promise.catch_up();
        }
        self.tidy(uid);
    }

    /// The pod is promised nothing any more.
    pub fn withdraw(&mut self, uid: PodUid) {
        if let Some(promise) = self.promises.get_mut(&uid) {
            promise.ours = Ours::No;
            promise.move_to(None);
        }
        self.tidy(uid);
    }

    /// A promise of ours came to nothing: what the watch shows holds.
    pub fn revert(&mut self, uid: PodUid) {
        if let Some(promise) = self.promises.get_mut(&uid) {
            let shown = promise.shown.clone();
            promise.ours = Ours::No;
            promise.move_to(shown);
        }
        self.tidy(uid);
    }

    /// Another may lead meanwhile: what the watch shows holds for all.
    pub fn revert_all(&mut self) {
        let all: Vec<PodUid> = self.promises.keys().copied().collect();
        for uid in all {
            self.revert(uid);
        }
    }

    /// The pod waits no more.
    pub fn forget(&mut self, uid: PodUid) {
        self.promises.remove(&uid);
    }

    /// Whether one more can be made.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.promises.len() < MAX_PROMISES
    }

    /// The node that a pod is promised.
    #[must_use]
    pub fn node(&self, uid: PodUid) -> Option<&Arc<str>> {
        self.promises.get(&uid)?.node.as_ref()
    }

    /// Those that were evicted from that node for it.
    #[must_use]
    pub fn victims(&self, uid: PodUid) -> Arc<[PodUid]> {
        self.promises.get(&uid).map_or_else(none, |promise| promise.evicted.clone())
    }

    /// The pods of at least this priority that have a promise and wait for it, sorted by UID.
    #[must_use]
    pub fn of_at_least(&self, priority: i32, waits: impl Fn(PodUid) -> bool) -> Arc<[Nominee]> {
        if self.promises.is_empty() {
            return Arc::default();
        }
        let held = self.promises.iter().filter(|(uid, promise)| {
            promise.class.priority >= priority && promise.node.is_some() && waits(**uid)
        });
        let nominee = |(uid, promise): (&PodUid, &Promise)| {
            let node = promise.node.clone()?;
            Some(Nominee { uid: *uid, node, class: promise.class.clone() })
        };
        let mut nominees: Vec<Nominee> = held.filter_map(nominee).collect();
        nominees.sort_unstable_by_key(|nominee| nominee.uid);
        nominees.into()
    }

    /// The pods below a priority that are promised a node.
    #[must_use]
    pub fn below(&self, priority: i32, node: &str) -> Vec<PodUid> {
        let below = |promise: &Promise| {
            promise.class.priority < priority && promise.node.as_deref() == Some(node)
        };
        let found = self.promises.iter().filter(|(_, promise)| below(promise));
        let mut found: Vec<PodUid> = found.map(|(uid, _)| *uid).collect();
        found.sort_unstable();
        found
    }

    fn tidy(&mut self, uid: PodUid) {
        let empty = |promise: &Promise| promise.node.is_none() && promise.shown.is_none();
        if self.promises.get(&uid).is_some_and(empty) {
            self.promises.remove(&uid);
        }
    }
}

impl Promise {
    /// Follows the watch again, once it shows what we have written or something later.
    fn catch_up(&mut self) {
        let caught_up = match self.ours {
            Ours::No => true,
            Ours::Writing => false,
            Ours::Written(Some(version)) => self.shown_at >= version,
            Ours::Written(None) => self.shown == self.node,
        };
        if caught_up {
            self.ours = Ours::No;
            self.move_to(self.shown.clone());
        }
    }

    fn move_to(&mut self, node: Option<Arc<str>>) {
        if self.node != node {
            self.node = node;
            self.evicted = none();
        }
    }
}

fn none() -> Arc<[PodUid]> {
    Arc::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_outlives_older_versions_of_the_pod() {
        let mut nominations = Nominations::default();
        let (uid, class) = (PodUid::new("p"), Arc::new(PodRequest::default()));
        nominations.shown(uid, &class, None, 1);
        assert!(nominations.promises.is_empty());
        nominations.promise(uid, &class, "n".into());
        nominations.written(uid, "n", Some(3), vec![PodUid::new("v")]);
        // A version from before, then the one that carries the promise.
        nominations.shown(uid, &class, None, 2);
        assert_eq!(nominations.node(uid).map(|node| &**node), Some("n"));
        nominations.shown(uid, &class, Some("n".into()), 3);
        assert_eq!(nominations.victims(uid).len(), 1);
        assert_eq!(nominations.of_at_least(0, |_| true).len(), 1);
        assert!(nominations.of_at_least(1, |_| true).is_empty());
        assert!(nominations.of_at_least(0, |_| false).is_empty());
        assert_eq!(nominations.below(1, "n"), [uid]);
        assert_eq!(nominations.victims(uid).len(), 1);
        // Somebody takes it back.
        nominations.shown(uid, &class, None, 4);
        assert_eq!((nominations.node(uid), nominations.victims(uid).len()), (None, 0));
        assert!(nominations.promises.is_empty());
    }

    #[test]
    fn who_is_promised_a_node_again_keeps_it_while_the_watch_shows_how_it_lost_it() {
        let mut nominations = Nominations::default();
        let (uid, class) = (PodUid::new("p"), Arc::new(PodRequest::default()));
        let node = |nominations: &Nominations| nominations.node(uid).map(ToString::to_string);
        let victim = PodUid::new("v");
        nominations.shown(uid, &class, Some("n".into()), 1);
        nominations.withdraw(uid);
        nominations.promise(uid, &class, "n".into());
        // While it is being written, and after: version 2 took the old promise back, 3 is ours.
        for written in [false, true] {
            if written {
                nominations.written(uid, "n", Some(3), vec![victim]);
            }
            for (shown, version) in [(Some("n".into()), 1), (None, 2)] {
                nominations.shown(uid, &class, shown, version);
                assert_eq!(node(&nominations).as_deref(), Some("n"), "{written} {version}");
            }
        }
        nominations.shown(uid, &class, Some("n".into()), 3);
        assert_eq!(*nominations.victims(uid), [victim]);
        // From now on the watch is right.
        nominations.shown(uid, &class, Some("other".into()), 4);
        assert_eq!(
            (node(&nominations).as_deref(), nominations.victims(uid).len()),
            (Some("other"), 0)
        );
    }

    #[test]
    fn a_watch_that_is_ahead_of_the_answer_is_right() {
        let mut nominations = Nominations::default();
        let (uid, class) = (PodUid::new("p"), Arc::new(PodRequest::default()));
        nominations.promise(uid, &class, "n".into());
        // Written in version 2, and taken back in version 3, before our request was answered.
        nominations.shown(uid, &class, Some("n".into()), 2);
        nominations.shown(uid, &class, None, 3);
        assert_eq!(nominations.node(uid).map(|node| &**node), Some("n"));
        nominations.written(uid, "n", Some(2), vec![PodUid::new("v")]);
        assert!(nominations.promises.is_empty());
    }

    #[test]
    fn what_came_to_nothing_is_as_the_watch_shows() {
        let mut nominations = Nominations::default();
        let (uid, class) = (PodUid::new("p"), Arc::new(PodRequest::default()));
        nominations.shown(uid, &class, Some("old".into()), 1);
        nominations.promise(uid, &class, "new".into());
        nominations.revert(uid);
        assert_eq!(nominations.node(uid).map(|node| &**node), Some("old"));
        nominations.withdraw(uid);
        assert_eq!(nominations.node(uid), None);
        nominations.forget(uid);
        assert!(nominations.promises.is_empty());
    }

    #[test]
    fn promises_are_bounded() {
        let mut nominations = Nominations::default();
        let class = Arc::new(PodRequest::default());
        for number in 0..MAX_PROMISES + 5 {
            nominations.shown(PodUid::new(&number.to_string()), &class, Some("n".into()), 1);
        }
        assert_eq!(nominations.promises.len(), MAX_PROMISES);
        assert!(!nominations.has_room());
    }
}
