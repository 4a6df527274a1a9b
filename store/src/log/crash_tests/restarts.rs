//! What a start finds after each kind of stop: revisions, keys by class, real files.

use super::{
    super::{
        simulated::{Crash, Disk},
        *,
    },
    config, delete, open, put, records, version,
};

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
