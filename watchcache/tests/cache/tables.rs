//! What kubectl shows in columns: rows of pods, nodes and all others in many states, with all, some
//! and nothing of their objects, as kube-apiserver makes them.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{Cluster, User};
use crate::forms::{self, Pair, TABLE};
use crate::history::Random;
use crate::states;

const OBJECTS: [&str; 4] =
    ["", "&includeObject=None", "&includeObject=Metadata", "&includeObject=Object"];
const WATCH_LIST: &str = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true&timeoutSeconds=600";
const PODS: &str = "/api/v1/namespaces/a/pods";
const WATCHED: [&str; 5] = [
    PODS,
    "/api/v1/nodes",
    "/api/v1/namespaces/a/events",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/namespaces/a/deployments",
];

fn time(random: &mut Random) -> Value {
    random.choose(&["2026-01-02T03:04:05Z", "2001-02-03T04:05:06Z", "2019-05-05T05:05:05Z"]).into()
}

fn terminated(random: &mut Random) -> Value {
    json!({"exitCode": random.choose(&[0, 0, 1, 137]), "signal": random.choose(&[0, 0, 9]),
           "reason": random.choose(&["", "Completed", "Completed", "Error", "OOMKilled"]),
           "finishedAt": time(random)})
}

/// States of containers by these names.
fn states(random: &mut Random, names: &[&str], ended: bool) -> Value {
    let states = names.iter().map(|name| {
        let state = match random.below(6) {
            0..3 if ended => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
            0 | 1 => json!({"terminated": terminated(random)}),
            2 | 3 => json!({"running": {"startedAt": time(random)}}),
            4 => {
                let reasons = ["", "PodInitializing", "CrashLoopBackOff", "ContainerCreating"];
                json!({"waiting": {"reason": random.choose(&reasons)}})
            }
            _ => json!({}),
        };
        let mut status = json!({"name": name, "image": "i", "imageID": "x", "state": state,
            "ready": random.below(3) > 0, "started": random.below(3) > 0,
            "restartCount": random.choose(&[0, 0, 1, 12])});
        if random.below(2) == 0 {
            status["lastState"] = json!({"terminated": terminated(random)});
        }
        status
    });
    states.collect()
}

fn status(random: &mut Random, bound: bool) -> Value {
    let mut conditions = Vec::new();
    for kind in ["Ready", "Initialized", "PodScheduled", "x.io/gate", "x.io/other"] {
        if random.below(2) == 0 {
            conditions.push(json!({"type": kind, "status": random.choose(&["True", "False"]),
                "reason": random.choose(&["", "", "SchedulingGated", "Unschedulable"])}));
        }
    }
    let ended = random.below(2) == 0;
    json!({"status": {
        "phase": random.choose(&["Pending", "Running", "Running", "Succeeded", "Failed"]),
        "reason": random.choose(&["", "", "Evicted", "NodeLost"]),
        "conditions": conditions,
        "podIPs": random.choose(&[&["10.1.2.3", "fd00::1"][..], &["10.9.9.9"], &[]])
            .iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "nominatedNodeName": if bound { "" } else { "n9" },
        "initContainerStatuses": states(random, &["i0", "i1", "i2"], ended),
        "containerStatuses": states(random, &["c0", "c1"], false),
    }})
}

async fn make_pods(random: &mut Random, user: &mut User) -> Vec<String> {
    let mut paths = Vec::new();
    for number in 0..40 {
        let named = |name: &str| json!({"name": name, "image": "i"});
        let mut init = ["i0", "i1", "i2"].map(named);
        for container in &mut init {
            if random.below(2) == 0 {
                container["restartPolicy"] = "Always".into();
            }
        }
        let mut pod = json!({
            "metadata": {"name": format!("p{number:02}"), "labels": {"app": "web"}},
            "spec": {"containers": [named("c0"), named("c1")], "initContainers": init},
        });
        let bound = random.below(3) > 0;
        if bound {
            pod["spec"]["nodeName"] = "n0".into();
        }
        if random.below(2) == 0 {
            pod["spec"]["readinessGates"] =
                json!([{"conditionType": "x.io/gate"}, {"conditionType": "x.io/other"}]);
        }
        if random.below(4) == 0 {
            pod["metadata"]["finalizers"] = json!(["x.io/kept"]);
        }
        user.write(Method::POST, PODS, &pod).await;
        let path = format!("{PODS}/p{number:02}");
        user.write(Method::PATCH, &format!("{path}/status"), &status(random, bound)).await;
        paths.push(path);
    }
    paths
}

