//! The real process: killed, restarted, on damaged and forbidden directories.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation so"
)]

mod process;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use megacluster_store::pb::etcdserverpb::{
    DeleteRangeRequest, WatchCreateRequest, WatchRequest, WatchResponse, kv_client::KvClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use process::{BINARY, Random, Start, Store, everything, put};
use tonic::transport::Channel;

/// All classes, and snapshots again and again.
const MIXED: &[&str] = &[
    "--durability=fsync",
    "--durability-rule=buffered/=buffered",
    "--durability-rule=none/=none",
    "--snapshot-log-bytes=100000",
];

/// What one writer knows of its keys: acknowledged, and the one that was on its way at the end.
#[derive(Debug, Default)]
struct Written {
    acknowledged: HashMap<String, (Option<Bytes>, i64)>,
    unsure: Option<(String, Option<Bytes>)>,
    revision: i64,
    count: u64,
}

/// Writes to keys of its own until the store is gone.
async fn write(
    mut kv: KvClient<Channel>,
    writer: u64,
    mut random: Random,
    acknowledged: Arc<AtomicU64>,
) -> Written {
    let mut written = Written::default();
    loop {
        let prefix = ["fsync/", "buffered/", "none/"][usize::try_from(random.below(3)).unwrap()];
        let key = format!("{prefix}{writer}/{}", random.below(8));
        written.count += 1;
        let (value, result) = if random.below(6) == 0 {
            let request = DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
            (None, kv.delete_range(request).await.map(|r| r.into_inner().header))
        } else {
            let mut value = format!("{writer} {} ", written.count).into_bytes();
            value.resize(value.len() + usize::try_from(random.below(2000)).unwrap(), b'.');
            let value = Bytes::from(value);
            (Some(value.clone()), kv.put(put(&key, value)).await.map(|r| r.into_inner().header))
        };
        let Ok(header) = result else {
            written.unsure = Some((key, value));
            return written;
        };
        let revision = header.unwrap().revision;
        assert!(revision >= written.revision, "revisions of one client go back");
        written.revision = revision;
        acknowledged.fetch_add(1, Ordering::Relaxed);
        written.acknowledged.insert(key, (value, revision));
    }
}

/// Starts writers, ends the store by `end` in the middle, and returns what they wrote.
async fn writers_until(store: Store, random: &mut Random, end: impl FnOnce(Store)) -> Vec<Written> {
    let mut tasks = Vec::new();
    let acknowledged = Arc::new(AtomicU64::new(0));
    for writer in 0..6 {
        let kv = store.kv().await;
        let mut own = random.clone();
        for _ in 0..=writer {
            own.below(2);
        }
        tasks.push(tokio::spawn(write(kv, writer, own, Arc::clone(&acknowledged))));
    }
    random.below(2);
    // By count, and then by time: the first is reached on a machine of any speed.
    let enough = 30 + random.below(600);
    let deadline = Instant::now() + Duration::from_mins(1);
    while acknowledged.load(Ordering::Relaxed) < enough {
        assert!(Instant::now() < deadline, "the store takes no writes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_micros(random.below(3000))).await;
    end(store);
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

/// Checks that what was acknowledged is there, except for keys of class none.
async fn check(store: &Store, all: &[Written], before: &mut HashMap<String, (Option<Bytes>, i64)>) {
    let answer = store.kv().await.range(everything()).await.unwrap().into_inner();
    let revision = answer.header.unwrap().revision;
    let found: HashMap<String, (Bytes, i64)> = answer
        .kvs
        .iter()
        .map(|kv| {
            let key = String::from_utf8(kv.key().to_vec()).unwrap();
            (key, (Bytes::copy_from_slice(kv.value()), kv.mod_revision()))
        })
        .collect();
    for written in all {
        assert!(
            revision >= written.revision,
            "revision {} was seen, now {revision}",
            written.revision
        );
        before.extend(written.acknowledged.clone());
    }
    for (key, (value, revision)) in before.iter() {
        if key.starts_with("none/") {
            continue;
        }
        let is = found.get(key);
        let same = match (value, is) {
            (Some(value), Some((is, at))) => value == is && revision == at,
            (None, None) => true,
            _ => false,
        };
        // The request that got no answer may have been applied.
        let other = all
            .iter()
            .filter_map(|w| w.unsure.as_ref())
            .any(|(unsure, value)| unsure == key && value.as_ref() == is.map(|(is, _)| is));
        assert!(same || other, "{key}: wrote {value:?} at {revision}, found {is:?}");
    }
    // What is there now is the base of the next round, unsure or not.
    before.clear();
    for (key, (value, at)) in found {
        before.insert(key, (Some(value), at));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), MIXED);
    let mut random = Random::new();
    let mut before = HashMap::new();
    for _ in 0..8 {
        let store = start.run().await;
        let all = writers_until(store, &mut random, Store::kill).await;
        let store = start.run().await;
        check(&store, &all, &mut before).await;
        // Half of the rounds go on from a stop in order.
        if random.below(2) == 0 { store.stop() } else { store.kill() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_a_group_commit_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), MIXED);
    let mut random = Random::new();
    let mut before = HashMap::new();
    for _ in 0..4 {
        let store = start.run().await;
        let all = writers_until(store, &mut random, Store::stop).await;
        let store = start.run().await;
        check(&store, &all, &mut before).await;
        store.kill();
    }
}

/// Opens a watch on everything and returns its first answer after `created`.
async fn watch_from(store: &Store, revision: i64) -> WatchResponse {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: revision,
            progress_notify: true,
            ..Default::default()
        })),
    };
    let requests = tokio_stream::iter([create]);
    let (keep_open, closed) = tokio::sync::oneshot::channel::<()>();
    let requests = tokio_stream::StreamExt::chain(
        requests,
        Box::pin(futures::stream::once(async move {
            let _ = closed.await;
            WatchRequest::default()
        })),
    );
    let mut stream =
        WatchClient::new(store.channel().await).watch(requests).await.unwrap().into_inner();
    let answer = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let answer = stream.message().await.unwrap().expect("the watch stream ended");
            if answer.canceled || !answer.created {
                return answer;
            }
        }
    })
    .await
    .unwrap();
    drop(keep_open);
    answer
}

