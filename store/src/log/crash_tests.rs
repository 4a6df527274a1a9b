//! The log against a simulated disk: thousands of crash points, and damage by hand.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    simulated::{Crash, Disk, Fault, Random},
    *,
};
use crate::core::{Fields, KeyValue};

const NONE: &[u8] = b"none/";
const BUFFERED: &[u8] = b"buffered/";
const FSYNC: &[u8] = b"fsync/";

fn rules() -> DurabilityRules {
    let rules = ["none/=none", "buffered/=buffered"].map(|rule| rule.parse().unwrap());
    DurabilityRules::new(Class::Fsync, rules).unwrap()
}

fn config() -> LogConfig {
    LogConfig { rules: rules(), segment_bytes: 6000, snapshot_bytes: 20_000, reserve: 64 }
}

fn version(revision: i64, key: &[u8], value: &[u8]) -> KeyValue {
    KeyValue::new(Fields {
        key,
        value,
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    })
}

fn put(revision: i64, key: &[u8], value: &[u8]) -> Record {
    Record::Txn { revision, ops: vec![version(revision, key, value)] }
}

fn delete(revision: i64, key: &[u8]) -> Record {
    Record::Txn { revision, ops: vec![KeyValue::tombstone(key, revision)] }
}

fn open(disk: &Arc<Disk>) -> Result<(Log, Recovered), OpenError> {
    Log::open_on(Arc::clone(disk) as Arc<dyn Storage>, config())
}

fn records(recovered: Recovered) -> Vec<Record> {
    recovered.records.map(Result::unwrap).collect()
}

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

#[test]
fn a_new_log_starts_at_one_and_a_closed_one_goes_on() {
    let disk = Disk::new(1);
    let (mut log, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.start_revision, recovered.compact_revision), (1, 0));
    assert!(recovered.clean && recovered.snapshot.is_none());
    assert_eq!(records(recovered), []);
    let all = [
        put(2, b"a", b""),
        Record::LeaseGrant { id: 7, ttl: 30 },
        delete(3, b"a"),
        Record::LeaseRevoke { id: 7 },
        Record::Compact { revision: 2 },
    ];
    for record in &all {
        log.append(Class::Fsync, record).unwrap();
    }
    log.close(3, false).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.start_revision, recovered.compact_revision), (3, 2));
    assert!(recovered.clean);
    assert_eq!(records(recovered), all);
}

#[test]
fn a_stop_that_loses_keys_makes_clients_list_anew() {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::None, &put(2, b"none/a", b"v")).unwrap();
    log.close(2, true).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    // A client that saw 2 watches from 3, which is below 4.
    assert_eq!((recovered.start_revision, recovered.compact_revision), (4, 4));
}

#[test]
fn a_log_of_class_fsync_alone_skips_no_revision() {
    let disk = Disk::new(1);
    let config = LogConfig::default();
    let (mut log, _) = Log::open_on(disk.clone(), config.clone()).unwrap();
    log.append(Class::Fsync, &put(2, b"a", b"v")).unwrap();
    log.sync().unwrap();
    disk.restart(Crash::Process);
    let (_, recovered) = Log::open_on(disk, config).unwrap();
    assert!(!recovered.clean);
    assert_eq!((recovered.start_revision, recovered.compact_revision), (2, 0));
}

#[test]
fn reservations_are_renewed_ahead_of_use() {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    assert_eq!(log.revision_limit(), 65);
    assert!(!log.wants_sync());
    for revision in 2..=33 {
        log.append(Class::None, &put(revision, b"none/a", b"v")).unwrap();
    }
    assert!(!log.wants_sync());
    log.append(Class::None, &put(34, b"none/a", b"v")).unwrap();
    assert!(log.wants_sync());
    assert_eq!(log.revision_limit(), 65, "not before the sync");
    log.sync().unwrap();
    assert_eq!(log.revision_limit(), 34 + 64);
    disk.restart(Crash::Power);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.start_revision, 34 + 64 + 2);
    assert_eq!(recovered.compact_revision, recovered.start_revision);
}

#[test]
fn keys_that_became_volatile_are_not_brought_back_old() {
    let disk = Disk::new(1);
    let (mut log, _) = Log::open_on(disk.clone(), LogConfig::default()).unwrap();
    log.append(Class::Fsync, &put(2, b"none/a", b"old")).unwrap();
    log.append(Class::Fsync, &put(3, b"b", b"v")).unwrap();
    log.sync().unwrap();
    disk.restart(Crash::Process);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(records(recovered), [Record::Txn { revision: 2, ops: vec![] }, put(3, b"b", b"v")]);
}

