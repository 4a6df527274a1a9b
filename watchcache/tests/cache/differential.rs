//! The same reads of the cache and of kube-apiserver, over random histories.

use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use hyper::body::Incoming;

use crate::cluster::{Cluster, PROTOBUF, User};
use crate::frames::{Frame, Frames, List, list};
use crate::history::{History, Random, collection, selector};

const SEEDS: u64 = 4;
const STEPS: usize = 80;
/// No event for this long: most likely none is on its way. Where one side has told more by then,
/// the other is waited for.
const QUIET: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(20);

/// A watch of both.
pub(crate) struct Pair {
    path: String,
    direct: Frames,
    door: Frames,
}

impl Pair {
    pub(crate) async fn open(direct: &mut User, door: &mut User, path: String) -> Self {
        let expected = direct.open(&path).await;
        let seen = door.open(&path).await;
        assert_eq!((expected.status(), seen.status()), (StatusCode::OK, StatusCode::OK), "{path}");
        Self::of(path, expected, seen)
    }

    /// Of what both have answered.
    pub(crate) fn of(path: String, expected: Response<Incoming>, seen: Response<Incoming>) -> Self {
        for name in ["content-type", "cache-control"] {
            assert_eq!(seen.headers()[name], expected.headers()[name]);
        }
        let (direct, door) = (Frames::new(expected.into_body()), Frames::new(seen.into_body()));
        Self { path, direct, door }
    }

    /// Both tell the same events in the same order.
    pub(crate) async fn compare(mut self, quiet: Duration) -> usize {
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            expected.extend(all(&mut self.direct, quiet).await);
            seen.extend(all(&mut self.door, quiet).await);
            if expected.len() == seen.len() {
                break;
            }
        }
        let names = |frames: &[Frame]| {
            frames.iter().map(|frame| frame.kind.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&seen), names(&expected), "{}", self.path);
        for (place, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
            if expected.kind == "BOOKMARK" {
                // The version is the store's at that moment, which kube-apiserver's own writes
                // move on.
                let masked = |frame: &Frame| {
                    let digit = |byte: &u8| if byte.is_ascii_digit() { b'0' } else { *byte };
                    frame.bytes.iter().map(digit).collect::<Vec<_>>()
                };
                if seen.bytes.len() == expected.bytes.len() {
                    assert_eq!(masked(seen), masked(expected), "{}", self.path);
                }
                continue;
            }
            assert_eq!(seen.bytes, expected.bytes, "event {place} of {}", self.path);
        }
        seen.len()
    }
}

/// The next event, bookmarks aside that come now and then.
async fn next(frames: &mut Frames, patience: Duration) -> Option<Frame> {
    loop {
        let frame = frames.next(patience).await?;
        let end = b"k8s.io/initial-events-end";
        if frame.kind != "BOOKMARK" || frame.bytes.windows(end.len()).any(|window| window == end) {
            return Some(frame);
        }
    }
}

async fn all(frames: &mut Frames, patience: Duration) -> Vec<Frame> {
    let mut read = Vec::new();
    while let Some(frame) = next(frames, patience).await {
        read.push(frame);
    }
    read
}

/// Reads a list of both; they are equal but for their revisions.
pub(crate) async fn lists(direct: &mut User, door: &mut User, path: &str) -> (List, List) {
    // kube-apiserver writes, too: of some resources, between the two reads.
    for attempt in 0..5 {
        let (status, expected) = direct.read(path, PROTOBUF).await;
        let (seen_status, seen) = door.read(path, PROTOBUF).await;
        assert_eq!((status, seen_status), (StatusCode::OK, StatusCode::OK), "{path}");
        let (expected, seen) = (list(&expected), list(&seen));
        if attempt < 4 && expected.items != seen.items {
            continue;
        }
        assert_eq!(seen.kind, expected.kind, "{path}");
        let versions = (seen.version, expected.version);
        assert_eq!(seen.items, expected.items, "items of {path} as of {versions:?}");
        let next = |list: &List| list.next.as_ref().map(|(text, _)| text.clone());
        assert_eq!(next(&seen), next(&expected), "continue of {path}");
        assert_eq!(seen.rest, expected.rest, "{path}");
        return (expected, seen);
    }
    unreachable!();
}

/// Reads a list of both in pages, each page from both by the token of either.
pub(crate) async fn pages(random: &mut Random, direct: &mut User, door: &mut User, path: &str) {
    let (mut query, mut read) = (String::new(), Vec::new());
    let limit = 1 + random.below(4);
    loop {
        let page = format!("{path}&limit={limit}{query}");
        let (expected, seen) = lists(direct, door, &page).await;
        read.extend(seen.items);
        let token = if random.below(2) == 0 { expected.next } else { seen.next };
        let Some((_, token)) = token else { break };
        query = format!("&continue={token}");
    }
    let (expected, _) = lists(direct, door, path).await;
    assert_eq!(read, expected.items, "{path}");
}

