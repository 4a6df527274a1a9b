//! Lives of a store in small, each ended by a crash or in order, each recovered and checked against
//! what was shown to clients.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    super::{
        simulated::{Crash, Disk, Fault, Random},
        *,
    },
    BUFFERED, FSYNC, NONE, delete, open, put, version,
};

/// The state a store would have: key → (value, mod revision), of logged keys only.
type State = BTreeMap<Bytes, (Bytes, i64)>;

fn apply(state: &mut State, record: &Record) {
    if let Record::Txn { revision, ops } = record {
        for kv in ops {
            let key = Bytes::copy_from_slice(kv.key());
            if kv.is_tombstone() {
                state.remove(&key);
            } else {
                state.insert(key, (Bytes::copy_from_slice(kv.value()), *revision));
            }
        }
    }
}

fn rebuild(recovered: Recovered) -> State {
    let mut state = State::new();
    for item in recovered.snapshot.into_iter().flatten() {
        if let SnapshotItem::Key(kv) = item.unwrap() {
            let value = Bytes::copy_from_slice(kv.value());
            state.insert(Bytes::copy_from_slice(kv.key()), (value, kv.mod_revision()));
        }
    }
    for record in recovered.records {
        apply(&mut state, &record.unwrap());
    }
    state
}

/// A store's sequencer in small, with everything it showed to its clients.
struct Driver {
    random: Random,
    /// What was appended of logged classes since the run began, and where it is covered.
    appended: Vec<(Position, Class, Record)>,
    /// State at the start of the run.
    base: State,
    revision: i64,
    /// Highest revision ever shown to a client.
    shown: i64,
    value: u64,
}

impl Driver {
    /// One run up to the crash or the clean end. True if it closed the log.
    fn run(&mut self, disk: &Disk, log: &mut Option<Log>) -> Result<bool, LogError> {
        let steps = self.random.below(60);
        for _ in 0..steps {
            let log = log.as_mut().unwrap();
            match self.random.below(60) {
                0 => disk.fail_next(Fault::Sync),
                1 => {
                    disk.fail_next(Fault::Append);
                    if let Err(error @ LogError::Poisoned { .. }) = log.write() {
                        return Err(error);
                    }
                }
                _ => {}
            }
            match self.random.below(12) {
                0..=6 => self.append(log)?,
                7 | 8 => {
                    log.write()?;
                }
                9 => {
                    log.write()?;
                    // Sync one group while the next is appended and written.
                    let point = log.sync_point();
                    self.append(log)?;
                    log.write()?;
                    point.sync()?;
                }
                10 => {
                    log.sync()?;
                }
                _ => self.snapshot(log)?,
            }
            self.show(log);
        }
        if self.random.chance(4) {
            log.take().unwrap().close(self.revision, true)?;
            self.shown = self.revision;
            return Ok(true);
        }
        Ok(false)
    }

    fn append(&mut self, log: &mut Log) -> Result<(), LogError> {
        self.revision += 1;
        let (class, prefix) =
            [(Class::None, NONE), (Class::Buffered, BUFFERED), (Class::Fsync, FSYNC)]
                [self.random.below(3)];
        let key = [prefix, &[b'a' + u8::try_from(self.random.below(5)).unwrap()]].concat();
        self.value += 1;
        let mut value = self.value.to_le_bytes().to_vec();
        // Often larger than a sector, and with zeros in it.
        value.resize(8 + self.random.below(3) * self.random.below(700), 0);
        let record = if class != Class::None && self.random.chance(5) {
            delete(self.revision, &key)
        } else {
            put(self.revision, &key, &value)
        };
        let position = log.append(class, &record)?;
        if class != Class::None {
            self.appended.push((position, class, record));
        }
        Ok(())
    }

    fn snapshot(&mut self, log: &mut Log) -> Result<(), LogError> {
        let mut state = self.base.clone();
        for (_, _, record) in &self.appended {
            apply(&mut state, record);
        }
        let meta = SnapshotMeta { revision: self.revision, compact_revision: 1 };
        let mut writer = log.begin_snapshot(meta)?;
        // Appends go on while the snapshot is written.
        self.append(log)?;
        log.write()?;
        for (key, (value, revision)) in &state {
            writer.key(&version(*revision, key, value))?;
        }
        if self.random.chance(4) {
            return Ok(()); // given up
        }
        let done = writer.finish()?;
        done.truncate_behind()
    }

