//! The clock of the machine jumps while leases run: the real binary, with a clock of its own that
//! `libfaketime` (Debian's package `faketime`) sets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

#[allow(dead_code, reason = "each test uses its part")]
mod process;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use megacluster_store::pb::etcdserverpb::lease_client::LeaseClient;
use megacluster_store::pb::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
};
use process::{BINARY, Start, Store, put};

fn library() -> Option<PathBuf> {
    let found = ["x86_64-linux-gnu", "aarch64-linux-gnu", ""]
        .map(|arch| PathBuf::from("/usr/lib").join(arch).join("faketime/libfaketimeMT.so.1"));
    found.into_iter().find(|path| path.exists())
}

async fn lease(store: &Store, id: i64, ttl: i64) {
    let mut leases = LeaseClient::new(store.channel().await);
    leases.lease_grant(LeaseGrantRequest { id, ttl }).await.unwrap();
    let attached = PutRequest { lease: id, ..put(&format!("leased-{id}"), "v") };
    store.kv().await.put(attached).await.unwrap();
}

async fn left(store: &Store, id: i64) -> i64 {
    let request = LeaseTimeToLiveRequest { id, keys: false };
    let mut leases = LeaseClient::new(store.channel().await);
    leases.lease_time_to_live(request).await.unwrap().into_inner().ttl
}

async fn is_there(store: &Store, id: i64) -> bool {
    let key = format!("leased-{id}").into();
    let request = RangeRequest { key, ..Default::default() };
    store.kv().await.range(request).await.unwrap().into_inner().count == 1
}

/// The day that the store's own messages carry.
async fn day(store: &mut Store, revision: i64) -> String {
    let compact = CompactionRequest { revision, ..Default::default() };
    store.kv().await.compact(compact).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = store.output();
        let said = output.lines().find(|line| {
            line.contains("compacted") && line.contains(&format!("revision={revision}"))
        });
        if let Some(line) = said {
            return line.split('T').next().unwrap_or(line).to_owned();
        }
        assert!(Instant::now() < deadline, "{output}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A day forward, a day back behind where it began: no lease ends early, and none late.
#[tokio::test]
async fn leases_do_not_see_the_clock_jump() {
    let Some(library) = library() else {
        println!("not run: libfaketime is not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let clock = dir.path().join("clock");
    let set = |offset: &str| {
        // Read at every look at the clock: it must never be empty.
        let next = dir.path().join("next");
        fs::write(&next, format!("{offset}\n")).unwrap();
        fs::rename(&next, &clock).unwrap();
    };
    set("+0");
    let mut start = Start::new(&dir.path().join("data"), &["--durability=buffered"]);
    start.command = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        BINARY.to_owned(),
    ];
    let mut store = start.run().await;
    for n in 0..5 {
        store.kv().await.put(put("k", n.to_string())).await.unwrap();
    }
    let today = day(&mut store, 2).await;

    let began = Instant::now();
    lease(&store, 1, 10).await;
    lease(&store, 2, 3600).await;
    set("+1d");
    let tomorrow = day(&mut store, 3).await;
    assert!(tomorrow > today, "the store's clock jumped: {today}, {tomorrow}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(left(&store, 1).await >= 1 && left(&store, 2).await > 3500);
    assert!(is_there(&store, 1).await);
    set("-1d");
    let yesterday = day(&mut store, 4).await;
    assert!(yesterday < today, "and back: {today}, {yesterday}");
    // A lease that is granted behind the jump counts, too.
    lease(&store, 3, 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_there(&store, 1).await && is_there(&store, 3).await);
    assert!(began.elapsed() < Duration::from_secs(10), "too slow to tell: {:?}", began.elapsed());
    let deadline = began + Duration::from_mins(1);
    while is_there(&store, 1).await || is_there(&store, 3).await {
        assert!(Instant::now() < deadline, "a lease does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert!((3500..3600).contains(&left(&store, 2).await));
    assert!(is_there(&store, 2).await);
    store.stop();
}
