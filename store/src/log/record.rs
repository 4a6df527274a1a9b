//! What the log holds.

use bytes::Bytes;

/// One change of the store, in the order in which it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// One transaction (or one put, or one range delete).
    Txn {
        /// Its revision: the `mod_revision` of all it put.
        revision: i64,
        /// What it did, in order.
        ops: Vec<Op>,
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

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A key got a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value; empty is a value like any other.
        value: Bytes,
        /// The lease the key is attached to, 0 for none.
        lease: i64,
        /// Revision of the put that made the key.
        create_revision: i64,
        /// Number of puts since the key was made, from 1.
        version: i64,
    },
    /// A key that existed is gone.
    Delete {
        /// The key.
        key: Bytes,
    },
}
