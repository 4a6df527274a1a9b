//! The place of one key, shared by the index, the tree and the history.
//!
//! The sequencer alone changes it. A reader of old history on another thread holds the lock for as
//! long as it takes to copy one version out.

use parking_lot::Mutex;
use triomphe::Arc;

use super::chain::{Chain, signed, size};
use crate::core::prefetch::prefetch;
use crate::core::{Event, KeyValue};

/// What a live key costs beside its version: this cell, and its places in the index and the tree.
const CELL: usize = 80;
/// Old versions (or groups of them) dropped at a time.
const TRIM: usize = 64;

/// A shared cell.
pub(in crate::core) type CellRef = Arc<Cell>;

/// One key.
#[derive(Debug)]
pub(in crate::core) struct Cell(Mutex<Versions>);

#[derive(Debug)]
struct Versions {
    latest: KeyValue,
    /// `None` if there is no older version: most keys of a cluster at rest.
    older: Option<Box<Chain>>,
    /// Number of the release that this was trimmed for last.
    trimmed: u32,
}

impl Versions {
    fn at(&self, revision: i64) -> Option<KeyValue> {
        if self.latest.mod_revision() <= revision {
            return Some(self.latest.clone());
        }
        self.older.as_ref()?.at(&self.latest, revision)
    }
}

impl Cell {
    pub(super) fn new(kv: KeyValue) -> CellRef {
        Arc::new(Self(Mutex::new(Versions { latest: kv, older: None, trimmed: 0 })))
    }

    /// The bytes that a key of one version accounts for.
    pub(super) fn bytes_of_one(kv: &KeyValue) -> usize {
        CELL + size(kv)
    }

    /// Bytes of all versions, counted anew.
    pub(super) fn bytes(&self) -> usize {
        let versions = self.0.lock();
        Self::bytes_of_one(&versions.latest) + versions.older.as_ref().map_or(0, |c| c.bytes())
    }

    /// The newest version, maybe a tombstone.
    pub(in crate::core) fn latest(&self) -> KeyValue {
        self.0.lock().latest.clone()
    }

    /// Looks at the key.
    pub(in crate::core) fn key<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.0.lock().latest.key())
    }

    /// The version at a revision, if the key was there then.
    pub(super) fn at(&self, revision: i64) -> Option<KeyValue> {
        self.0.lock().at(revision).filter(|kv| !kv.is_tombstone())
    }

    /// What happened at a revision, and `None` if nothing did or it is forgotten.
    pub(in crate::core) fn event(&self, revision: i64) -> Option<Event> {
        let versions = self.0.lock();
        let kv = versions.at(revision).filter(|kv| kv.mod_revision() == revision)?;
        // The first put of a key has nothing before it.
        let prev = if kv.version() == 1 { None } else { versions.at(revision - 1) };
        Some(Event { kv, prev: prev.filter(|kv| !kv.is_tombstone()) })
    }

    /// Adds the version that `make` gives for the newest one so far; gives both, the newer first,
    /// and by how much the bytes grew.
    pub(super) fn push(
        &self,
        make: impl FnOnce(&KeyValue) -> KeyValue,
    ) -> (KeyValue, KeyValue, usize) {
        let mut versions = self.0.lock();
        let kv = make(&versions.latest);
        let mut grown = size(&kv);
        let before = std::mem::replace(&mut versions.latest, kv.clone());
        let chain = versions.older.get_or_insert_with(|| {
            let chain = Box::<Chain>::default();
            grown += chain.bytes();
            chain
        });
        chain.push(before.clone());
        (kv, before, grown)
    }

    /// Packs versions that were replaced at or before `revision`.
    pub(super) fn pack(&self, revision: i64) -> isize {
        let mut versions = self.0.lock();
        let versions = &mut *versions;
        versions.older.as_mut().map_or(0, |chain| chain.pack(&versions.latest, revision))
    }

    /// Begins to bring the cell.
    pub(super) fn prefetch(&self) {
        prefetch(self);
    }

    /// Begins to bring what the cell points to: the newest version and the chain.
    pub(super) fn prefetch_versions(&self) {
        let versions = self.0.lock();
        versions.latest.prefetch();
        if let Some(chain) = &versions.older {
            chain.prefetch();
        }
    }

    /// Begins to bring what the chain points to, where a version is added or packed.
    pub(super) fn prefetch_ends(&self) {
        if let Some(chain) = &self.0.lock().older {
            chain.prefetch_ends();
        }
    }

    /// Begins to bring what tells whether a pack goes on behind the first version.
    pub(super) fn prefetch_next(&self) {
        if let Some(chain) = &self.0.lock().older {
            chain.prefetch_next();
        }
    }

    /// Drops versions that nobody can reach after a compaction, some at a time: to be called for
    /// each event of the key that is forgotten. `release` numbers the compaction. Gives the bytes
    /// freed.
    pub(super) fn trim(&self, compacted: i64, release: u32) -> usize {
        let mut versions = self.0.lock();
        if versions.trimmed == release {
            return 0;
        }
        let versions = &mut *versions;
        let Some(chain) = &mut versions.older else { return 0 };
        let (mut freed, done) = chain.trim(&versions.latest, compacted, TRIM);
        if done {
            versions.trimmed = release;
        }
        if chain.is_empty() {
            freed += chain.bytes();
            versions.older = None;
        }
        freed
    }

    /// Whether nothing but a compacted tombstone is left.
    pub(super) fn is_gone(&self, compacted: i64) -> bool {
        let versions = self.0.lock();
        versions.older.is_none()
            && versions.latest.is_tombstone()
            && versions.latest.mod_revision() <= compacted
    }
}

/// The change that `pack` made, on a count of bytes.
pub(super) fn add(bytes: usize, change: isize) -> usize {
    usize::try_from(signed(bytes).saturating_add(change)).unwrap_or(0)
}
