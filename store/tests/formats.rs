//! Today's store reads the files of every earlier format. Each folder of `fixtures/` was written by
//! the store of its time and is never written anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use megacluster_store::core::{Command, EngineConfig, Error, Reply};
use megacluster_store::log::{Class, LogConfig};
use megacluster_store::metrics::Metrics;
use megacluster_store::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use megacluster_store::sequencer::{self, Config, Handle, Running};
use prometheus_client::registry::Registry;

fn start(dir: &Path, snapshot_bytes: u64) -> Running {
    let log = LogConfig { snapshot_bytes, ..LogConfig::default() };
    let engine = EngineConfig { lease_class: Class::Fsync, ..EngineConfig::default() };
    let config = Config { data_dir: dir.to_owned(), log, engine };
    sequencer::start(config, Arc::new(Metrics::new(&mut Registry::default()))).unwrap()
}

async fn ask(handle: &Handle, command: Command) -> Reply {
    handle.ask(command, 0).await.unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn key(n: usize) -> String {
    format!("/registry/things/{n:03}")
}

async fn put(handle: &Handle, n: usize, value: &str, lease: i64) {
    let (key, value) = (key(n).into(), value.to_owned().into());
    ask(handle, Command::Put(PutRequest { key, value, lease, ..PutRequest::default() })).await;
}

async fn delete(handle: &Handle, n: usize) {
    let request = DeleteRangeRequest { key: key(n).into(), ..DeleteRangeRequest::default() };
    ask(handle, Command::Delete(request)).await;
}

/// What every fixture holds: a snapshot of forty keys, and a log behind it.
async fn fill(handle: &Handle, dir: &Path) {
    ask(handle, Command::LeaseGrant { id: 77, ttl: 3600 }).await;
    ask(handle, Command::LeaseGrant { id: 78, ttl: 60 }).await;
    for n in 0..40 {
        put(handle, n, &format!("first {n}"), if n == 5 { 77 } else { 0 }).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let has = |part: &str| {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).any(|name| name.starts_with(part))
    };
    while !has("snapshot-") || has("log-00000000000000000001") {
        assert!(Instant::now() < deadline, "no snapshot");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..10 {
        put(handle, n, &format!("second {n}"), if n == 6 { 77 } else { 0 }).await;
    }
    delete(handle, 20).await;
    delete(handle, 21).await;
    put(handle, 21, "", 0).await;
    ask(handle, Command::LeaseRevoke(78)).await;
    ask(handle, Command::Compact(50)).await;
    put(handle, 40, "last", 0).await;
}

async fn read(handle: &Handle, revision: i64) -> Vec<(String, String, [i64; 4])> {
    let everything = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        revision,
        ..RangeRequest::default()
    };
    let Reply::Range(found) = ask(handle, Command::Range(everything)).await else {
        panic!("range")
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let numbers = |kv: &megacluster_store::core::KeyValue| {
        [kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()]
    };
    found.kvs.iter().map(|kv| (text(kv.key()), text(kv.value()), numbers(kv))).collect()
}

/// The forty keys are put at revisions 2 to 41, the first ten again at 42 to 51; 52 and 53 delete,
/// 54 puts again, 55 puts a new key.
async fn check(handle: &Handle) {
    let found = read(handle, 0).await;
    let mut wanted = Vec::new();
    for n in 0..41_usize {
        let at = i64::try_from(n).unwrap();
        let second = n < 10;
        let lease = if n == 6 { 77 } else { 0 };
        let entry = match n {
            20 => continue,
            21 => (key(n), String::new(), [54, 54, 1, 0]),
            40 => (key(n), "last".to_owned(), [55, 55, 1, 0]),
            _ if second => (key(n), format!("second {n}"), [at + 2, at + 42, 2, lease]),
            _ => (key(n), format!("first {n}"), [at + 2, at + 2, 1, 0]),
        };
        wanted.push(entry);
    }
    assert_eq!(found, wanted);
    let before = read(handle, 51).await;
    assert_eq!(before.len(), 40);
    assert_eq!(before[21].1, "first 21");
    let compacted = RangeRequest { key: "a".into(), revision: 49, ..RangeRequest::default() };
    let refused = handle.ask(Command::Range(compacted), 0).await.unwrap_err();
    assert_eq!(refused, Error::Compacted);
    let Reply::LeaseList(revision, leases) = ask(handle, Command::LeaseList).await else {
        panic!("leases")
    };
    assert_eq!((revision, leases), (55, vec![77]));
    let Reply::LeaseView(_, Some(lease)) = ask(handle, Command::LeaseView(77, true)).await else {
        panic!("lease")
    };
    assert_eq!((lease.granted_ttl, lease.keys.len()), (3600, 1));
}

#[tokio::test]
async fn every_earlier_format_is_read() {
    let mut formats = 0;
    for fixture in fs::read_dir(fixtures()).unwrap() {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(fixture.unwrap().path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        // Read, written on and read again.
        for _ in 0..2 {
            let running = start(dir.path(), 1 << 30);
            check(&running.handle).await;
            tokio::task::spawn_blocking(move || running.stop()).await.unwrap();
        }
        formats += 1;
    }
    assert!(formats > 0);
}

/// For a new format: `FORMAT=n cargo test --test formats -- --ignored`.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn write_a_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), 2000);
    fill(&running.handle, dir.path()).await;
    check(&running.handle).await;
    tokio::task::spawn_blocking(move || running.stop()).await.unwrap();
    let format = std::env::var("FORMAT").unwrap();
    let target = fixtures().join(format!("format-{format}"));
    fs::create_dir_all(&target).unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "LOCK" {
            fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
}