async fn make_others(random: &mut Random, user: &mut User) -> Vec<String> {
    for name in ["n0", "n1"] {
        let labels =
            json!({"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "x"});
        let node = json!({"metadata": {"name": name, "labels": labels},
                          "spec": {"unschedulable": name == "n1"}});
        user.write(Method::POST, "/api/v1/nodes", &node).await;
        let status = json!({"status": {
            "conditions": [{"type": "Ready", "status": random.choose(&["True", "Unknown"])}],
            "addresses": [{"type": "Hostname", "address": name},
                          {"type": "InternalIP", "address": "10.0.0.1"},
                          {"type": "ExternalIP", "address": "192.0.2.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.3", "osImage": "<os> & \"more\"",
                         "kernelVersion": "6.1", "architecture": "amd64", "machineID": "",
                         "systemUUID": "", "bootID": "", "containerRuntimeVersion": "containerd://2",
                         "kubeProxyVersion": "", "operatingSystem": "linux"}}});
        user.write(Method::PATCH, &format!("/api/v1/nodes/{name}/status"), &status).await;
    }
    for (number, message) in ["  blanks \n", "\u{a0}more\u{2003}", "plain"].iter().enumerate() {
        let event = json!({
            "metadata": {"name": format!("e{number}"), "namespace": "a"}, "message": message,
            "involvedObject": {"kind": "Pod", "namespace": "a", "name": "p00", "fieldPath": "x"},
            "lastTimestamp": "2026-01-02T03:04:05Z", "type": "Normal", "reason": "R",
            "source": {"component": "c", "host": "h"}, "count": number,
        });
        user.write(Method::POST, "/api/v1/namespaces/a/events", &event).await;
    }
    let series = json!({
        "metadata": {"name": "series", "namespace": "a"}, "eventTime": "2026-01-02T03:04:05.000006Z",
        "involvedObject": {"kind": "Pod", "namespace": "a"}, "type": "Warning", "reason": "R",
        "reportingComponent": "x.io/c", "reportingInstance": "c-0", "action": "A",
        "series": {"count": 7, "lastObservedTime": "2026-02-02T03:04:05.000006Z"},
    });
    user.write(Method::POST, "/api/v1/namespaces/a/events", &series).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices";
    for (name, many) in [("none", 0), ("three", 3), ("five", 5)] {
        let port = |number: usize| json!({"name": format!("p{number}"), "port": 80 + number});
        let endpoint = |number: usize| json!({"addresses": [format!("10.0.0.{number}")]});
        let slice = json!({"metadata": {"name": name}, "addressType": "IPv4",
            "ports": (0..many).map(port).collect::<Vec<_>>(),
            "endpoints": (0..many).map(endpoint).collect::<Vec<_>>()});
        user.write(Method::POST, slices, &slice).await;
    }
    let services = "/api/v1/namespaces/a/services";
    for (name, spec) in [
        ("plain", json!({"selector": {"b": "2", "a": "1"}, "externalIPs": ["192.0.2.1"]})),
        ("node", json!({"type": "NodePort"})),
        ("balanced", json!({"type": "LoadBalancer"})),
    ] {
        let mut service = json!({"metadata": {"name": name}, "spec": spec});
        service["spec"]["ports"] = json!([{"name": "x", "port": 80}, {"name": "y", "port": 81}]);
        user.write(Method::POST, services, &service).await;
    }
    ["/api/v1/nodes/n1", "/api/v1/namespaces/a/events/series"]
        .into_iter()
        .map(str::to_owned)
        .chain(["none", "three", "five"].map(|name| format!("{slices}/{name}")))
        .chain(["plain", "node", "balanced"].map(|name| format!("{services}/{name}")))
        .chain(["/api/v1/namespaces/a/configmaps/kube-root-ca.crt".to_owned()])
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn rows_are_those_of_kube_apiserver() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    let mut random = Random::new(seed);
    let map = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"a": "b", "c": "d"}});
    direct.write(Method::POST, "/api/v1/namespaces/a/configmaps", &map).await;
    let answers = ["get", "list", "watch"].map(|verb| cluster.answers(verb));
    let mut watches = Vec::new();
    for object in OBJECTS {
        for collection in WATCHED {
            let path = format!("{collection}?{WATCH_LIST}{object}");
            watches.push(Pair::open(&mut direct, &mut door, path, TABLE).await);
        }
    }
    let pods = make_pods(&mut random, &mut direct).await;
    let mut others = make_others(&mut random, &mut direct).await;
    others.extend(states::make(&mut direct).await);
    for path in pods.iter().step_by(3) {
        let now = json!({"gracePeriodSeconds": random.choose(&[0, 30])});
        direct.write(Method::DELETE, path, &now).await;
    }
    let (mut gets, mut lists) = (0, 0);
    for path in pods.iter().chain(&others) {
        let gone = direct.read(path, TABLE).await.0 == StatusCode::NOT_FOUND;
        for object in OBJECTS.iter().filter(|_| !gone) {
            forms::same_object(&mut direct, &mut door, &format!("{path}?{object}"), TABLE).await;
            gets += 1;
        }
    }
    let mut collections: Vec<_> = others
        .iter()
        .map(|path| path.rsplit_once('/').unwrap().0)
        .chain(["/api/v1/pods"])
        .collect();
    collections.dedup();
    for collection in collections.into_iter().chain(WATCHED) {
        for object in OBJECTS {
            for query in ["", "resourceVersion=0", "limit=2", "labelSelector=app%3Dnone"] {
                let path = format!("{collection}?{query}{object}");
                forms::same_list(&mut direct, &mut door, &path, TABLE).await;
                lists += 1;
            }
        }
    }
    let mut events = 0;
    for watch in watches {
        events += watch.compare(Duration::from_millis(300)).await;
    }
    let answered = ["get", "list", "watch"].into_iter().zip(answers);
    let answered: Vec<_> = answered.map(|(verb, before)| cluster.answers(verb) - before).collect();
    println!("{gets} objects, {lists} lists and {events} events in columns are equal");
    assert!(answered[0] >= gets && answered[1] >= lists && answered[2] >= 20, "{answered:?}");
    assert!(gets > 200 && lists > 400 && events > 300, "{gets} {lists} {events}");
    // What is none goes on, to be refused there.
    for path in [format!("{PODS}?includeObject=All"), format!("{}?includeObject=object", pods[1])] {
        let expected = direct.read(&path, TABLE).await;
        assert_eq!(door.read(&path, TABLE).await, expected, "{path}");
        assert_eq!(expected.0, StatusCode::BAD_REQUEST, "{path}");
    }
}

/// A watch that begins with a change: of several at once kube-apiserver may tell all but one the
/// columns again, since they share what was written for the first. One alone it tells once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn columns_are_told_once_to_one_who_watches_from_a_version() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let maps = "/api/v1/namespaces/a/configmaps";
    let first = json!({"metadata": {"name": "first"}});
    let made = direct.write(Method::POST, maps, &first).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let answered = cluster.answers("watch");
    let mut watches = Vec::new();
    for object in OBJECTS.iter().skip(1) {
        let path = format!("{maps}?watch=1&resourceVersion={version}{object}&timeoutSeconds=600");
        watches.push(Pair::open(&mut direct, &mut door, path, TABLE).await);
    }
    for number in 0..3 {
        let map = json!({"metadata": {"name": format!("m{number}")}});
        direct.write(Method::POST, maps, &map).await;
    }
    let mut events = 0;
    for watch in watches {
        events += watch.compare(Duration::from_millis(300)).await;
    }
    assert_eq!((events, cluster.answers("watch") - answered), (9, 3));
}
