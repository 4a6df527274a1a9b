//! A new segment is written to before it has its name.

use std::sync::Arc;

use super::simulated::{Crash, Disk, Fault};
use super::*;
use crate::core::{Fields, KeyValue};

const VALUE: usize = 600;

fn put(revision: i64) -> Record {
    let fields = Fields {
        key: b"a",
        value: &[1; VALUE],
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    };
    Record::Txn { revision, ops: vec![KeyValue::new(fields)] }
}

fn open(disk: &Arc<Disk>) -> Result<(Log, Recovered), OpenError> {
    let config = LogConfig { segment_bytes: 2000, ..LogConfig::default() };
    Log::open_on(Arc::clone(disk) as Arc<dyn Storage>, config)
}

/// A log whose second segment has no name yet: puts 2 to 4 are in the first, 5 to 7 in the second.
fn rotating() -> (Arc<Disk>, Log) {
    let disk = Disk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    for revision in 2..=7 {
        log.append(Class::Fsync, &put(revision)).unwrap();
        log.write().unwrap();
    }
    assert_eq!(files(&disk), ["log-00000000000000000001", "log-00000000000000000002.tmp"]);
    (disk, log)
}

fn files(disk: &Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).collect()
}

fn revisions(recovered: Recovered) -> Vec<i64> {
    let revision = |record| match record {
        Record::Txn { revision, .. } => revision,
        other => panic!("{other:?}"),
    };
    recovered.records.map(|record| revision(record.unwrap())).collect()
}

#[test]
fn nothing_in_it_is_synced_before_it_has_its_name() {
    let (disk, mut log) = rotating();
    assert!(log.wants_sync());
    let before = log.synced();
    assert!(log.write().unwrap() > before);
    assert_eq!(log.synced(), before);
    assert_eq!(log.sync().unwrap(), log.written());
    assert!(!log.wants_sync());
    assert_eq!(files(&disk), ["log-00000000000000000001", "log-00000000000000000002"]);
    disk.restart(Crash::Power);
    assert_eq!(revisions(open(&disk).unwrap().1), [2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_process_that_dies_loses_nothing_of_it() {
    let (disk, log) = rotating();
    drop(log);
    disk.restart(Crash::Process);
    // Room that was reserved at the end of the first.
    let first = files(&disk).remove(0);
    let mut content = disk.content(&first);
    content.resize(content.len() + 5000, 0);
    disk.set_content(&first, content);
    for _ in 0..2 {
        let (log, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.torn_bytes, 0);
        assert_eq!(revisions(recovered), [2, 3, 4, 5, 6, 7]);
        assert!(!files(&disk).iter().any(|name| names::is_temporary(name)));
        drop(log);
        disk.restart(Crash::Process);
    }
}

#[test]
fn a_look_reads_it_and_changes_nothing() {
    let (disk, log) = rotating();
    let storage = Arc::clone(&disk) as Arc<dyn Storage>;
    let scan = super::recovery::scan(disk.as_ref()).unwrap();
    let recovered = scan.recovered(&storage, &LogConfig::default()).unwrap();
    assert_eq!(revisions(recovered), [2, 3, 4, 5, 6, 7]);
    assert_eq!(files(&disk)[1], "log-00000000000000000002.tmp");
    drop(log);
}

#[test]
fn it_is_dropped_where_the_segment_before_lost_its_end() {
    for cut in [1, VALUE / 2, VALUE + 100] {
        let (disk, log) = rotating();
        drop(log);
        disk.restart(Crash::Process);
        let first = files(&disk).remove(0);
        let content = disk.content(&first);
        disk.set_content(&first, content[..content.len() - cut].to_vec());
        let (log, recovered) = open(&disk).unwrap();
        let found = revisions(recovered);
        assert!(found == [2, 3] || found == [2], "{cut}: {found:?}");
        assert_eq!(files(&disk), ["log-00000000000000000001"]);
        drop(log);
    }
}

#[test]
fn it_is_dropped_where_its_header_is_not_whole() {
    let (disk, log) = rotating();
    drop(log);
    disk.restart(Crash::Process);
    let second = files(&disk).remove(1);
    disk.set_content(&second, vec![0; 4096]);
    assert_eq!(revisions(open(&disk).unwrap().1), [2, 3, 4]);
}

#[test]
fn a_snapshot_waits_for_the_name_of_the_segment_that_follows() {
    let (disk, mut log) = rotating();
    let writer = log.begin_snapshot(SnapshotMeta { revision: 7, compact_revision: 1 }).unwrap();
    assert_eq!(files(&disk)[2], "log-00000000000000000003.tmp");
    let done = writer.finish().unwrap();
    assert_eq!(files(&disk)[2], "log-00000000000000000003");
    done.truncate_behind().unwrap();
    assert_eq!(files(&disk), ["log-00000000000000000003"]);
    disk.restart(Crash::Power);
    assert_eq!(revisions(open(&disk).unwrap().1), [0; 0]);
}

#[test]
fn a_failed_sync_of_the_segment_before_is_the_end() {
    let (disk, mut log) = rotating();
    disk.fail_next(Fault::Sync);
    let error = log.sync().unwrap_err();
    assert!(error.to_string().contains("sync log-00000000000000000001: I/O error"), "{error}");
    assert!(log.append(Class::Fsync, &put(8)).is_err());
    assert_eq!(files(&disk)[1], "log-00000000000000000002.tmp");
}
