//! A watcher's place in the history.

use super::super::history::Event;
use super::super::range::KeyRange;

/// Most revisions in one answer, and the size at which an answer is closed. Whole revisions only,
/// so an answer may be larger by one transaction.
const CHUNK_REVISIONS: usize = 1000;
const CHUNK_BYTES: usize = 1 << 20;
/// Kinds of events that a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletes.
    pub no_delete: bool,
}

impl Filter {
    /// Whether the event is wanted.
    #[must_use]
    pub fn passes(self, event: &Event) -> bool {
        if event.kv.is_tombstone() { !self.no_delete } else { !self.no_put }
    }
}

/// One watcher: what it watches and how far it has been told.
#[derive(Debug)]
pub struct Cursor {
    range: KeyRange,
    filter: Filter,
    next: i64,
}

/// The next events of a watcher: of whole revisions, in order; maybe none.
#[derive(Debug)]
pub struct Picked<'a> {
    /// The events.
    pub events: Vec<&'a Event>,
    /// The watcher now knows all up to this revision.
    pub through: i64,
    /// There are more among those looked at: to be picked with the next answer.
    pub more: bool,
}

impl Cursor {
    /// A watcher of `range` from revision `next` on.
    #[must_use]
    pub fn new(range: KeyRange, filter: Filter, next: i64) -> Self {
        Self { range, filter, next }
    }

    /// What it watches.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The first revision it has not been told of.
    #[must_use]
    pub fn next_revision(&self) -> i64 {
        self.next
    }

    /// There is nothing for this watcher below `revision`, so that it need not look.
    pub fn skip_to(&mut self, revision: i64) {
        self.next = self.next.max(revision);
    }

    /// Picks this watcher's from `events`, which are all that happened from its next revision, or
    /// from one before it, up to `reach`.
    pub fn pick<'a>(&mut self, events: impl Iterator<Item = &'a Event>, reach: i64) -> Picked<'a> {
        let mut picked: Vec<&Event> = Vec::new();
        let (mut revisions, mut bytes, mut last) = (0, 0, 0);
        let start = self.next;
        for event in events {
            let revision = event.kv.mod_revision();
            if revision < start
                || !self.range.contains(event.kv.key())
                || !self.filter.passes(event)
            {
                continue;
            }
            if revision != last {
                if revisions == CHUNK_REVISIONS || bytes >= CHUNK_BYTES {
                    self.next = revision;
                    return Picked { events: picked, through: revision - 1, more: true };
                }
                revisions += 1;
                last = revision;
            }
            bytes += event.kv.encoded().len();
            bytes += event.prev.as_ref().map_or(0, |prev| prev.encoded().len());
            picked.push(event);
        }
        self.next = self.next.max(reach + 1);
        Picked { events: picked, through: reach, more: false }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::history::{History, Read};
    use super::*;
    use crate::core::mvcc::Mvcc;

    /// Reads on: the revisions told, and whether there are more. `None` if they are compacted.
    fn read(cursor: &mut Cursor, history: &History) -> Option<(Vec<i64>, bool)> {
        let Read::Events(batches, reach) =
            history.read(cursor.next_revision(), 1500, cursor.range())
        else {
            return None;
        };
        let picked = cursor.pick(batches.iter().flat_map(|batch| batch.iter()), reach);
        let revisions = picked.events.iter().map(|event| event.kv.mod_revision()).collect();
        Some((revisions, picked.more || reach < history.revision()))
    }

    #[test]
    fn chunks_hold_whole_revisions_and_miss_none() {
        let mut mvcc = Mvcc::new(1);
        for revision in 2..=3000 {
            mvcc.put(revision, b"/a/1", b"v", 0);
            mvcc.put(revision, b"/a/2", b"v", 0);
            mvcc.put(revision, b"/b", b"v", 0);
            mvcc.finish(revision);
            if revision % 7 == 0 {
                mvcc.publish();
                mvcc.show();
            }
        }
        mvcc.publish();
        mvcc.show();
        let range = KeyRange::new(Bytes::from_static(b"/a/"), Bytes::from_static(b"/a0"));
        let mut cursor = Cursor::new(range, Filter::default(), 5);
        let mut seen = Vec::new();
        loop {
            let (found, more) = read(&mut cursor, &mvcc.history()).unwrap();
            assert!(found.len() <= 2 * CHUNK_REVISIONS);
            assert_ne!(found.last(), Some(&seen.last().copied().unwrap_or(0)));
            seen.extend(found);
            if !more {
                break;
            }
        }
        let wanted: Vec<i64> = (5..=3000).flat_map(|r| [r, r]).collect();
        assert_eq!(seen, wanted);
        assert_eq!(cursor.next_revision(), 3001);
        assert_eq!(read(&mut cursor, &mvcc.history()), Some((vec![], false)));
    }

    #[test]
    fn a_cursor_below_the_history_is_told_so() {
        let mut mvcc = Mvcc::new(1);
        for revision in 2..=10 {
            mvcc.put(revision, b"k", b"v", 0);
            mvcc.finish(revision);
            mvcc.publish();
            mvcc.show();
        }
        mvcc.compact(6).unwrap();
        let at =
            |next| Cursor::new(KeyRange::One(Bytes::from_static(b"k")), Filter::default(), next);
        assert!(read(&mut at(2), &mvcc.history()).is_some());
        mvcc.release();
        assert_eq!(read(&mut at(5), &mvcc.history()), None);
        assert_eq!(read(&mut at(6), &mvcc.history()), Some(((6..=10).collect(), false)));
    }
}
