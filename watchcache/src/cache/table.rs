//! What is stored of one resource, as of one revision, and the way there of late. No clock, no
//! sockets: objects and events are handed in, in the order of the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::feed::{Event, Feed, Feeds, Found};
use super::selector::LabelSelector;
use super::wire::{Message, Seen};

/// One stored object.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Its message, without a version.
    pub message: Message,
    /// What selectors look at.
    pub seen: Seen,
    /// The revision of its last change.
    pub revision: u64,
}

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One namespace; else all.
    pub namespace: Option<String>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Labels.
    pub labels: LabelSelector,
}

impl Filter {
    /// Whether an object is asked for.
    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| {
            object.key.strip_prefix(namespace.as_str()).is_some_and(|rest| rest.starts_with('/'))
        }) && self.node.as_ref().is_none_or(|node| *node == *object.seen.node)
            && self.labels.matches(&object.seen.labels)
    }
}

/// Why a watch can't begin here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStart {
    /// Events after that revision are not kept any more.
    TooOld,
    /// The table has not come as far.
    TooNew,
}

/// Where a watch goes on from.
#[derive(Debug)]
pub struct Start {
    /// The events to come.
    pub feed: Arc<Feed>,
    /// Those up to this revision are in `objects` or `events`, or are not asked for.
    pub revision: u64,
    /// The objects there are.
    pub objects: Vec<Arc<Object>>,
    /// Events of before.
    pub events: Vec<Arc<Event>>,
}

/// The objects of one resource.
#[derive(Debug, Default)]
pub struct Table {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    by_node: HashMap<Box<str>, BTreeSet<Arc<str>>>,
    feeds: Feeds,
    revision: u64,
}

impl Table {
    /// A table as of a revision.
    #[must_use]
    pub fn new(objects: impl IntoIterator<Item = Object>, revision: u64) -> Self {
        let mut table = Self { feeds: Feeds::new(revision), revision, ..Self::default() };
        for object in objects {
            let object = Arc::new(object);
            table.index(&object);
            table.objects.insert(object.key.clone(), object);
        }
        table
    }

    /// The revision that the table has come to.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Takes an event in: the object under a key as of `revision`, or none where it is gone. It
    /// is told when [`Table::reach`] says that the revision is complete.
    pub fn apply(&mut self, key: &Arc<str>, after: Option<Object>, revision: u64) {
        let after = after.map(Arc::new);
        let before = match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        if let Some(before) = &before {
            self.unindex(before);
        }
        if let Some(after) = &after {
            self.index(after);
        }
        if before.is_some() || after.is_some() {
            self.feeds.push(Event { revision, before, after });
        }
    }

    /// All events up to `revision` have been taken in.
    pub fn reach(&mut self, revision: u64) {
        if revision > self.revision {
            self.revision = revision;
            self.feeds.reach(revision);
        }
    }

    /// Ends what reads from the table's feeds.
    pub fn close(&mut self) {
        self.feeds.close();
    }

    fn index(&mut self, object: &Arc<Object>) {
        if !object.seen.node.is_empty() {
            let keys = self.by_node.entry(object.seen.node.clone()).or_default();
            keys.insert(object.key.clone());
        }
    }

    fn unindex(&mut self, object: &Object) {
        if let Some(keys) = self.by_node.get_mut(&object.seen.node) {
            keys.remove(&object.key);
            if keys.is_empty() {
                self.by_node.remove(&object.seen.node);
            }
        }
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    /// What is asked for, in the order of keys.
    #[must_use]
    pub fn list(&self, filter: &Filter) -> Vec<Arc<Object>> {
        let fits = |object: &&Arc<Object>| filter.matches(object);
        if let Some(node) = &filter.node {
            let keys = self.by_node.get(node.as_str()).into_iter().flatten();
            return keys.filter_map(|key| self.objects.get(key)).filter(fits).cloned().collect();
        }
        let Some(namespace) = &filter.namespace else {
            return self.objects.values().filter(fits).cloned().collect();
        };
        let prefix: Arc<str> = format!("{namespace}/").into();
        self.objects
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&*prefix))
            .map(|(_, object)| object)
            .filter(fits)
            .cloned()
            .collect()
    }

    /// Begins a watch: with the objects there are, or after a revision.
    pub fn watch(&mut self, filter: &Filter, after: Option<u64>) -> Result<Start, NoStart> {
        let (objects, events) = match after {
            None => (self.list(filter), Vec::new()),
            Some(after) if after > self.revision => return Err(NoStart::TooNew),
            Some(after) => match self.feeds.all().read(after, usize::MAX) {
                Found::Events(events, _) => (Vec::new(), events),
                Found::Gone => return Err(NoStart::TooOld),
            },
        };
        let feed = self.feeds.of(filter.node.as_deref());
        Ok(Start { feed, revision: self.revision, objects, events })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
