//! Many threads bring requests to one sequencer at once: nothing is lost, nothing is
//! answered before it is as durable as its class asks, and each keeps its order, also if the store is
//! stopped in the middle of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use megacluster_store::core::{Command, EngineConfig, Error, Reply};
use megacluster_store::log::{Class, DurabilityRule, DurabilityRules, LogConfig};
use megacluster_store::metrics::Metrics;
use megacluster_store::pb::etcdserverpb::{PutRequest, RangeRequest};
use megacluster_store::sequencer::{self, Asked, Config, Handle, Outbox, Replies, Running};
use prometheus_client::registry::Registry;

/// Longer than any wake-up by time alone: what takes so long was forgotten.
const PATIENCE: Duration = Duration::from_secs(20);

fn start(dir: &Path, rules: Vec<(&str, Class)>, reserve: i64) -> Running {
    let rules = rules
        .into_iter()
        .map(|(prefix, class)| DurabilityRule { prefix: prefix.to_owned(), class });
    let rules = DurabilityRules::new(Class::Buffered, rules).unwrap();
    // Small, so that segments end and snapshots are made while all goes on.
    let log = LogConfig {
        rules: rules.clone(),
        segment_bytes: 256 << 10,
        snapshot_bytes: 1 << 20,
        reserve,
    };
    let engine = EngineConfig { rules, lease_class: Class::Fsync, ..EngineConfig::default() };
    let config = Config { data_dir: dir.to_owned(), log, engine };
    sequencer::start(config, Arc::new(Metrics::new(&mut Registry::default()))).unwrap()
}

/// Waits for replies as a connection does.
#[derive(Default)]
struct Inbox {
    replies: Mutex<Replies>,
    came: Condvar,
}

impl Outbox for Inbox {
    fn deliver(&self, replies: Replies) {
        self.replies.lock().unwrap().extend(replies);
        self.came.notify_one();
    }
}

impl Inbox {
    fn take(&self, count: usize) -> Replies {
        let deadline = Instant::now() + PATIENCE;
        let mut replies = self.replies.lock().unwrap();
        while replies.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} replies", replies.len());
            replies = self.came.wait_timeout(replies, left).unwrap().0;
        }
        std::mem::take(&mut replies)
    }
}

fn put(key: &str, value: u64) -> Command {
    let (key, value) = (key.to_owned().into(), value.to_string().into());
    Command::Put(PutRequest { key, value, ..PutRequest::default() })
}

/// The number last put to a key.
fn read(handle: &Handle, key: &str) -> Option<u64> {
    let inbox = Arc::new(Inbox::default());
    let range = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    handle.submit(vec![Asked { tag: 0, command: Command::Range(range), size: 1 }], inbox.clone());
    let (_, reply) = inbox.take(1).pop().unwrap();
    let Reply::Range(found) = reply.unwrap() else { panic!("another reply") };
    let value = found.kvs.first().map(|kv| std::str::from_utf8(kv.value()).unwrap().to_owned());
    value.map(|value| value.parse().unwrap())
}

/// A thread that asks for one to three puts of its key at a time until it is told to stop or the
/// store stops. Gives what was acknowledged last.
fn bring(handle: &Handle, key: &str, stop: &AtomicBool, done: &AtomicUsize) -> u64 {
    let inbox = Arc::new(Inbox::default());
    let (mut number, mut acknowledged, mut revision) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let some = 1 + number % 3;
        let asked = (1..=some).map(|n| Asked {
            tag: usize::try_from(n).unwrap(),
            command: put(key, number + n),
            size: 100,
        });
        handle.submit(asked.collect(), inbox.clone());
        let mut replies = inbox.take(usize::try_from(some).unwrap());
        replies.sort_by_key(|(tag, _)| *tag);
        for (tag, reply) in replies {
            match reply {
                Ok(Reply::Put(put)) => {
                    let at = put.header.unwrap().revision;
                    assert!(at > revision, "order is kept: {at} after {revision}");
                    revision = at;
                    acknowledged = number + u64::try_from(tag).unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Err(Error::Stopped) => return acknowledged,
                other => panic!("{other:?}"),
            }
        }
        number += some;
    }
    acknowledged
}

