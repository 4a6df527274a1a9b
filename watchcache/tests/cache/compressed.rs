//! Answers to a client that accepts gzip: compressed where kube-apiserver's are, and then the same.

use http::Method;
use serde_json::json;

use crate::cluster::{Cluster, PROTOBUF, User};
use crate::forms::FORMS;

const THRESHOLD: usize = 128 * 1024;

/// Both give the same; whether it is compressed.
async fn same(direct: &mut User, door: &mut User, path: &str, accept: &str) -> bool {
    let expected = direct.read_gzip(path, accept).await;
    let seen = door.read_gzip(path, accept).await;
    assert_eq!(seen.0, expected.0, "{path} as {accept}");
    assert!(seen.1 == expected.1, "{path} as {accept} differs: {} bytes", seen.1.len());
    seen.0.contains("gzip")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn large_answers_are_compressed_as_kube_apiserver_does() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    let pod = |name: &str, length: usize| {
        json!({"metadata": {"name": name, "annotations": {"k": "x y ".repeat(length / 4)}},
               "spec": {"containers": [{"name": "c", "image": "i"}]}})
    };
    let base = "/api/v1/namespaces/a/pods";
    for (name, length) in [("p0", 100_000), ("p1", 100_000), ("p2", 100), ("p3", 250_000)] {
        direct.write(Method::POST, base, &pod(name, length)).await;
    }
    let all = format!("{base}?resourceVersionMatch=Exact&resourceVersion=");
    let (_, bytes) = direct.read(base, PROTOBUF).await;
    let all = format!("{all}{}", crate::frames::list(&bytes).version);
    let answers = cluster.answers("list") + cluster.answers("get");
    for [list, object] in [[PROTOBUF; 2]].into_iter().chain(FORMS) {
        assert!(same(&mut direct, &mut door, &all, list).await, "{list}");
        let path = format!("{all}&labelSelector=none");
        assert!(!same(&mut direct, &mut door, &path, list).await, "{list}");
        assert!(same(&mut direct, &mut door, &format!("{base}/p3"), object).await);
        for name in ["p0", "p2"] {
            assert!(!same(&mut direct, &mut door, &format!("{base}/{name}"), object).await);
        }
    }
    // From one byte to the next.
    let path = format!("{base}/p2");
    let (mut length, mut compressed) = (THRESHOLD - 5_000, Vec::new());
    for wanted in [THRESHOLD, THRESHOLD, THRESHOLD, THRESHOLD + 1] {
        let value = json!({"metadata": {"annotations": {"k": "x".repeat(length)}}});
        direct.write(Method::PATCH, &path, &value).await;
        let (_, seen) = direct.read(&path, "application/json").await;
        let gzip = same(&mut direct, &mut door, &path, "application/json").await;
        compressed.push((seen.len(), gzip));
        length = length + wanted - seen.len();
    }
    let value = json!({"metadata": {"annotations": {"k": "x".repeat(length)}}});
    direct.write(Method::PATCH, &path, &value).await;
    let (_, seen) = direct.read(&path, "application/json").await;
    let gzip = same(&mut direct, &mut door, &path, "application/json").await;
    compressed.push((seen.len(), gzip));
    assert!(compressed.contains(&(THRESHOLD, false)), "{compressed:?}");
    assert!(compressed.contains(&(THRESHOLD + 1, true)), "{compressed:?}");
    let answered = cluster.answers("list") + cluster.answers("get") - answers;
    assert!(answered >= 25, "the cache has answered {answered}");
}
