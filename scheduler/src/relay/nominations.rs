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
    /// As the watch showed it last.
    shown: Option<Arc<str>>,
    node: Option<Arc<str>>,
    /// The node is of our choice, and the watch has not shown it yet: what it shows till then is
    /// from before.
    ours: bool,
    /// Pods that were evicted from the node for this one.
    evicted: Arc<[PodUid]>,
}

/// All promises.
#[derive(Debug, Default)]
pub struct Nominations {
    promises: HashMap<PodUid, Promise>,
}

impl Nominations {
    /// Takes over what the watch shows. A promise of ours outlives versions of the pod from before
    /// it.
    pub fn shown(&mut self, uid: PodUid, class: &Arc<PodRequest>, node: Option<Arc<str>>) {
        let Some(known) = self.promises.get_mut(&uid) else {
            if node.is_some() && self.has_room() {
                let shown = node.clone();
                let class = class.clone();
                let promise = Promise { class, shown, node, ours: false, evicted: none() };
                self.promises.insert(uid, promise);
            }
            return;
        };
        known.class = class.clone();
        let changed = known.shown != node;
        known.shown.clone_from(&node);
        if known.ours {
            known.ours = known.node != node;
        } else if changed {
            known.move_to(node);
        }
        self.tidy(uid);
    }

    /// Promises a pod a node.
    pub fn promise(&mut self, uid: PodUid, class: &Arc<PodRequest>, node: Arc<str>) {
        let promise = self.promises.entry(uid).or_insert_with(|| Promise {
            class: class.clone(),
            shown: None,
            node: None,
            ours: true,
            evicted: none(),
        });
        promise.ours = promise.shown.as_ref() != Some(&node);
        promise.move_to(Some(node));
    }

    /// These have been told to leave the node that a pod is promised.
    pub fn evicted(&mut self, uid: PodUid, node: &str, victims: Vec<PodUid>) {
        if let Some(promise) = self.promises.get_mut(&uid)
            && promise.node.as_deref() == Some(node)
        {
            promise.evicted = victims.into();
        }
    }

    /// The pod is promised nothing any more.
    pub fn withdraw(&mut self, uid: PodUid) {
        if let Some(promise) = self.promises.get_mut(&uid) {
            promise.ours = false;
            promise.move_to(None);
        }
        self.tidy(uid);
    }

    /// A promise of ours came to nothing: what the watch shows holds.
    pub fn revert(&mut self, uid: PodUid) {
        if let Some(promise) = self.promises.get_mut(&uid) {
            let shown = promise.shown.clone();
            promise.ours = false;
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
        nominations.shown(uid, &class, None);
        assert!(nominations.promises.is_empty());
        nominations.promise(uid, &class, "n".into());
        nominations.evicted(uid, "n", vec![PodUid::new("v")]);
        // A version from before, then the one that carries the promise.
        nominations.shown(uid, &class, None);
        assert_eq!(nominations.node(uid).map(|node| &**node), Some("n"));
        nominations.shown(uid, &class, Some("n".into()));
        assert_eq!(nominations.victims(uid).len(), 1);
        assert_eq!(nominations.of_at_least(0, |_| true).len(), 1);
        assert!(nominations.of_at_least(1, |_| true).is_empty());
        assert!(nominations.of_at_least(0, |_| false).is_empty());
        assert_eq!(nominations.below(1, "n"), [uid]);
        assert_eq!(nominations.victims(uid).len(), 1);
        // Somebody takes it back.
        nominations.shown(uid, &class, None);
        assert_eq!((nominations.node(uid), nominations.victims(uid).len()), (None, 0));
        assert!(nominations.promises.is_empty());
    }

    #[test]
    fn what_came_to_nothing_is_as_the_watch_shows() {
        let mut nominations = Nominations::default();
        let (uid, class) = (PodUid::new("p"), Arc::new(PodRequest::default()));
        nominations.shown(uid, &class, Some("old".into()));
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
            nominations.shown(PodUid::new(&number.to_string()), &class, Some("n".into()));
        }
        assert_eq!(nominations.promises.len(), MAX_PROMISES);
        assert!(!nominations.has_room());
    }
}
