//! Everyone asks for everything in every way: what kube-apiserver's authorizers, RBAC and Node,
//! let them read is what they get, to the byte, and of what they refuse they hear the same.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::certificates::Pair as Certificate;
use crate::cluster::{Cluster, PROTOBUF, User};
use crate::differential::Pair;
use crate::frames::list;

const GATE: &str = "--feature-gates=ShardedListAndWatch=true";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const WATCH_LIST: &str = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true&timeoutSeconds=60";
/// No event for this long: none is on its way.
const QUIET: Duration = Duration::from_millis(50);

/// What can be selected by, as a part of a query; the first is nothing.
const SELECTORS: [&str; 13] = [
    "",
    "labelSelector=app%3Dweb",
    "labelSelector=app!%3Dweb",
    "fieldSelector=spec.nodeName%3Dn0",
    "fieldSelector=spec.nodeName%3Dn1",
    "fieldSelector=spec.nodeName!%3Dn0",
    "fieldSelector=metadata.name%3Dp",
    "fieldSelector=metadata.name%3Dq",
    "fieldSelector=metadata.namespace%3Da",
    "fieldSelector=metadata.name%3Dp,metadata.namespace%3Db",
    "fieldSelector=metadata.name%3Dp,spec.nodeName%3Dn0",
    "fieldSelector=spec.nodeName%3Dn0&labelSelector=app%3Dweb",
    "shardSelector=shardRange(object.metadata.uid,%270x0000000000000000%27,%270xa000000000000000%27)",
];

fn role(kind: &str, name: &str, rule: &Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name}, "rules": [rule]})
}

fn binding(kind: &str, name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}],
    })
}

async fn fill(admin: &mut User) {
    for (namespace, name, node, app) in [
        ("a", "p", "n0", "web"),
        ("a", "q", "n1", "api"),
        ("b", "p", "n1", "web"),
        ("b", "q", "n0", "web"),
    ] {
        let volumes = json!([
            {"name": "s", "secret": {"secretName": format!("of-{name}")}},
            {"name": "c", "configMap": {"name": format!("of-{name}")}},
        ]);
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": app}},
            "spec": {"nodeName": node, "volumes": volumes,
                     "containers": [{"name": "c", "image": "i"}]},
        });
        let core = format!("/api/v1/namespaces/{namespace}");
        admin.write(Method::POST, &format!("{core}/pods"), &pod).await;
        let name = json!({"metadata": {"name": format!("of-{name}")}});
        admin.write(Method::POST, &format!("{core}/secrets"), &name).await;
        admin.write(Method::POST, &format!("{core}/configmaps"), &name).await;
    }
    for name in ["n0", "n1"] {
        let object = json!({"metadata": {"name": name}});
        admin.write(Method::POST, "/api/v1/nodes", &object).await;
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        admin.write(Method::POST, leases, &object).await;
    }
    let read = json!(["get", "list", "watch"]);
    let pods = |verbs: &Value| json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
    let named = json!({"apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"],
                       "verbs": read});
    let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": read});
    for (name, rule) in [
        ("everywhere", pods(&read)),
        ("everywhere-lists", pods(&json!(["list"]))),
        ("everywhere-named", named.clone()),
        ("everything", all.clone()),
    ] {
        admin
            .write(Method::POST, &format!("{RBAC}/clusterroles"), &role("ClusterRole", name, &rule))
            .await;
        let bound = binding("ClusterRole", name);
        admin.write(Method::POST, &format!("{RBAC}/clusterrolebindings"), &bound).await;
    }
    let in_a = format!("{RBAC}/namespaces/a");
    for (name, rule) in [
        ("a-getter", pods(&json!(["get"]))),
        ("a-lister", pods(&json!(["list"]))),
        ("a-watcher", pods(&json!(["watch"]))),
        ("a-reader", pods(&read)),
        ("a-named", named),
        ("a-everything", all),
    ] {
        admin.write(Method::POST, &format!("{in_a}/roles"), &role("Role", name, &rule)).await;
        admin.write(Method::POST, &format!("{in_a}/rolebindings"), &binding("Role", name)).await;
    }
}

/// What is asked for, without a verb; and whether it is one object.
fn targets() -> Vec<(String, bool)> {
    let mut targets = Vec::new();
    for path in ["/api/v1/pods", "/api/v1/namespaces/a/pods", "/api/v1/namespaces/b/pods"] {
        targets.extend(SELECTORS.map(|selector| (format!("{path}?{selector}"), false)));
    }
    for path in [
        "/api/v1/namespaces/a/pods/p",
        "/api/v1/namespaces/a/pods/q",
        "/api/v1/namespaces/b/pods/p",
        "/api/v1/namespaces/a/pods/none",
        "/api/v1/nodes/n0",
        "/api/v1/nodes/n1",
        "/api/v1/namespaces/a",
        "/api/v1/namespaces/a/secrets/of-p",
        "/api/v1/namespaces/a/secrets/of-q",
        "/api/v1/namespaces/b/configmaps/of-p",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n0",
    ] {
        targets.push((path.to_owned(), true));
    }
    for path in [
        "/api/v1/nodes",
        "/api/v1/namespaces",
        "/api/v1/secrets",
        "/api/v1/namespaces/a/secrets",
        "/api/v1/namespaces/a/configmaps",
        "/apis/coordination.k8s.io/v1/leases",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
    ] {
        for name in ["", "n0", "n1", "a", "of-p", "of-q"] {
            let selector = match name {
                "" => String::new(),
                name => format!("fieldSelector=metadata.name%3D{name}"),
            };
            targets.push((format!("{path}?{selector}"), false));
        }
    }
    targets
}

