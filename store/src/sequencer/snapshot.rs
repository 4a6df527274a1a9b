//! Snapshots at a revision while the sequencer goes on.
//!
//! The sequencer walks the keys in slices between batches, always as of the snapshot's revision,
//! and hands them to a thread that writes the file. Until it is through, history is not released,
//! so that the versions of that revision stay reachable.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use tracing::{debug, error, info, warn};

use crate::core::{Engine, KeyRange, KeyValue};
use crate::log::{Log, LogError, SnapshotDone, SnapshotMeta, SnapshotWriter};

/// Keys of one slice, and slices that may wait for the writer.
const SLICE: usize = 2048;
const SLICES: usize = 8;

/// What is added to the niceness of the thread that writes: a tenth of the weight of the others.
const NICE: i32 = 10;

type Slice = Vec<KeyValue>;

/// What the writer's thread gets.
#[derive(Debug)]
enum Part {
    Keys(Slice),
    /// All keys were handed over. Without it the snapshot is not one: the sequencer stopped before.
    End,
}

/// What became of a snapshot.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is still being written.
    Pending,
    /// It is whole and durable.
    Done,
    /// It does not exist; the log is as good as before.
    Failed,
}

/// A snapshot in the making. Dropped before its end it is given up, and its thread waited for: what
/// that holds of the directory is free then.
#[derive(Debug)]
pub(super) struct Snapshot {
    at: i64,
    /// The next key; `None` when all keys were handed over.
    next: Option<Bytes>,
    /// A part that the writer had no room for yet.
    held: Option<Part>,
    /// `None` once the end was handed over.
    parts: Option<SyncSender<Part>>,
    done: Receiver<Result<SnapshotDone, LogError>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.parts = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the snapshot's thread panicked");
        }
    }
}

impl Snapshot {
    /// Begins a snapshot of all that is applied, which must be logged. `None` if it can't.
    pub(super) fn begin(engine: &Engine, log: &mut Log) -> Option<Self> {
        let mvcc = engine.mvcc();
        let (revision, compact_revision) = (mvcc.revision(), mvcc.compacted().max(0));
        let leases: Vec<(i64, i64)> = engine.state().leases.iter().collect();
        let (parts, incoming) = sync_channel(SLICES);
        let (finished, done) = sync_channel(1);
        let begun = log
            .begin_snapshot(SnapshotMeta { revision, compact_revision })
            .map_err(|error| error.to_string())
            .and_then(|writer| {
                let work = move || {
                    stand_back();
                    // Nothing is sent for a snapshot that was given up.
                    if let Some(result) = write(writer, &leases, &incoming).transpose() {
                        let _ = finished.send(result);
                    }
                };
                let builder = thread::Builder::new().name("snapshot".to_owned());
                builder.spawn(work).map_err(|error| error.to_string())
            });
        match begun {
            Ok(thread) => {
                info!(revision, keys = mvcc.keys(), "snapshot begun");
                let next = Some(Bytes::from_static(b"\0"));
                let (parts, thread) = (Some(parts), Some(thread));
                Some(Self { at: revision, next, held: None, parts, done, thread })
            }
            Err(error) => {
                warn!(error, "snapshot not begun");
                None
            }
        }
    }

    /// Hands over the next slice if the writer has room. True while there is more.
    pub(super) fn advance(&mut self, engine: &Engine) -> bool {
        let Some(parts) = &self.parts else { return false };
        let part = match (self.held.take(), &self.next) {
            (Some(part), _) => part,
            (None, Some(start)) => {
                let mut slice = Vec::with_capacity(SLICE);
                let mut next = None;
                engine.mvcc().each(&KeyRange::From(start.clone()), self.at, |kv| {
                    if slice.len() == SLICE {
                        next = Some(Bytes::copy_from_slice(kv.key()));
                        return ControlFlow::Break(());
                    }
                    slice.push(kv.clone());
                    ControlFlow::Continue(())
                });
                self.next = next;
                Part::Keys(slice)
            }
            (None, None) => Part::End,
        };
        let is_end = matches!(part, Part::End);
        match parts.try_send(part) {
            Ok(()) if is_end => self.parts = None,
            Ok(()) => return true,
            Err(TrySendError::Full(part)) => self.held = Some(part),
            // The writer gave up; its result says why.
            Err(TrySendError::Disconnected(_)) => self.parts = None,
        }
        false
    }

