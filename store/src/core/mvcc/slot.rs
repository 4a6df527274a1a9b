//! The versions of one key.

use super::super::kv::KeyValue;
use super::tree::SlotId;

/// What a version costs beside its bytes, roughly: its fields, its places in the chain and in the
/// history, and the allocator's share.
const VERSION_OVERHEAD: usize = 160;

/// The bytes that a version accounts for.
pub(super) fn size(kv: &KeyValue) -> usize {
    kv.encoded().len() + VERSION_OVERHEAD
}

/// One key with its versions since the compacted revision.
#[derive(Debug)]
pub(super) struct Slot {
    latest: KeyValue,
    /// Oldest first. Two may be of one revision, if a transaction changed the key twice.
    older: Vec<KeyValue>,
}

impl Slot {
    pub(super) fn new(kv: KeyValue) -> Self {
        Self { latest: kv, older: Vec::new() }
    }

    /// Whether slot `id` is that of `key`.
    pub(super) fn is(slots: &[Option<Self>], id: SlotId, key: &[u8]) -> bool {
        slots.get(id as usize).and_then(Option::as_ref).is_some_and(|s| s.latest.key() == key)
    }

    pub(super) fn key(&self) -> &[u8] {
        self.latest.key()
    }

    /// The newest version, unless it is a tombstone.
    pub(super) fn live(&self) -> Option<&KeyValue> {
        (!self.latest.is_tombstone()).then_some(&self.latest)
    }

    /// The version at a revision.
    pub(super) fn at(&self, revision: i64) -> Option<&KeyValue> {
        if self.latest.mod_revision() <= revision {
            return self.live();
        }
        let above = self.older.partition_point(|kv| kv.mod_revision() <= revision);
        self.older.get(above.checked_sub(1)?).filter(|kv| !kv.is_tombstone())
    }

    pub(super) fn push(&mut self, kv: KeyValue) {
        self.older.push(std::mem::replace(&mut self.latest, kv));
    }

    /// Versions that a reader between `compacted` and `at` can reach.
    pub(super) fn reachable(&self, compacted: i64, at: i64) -> impl Iterator<Item = &KeyValue> {
        let versions = || self.older.iter().chain(std::iter::once(&self.latest));
        let newest_kept = versions().filter(|kv| kv.mod_revision() <= compacted).count();
        let skip = newest_kept.saturating_sub(1);
        versions()
            .skip(skip)
            .filter(move |kv| kv.mod_revision() > compacted || !kv.is_tombstone())
            .take_while(move |kv| kv.mod_revision() <= at)
    }

    /// Drops versions that nobody can reach after a compaction, and gives their bytes.
    pub(super) fn trim(&mut self, compacted: i64) -> usize {
        if self.older.is_empty() {
            return 0;
        }
        let below = self.older.partition_point(|kv| kv.mod_revision() <= compacted);
        let keep_one = self.latest.mod_revision() > compacted
            && below.checked_sub(1).is_some_and(|at| !self.older[at].is_tombstone());
        let gone = below - usize::from(keep_one);
        let bytes = self.older.drain(..gone).map(|kv| size(&kv)).sum();
        if self.older.is_empty() {
            self.older = Vec::new();
        }
        bytes
    }

    /// Whether nothing but a compacted tombstone is left.
    pub(super) fn is_gone(&self, compacted: i64) -> bool {
        self.older.is_empty()
            && self.latest.is_tombstone()
            && self.latest.mod_revision() <= compacted
    }

    /// The bytes of all versions.
    pub(super) fn bytes(&self) -> usize {
        self.older.iter().map(size).sum::<usize>() + size(&self.latest)
    }
}
