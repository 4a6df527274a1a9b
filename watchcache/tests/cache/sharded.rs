//! `shardSelector` (KEP-5866), where the kube-apiservers' gate is open: the same parts of all.

use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF};
use crate::differential::{Pair, lists};
use crate::forms::{self, FORMS};
use crate::history::{History, Random, collection, selector};

const GATE: &str = "--feature-gates=ShardedListAndWatch=true";
const STEPS: usize = 160;
const WATCH_LIST: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true";

/// `shardRange(…)` of a part of the space, as a query has it.
fn range(key: &str, from: u64, to: u128) -> String {
    format!("shardRange(object.metadata.{key},%20%270x{from:016x}%27,%270x{to:016x}%27)")
}

fn ranges(random: &mut Random) -> String {
    let key = random.choose(&["uid", "uid", "namespace"]);
    let one = |random: &mut Random| {
        // Between 0 and 8 eighths of the space, at places that are not even.
        let at = |eighth: usize| (eighth as u128) << 61;
        let from = random.below(8);
        let to = from + 1 + random.below(8 - from);
        range(key, u64::try_from(at(from)).unwrap(), at(to))
    };
    let first = one(random);
    match random.below(3) {
        0 => format!("{first}%20%7C%7C%20{}", one(random)),
        _ => first,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn a_share_is_that_of_kube_apiserver() {
    let cluster = Cluster::start_with(&[GATE], &[GATE]).await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let (mut random, mut history) = (Random::new(11), History::default());
    let (mut watches, mut other_watches) = (Vec::new(), Vec::new());
    let answers = ["list", "watch"].map(|verb| cluster.answers(verb));
    let mut asked = 0;
    for step in 0..STEPS {
        let path = collection(&mut random);
        let query = format!("shardSelector={}{}", ranges(&mut random), selector(&mut random));
        if step % 8 == 0 {
            let (one, other) = lists(&mut direct, &mut door, &format!("{path}?{query}")).await;
            let version = one.version.min(other.version);
            let start = match random.below(3) {
                0 => WATCH_LIST.to_owned(),
                1 => String::new(),
                _ => format!("&resourceVersion={version}"),
            };
            let watch = format!("{path}?watch=1&{query}{start}&timeoutSeconds=600");
            watches.push(Pair::open(&mut direct, &mut door, watch.clone()).await);
            let [_, accept] = random.choose(&FORMS);
            let pair = forms::Pair::open(&mut direct, &mut door, watch, accept).await;
            other_watches.push(pair);
        }
        history.step(&mut random, &mut direct).await;
        let path = format!("{path}?{query}");
        let (list, _) = lists(&mut direct, &mut door, &path).await;
        let version = list.version;
        let said = b"shardRange(object.metadata.";
        assert!(list.rest.windows(said.len()).any(|window| window == said), "{path}");
        let exact = format!("{path}&resourceVersionMatch=Exact&resourceVersion={version}");
        lists(&mut direct, &mut door, &exact).await;
        lists(&mut direct, &mut door, &format!("{path}&resourceVersion=0&limit=3")).await;
        asked += 3;
        if step % 4 == 0 {
            forms::lists(&mut direct, &mut door, &path).await;
            asked += FORMS.len();
            // Goes on: kube-apiserver counts what is left in its own way.
            lists(&mut direct, &mut door, &format!("{path}&limit=3")).await;
        }
    }
    let mut events = 0;
    for watch in watches {
        events += watch.compare(Duration::from_millis(200)).await;
    }
    for watch in other_watches {
        events += watch.compare(Duration::from_millis(200)).await;
    }
    println!("{asked} lists and {events} events of shares are equal");
    assert!(events > 300, "{events}");
    let [lists_answered, watches_answered] = [("list", answers[0]), ("watch", answers[1])]
        .map(|(verb, before)| cluster.answers(verb) - before);
    assert!(lists_answered * 10 > asked as u64 * 8, "{lists_answered} of {asked} lists");
    assert!(watches_answered > 30, "{watches_answered} watches");

    // Resources in no namespace, and what kube-apiserver keeps no cache of.
    for number in 0..8 {
        let node = json!({"metadata": {"name": format!("node-{number}")}});
        direct.write(Method::POST, "/api/v1/nodes", &node).await;
        let event = json!({
            "metadata": {"name": format!("e{number}")}, "reason": "r", "message": "m",
            "involvedObject": {"kind": "Pod", "namespace": "a", "name": "p"},
        });
        direct.write(Method::POST, "/api/v1/namespaces/a/events", &event).await;
    }
    let halves = [range("uid", 0, 1 << 63), range("uid", 1 << 63, 1 << 64)];
    for path in ["/api/v1/nodes", "/api/v1/events", "/api/v1/namespaces"] {
        let mut parts = 0;
        for half in &halves {
            let path = format!("{path}?shardSelector={half}");
            let (list, _) = lists(&mut direct, &mut door, &path).await;
            forms::lists(&mut direct, &mut door, &path).await;
            parts += list.items.len();
            let watch = format!("{path}&watch=1{WATCH_LIST}&timeoutSeconds=60");
            let pair = Pair::open(&mut direct, &mut door, watch).await;
            pair.compare(Duration::from_millis(300)).await;
        }
        let (all, _) = lists(&mut direct, &mut door, path).await;
        assert_eq!(parts, all.items.len(), "{path}: each object is in one half");
    }

    // What kube-apiserver refuses, in its own words.
    for bad in [
        "x",
        "shardRange(object.metadata.name,%20%270x0000000000000000%27,%270x8000000000000000%27)",
        "shardRange(object.metadata.uid,%20%270x0%27,%270x8000000000000000%27)",
        "shardRange(object.metadata.uid,%20%270x8000000000000000%27,%270x0000000000000000%27)",
        "%20",
    ] {
        for watch in ["", "&watch=1"] {
            let path = format!("/api/v1/pods?shardSelector={bad}{watch}");
            let (status, expected) = direct.read(&path, PROTOBUF).await;
            assert!(status.is_client_error() || status.is_server_error(), "{path}: {status}");
            assert_eq!(door.read(&path, PROTOBUF).await, (status, expected), "{path}");
        }
    }
}

/// Where the gate is closed kube-apiserver does not look at it, and so it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn a_closed_gate_is_kube_apiservers_to_tell() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let answers = cluster.answers("list");
    let (half, nonsense) = (range("uid", 0, 1 << 63), "x".to_owned());
    for share in [half, nonsense] {
        let path = format!("/api/v1/namespaces?shardSelector={share}");
        let (list, _) = lists(&mut direct, &mut door, &path).await;
        assert!(list.items.len() >= 3);
    }
    assert_eq!(cluster.answers("list"), answers);
}
