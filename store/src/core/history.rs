//! What happened, in revision order: the ring that every watch reads with a cursor of its own.
//!
//! The sequencer appends what is durable; readers on other threads take shared batches out under a
//! lock that is held for pointer copies only. Compaction takes batches off the front, so the ring
//! is as long as the history that clients asked to keep, and a slow reader holds nothing back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use super::KeyValue;

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The new version; a tombstone if the key was deleted.
    pub kv: KeyValue,
    /// The version before it, if the key was there.
    pub prev: Option<KeyValue>,
}

/// Events of whole revisions, in order; never empty.
pub type Batch = Arc<[Event]>;

fn first(batch: &Batch) -> i64 {
    batch.first().map_or(0, |event| event.kv.mod_revision())
}

fn last(batch: &Batch) -> i64 {
    batch.last().map_or(0, |event| event.kv.mod_revision())
}

/// The ring, and the two revisions that readers on other threads need.
#[derive(Debug)]
pub struct History {
    batches: RwLock<VecDeque<Batch>>,
    revision: AtomicI64,
    /// Events below are gone.
    floor: AtomicI64,
}

/// What [`History::read`] found.
#[derive(Debug)]
pub enum Read {
    /// Batches that may hold events from the cursor on, and the revision they reach.
    Events(Vec<Batch>, i64),
    /// The cursor is below this revision, where history begins.
    Compacted(i64),
}

impl History {
    /// An empty history at `revision`.
    #[must_use]
    pub fn new(revision: i64) -> Self {
        Self {
            batches: RwLock::default(),
            revision: AtomicI64::new(revision),
            floor: AtomicI64::new(i64::MIN),
        }
    }

    /// The newest revision that any client may see.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Events below this revision are gone.
    pub(super) fn floor(&self) -> i64 {
        self.floor.load(Ordering::Acquire)
    }

    /// Events below `revision` were never here: a snapshot holds what they led to.
    pub(super) fn begin_at(&self, revision: i64) {
        self.floor.fetch_max(revision, Ordering::AcqRel);
    }

    /// Adds a batch without making its revision visible yet. See [`History::show`].
    pub(super) fn push(&self, batch: Batch) {
        self.batches.write().push_back(batch);
    }

    /// Makes all that was pushed, up to `revision`, visible.
    pub(super) fn show(&self, revision: i64) {
        self.revision.store(revision, Ordering::Release);
    }

    /// Forgets batches that are wholly below `revision`, and gives every batch with an event at or
    /// below it: their keys may have versions to free. A watch may still start at `revision`.
    pub(super) fn trim(&self, revision: i64) -> Vec<Batch> {
        let mut batches = self.batches.write();
        self.floor.fetch_max(revision, Ordering::AcqRel);
        let gone = batches.partition_point(|batch| last(batch) < revision);
        let mut touched: Vec<Batch> = batches.drain(..gone).collect();
        touched.extend(batches.front().filter(|batch| first(batch) <= revision).cloned());
        touched
    }

    /// Batches from `cursor` on, oldest first, until `limit` events are exceeded.
    #[must_use]
    pub fn read(&self, cursor: i64, limit: usize) -> Read {
        let batches = self.batches.read();
        let floor = self.floor.load(Ordering::Acquire);
        if cursor < floor {
            return Read::Compacted(floor);
        }
        let start = batches.partition_point(|batch| last(batch) < cursor);
        let mut found = Vec::new();
        let mut events = 0;
        for batch in batches.range(start..) {
            if events >= limit {
                // What was taken reaches to just below the batch that was not.
                return Read::Events(found, first(batch) - 1);
            }
            events += batch.len();
            found.push(batch.clone());
        }
        let newest = batches.back().map_or(i64::MIN, last);
        Read::Events(found, newest.max(self.revision.load(Ordering::Acquire)))
    }

    /// Events above `revision`, newest batch first, or `None` if there are more than `limit`.
    pub(super) fn since(&self, revision: i64, limit: usize) -> Option<Vec<Batch>> {
        let batches = self.batches.read();
        let mut found = Vec::new();
        let mut events = 0;
        for batch in batches.iter().rev() {
            if last(batch) <= revision {
                break;
            }
            events += batch.len();
            if events > limit {
                return None;
            }
            found.push(batch.clone());
        }
        Some(found)
    }
}
