//! Snapshots at a revision while the sequencer goes on.
//!
//! The sequencer walks the keys in slices between batches, always as of the snapshot's revision,
//! and hands them to a thread that writes the file. Until it is through, history is not released,
//! so that the versions of that revision stay reachable.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;

use bytes::Bytes;
use tracing::{info, warn};

use crate::core::{Engine, KeyRange, KeyValue};
use crate::log::{Log, LogError, SnapshotDone, SnapshotMeta, SnapshotWriter};

/// Keys of one slice, and slices that may wait for the writer.
const SLICE: usize = 2048;
const SLICES: usize = 8;

type Slice = Vec<KeyValue>;

/// A snapshot in the making.
#[derive(Debug)]
pub(super) struct Snapshot {
    at: i64,
    /// The next key; `None` when all keys were handed over.
    next: Option<Bytes>,
    /// A slice that the writer had no room for yet.
    held: Option<Slice>,
    slices: Option<SyncSender<Slice>>,
    done: Receiver<Result<SnapshotDone, LogError>>,
}

impl Snapshot {
    /// Begins a snapshot of all that is applied, which must be logged. `None` if it can't.
    pub(super) fn begin(engine: &Engine, log: &mut Log) -> Option<Self> {
        let mvcc = engine.mvcc();
        let (revision, compact_revision) = (mvcc.revision(), mvcc.compacted().max(0));
        let leases: Vec<(i64, i64)> = engine.state().leases.iter().collect();
        let (slices, incoming) = sync_channel(SLICES);
        let (finished, done) = sync_channel(1);
        let begun = log
            .begin_snapshot(SnapshotMeta { revision, compact_revision })
            .map_err(|error| error.to_string())
            .and_then(|writer| {
                let work = move || {
                    let _ = finished.send(write(writer, &leases, &incoming));
                };
                let builder = thread::Builder::new().name("snapshot".to_owned());
                builder.spawn(work).map_err(|error| error.to_string())
            });
        match begun {
            Ok(_) => {
                info!(revision, keys = mvcc.keys(), "snapshot begun");
                let next = Some(Bytes::from_static(b"\0"));
                Some(Self { at: revision, next, held: None, slices: Some(slices), done })
            }
            Err(error) => {
                warn!(error, "snapshot not begun");
                None
            }
        }
    }

    /// Hands over the next slice if the writer has room. True while there is more.
    pub(super) fn advance(&mut self, engine: &Engine) -> bool {
        let Some(slices) = &self.slices else { return false };
        let slice = match (self.held.take(), &self.next) {
            (Some(slice), _) => slice,
            (None, Some(start)) => {
                let mut slice = Vec::with_capacity(SLICE);
                let mut next = None;
                engine.mvcc().each(&KeyRange::From(start.clone()), self.at, |kv| {
                    if slice.len() == SLICE {
                        next = Some(kv.key.clone());
                        return ControlFlow::Break(());
                    }
                    slice.push(kv.clone());
                    ControlFlow::Continue(())
                });
                self.next = next;
                slice
            }
            (None, None) => {
                self.slices = None;
                return false;
            }
        };
        match slices.try_send(slice) {
            Ok(()) => true,
            Err(TrySendError::Full(slice)) => {
                self.held = Some(slice);
                false
            }
            // The writer gave up; its result says why.
            Err(TrySendError::Disconnected(_)) => {
                self.slices = None;
                false
            }
        }
    }

    /// The result, once there is one.
    pub(super) fn poll(&mut self) -> Option<Option<SnapshotDone>> {
        match self.done.try_recv() {
            Ok(Ok(done)) => {
                info!(
                    revision = done.meta.revision,
                    keys = done.keys,
                    bytes = done.size,
                    "snapshot done"
                );
                Some(Some(done))
            }
            Ok(Err(error)) => {
                warn!(%error, "snapshot failed: the log stays as it is");
                Some(None)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(None),
        }
    }
}

fn write(
    mut writer: SnapshotWriter,
    leases: &[(i64, i64)],
    slices: &Receiver<Slice>,
) -> Result<SnapshotDone, LogError> {
    for (id, ttl) in leases {
        writer.lease(*id, *ttl)?;
    }
    // An empty slice can't end it: the end is the sender's going, after the last slice.
    while let Ok(slice) = slices.recv() {
        for kv in slice {
            writer.key(
                &kv.key,
                &kv.value,
                kv.lease,
                kv.create_revision,
                kv.mod_revision,
                kv.version,
            )?;
        }
    }
    writer.finish()
}
