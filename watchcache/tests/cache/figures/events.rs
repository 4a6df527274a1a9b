//! How fast a shard takes events in.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;

use super::source::{KeyValue, Source, Template, Writer};
use super::{Door, GROUP, NODES, cpu, pods};
use crate::cluster::{Cluster, PROTOBUF};

/// From a store that does nothing but tell them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn what_events_cost() {
    const OBJECTS: usize = 20_000;
    const EVENTS: usize = 1_000_000;
    if pods().is_none() {
        return;
    }
    let cluster = Cluster::start().await;
    let mut user = cluster.direct(&cluster.admin()).await;
    let pod = json!({
        "metadata": {"name": "x-000000", "labels": {"app": "g00000", "tier": "front"}},
        "spec": {"nodeName": "n-0000", "containers": [{"name": "c", "image": "i"}]},
    });
    user.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
    let lease = json!({"metadata": {"name": "x-000000"}, "spec": {"holderIdentity": "x-000000",
        "leaseDurationSeconds": 40, "renewTime": "2026-01-02T03:04:05.000006Z"}});
    let path = "/apis/coordination.k8s.io/v1/namespaces/a/leases";
    user.write(Method::POST, path, &lease).await;
    let mut writer = Writer::connect(cluster.store.address).await;
    for (what, resource, prefix, path) in [
        ("leases", "leases.coordination.k8s.io", "/registry/leases/a/", path),
        ("pods", "pods", "/registry/pods/a/", "/api/v1/namespaces/a/pods"),
    ] {
        let value = writer.get(&format!("{prefix}x-000000")).await;
        let texts = [("x-000000", 1, OBJECTS), ("g00000", GROUP, OBJECTS), ("n-0000", 1, NODES)];
        let texts = if what == "pods" { &texts[..] } else { &texts[..1] };
        let template = Template::new(value, texts);
        let kv = |number: usize, revision: usize| KeyValue {
            key: format!("{prefix}x-{:06}", number % OBJECTS).into(),
            mod_revision: i64::try_from(revision).unwrap(),
            value: template.of(number % OBJECTS),
        };
        let objects: Vec<_> = (0..OBJECTS).map(|number| kv(number, 1)).collect();
        // As a busy store tells them: some hundreds at a time.
        let batches = (0..EVENTS / 500).map(|batch| {
            (0..500).map(|at| kv((batch * 500 + at) * 7, 2 + batch * 500 + at)).collect()
        });
        let source = Source::start(objects, batches.collect()).await;
        let door = Door::start(&cluster, resource, source.address).await;
        let all = format!("{path}?resourceVersion=0");
        let mut reader = door.reader(&cluster, &all, OBJECTS).await;
        // The object that changes last. The read must not wait: after 3 s it would go on to the
        // kube-apiserver, which waits as long.
        let last = format!("{path}/x-{:06}?resourceVersion=0", (EVENTS - 1) * 7 % OBJECTS);
        let version = (EVENTS + 1).to_string();
        let (before, start) = (cpu(door.id()), Instant::now());
        source.go.notify_one();
        loop {
            let (status, bytes) = reader.read(&last, PROTOBUF).await;
            assert_eq!(status, StatusCode::OK);
            if bytes.windows(version.len()).any(|window| window == version.as_bytes()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (time, spent) = (start.elapsed(), cpu(door.id()) - before);
        #[allow(clippy::cast_precision_loss, reason = "for a person")]
        let (rate, each) = (EVENTS as f64 / time.as_secs_f64(), spent * 1e6 / EVENTS as f64);
        println!(
            "front door: {EVENTS} updates of {OBJECTS} {what} taken in by one shard: {rate:.0}/s, \
             cpu {each:.2} us each, {} bytes each",
            template.of(0).len()
        );
    }
}
