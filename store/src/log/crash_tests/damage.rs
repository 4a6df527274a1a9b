//! Files with bytes flipped, cut off or missing.

use std::sync::Arc;

use super::{
    super::{
        recovery,
        simulated::{Crash, Disk},
        *,
    },
    config, long_log, open, put, records, segments, version,
};

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
            let result = recovery::scan(disk.as_ref());
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
        let scan = recovery::scan(disk.as_ref()).unwrap();
        drop(scan);
    }
    disk.set_content(&name, content[..content.len() - 1].to_vec());
    let (_, recovered) = open(&disk).unwrap();
    assert!(recovered.torn_bytes > 600);
    assert_eq!(records(recovered), whole[..whole.len() - 1]);
}

fn records_of(disk: &Arc<Disk>) -> Vec<Record> {
    let scan = recovery::scan(disk.as_ref()).unwrap();
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
