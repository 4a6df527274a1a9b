//! The write-ahead log: every logged change of the store in one total order.
//!
//! # Use
//!
//! ```text
//! let (mut log, recovered) = Log::open(dir, LogConfig::default())?;
//! // 1. rebuild: recovered.snapshot (an iterator), then recovered.records (an iterator)
//! // 2. loop of the sequencer:
//! log.append(class, &record)?;         // encodes into a buffer; class `none` only counts the revision
//! log.write()?;                        // one write(2): acknowledges class `buffered`
//! let point = log.sync_point();        // hand it to another thread ...
//! point.sync()?;                       // ... one fdatasync: acknowledges class `fsync`
//! log.append(..)?; log.write()?;       // meanwhile the next group fills
//! // 3. from time to time, when log.snapshot_due():
//! let mut snapshot = log.begin_snapshot(SnapshotMeta { revision, compact_revision })?;
//! snapshot.lease(..)?; snapshot.key(..)?; // on another thread
//! let done = snapshot.finish()?;
//! done.truncate_behind()?;
//! // 4. SIGTERM:
//! log.close(revision, volatile)?;
//! ```
//!
//! # What is promised
//!
//! - `append` order is log order is recovery order. Revisions of [`Record::Txn`] must rise.
//! - After [`Log::write`] returned, everything appended survives the death of the process; after
//!   [`SyncPoint::sync`] returned, it survives the loss of power. [`Log::written`] and
//!   [`Log::synced`] say how far, as a [`Position`]; `append` returns the position to wait for.
//! - A transaction's class is the strongest class among the keys it touches, and the record holds
//!   all its operations. Of leases: put the deletes of a revoked lease in a `Txn` *before* its
//!   `LeaseRevoke`, so that a log that ends between the two holds no key of an unknown lease.
//! - No revision is given out twice, whatever its class: a revision that is not yet synced may be
//!   shown to a client only while it is ≤ [`Log::revision_limit`], which is reserved in the log
//!   ahead of use (and synced). The log renews the reservation by itself from `append`, half a
//!   reservation early: [`Log::wants_sync`] then turns true, and a sync soon is all it needs.
//! - After an unclean stop of a log with a reservation, [`Recovered::start_revision`] is above all
//!   that was reserved, and [`Recovered::compact_revision`] equals it. It is two above, because a
//!   client that saw revision `R` watches from `R + 1`, and etcd cancels a watch only if it starts
//!   *below* the compacted revision (etcd `server/storage/mvcc/watchable_store.go`).
//! - [`Recovered::start_revision`] is what the store takes as its current revision; the next
//!   transaction gets one more. A new log starts at 1, as etcd does.
//! - Once a sync failed, the log is poisoned: the kernel may have dropped the dirty pages, so every
//!   later call fails with [`LogError::Poisoned`]. A failed *write* is undone by truncation and
//!   keeps its buffer, so `write` may be called again (a full disk that got room).
//!
//! # On disk
//!
//! One directory: `LOCK`, segments `log-<sequence>`, at most one `snapshot-<sequence>`; names end in
//! 20 decimal digits, `.tmp` is a file in the making. It is removed at start, but for the segment
//! behind the last one: a new segment is written to before it has its name, so that nobody waits
//! while the one before it is made whole on the disk. Nothing in it is synced until it has its name;
//! it is taken if the segment before has the length that its header tells, and dropped otherwise. A segment starts with a
//! header (magic, format version, sequence, length of the segment before, CRC32C) and holds blocks. A block is one write: magic,
//! CRC32C, length, sequence, own offset, the offset known to be synced when it was made, and the
//! records. Numbers are little-endian. A snapshot says which segment follows it. The last segment
//! may end in zeros: room that was reserved, so that a sync need not make a new size durable.
//!
//! A bad block in the last segment is a torn tail, cut off with a warning, if no good block follows
//! it, or if all that follows was never synced and the damage has the shape of sectors that never
//! reached the disk. All else is corruption: [`OpenError::Corrupt`] names file and offset, and
//! nothing is changed.

mod ahead;
mod background;
mod block;
mod codec;
mod error;
mod names;
mod record;
mod recovery;
mod rules;
mod snapshot;
mod storage;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
pub(crate) mod simulated;

use std::{path::Path, sync::Arc};

pub use self::{
    ahead::read_ahead,
    background::BackgroundSync,
    error::{LogError, OpenError},
    record::Record,
    recovery::{RecordReader, Recovered},
    rules::{Class, DurabilityRule, DurabilityRules, RuleError},
    snapshot::{SnapshotDone, SnapshotItem, SnapshotMeta, SnapshotReader, SnapshotWriter},
    storage::{Source, Storage, StorageFile},
    writer::{Log, Position, SyncPoint},
};

/// Sizes of the log and the durability of keys.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Which keys are of which class.
    pub rules: DurabilityRules,
    /// A segment that reached this size is followed by a new one.
    pub segment_bytes: u64,
    /// Log behind the last snapshot that makes a new one due.
    pub snapshot_bytes: u64,
    /// Revisions reserved at a time.
    pub reserve: i64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            rules: DurabilityRules::default(),
            segment_bytes: 64 << 20,
            snapshot_bytes: 512 << 20,
            reserve: 1 << 20,
        }
    }
}

/// What the log in a directory holds, which is only read: nothing is cut off, removed or written,
/// and keys of every class are given as they were logged.
///
/// # Errors
/// See [`OpenError`].
pub fn look(dir: &Path) -> Result<Recovered, OpenError> {
    let storage: Arc<dyn Storage> = Arc::new(storage::Directory::look(dir)?);
    let scan = recovery::scan(storage.as_ref())?;
    scan.recovered(&storage, &LogConfig::default())
}

impl Log {
    /// Opens (or makes) the log in a directory and locks it.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed but an unfinished write cut off.
    pub fn open(dir: &Path, config: LogConfig) -> Result<(Self, Recovered), OpenError> {
        let storage = storage::Directory::open(dir)?;
        Self::open_on(Arc::new(storage), config)
    }

    /// Opens the log on other storage.
    pub fn open_on(
        storage: Arc<dyn Storage>,
        config: LogConfig,
    ) -> Result<(Self, Recovered), OpenError> {
        let scan = recovery::scan(storage.as_ref())?;
        let resume = scan.repair(storage.as_ref())?;
        let recovered = scan.recovered(&storage, &config)?;
        let log = Self::resume(storage, config, &resume)?;
        tracing::info!(
            clean = recovered.clean,
            start_revision = recovered.start_revision,
            compact_revision = recovered.compact_revision,
            torn_bytes = recovered.torn_bytes,
            log_bytes = resume.bytes_since_snapshot,
            "log opened"
        );
        Ok((log, recovered))
    }
}
