//! Who may read what: as kube-apiserver decides it, for every kind of read.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use crate::certificates::Pair;
use crate::cluster::{Cluster, PROTOBUF};

const WATCH_LIST: &str = "&watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true&timeoutSeconds=1";

/// Statuses of both; they are equal.
async fn status(cluster: &Cluster, who: &Pair, path: &str) -> StatusCode {
    let expected = cluster.direct(who).await.open(path).await.status();
    let seen = cluster.door(who).await.open(path).await.status();
    assert_eq!(seen, expected, "{path}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn nobody_reads_more_than_kube_apiserver_lets_them() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.direct(&cluster.admin()).await;
    for (namespace, node) in [("a", "n0"), ("b", "n1")] {
        let pod = json!({
            "metadata": {"name": "p", "labels": {"app": "web"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        admin.write(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
    }
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    for (name, verbs) in
        [("lister", json!(["list"])), ("watcher", json!(["watch"])), ("getter", json!(["get"]))]
    {
        let role = json!({"metadata": {"name": name},
                          "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
        admin.write(Method::POST, &format!("{rbac}/roles"), &role).await;
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}],
        });
        admin.write(Method::POST, &format!("{rbac}/rolebindings"), &binding).await;
    }
    let user = |name: &str, groups: &[&str]| cluster.certificates.client_ca.client(name, groups);
    let subjects = [
        (user("nobody", &[]), [false; 3]),
        (user("one", &["lister"]), [true, false, false]),
        (user("two", &["watcher"]), [false, true, false]),
        (user("three", &["getter"]), [false, false, true]),
    ];
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (who, may) in &subjects {
        for (namespace, there) in [("a", true), ("b", false)] {
            let base = format!("/api/v1/namespaces/{namespace}/pods");
            let paths = [
                format!("{base}?labelSelector=app%3Dweb"),
                format!("{base}?labelSelector=app%3Dweb{WATCH_LIST}"),
                format!("{base}/p"),
            ];
            for (path, may) in paths.iter().zip(may) {
                let allowed = status(&cluster, who, path).await == StatusCode::OK;
                assert_eq!(allowed, *may && there, "{path}");
            }
        }
        for path in ["/api/v1/pods?", &format!("/api/v1/pods?{WATCH_LIST}")] {
            assert_eq!(status(&cluster, who, path).await, StatusCode::FORBIDDEN, "{path}");
        }
    }
    // A kubelet sees the pods of its node and no others.
    let kubelet = user("system:node:n0", &["system:nodes"]);
    for (query, expected) in [
        ("fieldSelector=spec.nodeName%3Dn0", StatusCode::OK),
        ("fieldSelector=spec.nodeName%3Dn1", StatusCode::FORBIDDEN),
        ("", StatusCode::FORBIDDEN),
        ("labelSelector=app%3Dweb", StatusCode::FORBIDDEN),
    ] {
        for watch in ["", WATCH_LIST] {
            let path = format!("/api/v1/pods?{query}{watch}");
            assert_eq!(status(&cluster, &kubelet, &path).await, expected, "{path}");
        }
    }
    let answers = cluster.answers("list");
    let mut door = cluster.door(&kubelet).await;
    for _ in 0..10 {
        let (_, own) = door.read("/api/v1/pods?fieldSelector=spec.nodeName%3Dn0", PROTOBUF).await;
        assert_eq!(crate::frames::list(&own).items.len(), 1);
    }
    assert!(cluster.answers("list") > answers, "the cache has answered");
    // A right that is taken away is gone within the time that answers are kept.
    let (lister, path) = (&subjects[1].0, "/api/v1/namespaces/a/pods");
    assert_eq!(status(&cluster, lister, path).await, StatusCode::OK);
    admin.write(Method::DELETE, &format!("{rbac}/rolebindings/lister"), &json!({})).await;
    let mut door = cluster.door(lister).await;
    for second in 0.. {
        if door.read(path, PROTOBUF).await.0 == StatusCode::FORBIDDEN {
            break;
        }
        assert!(second < 30, "still allowed");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A service account's token reads what the account may read, from the cache, until it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn tokens_are_those_of_kube_apiserver() {
    // As the operator starts them.
    let cluster = Cluster::start_with(
        &["--watch-cache-sizes=configmaps#0"],
        &["--cache-review-group=system:masters"],
    )
    .await;
    let mut admin = cluster.direct(&cluster.admin()).await;
    let accounts = "/api/v1/namespaces/a/serviceaccounts";
    admin.write(Method::POST, accounts, &json!({"metadata": {"name": "reader"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    let role = json!({"metadata": {"name": "reader"},
                      "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    admin.write(Method::POST, &format!("{rbac}/roles"), &role).await;
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "a", "name": "reader"}],
    });
    admin.write(Method::POST, &format!("{rbac}/rolebindings"), &binding).await;
    let map = json!({"metadata": {"name": "c"}, "data": {"k": "v"}});
    admin.write(Method::POST, "/api/v1/namespaces/a/configmaps", &map).await;
    let issued = admin
        .write(
            Method::POST,
            &format!("{accounts}/reader/token"),
            &json!({"spec": {"expirationSeconds": 3600}}),
        )
        .await;
    let token = issued["status"]["token"].as_str().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let [mut direct, mut door] = cluster.with_token(token).await;
    let answers = cluster.answers("list");
    for (path, expected) in [
        ("/api/v1/namespaces/a/configmaps", StatusCode::OK),
        ("/api/v1/namespaces/b/configmaps", StatusCode::FORBIDDEN),
        ("/api/v1/configmaps", StatusCode::FORBIDDEN),
        ("/api/v1/namespaces/a/configmaps/c", StatusCode::FORBIDDEN),
        ("/api/v1/namespaces/a/secrets", StatusCode::FORBIDDEN),
    ] {
        let (status, bytes) = direct.read(path, PROTOBUF).await;
        assert_eq!(status, expected, "{path}");
        let seen = door.read(path, PROTOBUF).await;
        assert_eq!(seen.0, expected, "{path}");
        if status == StatusCode::OK {
            let (seen, expected) = (crate::frames::list(&seen.1), crate::frames::list(&bytes));
            assert_eq!(seen.items, expected.items);
        }
    }
    assert_eq!(cluster.answers("list"), answers + 1, "the cache has answered what is allowed");
    // One changed letter of the signature, as long.
    let place = token.len() - 10;
    let changed = if token[place..].starts_with('A') { "B" } else { "A" };
    let wrong = format!("{}{changed}{}", &token[..place], &token[place + 1..]);
    for bad in ["x", &wrong] {
        let [mut direct, mut door] = cluster.with_token(bad).await;
        let path = "/api/v1/namespaces/a/configmaps";
        let expected = direct.read(path, PROTOBUF).await.0;
        assert_eq!(expected, StatusCode::UNAUTHORIZED);
        assert_eq!(door.read(path, PROTOBUF).await.0, expected);
    }
    admin.write(Method::DELETE, &format!("{accounts}/reader"), &json!({})).await;
    for second in 0.. {
        let status = door.read("/api/v1/namespaces/a/configmaps", PROTOBUF).await.0;
        if status == StatusCode::UNAUTHORIZED {
            break;
        }
        assert!(second < 40, "still accepted: {status}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