/// A client that saw revisions which are gone must be told to list anew: by a revision that only
/// a key of class none had, and by the latest one it can have seen.
#[tokio::test(flavor = "multi_thread")]
async fn watchers_of_lost_revisions_are_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), MIXED);
    let store = start.run().await;
    let mut kv = store.kv().await;
    kv.put(put("fsync/a", "1")).await.unwrap();
    let seen = kv.put(put("none/a", "1")).await.unwrap().into_inner().header.unwrap().revision;
    store.kill();

    let store = start.run().await;
    let answer = watch_from(&store, seen + 1).await;
    assert!(answer.canceled && answer.compact_revision > seen + 1, "{answer:?}");
    let mut kv = store.kv().await;
    let now = kv.put(put("fsync/b", "1")).await.unwrap().into_inner().header.unwrap().revision;
    assert!(now > seen + 1);
    // The start itself is a place to watch from.
    let answer = watch_from(&store, now).await;
    assert_eq!(answer.events.len(), 1, "{answer:?}");
}

/// With class fsync alone, as etcd is, a crash is no event: revisions go on, watches resume.
#[tokio::test(flavor = "multi_thread")]
async fn watchers_resume_over_a_crash_where_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), &[]);
    let store = start.run().await;
    let mut kv = store.kv().await;
    for n in 2..=11 {
        let answer = kv.put(put("a", n.to_string())).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().revision, n);
    }
    store.kill();
    let store = start.run().await;
    let answer = watch_from(&store, 6).await;
    let revisions: Vec<i64> =
        answer.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision()).collect();
    assert_eq!(revisions, [6, 7, 8, 9, 10, 11]);
    let answer = store.kv().await.put(put("a", "12")).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 12);
}