async fn gets(direct: &mut User, door: &mut User, path: &str) {
    let expected = direct.read(path, PROTOBUF).await;
    let seen = door.read(path, PROTOBUF).await;
    assert_eq!(seen, expected, "{path}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn reads_are_those_of_kube_apiserver() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let (mut lists_seen, mut events_seen, mut watches_seen) = (0, 0, 0);
    let answers = ["list", "watch", "get"].map(|verb| cluster.answers(verb));
    let mut history = History::default();
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed);
        let (mut watches, mut versions) = (Vec::new(), Vec::new());
        for step in 0..STEPS {
            if step % 8 == 0 {
                let path = collection(&mut random);
                let selector = selector(&mut random);
                let path_and_query = format!("{path}?{selector}");
                let (one, other) = lists(&mut direct, &mut door, &path_and_query).await;
                let version = one.version.min(other.version);
                pages(&mut random, &mut direct, &mut door, &path_and_query).await;
                let start = match random.below(4) {
                    0 => "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true"
                        .to_owned(),
                    1 => String::new(),
                    2 => format!("&resourceVersion={version}"),
                    _ => format!(
                        "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                         &allowWatchBookmarks=true&resourceVersion={version}"
                    ),
                };
                let path = format!("{path}?watch=1{start}{selector}&timeoutSeconds=600");
                watches.push(Pair::open(&mut direct, &mut door, path).await);
            }
            // Written by either way, and read at once.
            let writer = if random.below(2) == 0 { &mut direct } else { &mut door };
            history.step(&mut random, writer).await;
            let path = format!("{}?{}", collection(&mut random), selector(&mut random));
            let (one, other) = lists(&mut direct, &mut door, &path).await;
            let version = one.version.min(other.version);
            versions.push(version);
            let newer = random.choose(&["&resourceVersion=0", "&resourceVersion=0&limit=3"]);
            lists(&mut direct, &mut door, &format!("{path}{newer}")).await;
            let exact = format!("{path}&resourceVersion={version}");
            lists(&mut direct, &mut door, &exact).await;
            let then = random.choose(&versions);
            let exact = random.choose(&["&resourceVersionMatch=Exact", "&limit=3"]);
            let exact = format!("{path}{exact}&resourceVersion={then}");
            let (_, seen) = lists(&mut direct, &mut door, &exact).await;
            assert_eq!(seen.version, then, "{exact}");
            lists_seen += 4;
            let pod = history.a_pod(&mut random);
            gets(&mut direct, &mut door, &pod).await;
        }
        for watch in watches {
            watches_seen += 1;
            events_seen += watch.compare(QUIET).await;
        }
        println!("seed {seed}: {lists_seen} lists and {events_seen} events are equal");
    }
    assert!(events_seen > 300);
    // On a machine that stands still for seconds some go on to kube-apiserver; not many.
    for ((verb, before), asked) in ["list", "watch", "get"].into_iter().zip(answers).zip([
        lists_seen,
        watches_seen,
        lists_seen / 4,
    ]) {
        let answered = cluster.answers(verb) - before;
        assert!(answered * 10 > asked * 9, "the cache has answered {answered} of {asked} {verb}");
    }
    gets(&mut direct, &mut door, "/api/v1/namespaces/a/pods/none").await;
    let mut old = cluster.old_door(&admin).await;
    lists(&mut direct, &mut old, "/api/v1/pods").await;
    let (path, mut other) = ("/api/v1/pods?watch=1".to_owned(), cluster.old_door(&admin).await);
    assert!(Pair::open(&mut direct, &mut other, path).await.compare(QUIET).await > 0);
    // What the cache does not answer, kube-apiserver does.
    let version = cluster.answers("list");
    for path in [
        "/api/v1/pods?continue=nonsense",
        "/api/v1/pods?resourceVersion=999999999&resourceVersionMatch=Exact",
        "/api/v1/pods?labelSelector=a%3D%3D%3D",
        "/api/v1/pods?resourceVersion=x",
        "/api/v1/pods?resourceVersionMatch=NotOlderThan",
        "/api/v1/pods?fieldSelector=nothing%3D1",
    ] {
        let (expected, seen) = (direct.read(path, PROTOBUF).await, door.read(path, PROTOBUF).await);
        assert_eq!(seen.0, expected.0, "{path}");
    }
    assert_eq!(cluster.answers("list"), version);
}
