//! Who watches a key: single keys and prefixes by hash, other ranges by a scan.

use std::collections::BTreeMap;

use bytes::Bytes;
use hashbrown::HashMap;

use super::super::history::Event;
use super::super::range::KeyRange;
use super::Filter;

/// Names a watcher: its stream, and its id on that stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchKey {
    /// The stream.
    pub stream: u64,
    /// The watch id.
    pub id: i64,
}

/// News for a watcher: the batch has events for it from `revision` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The watcher.
    pub watch: WatchKey,
    /// The first revision that concerns it.
    pub revision: i64,
    /// The last one of the batch that does.
    pub last: i64,
}

#[derive(Clone, Copy, Debug)]
struct Watcher {
    key: WatchKey,
    filter: Filter,
    /// Events below are not wanted: the watch began in the future.
    from: i64,
    /// Number of the last batch that marked it, so that one batch marks it once.
    marked: u64,
    /// Which of that batch's marks it is.
    mark: usize,
}

/// All watchers, by what they watch.
#[derive(Debug, Default)]
pub struct WatchIndex {
    ranges: BTreeMap<WatchKey, KeyRange>,
    keys: HashMap<Bytes, Vec<Watcher>>,
    prefixes: HashMap<Bytes, Vec<Watcher>>,
    /// How many prefixes there are of each length; the lengths to look up for a key.
    lengths: BTreeMap<usize, usize>,
    others: Vec<(KeyRange, Watcher)>,
    batch: u64,
    /// Marks of the batch at hand; empty between batches.
    marks: Vec<Mark>,
}

impl WatchIndex {
    /// Adds a watcher of events from revision `from` on.
    pub fn add(&mut self, key: WatchKey, range: KeyRange, filter: Filter, from: i64) {
        self.remove(key);
        let watcher = Watcher { key, filter, from, marked: 0, mark: 0 };
        if let KeyRange::One(one) = &range {
            self.keys.entry(one.clone()).or_default().push(watcher);
        } else if let Some(prefix) = range.as_prefix() {
            let list = self.prefixes.entry(prefix.clone()).or_default();
            if list.is_empty() {
                *self.lengths.entry(prefix.len()).or_default() += 1;
            }
            list.push(watcher);
        } else {
            self.others.push((range.clone(), watcher));
        }
        self.ranges.insert(key, range);
    }

    /// Removes a watcher, if it is there.
    pub fn remove(&mut self, key: WatchKey) {
        let Some(range) = self.ranges.remove(&key) else { return };
        if let KeyRange::One(one) = &range {
            take(&mut self.keys, one, key);
        } else if let Some(prefix) = range.as_prefix() {
            if take(&mut self.prefixes, prefix, key) {
                let count = self.lengths.entry(prefix.len()).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        } else {
            self.others.retain(|(_, watcher)| watcher.key != key);
        }
    }

    /// Removes all watchers of a stream.
    pub fn remove_stream(&mut self, stream: u64) {
        let keys: Vec<WatchKey> = self
            .ranges
            .range(WatchKey { stream, id: i64::MIN }..=WatchKey { stream, id: i64::MAX })
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Number of watchers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nobody watches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Gives a mark for every watcher that the events of a batch concern, in the order of their
    /// first such event.
    pub fn mark(&mut self, events: &[Event], give: impl FnMut(Mark)) {
        if self.ranges.is_empty() {
            return;
        }
        self.batch += 1;
        let (batch, marks) = (self.batch, &mut self.marks);
        for event in events {
            let key = event.kv.key();
            if let Some(list) = self.keys.get_mut(key) {
                for watcher in list {
                    watcher.offer(event, batch, marks);
                }
            }
            for length in self.lengths.keys().take_while(|length| **length <= key.len()) {
                if let Some(list) = self.prefixes.get_mut(&key[..*length]) {
                    for watcher in list {
                        watcher.offer(event, batch, marks);
                    }
                }
            }
            for (range, watcher) in &mut self.others {
                if range.contains(key) {
                    watcher.offer(event, batch, marks);
                }
            }
        }
        marks.drain(..).for_each(give);
    }
}

/// Takes one watcher out of a list; true if the list is gone with it.
fn take(lists: &mut HashMap<Bytes, Vec<Watcher>>, at: &Bytes, key: WatchKey) -> bool {
    let Some(list) = lists.get_mut(at) else { return false };
    list.retain(|watcher| watcher.key != key);
    let empty = list.is_empty();
    if empty {
        lists.remove(at);
    }
    empty
}

impl Watcher {
    fn offer(&mut self, event: &Event, batch: u64, marks: &mut Vec<Mark>) {
        let revision = event.kv.mod_revision();
        if revision < self.from || !self.filter.passes(event) {
            return;
        }
        if self.marked == batch {
            if let Some(mark) = marks.get_mut(self.mark) {
                mark.last = revision;
            }
            return;
        }
        (self.marked, self.mark) = (batch, marks.len());
        marks.push(Mark { watch: self.key, revision, last: revision });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kv::{Fields, KeyValue};
    use super::*;

    fn event(key: &'static str, revision: i64) -> Event {
        let fields =
            Fields { key: key.as_bytes(), mod_revision: revision, version: 1, ..Fields::default() };
        Event { kv: KeyValue::new(fields), prev: None }
    }

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(key.into(), end.into())
    }

    fn marks(index: &mut WatchIndex, events: &[Event]) -> Vec<(i64, i64, i64)> {
        let mut found = Vec::new();
        index.mark(events, |mark| found.push((mark.watch.id, mark.revision, mark.last)));
        found.sort_unstable();
        found
    }

    #[test]
    fn every_kind_of_range_is_found_and_forgotten() {
        let mut index = WatchIndex::default();
        let key = |id| WatchKey { stream: 1, id };
        index.add(key(1), range("/a/1", ""), Filter::default(), 0);
        index.add(key(2), range("/a/", "/a0"), Filter::default(), 0);
        index.add(key(3), range("/a", "\0"), Filter::default(), 0);
        index.add(key(4), range("/b/", "/b0"), Filter::default(), 0);
        index.add(key(5), range("/a/", "/a0"), Filter::default(), 12);
        let events = [event("/b/x", 10), event("/a/1", 11), event("/a/2", 12), event("/a/1", 13)];
        let wanted = [(1, 11, 13), (2, 11, 13), (3, 10, 13), (4, 10, 10), (5, 12, 13)];
        assert_eq!(marks(&mut index, &events), wanted);
        assert_eq!(marks(&mut index, &events[..1]), [(3, 10, 10), (4, 10, 10)]);
        for id in 1..=5 {
            index.remove(key(id));
        }
        assert!(index.is_empty());
        assert!(index.lengths.is_empty() && index.prefixes.is_empty() && index.keys.is_empty());
        assert_eq!(marks(&mut index, &events), []);
    }
}
