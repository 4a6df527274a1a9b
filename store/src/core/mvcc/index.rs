//! Keys by hash. Split into many tables, so that none takes long to grow.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::cell::CellRef;

/// At a million keys a table has a thousand.
const TABLES: usize = 1024;

/// The table of cells.
#[derive(Debug)]
pub(super) struct Index {
    tables: Vec<HashTable<CellRef>>,
    hasher: DefaultHashBuilder,
}

impl Default for Index {
    fn default() -> Self {
        let tables = (0..TABLES).map(|_| HashTable::new()).collect();
        Self { tables, hasher: DefaultHashBuilder::default() }
    }
}

/// A table uses the lowest and the highest bits by itself.
fn table(hash: u64) -> usize {
    usize::try_from(hash >> 32).unwrap_or(0) % TABLES
}

impl Index {
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&CellRef> {
        self.get_hashed(self.hash(key), key)
    }

    pub(super) fn get_hashed(&self, hash: u64, key: &[u8]) -> Option<&CellRef> {
        self.tables[table(hash)].find(hash, |cell| cell.key(|k| k == key))
    }

    /// The cell that is most likely that of a key, without a look at any cell.
    pub(super) fn guess(&self, hash: u64) -> Option<&CellRef> {
        self.tables[table(hash)].find(hash, |_| true)
    }

    /// Adds a cell whose key is not there.
    pub(super) fn insert(&mut self, hash: u64, cell: CellRef) {
        let hasher = &self.hasher;
        self.tables[table(hash)]
            .insert_unique(hash, cell, |cell| cell.key(|key| hasher.hash_one(key)));
    }

    /// Takes this very cell out. False if it is not there.
    pub(super) fn remove(&mut self, hash: u64, cell: &CellRef) -> bool {
        let same = |other: &CellRef| CellRef::ptr_eq(other, cell);
        match self.tables[table(hash)].find_entry(hash, same) {
            Ok(entry) => {
                entry.remove();
                true
            }
            Err(_) => false,
        }
    }
}
