//! What the log holds.

use crate::core::KeyValue;

/// One change of the store, in the order in which it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// One transaction (or one put, or one range delete).
    Txn {
        /// Its revision: the `mod_revision` of all it put.
        revision: i64,
        /// The versions it made, in order, all of this revision: a tombstone deletes its key.
        ops: Vec<KeyValue>,
    },
    /// A lease came to be. Its time to live starts anew at each start of the store.
    LeaseGrant {
        /// The lease's id.
        id: i64,
        /// Time to live in seconds.
        ttl: i64,
    },
    /// A lease was revoked or expired. The deletes of its keys are in a `Txn` before this record.
    LeaseRevoke {
        /// The lease's id.
        id: i64,
    },
    /// History below this revision is gone.
    Compact {
        /// The compacted revision.
        revision: i64,
    },
}
