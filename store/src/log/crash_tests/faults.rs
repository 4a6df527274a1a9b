//! Writes and syncs that fail, and records that are refused.

use super::{
    super::{
        simulated::{Crash, Disk, Fault},
        *,
    },
    open, put, records,
};

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
