//! Every version of every key since the compacted revision.
//!
//! A hash table finds the cell of a key, an ordered tree finds the cells of a range and counts the
//! live ones; a cell holds the key's versions. A put of a key that exists touches its cell only.
//!
//! Changes are made by the sequencer alone. A change is *applied* at once and becomes *visible* to
//! other threads, through [`History`], by [`Mvcc::publish`], when it is durable.

mod cell;
mod chain;
mod delta;
mod housekeeping;
mod index;
mod page;
mod tree;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashSet;

use self::cell::Cell;
pub(in crate::core) use self::cell::CellRef;
use self::housekeeping::Chores;
use self::index::Index;
use self::page::Pins;
pub use self::page::{Page, Pin};
use self::tree::Tree;
use super::error::Error;
use super::history::{Batch, Event, History};
use super::kv::{Fields, KeyValue};
use super::range::KeyRange;

/// To count a range at a past revision, undo up to this many newer events before walking the range.
const UNDO_LIMIT: usize = 8192;

/// What a range holds at a revision.
#[derive(Debug, Default)]
pub struct Found {
    /// The first keys in key order, up to the limit.
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever the limit left out.
    pub count: usize,
}

/// How much of a range is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    All,
    /// The first so many keys, and the count.
    First(usize),
    /// The count alone.
    Count,
}

/// The store of versions.
#[derive(Debug)]
pub struct Mvcc {
    tree: Tree,
    index: Index,
    /// Revision of the last finished transaction.
    revision: i64,
    /// Revision of the newest change, also within a transaction that is not finished.
    head: i64,
    compacted: i64,
    /// The compaction whose history was let go of last.
    released: i64,
    /// Its number.
    release: u32,
    pins: Pins,
    /// Applied and not yet published, in order.
    fresh: Vec<Event>,
    /// The cells of their keys.
    cells: Vec<CellRef>,
    history: Arc<History>,
    chores: Chores,
    bytes: usize,
    /// Room to encode in.
    scratch: Vec<u8>,
}

impl Mvcc {
    /// An empty store at `revision`; a fresh etcd is at 1.
    #[must_use]
    pub fn new(revision: i64) -> Self {
        Self {
            tree: Tree::default(),
            index: Index::default(),
            revision,
            head: revision,
            compacted: -1,
            released: -1,
            release: 0,
            pins: Pins::default(),
            fresh: Vec::new(),
            cells: Vec::new(),
            history: Arc::new(History::new(revision)),
            chores: Chores::default(),
            bytes: 0,
            scratch: Vec::new(),
        }
    }

    /// The history that this store publishes to.
    #[must_use]
    pub fn history(&self) -> Arc<History> {
        self.history.clone()
    }