struct Subject {
    name: &'static str,
    certificate: Certificate,
    direct: User,
    door: User,
    allowed: Vec<String>,
}

impl Subject {
    /// Asks both. Whether it is allowed.
    async fn read(&mut self, path: &str, is_object: bool) -> bool {
        let what = format!("{} reads {path}", self.name);
        // kube-apiserver itself writes some namespaces and leases.
        for attempt in 0..5 {
            let (status, expected) = self.direct.read(path, PROTOBUF).await;
            let seen = self.door.read(path, PROTOBUF).await;
            assert_eq!(seen.0, status, "{what}");
            if status != StatusCode::OK || is_object {
                if attempt < 4 && seen.1 != expected {
                    continue;
                }
                assert!(seen.1 == expected, "{what}: {status}");
                return status == StatusCode::OK;
            }
            let (expected, seen) = (list(&expected), list(&seen.1));
            if attempt < 4 && seen.items != expected.items {
                continue;
            }
            assert_eq!(seen.items, expected.items, "{what}");
            assert_eq!((seen.kind, seen.rest), (expected.kind, expected.rest), "{what}");
            return true;
        }
        unreachable!();
    }

    /// Watches with both. How many events they were told, if it is allowed.
    async fn watch(&mut self, path: String) -> Option<usize> {
        let (expected, seen) = (self.direct.open(&path).await, self.door.open(&path).await);
        let (status, what) = (expected.status(), format!("{} watches {path}", self.name));
        assert_eq!(seen.status(), status, "{what}");
        if status == StatusCode::OK {
            return Some(Pair::of(path, expected, seen).compare(QUIET).await);
        }
        let whole = async |answer: http::Response<_>| -> Vec<u8> {
            let body: hyper::body::Incoming = answer.into_body();
            body.collect().await.unwrap().to_bytes().to_vec()
        };
        assert!(whole(seen).await == whole(expected).await, "{what}: {status}");
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn everyone_asks_for_everything() {
    let cluster = Cluster::start_with(&[GATE], &[GATE]).await;
    let mut admin = cluster.direct(&cluster.admin()).await;
    fill(&mut admin).await;
    // RBAC and the graph of nodes learn of it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut subjects = Vec::new();
    for (name, groups) in [
        ("admin", &["system:masters"][..]),
        ("nobody", &[]),
        ("all", &["everything"]),
        ("pods", &["everywhere"]),
        ("lists", &["everywhere-lists"]),
        ("named", &["everywhere-named"]),
        ("getter", &["a-getter"]),
        ("lister", &["a-lister"]),
        ("watcher", &["a-watcher"]),
        ("reader", &["a-reader"]),
        ("named-in-a", &["a-named"]),
        ("all-in-a", &["a-everything"]),
        ("mixed", &["a-watcher", "everywhere-lists", "everywhere-named"]),
        ("system:node:n0", &["system:nodes"]),
        ("system:node:n1", &["system:nodes"]),
        ("system:node:n0", &[]),
        ("n0", &["system:nodes"]),
    ] {
        let certificate = cluster.certificates.client_ca.client(name, groups);
        let (direct, door) = (cluster.direct(&certificate).await, cluster.door(&certificate).await);
        subjects.push(Subject { name, certificate, direct, door, allowed: Vec::new() });
    }
    let answers = ["get", "list", "watch"].map(|verb| cluster.answers(verb));
    let (mut asked, mut allowed, mut events) = (0, 0, 0);
    // One after the other asks the same: nobody gets by what another has asked before.
    for (path, is_object) in targets() {
        for subject in &mut subjects {
            let (mut ways, mut ok) = (1, usize::from(subject.read(&path, is_object).await));
            if ok > 0 {
                subject.allowed.push(path.clone());
            }
            if !is_object {
                for watch in ["watch=1&timeoutSeconds=60", WATCH_LIST] {
                    let told = subject.watch(format!("{path}&{watch}")).await;
                    ways += 1;
                    ok += usize::from(told.is_some());
                    events += told.unwrap_or(0);
                }
            }
            (asked, allowed) = (asked + ways, allowed + ok);
        }
    }
    let answered = ["get", "list", "watch"].into_iter().zip(answers);
    let answered: u64 = answered.map(|(verb, before)| cluster.answers(verb) - before).sum();
    println!(
        "{} subjects, {asked} requests: {allowed} allowed, {answered} of them answered by the \
         cache, {events} events; equal",
        subjects.len()
    );
    assert!(asked - allowed > 1_000 && allowed > 800 && events > 700);
    assert!(answered * 10 > allowed as u64 * 8, "the cache has answered {answered} of {allowed}");

    // All rights are taken away: nothing is read any more that was. What is idle is closed.
    let mut admin = cluster.direct(&cluster.admin()).await;
    for name in ["everywhere", "everywhere-lists", "everywhere-named", "everything"] {
        let path = format!("{RBAC}/clusterrolebindings/{name}");
        admin.write(Method::DELETE, &path, &json!({})).await;
    }
    for name in ["a-getter", "a-lister", "a-watcher", "a-reader", "a-named", "a-everything"] {
        let path = format!("{RBAC}/namespaces/a/rolebindings/{name}");
        admin.write(Method::DELETE, &path, &json!({})).await;
    }
    // As long as answers are kept, and a moment for RBAC.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let mut gone = 0;
    for subject in subjects.iter_mut().filter(|subject| !subject.name.starts_with("system:node:")) {
        if subject.name == "admin" {
            continue;
        }
        subject.door = cluster.door(&subject.certificate).await;
        for path in std::mem::take(&mut subject.allowed) {
            let (status, _) = subject.door.read(&path, PROTOBUF).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{} reads {path}", subject.name);
            gone += 1;
        }
    }
    assert!(gone > 200, "{gone}");
}