    /// The result, once there is one.
    pub(super) fn poll(&mut self) -> Outcome {
        let outcome = match self.done.try_recv() {
            Ok(Ok(done)) => {
                info!(
                    revision = done.meta.revision,
                    keys = done.keys,
                    bytes = done.size,
                    "snapshot done"
                );
                Outcome::Done
            }
            Ok(Err(error)) => {
                warn!(%error, "snapshot failed: the log stays as it is");
                Outcome::Failed
            }
            Err(TryRecvError::Empty) => Outcome::Pending,
            Err(TryRecvError::Disconnected) => Outcome::Failed,
        };
        if !matches!(outcome, Outcome::Pending) {
            // It has nothing left to do: the sequencer need not wait until it may end.
            self.thread = None;
        }
        outcome
    }
}

/// Lets the threads that clients wait for go first: where cores are few, a snapshot as eager as they
/// are would take a third of one from them for as long as it lasts.
fn stand_back() {
    if let Err(error) = rustix::process::nice(NICE) {
        debug!(%error, "the snapshot's thread has the priority of all others");
    }
}

/// Writes what comes in. `None` if the sequencer stopped before the end.
fn write(
    mut writer: SnapshotWriter,
    leases: &[(i64, i64)],
    parts: &Receiver<Part>,
) -> Result<Option<SnapshotDone>, LogError> {
    for (id, ttl) in leases {
        writer.lease(*id, *ttl)?;
    }
    while let Ok(part) = parts.recv() {
        let Part::Keys(slice) = part else {
            let done = writer.finish()?;
            if let Err(error) = done.truncate_behind() {
                error!(%error, "log not truncated behind the snapshot");
            }
            return Ok(Some(done));
        };
        for kv in slice {
            writer.key(&kv)?;
        }
    }
    info!("snapshot given up: the store stops");
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::core::{Command, EngineConfig, State};
    use crate::log::{LogConfig, SnapshotItem};
    use crate::pb::etcdserverpb::PutRequest;

    const KEYS: usize = 3 * SLICE + 7;

    fn filled(log: &mut Log) -> Engine {
        let mut engine = Engine::new(State::new(1), EngineConfig::default());
        for n in 0..KEYS {
            let put = PutRequest { key: format!("{n:06}").into(), ..PutRequest::default() };
            engine.apply(Command::Put(put), 0).unwrap();
        }
        for (class, record) in engine.take_records() {
            log.append(class, &record).unwrap();
        }
        log.sync().unwrap();
        engine
    }

    fn snapshot_files(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|n| n.contains("snap")).collect()
    }

    fn wait_for<T>(mut poll: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = poll() {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_snapshot_holds_every_key() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(dir.path(), LogConfig::default()).unwrap();
        let engine = filled(&mut log);
        let mut snapshot = Snapshot::begin(&engine, &mut log).unwrap();
        wait_for(|| {
            while snapshot.advance(&engine) {}
            match snapshot.poll() {
                Outcome::Pending => None,
                Outcome::Done => Some(()),
                Outcome::Failed => panic!("the snapshot failed"),
            }
        });
        drop(log);
        let (_, recovered) = Log::open(dir.path(), LogConfig::default()).unwrap();
        let items: Result<Vec<SnapshotItem>, _> = recovered.snapshot.unwrap().collect();
        assert_eq!(items.unwrap().len(), KEYS);
    }

    #[test]
    fn a_snapshot_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(dir.path(), LogConfig::default()).unwrap();
        let engine = filled(&mut log);
        let mut snapshot = Snapshot::begin(&engine, &mut log).unwrap();
        assert_eq!(snapshot_files(dir.path()).len(), 1);
        assert!(snapshot.advance(&engine));
        drop(snapshot);
        wait_for(|| snapshot_files(dir.path()).iter().all(|n| !n.contains(".tmp")).then_some(()));
        assert_eq!(snapshot_files(dir.path()), [""; 0]);
    }
}
