//! The pods that wait for an event, in groups that share a verdict: the same plugins rejected pods
//! that ask for the same. What an event is worth to a group is found out by one pod of it: only if
//! that one gets a node the next ones are tried. A hundred thousand equal pods that fit nowhere
//! cost one try for each event that might help them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Moment;
use crate::core::diagnosis::PluginSet;
use crate::core::event::EventSet;
use crate::core::maps::HashMap;
use crate::core::pod::{PodRequest, PodUid};

/// Who waits longest.
pub(super) type ParkedKey = (Moment, u64, PodUid);

/// Pods that share a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Group {
    plugins: PluginSet,
    /// The address of the request that they share. `None` for pods whose verdict is their own, as
    /// one that is promised a node.
    class: Option<usize>,
}

impl Group {
    pub(super) fn new(plugins: PluginSet, request: &Arc<PodRequest>, alone: bool) -> Self {
        Self { plugins, class: (!alone).then(|| Arc::as_ptr(request).addr()) }
    }
}

/// The pods, by group and by age.
#[derive(Debug, Default)]
pub(super) struct Parked {
    groups: HashMap<PluginSet, HashMap<Option<usize>, BTreeSet<ParkedKey>>>,
    all: BTreeSet<ParkedKey>,
}

impl Parked {
    pub(super) fn insert(&mut self, group: Group, key: ParkedKey) {
        self.groups.entry(group.plugins).or_default().entry(group.class).or_default().insert(key);
        self.all.insert(key);
    }

    pub(super) fn remove(&mut self, group: Group, key: &ParkedKey) {
        self.all.remove(key);
        let Some(classes) = self.groups.get_mut(&group.plugins) else { return };
        if let Some(parked) = classes.get_mut(&group.class) {
            parked.remove(key);
            if parked.is_empty() {
                classes.remove(&group.class);
            }
        }
        if classes.is_empty() {
            self.groups.remove(&group.plugins);
        }
    }

    /// The pods to try after these events, each with the group that it is tried for; who waits
    /// longest first.
    pub(super) fn woken_by(&self, events: EventSet) -> Vec<(PodUid, Group)> {
        let helped = self.groups.iter().filter(|(plugins, _)| events.may_help(**plugins));
        let mut woken: Vec<(ParkedKey, Group)> = helped
            .flat_map(|(plugins, classes)| {
                classes.iter().flat_map(|(class, parked)| {
                    let group = Group { plugins: *plugins, class: *class };
                    let enough = if class.is_some() { 1 } else { parked.len() };
                    parked.iter().take(enough).map(move |key| (*key, group))
                })
            })
            .collect();
        woken.sort_unstable_by_key(|(key, _)| *key);
        woken.into_iter().map(|(key, group)| (key.2, group)).collect()
    }

    /// The pods of a group that wait longest, at most so many.
    pub(super) fn next_of(&self, group: Group, count: usize) -> Vec<PodUid> {
        let classes = self.groups.get(&group.plugins);
        let parked = classes.and_then(|classes| classes.get(&group.class));
        parked.into_iter().flatten().take(count).map(|key| key.2).collect()
    }

    /// The pods that wait since `since` or longer.
    pub(super) fn waiting_since(&self, since: Moment) -> Vec<PodUid> {
        self.all.iter().take_while(|key| key.0 <= since).map(|key| key.2).collect()
    }

    /// Since when the first one waits.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.all.first().map(|key| key.0)
    }

    /// One pod of each group, the last to come; the groups in no order.
    pub(super) fn latest_of_each(&self) -> impl Iterator<Item = ParkedKey> {
        let groups = self.groups.values().flat_map(HashMap::values);
        groups.filter_map(|parked| parked.last()).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
