//! A store that goes away and comes back, and requests that the cache must not answer.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF};
use crate::frames::{Frames, list};

fn pod(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name},
           "spec": {"nodeName": "n0", "containers": [{"name": "c", "image": "i"}]}})
}

/// A watch lives on over a restart of the store, and misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn the_store_starts_anew() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    let mut door = cluster.door(&admin).await;
    direct.write(Method::POST, "/api/v1/namespaces/a/pods", &pod("before")).await;
    let answers = cluster.answers("watch");
    let path = "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn0";
    let mut watch = Frames::new(door.open(path).await.into_body());
    for _ in 0..20 {
        if cluster.answers("watch") > answers {
            break;
        }
        watch = Frames::new(door.open(path).await.into_body());
    }
    assert!(cluster.answers("watch") > answers, "the cache has answered");
    assert_eq!(watch.next(Duration::from_secs(20)).await.unwrap().kind, "ADDED");

    cluster.store.close().await;
    // The latest state can't be known: not the cache's to answer, and kube-apiserver waits.
    let answers = cluster.answers("list");
    let asked = door.read("/api/v1/pods", PROTOBUF);
    let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
    assert_eq!(cluster.answers("list"), answers);
    cluster.store.open().await;

    // kube-apiserver needs a moment to find the store again.
    let mut written = false;
    for _ in 0..100 {
        let mut direct = cluster.direct(&admin).await;
        let after = pod("after");
        let write = direct.try_write("/api/v1/namespaces/a/pods", &after);
        if tokio::time::timeout(Duration::from_secs(2), write).await.unwrap_or(false) {
            written = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(written, "kube-apiserver writes again");
    let mut door = cluster.door(&admin).await;
    let event = watch.next(Duration::from_secs(20)).await.unwrap();
    assert_eq!(event.kind, "ADDED");
    assert!(event.bytes.windows(5).any(|window| window == b"after"));
    for _ in 0..100 {
        let (status, bytes) = door.read("/api/v1/pods", PROTOBUF).await;
        if status == StatusCode::OK && cluster.answers("list") > answers {
            assert_eq!(list(&bytes).items.len(), 2);
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the cache does not answer again");
}