    /// Revision of the last applied transaction.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compacted revision; −1 before the first compaction.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Live keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.tree.live()
    }

    /// Bytes held by all versions: keys, values and an estimate of what surrounds them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Events that are applied and not yet published.
    #[must_use]
    pub fn fresh(&self) -> &[Event] {
        &self.fresh
    }

    // ---- reading -------------------------------------------------------------------------------

    /// Checks a requested revision against the current one and gives the one to read at: 0 and
    /// below mean the current one (etcd `server/storage/mvcc/kvstore_txn.go`, `rangeKeys`).
    pub fn resolve(&self, requested: i64, current: i64) -> Result<i64, Error> {
        if requested > current {
            return Err(Error::FutureRevision);
        }
        let at = if requested <= 0 { current } else { requested };
        if at < self.compacted { Err(Error::Compacted) } else { Ok(at) }
    }

    /// The key's version at a revision.
    #[must_use]
    pub fn get(&self, key: &[u8], at: i64) -> Option<KeyValue> {
        self.find(key)?.at(at)
    }

    /// What `range` holds at revision `at`, which must not be compacted.
    #[must_use]
    pub fn range(&self, range: &KeyRange, at: i64, want: Want) -> Found {
        if let KeyRange::One(key) = range {
            let kv = self.get(key, at);
            let count = usize::from(kv.is_some());
            let take = if want == Want::Count { None } else { kv };
            return Found { kvs: take.into_iter().collect(), count };
        }
        let limit = match want {
            Want::All => usize::MAX,
            Want::First(limit) => limit,
            Want::Count => 0,
        };
        let mut kvs = Vec::new();
        if limit > 0 {
            self.each(range, at, |kv| {
                kvs.push(kv.clone());
                if kvs.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        // Fewer than the limit: the walk reached the end, so it has counted.
        let count = if kvs.len() < limit { kvs.len() } else { self.count(range, at) };
        Found { kvs, count }
    }

    /// Calls `visit` with each key of `range` at revision `at`, in key order, until it breaks.
    pub fn each(
        &self,
        range: &KeyRange,
        at: i64,
        mut visit: impl FnMut(&KeyValue) -> ControlFlow<()>,
    ) {
        if let KeyRange::One(key) = range {
            if let Some(kv) = self.get(key, at) {
                let _ = visit(&kv);
            }
            return;
        }
        let end = range.end().map(Bytes::as_ref);
        let newest = at >= self.head;
        self.tree.walk(range.start(), end, |cell, live| {
            if newest && !live {
                return ControlFlow::Continue(());
            }
            cell.at(at).map_or(ControlFlow::Continue(()), |kv| visit(&kv))
        });
    }

    fn count(&self, range: &KeyRange, at: i64) -> usize {
        let below = match range.end() {
            Some(end) if end <= range.start() => return 0,
            Some(end) => self.tree.rank(end),
            None => self.tree.live(),
        };
        let newest = below - self.tree.rank(range.start());
        if at >= self.head {
            return newest;
        }
        let Some(parts) = self.history.since(at, UNDO_LIMIT) else {
            return self.count_by_walk(range, at);
        };
        if self.fresh.len() > UNDO_LIMIT {
            return self.count_by_walk(range, at);
        }
        let changed: Vec<KeyValue> = parts
            .iter()
            .flat_map(|part| part.changed(at))
            .chain(self.fresh.iter().map(|event| event.kv.clone()))
            .collect();
        let mut seen = HashSet::new();
        let mut count = newest;
        for kv in &changed {
            let key = kv.key();
            if !range.contains(key) || !seen.insert(key) {
                continue;
            }
            let now = self.get(key, i64::MAX).is_some();
            let then = self.get(key, at).is_some();
            match (then, now) {
                (true, false) => count += 1,
                (false, true) => count -= 1,
                _ => {}
            }
        }
        count
    }

    fn count_by_walk(&self, range: &KeyRange, at: i64) -> usize {
        let mut count = 0;
        self.each(range, at, |_| {
            count += 1;
            ControlFlow::Continue(())
        });
        count
    }

    // ---- writing -------------------------------------------------------------------------------

    /// Puts a key at `revision`, which is that of the running transaction, and gives the version
    /// before it.
    pub fn put(&mut self, revision: i64, key: &[u8], value: &[u8], lease: i64) -> Option<KeyValue> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let prev = self.push_with(key, |latest| {
            let (create_revision, version) = latest
                .map(KeyValue::fields)
                .filter(|was| was.version != 0)
                .map_or((revision, 1), |was| (was.create_revision, was.version + 1));
            let fields =
                Fields { key, create_revision, mod_revision: revision, version, value, lease };
            KeyValue::with(fields, &mut scratch)
        });
        self.scratch = scratch;
        prev
    }

    /// Deletes a key at `revision` and gives what it held; `None` if it was not there.
    pub fn delete(&mut self, revision: i64, key: &[u8]) -> Option<KeyValue> {
        if self.find(key)?.latest().is_tombstone() {
            return None;
        }
        self.push(&KeyValue::tombstone(key, revision))
    }

    /// Adds a version as it is (recovery), and gives the live one before it.
    pub fn push(&mut self, kv: &KeyValue) -> Option<KeyValue> {
        self.push_with(kv.key(), |_| kv.clone())
    }

    /// Adds the version of `key` that `make` gives for the newest one so far.
    fn push_with(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&KeyValue>) -> KeyValue,
    ) -> Option<KeyValue> {
        let hash = self.index.hash(key);
        let (kv, prev) = if let Some(cell) = self.index.get_hashed(hash, key) {
            let (kv, before, grown) = cell.push(|latest| make(Some(latest)));
            self.bytes += grown;
            self.cells.push(cell.clone());
            let dead = kv.is_tombstone();
            let prev = Some(before).filter(|kv| !kv.is_tombstone());
            if prev.is_none() != dead {
                self.tree.set_live(key, !dead);
            }
            (kv, prev)
        } else {
            let kv = make(None);
            self.bytes += Cell::bytes_of_one(&kv);
            let cell = Cell::new(kv.clone());
            self.tree.insert(key, cell.clone());
            self.cells.push(cell.clone());
            self.index.insert(hash, cell);
            if kv.is_tombstone() {
                self.tree.set_live(key, false);
            }
            (kv, None)
        };
        self.head = self.head.max(kv.mod_revision());
        self.fresh.push(Event { kv, prev: prev.clone() });
        prev
    }

    /// Ends the transaction that ran at `revision`.
    pub fn finish(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
        self.head = self.revision;
    }

    /// Begins to bring what reads and writes of these keys will need. In steps, each for all of
    /// them, so that they wait for memory together.
    pub fn prefetch<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let hashes: Vec<u64> = keys.map(|key| self.index.hash(key)).collect();
        let cells: Vec<&CellRef> =
            hashes.into_iter().filter_map(|hash| self.index.guess(hash)).collect();
        for cell in &cells {
            cell.prefetch();
        }
        for cell in &cells {
            cell.prefetch_versions();
        }
        for cell in &cells {
            cell.prefetch_ends();
        }
    }

    fn find(&self, key: &[u8]) -> Option<&CellRef> {
        self.index.get(key)
    }

    /// The bytes of all versions, counted anew: what [`Mvcc::bytes`] must say.
    #[must_use]
    pub fn count_bytes(&self) -> usize {
        let mut bytes = 0;
        self.tree.walk::<()>(b"", None, |cell, _| {
            bytes += cell.bytes();
            ControlFlow::Continue(())
        });
        bytes
    }

    // ---- publishing and compaction --------------------------------------------------------------

    /// Moves what was applied into the history, where readers find it once [`Mvcc::show`] is
    /// called. Gives the batch, for the watch index.
    pub fn publish(&mut self) -> Option<Batch> {
        if self.fresh.is_empty() {
            return None;
        }
        let batch: Batch = std::mem::take(&mut self.fresh).into();
        self.history.push(batch.clone(), std::mem::take(&mut self.cells));
        self.note_published(&batch);
        Some(batch)
    }

    /// Makes every applied revision visible. Call after [`Mvcc::publish`].
    pub fn show(&self) {
        self.history.show(self.revision);
    }

    /// Events below `revision` are not in the history and never were.
    pub fn begin_history(&mut self, revision: i64) {
        self.history.begin_at(revision);
    }

    /// Drops what was applied from the history to be (a snapshot's keys, whose past is gone).
    pub fn forget_fresh(&mut self) {
        self.fresh.clear();
        self.cells.clear();
    }

    /// Makes revisions below `revision` unreachable for reads and new watches. Errors as etcd's
    /// `updateCompactRev`. A running watch goes on until [`Mvcc::release`].
    pub fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        Ok(())
    }
}
