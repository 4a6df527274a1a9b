//! The engine with its log, driven as the sequencer drives it, on a disk that can be pulled.

use std::sync::Arc;

use megacluster_store::core::watch::Mark;
use megacluster_store::core::{
    Command, Engine, EngineConfig, Error, KeyRange, KeyValue, Reply, State,
};
use megacluster_store::log::{
    Class, DurabilityRules, Log, LogConfig, Recovered, SnapshotItem, SnapshotMeta, SnapshotWriter,
};

use crate::disk::Disk;
use crate::generate::End;

/// Small enough that a run sees several segments and reservations.
fn config(rules: DurabilityRules) -> LogConfig {
    LogConfig { rules, segment_bytes: 1500, snapshot_bytes: u64::MAX, reserve: 16 }
}

/// A snapshot that was begun: its revision, and the leases of that time.
struct Snapshot {
    writer: SnapshotWriter,
    at: i64,
    leases: Vec<(i64, i64)>,
}

pub(crate) struct Subject {
    pub(crate) engine: Engine,
    log: Option<Log>,
    disk: Arc<Disk>,
    rules: DurabilityRules,
    /// A record of class none was given out in this run.
    pub(crate) volatile: bool,
    snapshot: Option<Snapshot>,
}

/// How a start went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

fn rebuild(recovered: Recovered) -> (State, Started) {
    let started =
        Started { revision: recovered.start_revision, compacted: recovered.compact_revision };
    let mut state = State::new(1);
    // Few events stay whole, so that runs this short see packed history.
    state.mvcc.keep_whole(3);
    let snapshot_revision = recovered.snapshot.as_ref().map(|snapshot| snapshot.meta().revision);
    for item in recovered.snapshot.into_iter().flatten() {
        match item.unwrap() {
            SnapshotItem::Lease { id, ttl } => {
                state.leases.grant(id, ttl, 0).unwrap();
            }
            SnapshotItem::Key(kv) => state.restore(&kv),
        }
    }
    if let Some(revision) = snapshot_revision {
        state.restored(revision);
    }
    for record in recovered.records {
        state.replay(record.unwrap(), 0);
    }
    state.recover_at(recovered.start_revision, recovered.compact_revision);
    (state, started)
}

fn start(disk: &Arc<Disk>, rules: &DurabilityRules) -> (Engine, Log, Started) {
    let (log, recovered) = Log::open_on(disk.clone(), config(rules.clone())).unwrap();
    disk.begun();
    let (state, started) = rebuild(recovered);
    // As the server does: leases have the strongest class of any key.
    let keys = [b"/0/".as_slice(), b"/1/", b"/2/", b"other"];
    let lease_class = keys.iter().map(|key| rules.class(key)).max().unwrap();
    let config = EngineConfig { rules: rules.clone(), lease_class, quota: 0 };
    (Engine::new(state, config), log, started)
}

impl Subject {
    pub(crate) fn new(rules: DurabilityRules) -> Self {
        let disk = Arc::new(Disk::default());
        let (engine, log, _) = start(&disk, &rules);
        Self { engine, log: Some(log), disk, rules, volatile: false, snapshot: None }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    pub(crate) fn apply(&mut self, command: Command, now: u64) -> Result<Reply, Error> {
        self.engine.apply(command, now)
    }

    /// Ends a batch: logs it, makes it as durable as its strongest class asks, shows it. Gives the
    /// marks of the watches, and where the log then ends if anything was written.
    pub(crate) fn publish(&mut self) -> (Vec<Mark>, Option<(String, usize)>) {
        let records = self.engine.take_records();
        let revision = self.engine.mvcc().revision();
        let mut strongest = Class::None;
        for (class, record) in &records {
            self.log().append(*class, record).unwrap();
            strongest = strongest.max(*class);
            self.volatile |= *class == Class::None;
        }
        if strongest == Class::Fsync || revision > self.log().revision_limit() {
            self.log().sync().unwrap();
        } else if strongest == Class::Buffered || self.log().wants_sync() {
            self.log().write().unwrap();
        }
        let mut marks = Vec::new();
        if let Some(batch) = self.engine.publish() {
            self.engine.watches_mut().mark(&batch, |mark| marks.push(mark));
        }
        self.engine.mvcc().show();
        let written = strongest > Class::None;
        (marks, written.then(|| self.disk.tail()))
    }

    /// The sync behind the buffered writes.
    pub(crate) fn sync(&mut self) {
        self.log().sync_point().sync().unwrap();
    }

    /// Whether what the log held up to here survived.
    pub(crate) fn holds(&self, tail: &(String, usize)) -> bool {
        self.disk.holds(tail)
    }

    /// Begins a snapshot of what is published; all of it is.
    pub(crate) fn begin_snapshot(&mut self) {
        if self.snapshot.is_some() {
            return;
        }
        let mvcc = self.engine.mvcc();
        let meta =
            SnapshotMeta { revision: mvcc.revision(), compact_revision: mvcc.compacted().max(0) };
        let mut leases: Vec<_> = self.engine.state().leases.iter().collect();
        leases.sort_unstable();
        let writer = self.log().begin_snapshot(meta).unwrap();
        self.snapshot = Some(Snapshot { writer, at: meta.revision, leases });
    }

    pub(crate) fn snapshot_pending(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Writes the keys as of the snapshot's revision, which may be long past. Gives that revision.
    pub(crate) fn end_snapshot(&mut self) -> Option<i64> {
        let Snapshot { mut writer, at, leases } = self.snapshot.take()?;
        for (id, ttl) in leases {
            writer.lease(id, ttl).unwrap();
        }
        let mut keys: Vec<KeyValue> = Vec::new();
        self.engine.mvcc().each(&KeyRange::From("\0".into()), at, |kv| {
            keys.push(kv.clone());
            std::ops::ControlFlow::Continue(())
        });
        for kv in keys {
            writer.key(&kv).unwrap();
        }
        let done = writer.finish().unwrap();
        done.truncate_behind().unwrap();
        Some(at)
    }

    /// Ends the run.
    pub(crate) fn end(&mut self, end: End) {
        let log = self.log.take().unwrap();
        // A snapshot that was not finished leaves nothing.
        self.snapshot = None;
        match end {
            End::Stop => log.close(self.engine.mvcc().revision(), self.volatile).unwrap(),
            End::Kill => drop(log),
            End::Power(keep) => {
                drop(log);
                self.disk.lose_power(keep);
            }
        }
    }

    /// Begins the next run with what is there.
    pub(crate) fn begin(&mut self) -> Started {
        let (engine, log, started) = start(&self.disk, &self.rules);
        self.engine = engine;
        self.log = Some(log);
        self.volatile = false;
        started
    }
}
