//! What is stored of one resource, as of one revision, and the way there of late. No clock, no
//! sockets: objects and events are handed in, in the order of the store.

use std::borrow::Cow;
use std::collections::btree_set::Range;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::feed::{Event, Feed, Feeds};
use super::filter::Filter;
use super::kinds::Field;
use super::parts::Parts;
use super::wire::{Labels, Message};

/// A read that looks at more objects is an expensive one. No node has as many pods.
const CHEAP: usize = 1_000;

/// One stored object.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`, or the name alone of what is in no namespace.
    pub key: Arc<str>,
    /// Its message, without a version.
    pub message: Message,
    /// Its labels, each `key=value`. Objects share them.
    pub labels: Arc<[Arc<str>]>,
    /// The value of the indexed field; empty where there is none.
    pub index: Arc<str>,
    /// The revision of its last change.
    pub revision: u64,
}

impl Object {
    /// Its namespace, if it has one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.key.split_once('/').map(|(namespace, _)| namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }
}

/// An object as it comes from the store.
#[derive(Debug)]
pub struct Stored {
    /// Its message, without a version.
    pub message: Message,
    /// Its labels.
    pub labels: Labels,
    /// The field that is indexed.
    pub indexed: Option<&'static Field>,
    /// The revision of its last change.
    pub revision: u64,
}

impl Stored {
    fn index(&self) -> Cow<'_, str> {
        self.indexed.map_or(Cow::Borrowed(""), |field| field.value(self.message.bytes()))
    }

    /// Whether it belongs to one of the parts that are held here.
    #[must_use]
    pub fn is_held(&self, parts: Parts, key: &str) -> bool {
        parts.is_whole()
            || match self.indexed {
                Some(_) => parts.holds(parts.of(&self.index())),
                None => parts.holds(parts.of(key)),
            }
    }

    /// An object that no table holds: it shares no text with others.
    #[must_use]
    pub fn alone(self, key: Arc<str>) -> Object {
        let labels = self.labels.of(&self.message);
        let labels = labels.map(|(name, value)| format!("{name}={value}").into()).collect();
        let index = self.index().into();
        Object { key, labels, index, message: self.message, revision: self.revision }
    }

    fn has(&self, labels: &[Arc<str>]) -> bool {
        let mut known = labels.iter();
        let same = self.labels.of(&self.message).all(|(key, value)| {
            let known = known.next().and_then(|known| known.strip_prefix(key)?.strip_prefix('='));
            known == Some(value)
        });
        same && known.next().is_none()
    }
}

/// Why a read can't be answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfReach {
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

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys from here on.
    pub from: String,
    /// So many objects at most; 0 is all.
    pub limit: usize,
    /// As of this revision; else as of the table's.
    pub at: Option<u64>,
    /// Whether kube-apiserver reads by its index: what has another value of the indexed field is
    /// then not more to come.
    pub by_index: bool,
}

impl Window {
    /// Whether it is the whole list, as of now.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.at.is_none() && self.from.is_empty() && self.limit == 0
    }

    /// Whether it holds few objects, and few are looked at to find them.
    #[must_use]
    pub fn is_small(&self, filter: &Filter) -> bool {
        filter.key.is_some() || (filter.is_plain() && (1..=CHEAP).contains(&self.limit))
    }
}

/// A part of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// Its objects, in the order of keys.
    pub objects: Vec<Arc<Object>>,
    /// The revision that it is of.
    pub revision: u64,
    /// Whether there may be more, after the last object. As in kube-apiserver, which looks at
    /// what it has not yet filtered.
    pub more: bool,
    /// How many objects are left after these, where the request has no selector.
    pub remaining: Option<usize>,
}

type Keys = BTreeSet<Arc<str>>;

/// The objects of one resource, or of some parts of it; all events. A change finds its object by a hash; the order of keys is kept
/// apart, since it changes only where an object comes or goes.
#[derive(Debug, Default)]
pub struct Table {
    parts: Parts,
    objects: HashMap<Arc<str>, Arc<Object>>,
    ordered: Keys,
    indexes: Indexes,
    feeds: Feeds,
    revision: u64,
}

impl Table {
    /// A table as of a revision.
    #[must_use]
    pub fn new(objects: impl IntoIterator<Item = (Arc<str>, Stored)>, revision: u64) -> Self {
        Self::of(Parts::default(), objects, revision)
    }

