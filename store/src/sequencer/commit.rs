//! Making a batch durable.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::Health;
use crate::core::Engine;
use crate::log::{BackgroundSync, Class, Log, LogError, Record};

/// How long a written and acknowledged record of class buffered waits for its sync: what a loss of
/// power may take.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Where records go, and what became of them.
#[derive(Debug)]
pub(super) struct Committer {
    /// `None` once it is closed or broken beyond use.
    log: Option<Log>,
    health: Health,
    /// A record of class none was given out since the start.
    volatile: bool,
    /// What the batch that a full disk holds back needs.
    waiting: Class,
    background: Option<BackgroundSync>,
    synced_at: Instant,
    /// How long the last batch waited for its sync, if it had one.
    waited: Option<Duration>,
}

impl Committer {
    pub(super) fn new(log: Log) -> Self {
        let background = BackgroundSync::start()
            .inspect_err(|error| warn!(%error, "no thread for background syncs"))
            .ok();
        Self {
            log: Some(log),
            health: Health::Good,
            volatile: false,
            waiting: Class::None,
            background,
            synced_at: Instant::now(),
            waited: None,
        }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// How long the last batch waited for its sync, if it had one; told once.
    pub(super) fn take_waited(&mut self) -> Option<Duration> {
        self.waited.take()
    }

    pub(super) fn log_mut(&mut self) -> Option<&mut Log> {
        self.log.as_mut()
    }

    /// Makes all that the engine applied durable, each record for its class. False if it is not:
    /// then nothing of it may be shown.
    pub(super) fn commit(&mut self, engine: &mut Engine) -> bool {
        let records = engine.take_records();
        if records.is_empty() {
            return self.health == Health::Good;
        }
        let result = self.write(&records, engine.current());
        self.settle(result)
    }

    /// Tries again what a full disk held back.
    pub(super) fn retry(&mut self, revision: i64) -> bool {
        let waiting = self.waiting;
        let result = self.flush(waiting, revision);
        let good = self.settle(result);
        if good {
            info!("the log takes writes again");
        }
        good
    }

    fn write(&mut self, records: &[(Class, Record)], revision: i64) -> Result<(), LogError> {
        let mut strongest = Class::None;
        let Some(log) = &mut self.log else { return Ok(()) };
        for (class, record) in records {
            log.append(*class, record)?;
            self.volatile |= *class == Class::None;
            strongest = strongest.max(*class);
        }
        self.waiting = strongest;
        self.flush(strongest, revision)
    }

    fn flush(&mut self, class: Class, revision: i64) -> Result<(), LogError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if class == Class::Fsync || revision > log.revision_limit() {
            log.write()?;
            let began = Instant::now();
            log.sync_point().sync()?;
            self.waited = Some(began.elapsed());
        } else if class == Class::Buffered || log.wants_sync() {
            log.write()?;
        }
        Ok(())
    }

    /// Has what was only written synced in the background, once a second, or at once if the log
    /// wants it (its reservation of revisions). True if there is more to sync later.
    pub(super) fn sync_behind(&mut self) -> bool {
        let (Some(log), Some(background)) = (&self.log, &mut self.background) else { return false };
        if self.health != Health::Good || !background.is_due(log) {
            return false;
        }
        if log.wants_sync() || self.synced_at.elapsed() >= SYNC_EVERY {
            self.synced_at = Instant::now();
            background.offer(log);
            return background.is_due(log);
        }
        true
    }

    fn settle(&mut self, result: Result<(), LogError>) -> bool {
        self.health = match result {
            Ok(()) => Health::Good,
            Err(LogError::Write { ref source, .. }) => {
                if self.health != Health::Full {
                    let full = source.kind() == std::io::ErrorKind::StorageFull;
                    warn!(%source, full, "the log takes no writes: only reads are served");
                }
                Health::Full
            }
            Err(cause) => {
                error!(%cause, "the log is broken: only reads are served until a restart");
                Health::Broken
            }
        };
        self.health == Health::Good
    }

    /// Ends the log in order.
    pub(super) fn close(&mut self, revision: i64) {
        let Some(log) = self.log.take() else { return };
        if self.health != Health::Good {
            // What was not written must not be found at the next start as if it had been.
            error!("stopped with a log that takes no writes");
            return;
        }
        match log.close(revision, self.volatile) {
            Ok(()) => info!(revision, volatile = self.volatile, "log closed"),
            Err(cause) => error!(%cause, "log not closed in order"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Command, EngineConfig, Error, Reply, State};
    use crate::log::LogConfig;
    use crate::log::simulated::{Disk, Fault};
    use crate::pb::etcdserverpb::{PutRequest, RangeRequest};

    fn engine_and_log(disk: &std::sync::Arc<Disk>) -> (Engine, Committer) {
        let (log, recovered) = Log::open_on(disk.clone(), LogConfig::default()).unwrap();
        let mut state = State::new(1);
        for record in recovered.records {
            state.replay(record.unwrap(), 0);
        }
        state.recover_at(recovered.start_revision, recovered.compact_revision);
        let config = EngineConfig { lease_class: Class::Fsync, ..EngineConfig::default() };
        (Engine::new(state, config), Committer::new(log))
    }

    fn put(engine: &mut Engine, key: &'static str) {
        let put = PutRequest { key: key.into(), ..Default::default() };
        engine.apply(Command::Put(put), 0).unwrap();
    }

    fn read(engine: &mut Engine, key: &'static str) -> (usize, i64) {
        let range = RangeRequest { key: key.into(), ..Default::default() };
        let Ok(Reply::Range(found)) = engine.apply(Command::Range(range), 0) else {
            panic!("range")
        };
        (found.kvs.len(), found.header.unwrap().revision)
    }

    fn show(engine: &mut Engine) {
        engine.publish();
        engine.mvcc().show();
    }

    #[test]
    fn what_a_full_disk_held_back_is_shown_when_it_is_written() {
        let disk = Disk::new(1);
        let (mut engine, mut committer) = engine_and_log(&disk);
        put(&mut engine, "a");
        assert!(committer.commit(&mut engine));
        show(&mut engine);
        put(&mut engine, "b");
        disk.fail_next(Fault::Append);
        assert!(!committer.commit(&mut engine));
        assert_eq!(committer.health(), Health::Full);
        engine.set_frozen(true);
        assert_eq!((read(&mut engine, "a"), read(&mut engine, "b")), ((1, 2), (0, 2)));
        assert!(committer.retry(engine.mvcc().revision()));
        engine.set_frozen(false);
        show(&mut engine);
        assert_eq!(read(&mut engine, "b"), (1, 3));
        committer.close(3);

        let (mut engine, _) = engine_and_log(&disk);
        assert_eq!(read(&mut engine, "b"), (1, 3));
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_or_shown() {
        let disk = Disk::new(2);
        let (mut engine, mut committer) = engine_and_log(&disk);
        put(&mut engine, "a");
        disk.fail_next(Fault::Sync);
        assert!(!committer.commit(&mut engine));
        assert_eq!(committer.health(), Health::Broken);
        engine.set_frozen(true);
        assert_eq!(read(&mut engine, "a"), (0, 1));
        assert!(!committer.retry(engine.mvcc().revision()));
        let at = RangeRequest { key: "a".into(), revision: 2, ..Default::default() };
        let hidden = engine.apply(Command::Range(at), 0).unwrap_err();
        assert_eq!(hidden, Error::FutureRevision);
    }
}
