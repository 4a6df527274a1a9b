//! A client that lists everything again and again: it gets its turns and no more, and nobody else
//! waits for it.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF, until};
use crate::frames::{Frames, list};

/// More than a client that does not read takes in: each list stays where it is.
const PODS: usize = 8_000;
/// Turns of one user, by default.
const TURNS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn a_client_that_lists_all_day_does_not_starve_the_others() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.direct(&cluster.admin()).await;
    crate::figures::fill(&cluster, PODS).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]});
    admin.write(Method::POST, &format!("{rbac}/clusterroles"), &role).await;
    let subject =
        |name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [subject("happy"), subject("other")],
    });
    admin.write(Method::POST, &format!("{rbac}/clusterrolebindings"), &binding).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let user = |name: &str, groups: &[&str]| cluster.certificates.client_ca.client(name, groups);
    let metrics = cluster.app.router.metrics();
    let (happy, mut held) = (user("happy", &[]), Vec::new());
    let mut connections = Vec::new();
    for turn in 0..TURNS {
        let mut client = cluster.door(&happy).await;
        // Lists and watch-lists alike.
        let path = match turn % 2 {
            0 => "/api/v1/pods",
            _ => {
                "/api/v1/pods?watch=1&sendInitialEvents=true\
                  &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
            }
        };
        let response = client.open(path).await;
        assert_eq!(response.status(), StatusCode::OK);
        held.push(response);
        connections.push(client);
    }
    assert_eq!(metrics.expensive_reads.get(), i64::try_from(TURNS).unwrap());
    let mut client = cluster.door(&happy).await;
    for path in ["/api/v1/pods", "/api/v1/pods?labelSelector=app!%3Dg00001"] {
        let refused = client.open(path).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(refused.headers()["retry-after"], "1");
    }
    // What an index answers, and pages, need no turn.
    let few = "/api/v1/pods?labelSelector=app%3Dg00001";
    assert_eq!(list(&client.read(few, PROTOBUF).await.1).items.len(), 40);
    assert_eq!(client.read("/api/v1/pods?limit=500", PROTOBUF).await.0, StatusCode::OK);
    // Others have their own turns.
    let answers = cluster.answers("list");
    let mut other = cluster.door(&user("other", &[])).await;
    assert_eq!(list(&other.read("/api/v1/pods", PROTOBUF).await.1).items.len(), PODS);
    assert_eq!(cluster.answers("list"), answers + 1, "the cache has answered");
    for node in 0..50 {
        let name = format!("n-{node:04}");
        let pair = user(&format!("system:node:{name}"), &["system:nodes"]);
        let mut kubelet = cluster.door(&pair).await;
        let path = format!(
            "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
             &allowWatchBookmarks=true&fieldSelector=spec.nodeName%3D{name}"
        );
        let response = kubelet.open(&path).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut frames = Frames::new(response.into_body());
        while frames.next(Duration::from_secs(5)).await.unwrap().kind != "BOOKMARK" {}
    }
    // A turn ends with its answer: of a watch, with the objects that there were.
    let watch = held.pop().unwrap();
    let mut frames = Frames::new(watch.into_body());
    while frames.next(Duration::from_secs(20)).await.unwrap().kind != "BOOKMARK" {}
    until("its turn is free", || {
        metrics.expensive_reads.get() == i64::try_from(TURNS).unwrap() - 1
    })
    .await;
    assert_eq!(client.read("/api/v1/pods", PROTOBUF).await.0, StatusCode::OK);
    drop(held);
    until("all turns are free", || metrics.expensive_reads.get() == 0).await;
}