    /// A table of these parts, of all of which objects are given.
    #[must_use]
    pub fn of(
        parts: Parts,
        objects: impl IntoIterator<Item = (Arc<str>, Stored)>,
        revision: u64,
    ) -> Self {
        let mut table = Self { parts, feeds: Feeds::new(revision), revision, ..Self::default() };
        for (key, stored) in objects {
            table.put(&key, stored);
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
    pub fn apply(&mut self, key: &str, after: Option<Stored>, revision: u64) {
        self.apply_to(key, None, after, revision);
    }

    /// The same of a table of some parts: of what it does not hold, `before` is what it was. What
    /// belongs to another part is told, and not kept.
    pub fn apply_to(
        &mut self,
        key: &str,
        before: Option<Stored>,
        after: Option<Stored>,
        revision: u64,
    ) {
        let (known, after) = match after {
            Some(stored) if stored.is_held(self.parts, key) => {
                let (known, after) = self.put(key, stored);
                (known, Some(after))
            }
            Some(stored) => (self.remove(key), Some(Arc::new(stored.alone(key.into())))),
            None => (self.remove(key), None),
        };
        let foreign = || before.map(|stored| Arc::new(stored.alone(key.into())));
        let before = known.or_else(foreign);
        if before.is_some() || after.is_some() {
            self.feeds.push(Event::new(revision, before, after));
        }
    }

    /// The object before, and after.
    fn put(&mut self, key: &str, stored: Stored) -> (Option<Arc<Object>>, Arc<Object>) {
        if let Some(slot) = self.objects.get_mut(key) {
            let object = Arc::new(self.indexes.change(slot, stored));
            return (Some(std::mem::replace(slot, object.clone())), object);
        }
        let key: Arc<str> = key.into();
        let object = Arc::new(self.indexes.add(key.clone(), stored));
        self.objects.insert(key.clone(), object.clone());
        self.ordered.insert(key);
        (None, object)
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Object>> {
        let before = self.objects.remove(key)?;
        self.ordered.remove(key);
        self.indexes.take_index(&before);
        self.indexes.take_labels(&before);
        Some(before)
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

    /// One object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    /// What is asked for, in the order of keys.
    #[must_use]
    pub fn list(&self, filter: &Filter) -> Vec<Arc<Object>> {
        if let Some(key) = &filter.key {
            return self.get(key).filter(|object| filter.matches(object)).into_iter().collect();
        }
        let Some(keys) = self.keys(filter) else {
            let all = self.from(filter, "").filter_map(|key| self.objects.get(key));
            return all.filter(|object| filter.matches(object)).cloned().collect();
        };
        let begin = filter.namespace.as_ref().map(|namespace| format!("{namespace}/"));
        let begin = begin.unwrap_or_default();
        keys.range::<str, _>((Bound::Included(begin.as_str()), Bound::Unbounded))
            .take_while(|key| key.starts_with(&begin))
            .filter_map(|key| self.objects.get(key))
            .filter(|object| filter.matches(object))
            .cloned()
            .collect()
    }

    /// The keys of an index that hold all that is asked for; none where no index does.
    fn keys(&self, filter: &Filter) -> Option<&Keys> {
        static NONE: Keys = Keys::new();
        let Indexes { fields, labels } = &self.indexes;
        let by_index = filter.index.as_deref().map(|value| fields.get(value));
        let by_label = filter.labels.required().map(|label| labels.get(label.as_str()));
        by_index
            .into_iter()
            .chain(by_label)
            .map(|keys| keys.unwrap_or(&NONE))
            .min_by_key(|keys| keys.len())
    }

    /// Keys in the namespace that is asked for, from one on.
    fn from<'a>(&'a self, filter: &Filter, from: &str) -> InNamespace<'a> {
        let prefix = filter.namespace.as_ref().map(|namespace| format!("{namespace}/"));
        let begin = prefix.as_deref().map_or(from, |prefix| prefix.max(from));
        let range = self.ordered.range::<str, _>((Bound::Included(begin), Bound::Unbounded));
        InNamespace { range, prefix }
    }

    /// Whether a part of what is asked for takes a look at many objects.
    #[must_use]
    pub fn is_expensive(&self, filter: &Filter, window: &Window) -> bool {
        if window.is_small(filter) {
            return false;
        }
        match self.keys(filter).filter(|_| window.is_whole()) {
            Some(keys) => keys.len() > CHEAP,
            None => self.from(filter, &window.from).nth(CHEAP).is_some(),
        }
    }

    /// A part of what is asked for.
    pub fn page(&self, filter: &Filter, window: &Window) -> Result<Page, OutOfReach> {
        let revision = window.at.unwrap_or(self.revision);
        if window.at.is_none()
            && window.from.is_empty()
            && (window.limit == 0 || filter.key.is_some())
        {
            let objects = self.list(filter);
            return Ok(Page { objects, revision, ..Page::default() });
        }
        if revision > self.revision {
            return Err(OutOfReach::TooNew);
        }
        // What the objects that have changed since were then.
        let mut then: BTreeMap<&str, Option<&Arc<Object>>> = BTreeMap::new();
        let since = if revision < self.revision {
            self.feeds.all().after(revision, |_| true).ok_or(OutOfReach::TooOld)?
        } else {
            Vec::new()
        };
        for event in &since {
            let one = event.after.as_ref().or(event.before.as_ref());
            if let Some(one) = one {
                then.entry(&one.key).or_insert(event.before.as_ref());
            }
        }
        let in_namespace = |object: &&Arc<Object>| {
            filter.namespace.as_deref().is_none_or(|name| object.namespace() == Some(name))
        };
        let same = self.from(filter, &window.from).filter(|key| !then.contains_key(&***key));
        let changed = then
            .range::<str, _>((Bound::Included(window.from.as_str()), Bound::Unbounded))
            .filter_map(|(_, object)| *object)
            .filter(in_namespace);
        let mut rest = merge(same, changed);
        let object = |one| match one {
            One::Now(key) => self.objects.get(key),
            One::Then(object) => Some(object),
        };
        let mut page = Page { revision, ..Page::default() };
        for object in rest.by_ref().filter_map(object).filter(|object| filter.matches(object)) {
            page.objects.push(object.clone());
            if page.objects.len() == window.limit {
                break;
            }
        }
        if filter.is_plain() {
            let left = rest.count();
            page.more = left > 0;
            page.remaining = page.more.then_some(left);
        } else if filter.key.is_none() {
            let index = filter.index.as_deref().filter(|_| window.by_index);
            page.more = rest
                .filter_map(object)
                .any(|object| index.is_none_or(|value| *object.index == *value));
        }
        Ok(page)
    }

    /// Begins a watch: with the objects there are, or after a revision.
    pub fn watch(&mut self, filter: &Filter, after: Option<u64>) -> Result<Start, OutOfReach> {
        let feed = self.feeds.of(filter.part());
        let (objects, events) = match after {
            None => (self.list(filter), Vec::new()),
            Some(after) if after > self.revision => return Err(OutOfReach::TooNew),
            Some(after) => {
                let wanted = |event: &Arc<Event>| event.told(filter).is_some();
                let events = feed.after(after, wanted);
                let events = events.or_else(|| self.feeds.all().after(after, wanted));
                (Vec::new(), events.ok_or(OutOfReach::TooOld)?)
            }
        };
        Ok(Start { feed, revision: self.revision, objects, events })
    }
}

/// Keys by what their objects have.
#[derive(Debug, Default)]
struct Indexes {
    fields: HashMap<Arc<str>, Keys>,
    labels: HashMap<Arc<str>, Keys>,
}

impl Indexes {
    /// An object that is new. It shares its texts with others.
    fn add(&mut self, key: Arc<str>, stored: Stored) -> Object {
        let index = self.put_index(&stored, &key);
        let labels = self.put_labels(&stored, &key);
        Object { key, labels, index, message: stored.message, revision: stored.revision }
    }

    /// An object that was there before: what has not changed is where it was.
    fn change(&mut self, before: &Object, stored: Stored) -> Object {
        let key = before.key.clone();
        let index = if *before.index == *stored.index() {
            before.index.clone()
        } else {
            self.take_index(before);
            self.put_index(&stored, &key)
        };
        let labels = if stored.has(&before.labels) {
            before.labels.clone()
        } else {
            self.take_labels(before);
            self.put_labels(&stored, &key)
        };
        Object { key, labels, index, message: stored.message, revision: stored.revision }
    }

    fn put_index(&mut self, stored: &Stored, key: &Arc<str>) -> Arc<str> {
        let value = stored.index();
        if value.is_empty() { Arc::default() } else { put(&mut self.fields, &value, key) }
    }

    fn put_labels(&mut self, stored: &Stored, key: &Arc<str>) -> Arc<[Arc<str>]> {
        let labels = stored.labels.of(&stored.message);
        labels.map(|(name, value)| put(&mut self.labels, &format!("{name}={value}"), key)).collect()
    }

    fn take_index(&mut self, object: &Object) {
        take(&mut self.fields, &object.index, &object.key);
    }

    fn take_labels(&mut self, object: &Object) {
        for label in &*object.labels {
            take(&mut self.labels, label, &object.key);
        }
    }
}

/// Adds a key to an index, and gives the index's own text.
fn put(index: &mut HashMap<Arc<str>, Keys>, value: &str, key: &Arc<str>) -> Arc<str> {
    let entry = index.entry(value.into());
    let shared = entry.key().clone();
    entry.or_default().insert(key.clone());
    shared
}

fn take(index: &mut HashMap<Arc<str>, Keys>, value: &Arc<str>, key: &Arc<str>) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

/// Keys up to the end of a namespace.
struct InNamespace<'a> {
    range: Range<'a, Arc<str>>,
    prefix: Option<String>,
}

impl<'a> Iterator for InNamespace<'a> {
    type Item = &'a Arc<str>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.range.next()?;
        self.prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix)).then_some(key)
    }
}

/// An object as it is, by its key, or as it was.
enum One<'a> {
    Now(&'a Arc<str>),
    Then(&'a Arc<Object>),
}

/// What is, and what was, all in the order of keys.
fn merge<'a>(
    now: impl Iterator<Item = &'a Arc<str>>,
    then: impl Iterator<Item = &'a Arc<Object>>,
) -> impl Iterator<Item = One<'a>> {
    let (mut now, mut then) = (now.peekable(), then.peekable());
    std::iter::from_fn(move || match (now.peek(), then.peek()) {
        (Some(first), Some(second)) if second.key < **first => then.next().map(One::Then),
        (Some(_), _) => now.next().map(One::Now),
        (None, _) => then.next().map(One::Then),
    })
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
