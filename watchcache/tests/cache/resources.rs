//! Every built-in resource that the cache knows: the same lists, pages and events of both.

use std::time::Duration;

use http::Method;
use megacluster_watchcache::cache::kinds::{self, Kind};
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF, User};
use crate::differential::{Pair, lists, pages};
use crate::forms::{self, FORMS};
use crate::history::{NAMESPACES, Random};
use crate::objects::object;

const WATCH_LIST: &str = "&watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true&timeoutSeconds=600";

fn root(kind: &Kind) -> String {
    match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    }
}

fn collection(kind: &Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(name) => format!("{}/namespaces/{name}/{}", root(kind), kind.resource),
        None => format!("{}/{}", root(kind), kind.resource),
    }
}

/// A selector of what such a resource lets select.
fn selector(kind: &Kind, random: &mut Random) -> String {
    let labels = random.choose(&["", "", "&labelSelector=app%3Dweb", "&labelSelector=app!%3Dweb"]);
    let value = random.choose(&[
        "web",
        "true",
        "false",
        "0",
        "",
        "Opaque",
        "ClusterIP",
        "Warning",
        "Active",
        "u-web",
        "Pod",
    ]);
    let operator = random.choose(&["%3D", "!%3D"]);
    let fields = match random.below(kind.fields.len() + 3) {
        0 => format!("&fieldSelector=metadata.name{operator}o1"),
        1 if kind.namespaced => format!("&fieldSelector=metadata.namespace{operator}a"),
        place => match kind.fields.get(place.wrapping_sub(3)) {
            Some((name, _)) => format!("&fieldSelector={name}{operator}{value}"),
            None => String::new(),
        },
    };
    format!("{fields}{labels}")
}

/// Both show an object and its like in the same columns, and the cache itself does.
async fn in_columns(cluster: &Cluster, direct: &mut User, door: &mut User, path: &str) {
    let answered = || cluster.answers("get") + cluster.answers("list");
    let before = answered();
    forms::tables(direct, door, path).await;
    assert!(answered() - before >= 4, "{path} in columns went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn every_resource_is_read_as_from_kube_apiserver() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut random = Random::new(seed);
    // To look closer: only these, by name.
    let only = std::env::var("RESOURCES").ok();
    let wanted = |kind: &&Kind| {
        only.as_ref().is_none_or(|only| only.split(',').any(|name| name == kind.resource))
    };
    let answers = ["list", "watch", "get"].map(|verb| cluster.answers(verb));
    let (mut made, mut events, mut other_events) = (0, 0, 0);
    for kind in kinds::all().iter().filter(wanted) {
        let mut watches = Vec::new();
        let mut other_watches = Vec::new();
        for accept in FORMS.map(|[_, accept]| accept).into_iter().chain([forms::TABLE]) {
            let path = format!("{}?{WATCH_LIST}", collection(kind, None));
            let pair = forms::Pair::open(&mut direct, &mut door, path, accept).await;
            other_watches.push(pair);
        }
        let mut paths = Vec::new();
        for number in 0..8 {
            let Some(mut body) = object(kind.resource, &mut random) else { continue };
            let namespace = kind.namespaced.then(|| random.choose(&NAMESPACES));
            if number % 2 == 0 {
                let at = random.choose(&[None, namespace]);
                let selector = selector(kind, &mut random);
                let path = collection(kind, at);
                watches.push(
                    Pair::open(&mut direct, &mut door, format!("{path}?{selector}{WATCH_LIST}"))
                        .await,
                );
                let (one, other) = lists(&mut direct, &mut door, &format!("{path}?")).await;
                let version = one.version.min(other.version);
                let path = format!(
                    "{path}?watch=1&resourceVersion={version}{selector}&timeoutSeconds=600"
                );
                watches.push(Pair::open(&mut direct, &mut door, path).await);
            }
            let name = if kind.resource == "csidrivers" {
                format!("o{number}.x.io")
            } else {
                format!("o{number}")
            };
            body["metadata"] =
                json!({"name": name, "labels": {"app": random.choose(&["web", "api"])}});
            let namespace_text = namespace.unwrap_or_default();
            let body = serde_json::from_str(&body.to_string().replace("NAMESPACE", namespace_text))
                .unwrap();
            let path = collection(kind, namespace);
            direct.may_write(Method::POST, &path, &body).await.unwrap_or_else(|error| {
                panic!("{}: {error}", kind.resource);
            });
            paths.push(format!("{path}/{name}"));
            made += 1;
        }
        for path in &paths {
            let change = json!({"metadata": {"labels": {"app": random.choose(&["web", "db"])}}});
            direct.write(Method::PATCH, path, &change).await;
            let expected = direct.read(path, PROTOBUF).await;
            assert_eq!(door.read(path, PROTOBUF).await, expected, "{path}");
            forms::gets(&mut direct, &mut door, path).await;
            in_columns(&cluster, &mut direct, &mut door, path).await;
            let at = kind.namespaced.then(|| random.choose(&NAMESPACES));
            let path = collection(kind, random.choose(&[None, at]));
            let selector = selector(kind, &mut random);
            let list = format!("{path}?{selector}");
            for rest in ["", "&resourceVersion=0"] {
                lists(&mut direct, &mut door, &format!("{list}{rest}")).await;
            }
            forms::lists(&mut direct, &mut door, &list).await;
            // kube-apiserver itself renews leases while pages are read, and loses its place in what
            // a field selector narrows to a namespace.
            if kind.resource != "leases" && !selector.contains("metadata.namespace%3D") {
                pages(&mut random, &mut direct, &mut door, &list).await;
                forms::pages(&mut direct, &mut door, &list).await;
            }
        }
        for (number, path) in paths.iter().enumerate() {
            if number % 2 == 0 && kind.resource != "namespaces" {
                let now = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
                direct.write(Method::DELETE, path, &now).await;
            }
        }
        for watch in other_watches {
            other_events += watch.compare(Duration::from_millis(100)).await;
        }
        for watch in watches {
            events += watch.compare(Duration::from_millis(100)).await;
        }
    }
    println!(
        "{made} objects of {} resources: {events} events are equal, and {other_events} in other forms",
        kinds::all().len()
    );
    if only.is_some() {
        return;
    }
    assert!(made > 250 && events > 500 && other_events > 1_500, "{made} {events} {other_events}");
    for (verb, before) in ["list", "watch", "get"].into_iter().zip(answers) {
        println!("{verb}: {} answered by the cache", cluster.answers(verb) - before);
    }
    assert!(cluster.answers("list") - answers[0] > 600);
}