/// A start from a snapshot knows the keys of its revision and not what happened in it: a watch from
/// there is told the event or told to list anew, and never neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_the_snapshots_own_revision_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Each write makes a snapshot due.
    let start = Start::new(dir.path(), &["--snapshot-log-bytes=1"]);
    for stop in [Store::kill, Store::stop] {
        let store = start.run().await;
        let mut kv = store.kv().await;
        let mut last = 0;
        for n in 0..20 {
            let answer = kv.put(put("a", n.to_string())).await.unwrap().into_inner();
            last = answer.header.unwrap().revision;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while segments(dir.path()).len() > 1 {
            assert!(Instant::now() < deadline, "no snapshot");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop(store);
        let store = start.run().await;
        let answer = watch_from(&store, last).await;
        assert!(answer.events.len() == 1 || answer.compact_revision > last, "{answer:?}");
        // From above it goes on as it did.
        store.kv().await.put(put("a", "next")).await.unwrap();
        let answer = watch_from(&store, last + 1).await;
        assert_eq!(answer.events.len(), 1, "{answer:?}");
        store.stop();
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log-"))
        .collect();
    segments.sort();
    segments
}

/// Bytes of a segment that were written: without the zeros of room that was reserved.
fn written(segment: &Path) -> u64 {
    let content = std::fs::read(segment).unwrap();
    content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// A directory with 50 synced puts, left by kill -9. The log ends where its last write did.
async fn fifty() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Start::new(dir.path(), &[]).run().await;
    let mut kv = store.kv().await;
    for n in 0..50 {
        kv.put(put(&format!("key-{n:02}"), vec![b'v'; 500])).await.unwrap();
    }
    store.kill();
    let path = segments(dir.path()).pop().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    assert!(file.metadata().unwrap().len() > written(&path), "no room was reserved");
    file.set_len(written(&path)).unwrap();
    dir
}

/// What was reserved and not written is no unfinished write, and is given back.
#[tokio::test(flavor = "multi_thread")]
async fn reserved_room_is_no_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    for keys in 1..4 {
        let mut store = Start::new(dir.path(), &[]).run().await;
        store.kv().await.put(put(&format!("key-{keys}"), "v")).await.unwrap();
        assert_eq!(count(&store).await, keys);
        assert!(!store.output().contains("unfinished write"));
        if keys < 3 { store.kill() } else { store.stop() }
    }
    let path = segments(dir.path()).pop().unwrap();
    // A record of the stop ends in a flag that may be zero.
    assert!(std::fs::metadata(&path).unwrap().len() - written(&path) < 16);
}

async fn count(store: &Store) -> usize {
    store.kv().await.range(everything()).await.unwrap().into_inner().kvs.len()
}

/// The log does not grow for ever, and a snapshot brings back what the removed log held.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_bound_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), &["--unsafe-no-fsync", "--snapshot-log-bytes=200000"]);
    let store = start.run().await;
    let mut kv = store.kv().await;
    for n in 0..3000 {
        // More keys than go into one slice of a snapshot.
        kv.put(put(&format!("key-{n:04}"), vec![b'v'; 400])).await.unwrap();
    }
    for round in 0..5 {
        for n in 0..500 {
            kv.put(put(&format!("key-{n:04}"), format!("{round} {n}"))).await.unwrap();
        }
    }
    let log: u64 = segments(dir.path()).iter().map(|segment| written(segment)).sum();
    assert!(log < 600_000, "{log} bytes of log");
    store.kill();
    let store = start.run().await;
    let answer = store.kv().await.range(everything()).await.unwrap().into_inner();
    assert_eq!(answer.kvs.len(), 3000);
    for (n, kv) in answer.kvs.iter().enumerate() {
        let expected = if n < 500 { format!("4 {n}").into_bytes() } else { vec![b'v'; 400] };
        assert_eq!((kv.value(), kv.version()), (&expected[..], if n < 500 { 6 } else { 1 }));
    }
}