    /// A client sees all that the rules allow it to see.
    fn show(&mut self, log: &Log) {
        let unsynced = self.appended.iter().find(|(position, class, _)| match class {
            Class::Fsync => *position > log.synced(),
            _ => *position > log.written(),
        });
        let visible = match unsynced {
            Some((_, _, Record::Txn { revision, .. })) => revision - 1,
            _ => self.revision,
        };
        // A revision that is synced may be shown whatever the limit.
        let synced = self
            .appended
            .iter()
            .filter(|(position, ..)| *position <= log.synced())
            .filter_map(|(_, _, record)| match record {
                Record::Txn { revision, .. } => Some(*revision),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        self.shown = self.shown.max(visible.min(log.revision_limit().max(synced)));
    }
}

/// One life story: runs, each ended by a crash or in order, each recovered and checked.
fn story(seed: u64) {
    let disk = Disk::new(seed);
    let mut random = Random(seed ^ 0xDEAD_BEEF);
    let mut driver = Driver {
        random: Random(seed ^ 0x5EED),
        appended: Vec::new(),
        base: State::new(),
        revision: 1,
        shown: 1,
        value: 0,
    };
    for life in 0..6 {
        disk.crash_in(random.below(120));
        let (closed, written, synced) = match open(&disk) {
            Ok((log, recovered)) => {
                driver.revision = recovered.start_revision;
                driver.shown = driver.shown.max(recovered.start_revision);
                drop(recovered);
                let mut slot = Some(log);
                match driver.run(&disk, &mut slot) {
                    Ok(true) => (true, Position::default(), Position::default()),
                    // A close that failed took the log with it: count on nothing unsynced.
                    _ => slot.map_or((false, Position::default(), Position::default()), |log| {
                        (false, log.written(), log.synced())
                    }),
                }
            }
            // The crash came during the start.
            Err(_) => (false, Position::default(), Position::default()),
        };
        let crash = if random.chance(2) { Crash::Power } else { Crash::Process };
        disk.restart(crash);
        let (log, recovered) =
            open(&disk).unwrap_or_else(|error| panic!("seed {seed} life {life}: {error}"));
        drop(log);
        let what = format!("seed {seed} life {life} {crash:?} closed {closed}");
        assert!(
            recovered.start_revision >= driver.shown,
            "{what}: starts at {}, {} was shown",
            recovered.start_revision,
            driver.shown
        );
        assert!(recovered.clean || !closed, "{what}");
        assert!(recovered.compact_revision <= recovered.start_revision, "{what}");
        // The whole log in order: some prefix of what was appended, long enough.
        let start = recovered.start_revision;
        let compact = recovered.compact_revision;
        let got = rebuild(recovered);
        let durable = driver
            .appended
            .iter()
            .filter(|(position, ..)| {
                closed || *position <= if crash == Crash::Power { synced } else { written }
            })
            .count();
        let mut state = driver.base.clone();
        let mut matches = None;
        for n in 0..=driver.appended.len() {
            if n > 0 {
                apply(&mut state, &driver.appended[n - 1].2);
            }
            if n >= durable && state == got {
                matches = Some(n);
                break;
            }
        }
        let n = matches.unwrap_or_else(|| {
            panic!("{what}: not a prefix of at least {durable} of {}", driver.appended.len())
        });
        // What was shown and is gone forces every client to list anew.
        let last = driver.appended[..n].iter().rev().find_map(|(_, _, record)| match record {
            Record::Txn { revision, .. } => Some(*revision),
            _ => None,
        });
        if last.is_some_and(|last| driver.shown > last) {
            assert!(
                compact == start && compact >= driver.shown + 2 || start == driver.shown,
                "{what}: shown {}, last {last:?}, start {start}, compact {compact}",
                driver.shown
            );
        }
        driver.appended.clear();
        driver.base = got;
        driver.shown = driver.shown.max(start);
        // The look at the recovered log was a start itself, and its stop a process crash.
        disk.restart(Crash::Process);
    }
}

#[test]
fn thousands_of_crash_points() {
    for seed in 0..3000 {
        story(seed);
    }
}
