//! Entries of etcd's bucket `key`: every version since the compacted revision, by revision and its
//! number within the revision (etcd `server/storage/mvcc/revision.go`).
//!
//! Which number a version at or below the compacted revision had is not known here any more: those
//! that are left of one revision are numbered anew, in key order. No client can tell but by a hash,
//! and only of transactions with several operations.

use bytes::Bytes;

use crate::core::{Fields, History, KeyRange, KeyValue, Read};

/// Events that are taken from the history at a time.
const EVENTS: usize = 4096;

/// Names versions that come in the bucket's order.
#[derive(Debug, Default)]
pub struct Entries {
    /// The last revision and number.
    last: (i64, i64),
    key: Vec<u8>,
    tombstone: Vec<u8>,
}

impl Entries {
    /// Key and value of a version.
    pub fn entry<'a>(&'a mut self, kv: &'a KeyValue) -> (&'a [u8], &'a [u8]) {
        let number = if self.last.0 == kv.mod_revision() { self.last.1 + 1 } else { 0 };
        self.last = (kv.mod_revision(), number);
        self.key.clear();
        self.key.extend_from_slice(&revision_key(kv.mod_revision(), number));
        if !kv.is_tombstone() {
            return (&self.key, kv.encoded());
        }
        self.key.push(b't');
        // Of a deleted key etcd keeps the name alone.
        self.tombstone.clear();
        Fields { key: kv.key(), ..Fields::default() }.encode(&mut self.tombstone);
        (&self.key, &self.tombstone)
    }
}

/// etcd's `RevToBytes`: both numbers big-endian, with an underscore between.
pub(super) fn revision_key(main: i64, sub: i64) -> [u8; 17] {
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// History was compacted while it was read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("history was compacted meanwhile")]
pub struct Compacted;

/// Shows what happened above `after`, up to and with `through`, in order.
pub fn each_version<E: From<Compacted>>(
    history: &History,
    after: i64,
    through: i64,
    mut show: impl FnMut(&KeyValue) -> Result<(), E>,
) -> Result<(), E> {
    let everything = KeyRange::From(Bytes::from_static(b"\0"));
    let mut next = after.max(0) + 1;
    while next <= through {
        let (batches, reach) = match history.read(next, EVENTS, &everything) {
            Read::Events(batches, reach) => (batches, reach),
            Read::Compacted(_) => return Err(Compacted.into()),
        };
        for event in batches.iter().flat_map(|batch| batch.iter()) {
            if (next..=through).contains(&event.kv.mod_revision()) {
                show(&event.kv)?;
            }
        }
        if reach < next {
            break;
        }
        next = reach + 1;
    }
    Ok(())
}
