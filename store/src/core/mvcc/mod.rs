//! Every version of every key since the compacted revision.
//!
//! A hash table finds the slot of a key, an ordered tree finds the slots of a range and counts the
//! live ones; a slot holds the key's versions. A put of a key that exists touches its slot only.
//!
//! Changes are made by the sequencer alone. A change is *applied* at once and becomes *visible* to
//! other threads, through [`History`], by [`Mvcc::publish`], when it is durable.

mod page;
mod slot;
mod tree;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashSet, HashTable};

use self::page::Pins;
pub use self::page::{Page, Pin};
use self::slot::Slot;
use self::tree::{SlotId, Tree};
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
    slots: Vec<Option<Slot>>,
    free: Vec<SlotId>,
    by_key: HashTable<SlotId>,
    hasher: DefaultHashBuilder,
    /// Revision of the last finished transaction.
    revision: i64,
    /// Revision of the newest change, also within a transaction that is not finished.
    head: i64,
    compacted: i64,
    /// The compaction whose history was let go of last.
    released: i64,
    pins: Pins,
    /// Applied and not yet published, in order.
    fresh: Vec<Event>,
    history: Arc<History>,
    /// Events whose keys may have versions that compaction made unreachable.
    garbage: VecDeque<Batch>,
    garbage_at: usize,
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
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            revision,
            head: revision,
            compacted: -1,
            released: -1,
            pins: Pins::default(),
            fresh: Vec::new(),
            history: Arc::new(History::new(revision)),
            garbage: VecDeque::new(),
            garbage_at: 0,
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
        self.slot(key)?.at(at).cloned()
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
        self.tree.walk(range.start(), end, |id, live| {
            if newest && !live {
                return ControlFlow::Continue(());
            }
            let version =
                self.slots.get(id as usize).and_then(Option::as_ref).and_then(|s| s.at(at));
            version.map_or(ControlFlow::Continue(()), &mut visit)
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
        let Some(batches) = self.history.since(at, UNDO_LIMIT) else {
            return self.count_by_walk(range, at);
        };
        if self.fresh.len() > UNDO_LIMIT {
            return self.count_by_walk(range, at);
        }
        let mut seen = HashSet::new();
        let mut count = newest;
        let events = batches.iter().flat_map(|batch| batch.iter()).chain(&self.fresh);
        for event in events.filter(|event| event.kv.mod_revision() > at) {
            let key = event.kv.key();
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

    /// A checksum of all reachable versions up to `at`. It agrees between two stores of this kind
    /// with the same content, not with etcd's.
    #[must_use]
    pub fn hash(&self, at: i64) -> u32 {
        let mut sum = 0;
        self.tree.walk::<()>(b"", None, |id, _| {
            if let Some(slot) = self.slots.get(id as usize).and_then(Option::as_ref) {
                for kv in slot.reachable(self.compacted, at) {
                    let kv = kv.fields();
                    sum = crc32c::crc32c_append(sum, kv.key);
                    for n in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
                        sum = crc32c::crc32c_append(sum, &n.to_le_bytes());
                    }
                    sum = crc32c::crc32c_append(sum, kv.value);
                }
            }
            ControlFlow::Continue(())
        });
        sum
    }

    // ---- writing -------------------------------------------------------------------------------

    /// Puts a key at `revision`, which is that of the running transaction, and gives the version
    /// before it.
    pub fn put(&mut self, revision: i64, key: &[u8], value: &[u8], lease: i64) -> Option<KeyValue> {
        let (create_revision, version) = self
            .slot(key)
            .and_then(Slot::live)
            .map_or((revision, 1), |kv| (kv.create_revision(), kv.version() + 1));
        let fields = Fields { key, create_revision, mod_revision: revision, version, value, lease };
        let kv = KeyValue::with(fields, &mut self.scratch);
        self.push(kv)
    }

    /// Deletes a key at `revision` and gives what it held; `None` if it was not there.
    pub fn delete(&mut self, revision: i64, key: &[u8]) -> Option<KeyValue> {
        let slot = self.slot(key)?;
        slot.live()?;
        let tombstone = KeyValue::tombstone(slot.key(), revision);
        self.push(tombstone)
    }

    /// Adds a version as it is (recovery), and gives the live one before it.
    pub fn push(&mut self, kv: KeyValue) -> Option<KeyValue> {
        self.head = self.head.max(kv.mod_revision());
        self.bytes += slot::size(&kv);
        let hash = self.hasher.hash_one(kv.key());
        let slots = &mut self.slots;
        let found = self.by_key.find(hash, |id| Slot::is(slots, *id, kv.key())).copied();
        let prev = if let Some(slot) =
            found.and_then(|id| slots.get_mut(id as usize)).and_then(Option::as_mut)
        {
            let prev = slot.live().cloned();
            if prev.is_none() == kv.is_tombstone() {
                // Dead stays dead, or live stays live.
            } else {
                self.tree.set_live(kv.key(), !kv.is_tombstone());
            }
            slot.push(kv.clone());
            prev
        } else {
            self.insert(hash, kv.clone());
            None
        };
        self.fresh.push(Event { kv, prev: prev.clone() });
        prev
    }

    /// Ends the transaction that ran at `revision`.
    pub fn finish(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
        self.head = self.revision;
    }

    fn insert(&mut self, hash: u64, kv: KeyValue) {
        let dead = kv.is_tombstone();
        let key = Bytes::copy_from_slice(kv.key());
        let slot = Some(Slot::new(kv));
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            // 2^32 keys are far above what memory holds.
            SlotId::try_from(self.slots.len() - 1).unwrap_or(SlotId::MAX)
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_key.insert_unique(hash, id, |id| {
            slots[*id as usize].as_ref().map_or(0, |slot| hasher.hash_one(slot.key()))
        });
        self.tree.insert(key.clone(), id);
        if dead {
            self.tree.set_live(&key, false);
        }
    }

    fn slot(&self, key: &[u8]) -> Option<&Slot> {
        let hash = self.hasher.hash_one(key);
        let id = self.by_key.find(hash, |id| Slot::is(&self.slots, *id, key))?;
        self.slots.get(*id as usize)?.as_ref()
    }

    // ---- publishing and compaction --------------------------------------------------------------

    /// Moves what was applied into the history, where readers find it once [`Mvcc::show`] is
    /// called. Gives the batch, for the watch index.
    pub fn publish(&mut self) -> Option<Batch> {
        if self.fresh.is_empty() {
            return None;
        }
        let batch: Batch = std::mem::take(&mut self.fresh).into();
        self.history.push(batch.clone());
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

    /// Lets go of the history below the compacted revision. A little later than the compaction, so
    /// that a watch that is a moment behind is not cancelled by a compaction at the current
    /// revision. Memory comes back by [`Mvcc::collect`]. False if a [`Pin`] holds the history:
    /// then nothing was done, and it is to be tried again.
    pub fn release(&mut self) -> bool {
        if self.pins.lowest().is_some_and(|pinned| pinned < self.compacted) {
            return false;
        }
        if self.compacted > 0 {
            self.released = self.compacted;
            self.garbage.extend(self.history.trim(self.compacted));
        }
        true
    }

    /// Frees versions that compaction made unreachable, looking at about `limit` events. True if
    /// there is more to do.
    pub fn collect(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(batch) = self.garbage.front() else { return false };
            if let Some(event) = batch.get(self.garbage_at) {
                let kv = event.kv.clone();
                self.garbage_at += 1;
                self.trim(kv.key());
            } else {
                self.garbage.pop_front();
                self.garbage_at = 0;
            }
        }
        !self.garbage.is_empty()
    }

    fn trim(&mut self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        let slots = &mut self.slots;
        let Ok(entry) = self.by_key.find_entry(hash, |id| Slot::is(slots, *id, key)) else {
            return;
        };
        let id = *entry.get();
        let Some(slot) = slots.get_mut(id as usize).and_then(Option::as_mut) else { return };
        self.bytes -= slot.trim(self.released);
        if slot.is_gone(self.released) {
            self.bytes -= slot.bytes();
            entry.remove();
            self.slots[id as usize] = None;
            self.free.push(id);
            self.tree.remove(key);
        }
    }
}