/// A stop in the middle of a snapshot leaves none: a part of the keys is not all keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_a_snapshot_loses_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new();
    let mut keys = 0;
    for _ in 0..6 {
        let store = Start::new(dir.path(), &["--unsafe-no-fsync", "--snapshot-log-bytes=400000"]);
        let store = store.run().await;
        let mut kv = store.kv().await;
        assert_eq!(count(&store).await, keys);
        for _ in 0..random.below(1500) {
            kv.put(put(&format!("key-{keys:05}"), vec![b'v'; 400])).await.unwrap();
            keys += 1;
        }
        if random.below(2) == 0 { store.stop() } else { store.kill() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_off() {
    for cut in [1_u64, 300, 540] {
        let dir = fifty().await;
        let path = segments(dir.path()).pop().unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - cut).unwrap();
        let mut store = Start::new(dir.path(), &[]).run().await;
        assert_eq!(count(&store).await, 49, "cut by {cut}");
        let output = store.output();
        assert!(output.contains("unfinished write"), "{output}");
        store.kv().await.put(put("key-49", "again")).await.unwrap();
        store.kill();
        let store = Start::new(dir.path(), &[]).run().await;
        assert_eq!(count(&store).await, 50);
    }
    // What an interrupted write can leave behind in any case.
    for tail in [vec![0; 4096], vec![0xB1], vec![0xFF; 100]] {
        let dir = fifty().await;
        let path = segments(dir.path()).pop().unwrap();
        let mut content = std::fs::read(&path).unwrap();
        content.extend_from_slice(&tail);
        std::fs::write(&path, content).unwrap();
        let store = Start::new(dir.path(), &[]).run().await;
        assert_eq!(count(&store).await, 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_log_is_refused_and_left_as_it_is() {
    let dir = fifty().await;
    let path = segments(dir.path()).pop().unwrap();
    let good = std::fs::read(&path).unwrap();
    for at in [3, 20, good.len() / 3, good.len() / 2] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        let output = Start::new(dir.path(), &[]).refused().await;
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(output.contains(name), "{output}");
        assert!(output.contains("corrupt at offset"), "{output}");
        assert_eq!(std::fs::read(&path).unwrap(), bad, "the log was changed");
    }
    std::fs::write(&path, &good).unwrap();
    let store = Start::new(dir.path(), &[]).run().await;
    assert_eq!(count(&store).await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let start = Start::new(dir.path(), &[]);
    let store = start.run().await;
    let output = start.refused().await;
    let expected = format!("is in use by another process (pid {})", store.pid());
    assert!(output.contains(&expected), "{output}");
    store.kv().await.put(put("a", "b")).await.unwrap();
    store.stop();
    start.run().await.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_written_is_refused() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut start = Start::new(&data, &[]);
    if std::fs::metadata(&data).unwrap().uid() == 0 {
        // Permissions don't bind root: run as another user, who must reach the program.
        let program = dir.path().join("store");
        std::fs::hard_link(BINARY, &program)
            .or_else(|_| std::fs::copy(BINARY, &program).map(|_| ()))
            .unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        start.command = vec![program.to_str().unwrap().to_owned()];
        start.uid = Some(65532);
    }
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o555)).unwrap();
    let output = start.refused().await;
    assert!(output.contains(data.to_str().unwrap()), "{output}");
    assert!(output.contains("Permission denied"), "{output}");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).unwrap();

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = Start::new(&file, &[]).refused().await;
    assert!(output.contains(file.to_str().unwrap()), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_etcd_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("member")).unwrap();
    let output = Start::new(dir.path(), &[]).refused().await;
    assert!(output.contains("etcd member directory"), "{output}");
}

/// A disk without room: no write is acknowledged that isn't there after a restart with room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_acknowledges_nothing_it_does_not_have() {
    for class in ["fsync", "buffered"] {
        let dir = tempfile::tempdir().unwrap();
        let durability = format!("--durability={class}");
        let mut start = Start::new(dir.path(), &[&durability]);
        // A limit on the size of each file stands for the full disk (in blocks of 512 or 1024).
        start.command = ["sh", "-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"", BINARY]
            .map(str::to_owned)
            .to_vec();
        let store = start.run().await;
        let mut kv = store.kv().await;
        let mut acknowledged = 0;
        let mut refused = 0;
        for n in 0..400 {
            let put = kv.put(put(&format!("key-{n:03}"), vec![b'v'; 500]));
            match tokio::time::timeout(Duration::from_secs(20), put).await {
                Ok(Ok(_)) => {
                    assert_eq!(refused, 0, "acknowledged behind a hole");
                    acknowledged += 1;
                }
                _ => refused += 1,
            }
            if refused == 2 {
                break;
            }
        }
        assert!(acknowledged > 20 && refused > 0, "{acknowledged} acknowledged, {refused} refused");
        store.kill();
        let store = Start::new(dir.path(), &[&durability]).run().await;
        assert!(count(&store).await >= acknowledged, "{class}");
    }
}