#[test]
fn keys_that_were_lost_do_not_come_back_later() {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    let (volatile, durable) = (version(2, b"none/a", b"v"), version(2, b"b", b"v"));
    let both = Record::Txn { revision: 2, ops: vec![volatile, durable.clone()] };
    log.append(Class::Fsync, &both).unwrap();
    log.close(2, true).unwrap();
    for _ in 0..3 {
        let (log, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.start_revision, 4);
        let kept = Record::Txn { revision: 2, ops: vec![durable.clone()] };
        assert_eq!(records(recovered), [kept]);
        log.close(4, false).unwrap();
    }
    // What a run that lost nothing put is kept.
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(5, b"none/a", b"v")).unwrap();
    log.close(5, false).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(records(recovered)[1], put(5, b"none/a", b"v"));
}

#[test]
fn a_failed_sync_is_the_end() {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(2, b"a", b"v")).unwrap();
    log.write().unwrap();
    let before = log.synced();
    disk.fail_next(Fault::Sync);
    let error = log.sync_point().sync().unwrap_err();
    assert!(matches!(error, LogError::Poisoned { .. }));
    assert!(error.to_string().contains("sync log-00000000000000000001: I/O error"), "{error}");
    for result in [
        log.append(Class::Fsync, &put(3, b"a", b"v")),
        log.write(),
        log.sync(),
        log.sync_point().sync(),
    ] {
        assert!(matches!(result, Err(LogError::Poisoned { .. })), "{result:?}");
    }
    assert_eq!(log.synced(), before);
    assert!(log.poisoned().is_some());
}

#[test]
fn a_full_disk_is_waited_out() {
    let disk = Disk::new(3);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(2, b"a", &[7; 2000])).unwrap();
    for _ in 0..5 {
        disk.fail_next(Fault::Append);
        let error = log.write().unwrap_err();
        assert!(matches!(error, LogError::Write { .. }), "{error}");
    }
    log.append(Class::Fsync, &put(3, b"a", b"v")).unwrap();
    log.sync().unwrap();
    disk.restart(Crash::Power);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.torn_bytes, 0);
    assert_eq!(records(recovered).len(), 2);
}

#[test]
fn a_write_that_cannot_be_undone_is_the_end() {
    let disk = Disk::new(3);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(2, b"a", b"v")).unwrap();
    disk.fail_next(Fault::AppendAndTruncate);
    assert!(matches!(log.write(), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.write(), Err(LogError::Poisoned { .. })));
}

#[test]
fn wrong_order_and_size_are_refused() {
    let disk = Disk::new(3);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(5, b"a", b"v")).unwrap();
    assert!(matches!(
        log.append(Class::Fsync, &put(5, b"a", b"v")),
        Err(LogError::Order { revision: 5, last: 5 })
    ));
    let huge = vec![0; 64 << 20];
    assert!(matches!(
        log.append(Class::Fsync, &put(6, b"a", &huge)),
        Err(LogError::TooLarge { .. })
    ));
    log.append(Class::Fsync, &put(6, b"a", b"v")).unwrap();
    log.close(6, false).unwrap();
    assert_eq!(records(open(&disk).unwrap().1).len(), 2);
}

/// A log of several segments, stopped by a crash.
fn long_log() -> Arc<Disk> {
    let disk = Disk::new(9);
    let (mut log, _) = open(&disk).unwrap();
    for revision in 2..40 {
        log.append(Class::Fsync, &put(revision, b"a", &[1; 600])).unwrap();
        log.sync().unwrap();
    }
    disk.restart(Crash::Process);
    disk
}

fn segments(disk: &Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).collect()
}