/// Runs bringers for a while, then stops the store among them, and starts it anew. What was
/// acknowledged is there. Gives how many puts were.
fn story(keys: &[String], rules: &[(&str, Class)], reserve: i64, time: Duration) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), rules.to_vec(), reserve);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = keys
        .iter()
        .map(|key| {
            let (handle, key) = (running.handle.clone(), key.clone());
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || (key.clone(), bring(&handle, &key, &stop, &done)))
        })
        .collect();
    thread::sleep(time);
    // In the middle of whatever is under way.
    running.stop();
    let acknowledged: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let running = start(dir.path(), rules.to_vec(), reserve);
    for (key, number) in acknowledged {
        let found = read(&running.handle, &key).unwrap_or(0);
        assert!(found >= number, "{key}: {number} was acknowledged, {found} is there");
    }
    running.stop();
    done.load(Ordering::Relaxed)
}

#[test]
fn nothing_is_lost_among_many_bringers() {
    let keys: Vec<_> = (0..16).map(|n| format!("/buffered/{n}")).collect();
    let done = story(&keys, &[], 1 << 20, Duration::from_secs(2));
    println!("{done} puts, buffered");
    assert!(done > 1000, "{done}");
}

/// Some wait for a disk and others do not.
#[test]
fn nor_where_some_wait_for_a_disk() {
    let names = |class: &'static str| (0..6).map(move |n| format!("/{class}/{n}"));
    let keys: Vec<_> = names("fsync").chain(names("buffered")).collect();
    let done = story(&keys, &[("/fsync/", Class::Fsync)], 1 << 20, Duration::from_secs(2));
    println!("{done} puts, of two classes");
    assert!(done > 100, "{done}");
}

/// One bringer alone: nobody comes after it who could find what was forgotten.
#[test]
fn nor_with_one_alone() {
    for (prefix, class) in [("/fsync/", Class::Fsync), ("/buffered/", Class::Buffered)] {
        let keys = [format!("{prefix}0")];
        let done = story(&keys, &[(prefix, class)], 1 << 20, Duration::from_secs(1));
        println!("{done} puts, {class:?}, alone");
        assert!(done > 20, "{done}");
    }
}

/// Revisions are reserved a hundred at a time: syncs in the background, and now and then one that
/// is waited for.
#[test]
fn nor_where_revisions_run_out() {
    let keys: Vec<_> = (0..8).map(|n| format!("/buffered/{n}")).collect();
    let done = story(&keys, &[], 100, Duration::from_secs(1));
    println!("{done} puts, a hundred revisions at a time");
    assert!(done > 100, "{done}");
}

/// Stops that come at any moment, one after the other.
#[test]
fn nor_by_a_stop_at_any_moment() {
    let names = |class: &'static str| (0..3).map(move |n| format!("/{class}/{n}"));
    let keys: Vec<_> = names("fsync").chain(names("buffered")).collect();
    for round in 0..20 {
        let time = Duration::from_micros(500 * round);
        story(&keys, &[("/fsync/", Class::Fsync)], 1 << 20, time);
    }
}

/// What comes by time comes also where nobody brings anything: a lease that was granted
/// while the thread slept for longer than the lease lasts.
#[test]
fn a_lease_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), Vec::new(), 1 << 20);
    thread::sleep(Duration::from_millis(50));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let ask = |command| running.handle.ask(command, 1);
        ask(Command::LeaseGrant { id: 7, ttl: 1 }).await.unwrap();
        let leased = PutRequest { key: "k".into(), lease: 7, ..PutRequest::default() };
        ask(Command::Put(leased)).await.unwrap();
    });
    assert_eq!(running.handle.history().revision(), 2);
    let deadline = Instant::now() + PATIENCE;
    while running.handle.history().revision() == 2 {
        assert!(Instant::now() < deadline, "the lease does not end");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(read(&running.handle, "k"), None);
    running.stop();
}
