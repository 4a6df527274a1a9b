//! `megacluster-store dump` prints what the log of the real process holds, and changes nothing.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]
#![allow(dead_code, reason = "the helpers are shared with other tests")]

mod process;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use megacluster_store::pb::etcdserverpb::lease_client::LeaseClient;
use megacluster_store::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
};
use process::{BINARY, Start, Store, put};
use serde_json::{Value, json};

fn run(dir: &Path, flags: &[&str]) -> Output {
    let data_dir = format!("--data-dir={}", dir.display());
    Command::new(BINARY).args(["dump", &data_dir]).args(flags).output().unwrap()
}

fn dump(dir: &Path, flags: &[&str]) -> Vec<Value> {
    let output = run(dir, flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refused(dir: &Path) -> String {
    let output = run(dir, &[]);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    error
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

/// Two transactions, a lease that came and went, and a compaction.
async fn write(store: &Store) {
    let mut kv = store.kv().await;
    kv.put(put("/a", "1")).await.unwrap();
    let mut leases = LeaseClient::new(store.channel().await);
    leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 5 }).await.unwrap();
    leases.lease_revoke(LeaseRevokeRequest { id: 5 }).await.unwrap();
    let delete = DeleteRangeRequest { key: "/a".into(), ..Default::default() };
    kv.delete_range(delete).await.unwrap();
    kv.put(put("/b", "2")).await.unwrap();
    kv.compact(CompactionRequest { revision: 3, physical: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_printed_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), &[]);
    let store = start.run().await;
    write(&store).await;
    // Not while a store runs.
    let error = refused(dir.path());
    assert!(error.contains(&format!("(pid {})", store.pid())), "{error}");
    store.kill();

    let put = |key: &str, value: &str, revision: i64| {
        let op = json!({"op": "put", "key": key, "value": value, "lease": 0,
            "create_revision": revision, "version": 1});
        json!({"kind": "txn", "revision": revision, "class": "fsync", "ops": [op]})
    };
    let delete = json!({"op": "delete", "key": "L2E="});
    let mut wanted = vec![
        put("L2E=", "MQ==", 2),
        json!({"kind": "lease_grant", "id": 5, "ttl": 60}),
        json!({"kind": "lease_revoke", "id": 5}),
        json!({"kind": "txn", "revision": 3, "class": "fsync", "ops": [delete]}),
        put("L2I=", "Mg==", 4),
        json!({"kind": "compact", "revision": 3}),
        json!({"kind": "end", "revision": 4, "compact_revision": 3, "clean": false,
            "torn_bytes": 0}),
    ];
    let before = files(dir.path());
    assert_eq!(dump(dir.path(), &[]), wanted);
    assert_eq!(files(dir.path()), before);

    // An unfinished write is told and left there, and the class is what the rules say.
    let name = before.keys().rfind(|name| name.starts_with("log-")).unwrap();
    // Behind what was written: the zeros there are room that was reserved, but for the seven that
    // the compaction's revision ends in.
    let written = before[name].iter().rposition(|byte| *byte != 0).unwrap() + 1 + 7;
    let torn = [&before[name][..written], &[0xB1; 7]].concat();
    std::fs::write(dir.path().join(name), &torn).unwrap();
    std::fs::remove_file(dir.path().join("LOCK")).unwrap();
    wanted[6]["torn_bytes"] = 7.into();
    wanted[4]["class"] = "none".into();
    let flags = ["--durability-rule=/b=none"];
    assert_eq!(dump(dir.path(), &flags), wanted);
    assert_eq!(files(dir.path())[name], torn);
    assert!(!dir.path().join("LOCK").exists());
    start.run().await.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_printed_before_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), &["--snapshot-log-bytes=1"]);
    let store = start.run().await;
    write(&store).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    // The last write, the compaction, makes a snapshot due that leaves nothing behind it.
    let behind = || {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let logs = entries.filter(|e| e.file_name().to_str().unwrap().starts_with("log-"));
        // A file may be removed while it is looked at.
        logs.map(|e| e.metadata().map_or(u64::MAX, |m| m.len())).fold(0, u64::saturating_add)
    };
    while behind() > 100 {
        assert!(Instant::now() < deadline, "no snapshot");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.kill();
    let lines = dump(dir.path(), &[]);
    assert_eq!(lines[0]["kind"], "snapshot", "{lines:?}");
    let key = json!({"kind": "key", "key": "L2I=", "value": "Mg==", "lease": 0,
        "create_revision": 4, "mod_revision": 4, "version": 1});
    assert_eq!(lines[1], key);
    assert_eq!(lines.last().unwrap()["kind"], "end");
    // Damage is named. An older snapshot may still be there, and the beginning of a newer one.
    let whole = |name: &str| name.starts_with("snapshot-") && !name.contains(".tmp");
    let (name, mut content) = files(dir.path()).into_iter().rfind(|(name, _)| whole(name)).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(dir.path().join(&name), content).unwrap();
    let error = refused(dir.path());
    assert!(error.contains(&name) && error.contains("corrupt at offset"), "{error}");
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(&dir.path().join("none"));
    assert!(error.contains("none") && error.contains("No such file"), "{error}");
    assert!(!dir.path().join("none").exists());
    std::fs::create_dir(dir.path().join("member")).unwrap();
    assert!(refused(dir.path()).contains("etcd member directory"));
}