#[test]
fn every_flipped_byte_is_refused_or_is_the_torn_tail() {
    let disk = long_log();
    let names = segments(&disk);
    assert!(names.len() > 2);
    for (i, name) in names.iter().enumerate() {
        let content = disk.content(name);
        // The last block's length is that of one put.
        let tail = content.len() - 600 - 100;
        for at in (0..content.len()).step_by(97) {
            let mut bad = content.clone();
            bad[at] ^= 0x10;
            disk.set_content(name, bad);
            let result = super::recovery::scan(disk.as_ref());
            if i + 1 == names.len() && at >= tail {
                assert!(result.is_ok() || at < content.len() - 600, "{name} {at}: {result:?}");
            } else {
                let error = result.expect_err("damage not seen");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
        disk.set_content(name, content);
    }
    assert_eq!(records(open(&disk).unwrap().1).len(), 38);
}

#[test]
fn a_torn_tail_of_every_length_is_cut_off() {
    let disk = long_log();
    let name = segments(&disk).pop().unwrap();
    let content = disk.content(&name);
    let whole = records_of(&disk);
    for cut in 1..=636 {
        disk.set_content(&name, content[..content.len() - cut].to_vec());
        let scan = super::recovery::scan(disk.as_ref()).unwrap();
        drop(scan);
    }
    disk.set_content(&name, content[..content.len() - 1].to_vec());
    let (_, recovered) = open(&disk).unwrap();
    assert!(recovered.torn_bytes > 600);
    assert_eq!(records(recovered), whole[..whole.len() - 1]);
}

fn records_of(disk: &Arc<Disk>) -> Vec<Record> {
    let scan = super::recovery::scan(disk.as_ref()).unwrap();
    let storage = Arc::clone(disk) as Arc<dyn Storage>;
    records(scan.recovered(&storage, &config()).unwrap())
}

#[test]
fn a_missing_segment_is_named() {
    for missing in 0..2 {
        let disk = long_log();
        let name = segments(&disk).remove(missing);
        disk.remove(&name).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(matches!(&error, OpenError::Missing { file } if *file == name), "{error}");
    }
}

#[test]
fn a_log_of_another_version_is_refused() {
    let disk = long_log();
    let name = segments(&disk).remove(0);
    let mut content = disk.content(&name);
    content[8] = 3;
    disk.set_content(&name, content);
    assert_eq!(
        open(&disk).unwrap_err().to_string(),
        format!("{name} has format version 3; this version of the store reads up to 2")
    );
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_refused() {
    let disk = Disk::new(5);
    let (mut log, _) = open(&disk).unwrap();
    log.append(Class::Fsync, &put(2, b"a", b"v")).unwrap();
    let meta = SnapshotMeta { revision: 2, compact_revision: 1 };
    let mut writer = log.begin_snapshot(meta).unwrap();
    writer.lease(7, 30).unwrap();
    writer.key(&version(2, b"a", b"v")).unwrap();
    writer.key(&version(2, b"none/a", b"v")).unwrap();
    let done = writer.finish().unwrap();
    done.truncate_behind().unwrap();
    log.append(Class::Fsync, &put(3, b"b", b"v")).unwrap();
    log.sync().unwrap();
    disk.restart(Crash::Power);

    let (_, recovered) = open(&disk).unwrap();
    let items: Vec<_> = recovered.snapshot.unwrap().map(Result::unwrap).collect();
    assert_eq!(items.len(), 2, "the key of class none is left out: {items:?}");
    assert_eq!(recovered.records.map(Result::unwrap).collect::<Vec<_>>(), [put(3, b"b", b"v")]);

    let name = disk.list().unwrap().into_iter().find(|n| n.starts_with("snapshot-")).unwrap();
    let content = disk.content(&name);
    let read = || -> Result<(), OpenError> {
        let (_, recovered) = open(&disk)?;
        recovered.snapshot.unwrap().try_for_each(|item| item.map(|_| ()))
    };
    for at in 0..content.len() {
        let mut bad = content.clone();
        bad[at] ^= 1;
        disk.set_content(&name, bad);
        let error = read().expect_err("damage not seen");
        assert!(error.to_string().contains(&name), "{error}");
        disk.set_content(&name, content[..at].to_vec());
        let error = read().expect_err("truncation not seen");
        assert!(error.to_string().contains(&name), "{error}");
    }
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), config()).unwrap();
    let error = Log::open(dir.path(), config()).unwrap_err();
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    drop(log);
    Log::open(dir.path(), config()).unwrap();
}

#[test]
fn real_files_come_back_and_etcd_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(&dir.path().join("new/data"), config()).unwrap();
    for revision in 2..40 {
        log.append(Class::Fsync, &put(revision, b"a", &[1; 600])).unwrap();
        log.write().unwrap();
    }
    log.close(39, false).unwrap();
    let (_, recovered) = Log::open(&dir.path().join("new/data"), config()).unwrap();
    assert_eq!(records(recovered).len(), 38);
    std::fs::create_dir(dir.path().join("member")).unwrap();
    let error = Log::open(dir.path(), config()).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn a_background_sync_reaches_what_was_written_and_fails_loudly() {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    let mut background = BackgroundSync::start().unwrap();
    assert!(!background.is_due(&log));
    let position = log.append(Class::Buffered, &put(2, b"buffered/a", b"v")).unwrap();
    log.write().unwrap();
    assert!(background.is_due(&log));
    background.offer(&log);
    assert!(!background.is_due(&log));
    wait_until(|| log.synced() >= position);

    disk.fail_next(Fault::Sync);
    log.append(Class::Buffered, &put(3, b"buffered/a", b"v")).unwrap();
    log.write().unwrap();
    background.offer(&log);
    wait_until(|| log.poisoned().is_some());
    assert!(log.write().is_err());
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
