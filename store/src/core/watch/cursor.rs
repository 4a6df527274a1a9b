//! A watcher's place in the history.

use super::super::history::{Event, History, Read};
use super::super::range::KeyRange;

/// Most revisions in one answer, and the size at which an answer is closed. Whole revisions only,
/// so an answer may be larger by one transaction.
const CHUNK_REVISIONS: usize = 1000;
const CHUNK_BYTES: usize = 1 << 20;
/// Events looked at in one go before other watchers get their turn.
const SCAN: usize = 16 * 1024;

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

/// The next events of a watcher.
#[derive(Debug)]
pub enum Chunk {
    /// Events in order, of whole revisions; maybe none. The watcher now knows all up to `through`.
    /// `more` says that the history goes on.
    Events {
        /// The events.
        events: Vec<Event>,
        /// The revision up to which nothing is missing.
        through: i64,
        /// Whether to come back at once.
        more: bool,
    },
    /// History begins at this revision, above the cursor.
    Compacted(i64),
}

impl Cursor {
    /// A watcher of `range` from revision `next` on.
    #[must_use]
    pub fn new(range: KeyRange, filter: Filter, next: i64) -> Self {
        Self { range, filter, next }
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

    /// Reads on.
    pub fn read(&mut self, history: &History) -> Chunk {
        let (batches, reach) = match history.read(self.next, SCAN, &self.range) {
            Read::Compacted(floor) => return Chunk::Compacted(floor),
            Read::Events(batches, reach) => (batches, reach),
        };
        let mut events: Vec<Event> = Vec::new();
        let (mut revisions, mut bytes, mut last) = (0, 0, 0);
        let start = self.next;
        for event in batches.iter().flat_map(|batch| batch.iter()) {
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
                    return Chunk::Events { events, through: revision - 1, more: true };
                }
                revisions += 1;
                last = revision;
            }
            bytes += event.kv.encoded().len();
            bytes += event.prev.as_ref().map_or(0, |prev| prev.encoded().len());
            events.push(event.clone());
        }
        self.next = self.next.max(reach + 1);
        Chunk::Events { events, through: reach, more: reach < history.revision() }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::core::mvcc::Mvcc;

    fn revisions(chunk: &Chunk) -> (Vec<i64>, bool) {
        match chunk {
            Chunk::Events { events, more, .. } => {
                (events.iter().map(|e| e.kv.mod_revision()).collect(), *more)
            }
            Chunk::Compacted(_) => panic!("compacted"),
        }
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
            let (found, more) = revisions(&cursor.read(&mvcc.history()));
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
        assert_eq!(revisions(&cursor.read(&mvcc.history())), (vec![], false));
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
        assert!(matches!(at(2).read(&mvcc.history()), Chunk::Events { .. }));
        mvcc.release();
        assert!(matches!(at(5).read(&mvcc.history()), Chunk::Compacted(6)));
        assert_eq!(revisions(&at(6).read(&mvcc.history())), ((6..=10).collect(), false));
    }
}
