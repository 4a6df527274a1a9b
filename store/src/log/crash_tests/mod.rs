//! The log against a simulated disk: thousands of crash points, and damage by hand.

mod damage;
mod faults;
mod restarts;
mod stories;

use std::sync::Arc;

use super::{
    simulated::{Crash, Disk},
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

fn segments(disk: &Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).collect()
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
