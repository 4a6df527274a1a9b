//! Requests, their bounds, watches and upgrades.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::Backend;
use crate::certificates::Certificates;
use crate::client::{empty, event};
use crate::cluster::{Cluster, Pool, config, until};

const WATCH: &str = "/api/v1/pods?watch=1";
const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec?command=sh";

async fn cluster(limits: &str) -> (Cluster, Backend) {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    (Cluster::start(&certificates, limits, &[&backend]).await, backend)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_go_to_their_pools() {
    let certificates = Arc::new(Certificates::new());
    let (pods, other) = (Backend::start(&certificates).await, Backend::start(&certificates).await);
    let text = config(
        &certificates,
        "",
        &[Pool("default", &[&other], ""), Pool("pods", &[&pods], "{group: \"\", resource: pods}")],
    );
    let cluster = Cluster::start_with(&certificates, &text, &[]).await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    for path in ["/api/v1/pods", "/api/v1/namespaces/a/pods/p/status", "/api/v1/watch/pods"] {
        assert_eq!(client.get(path, &[]).await.status, 200);
    }
    assert_eq!((pods.requests(), other.requests()), (3, 0));
    for path in ["/api/v1/nodes", "/apis/metrics.k8s.io/v1beta1/pods", "/api", "/openapi/v3"] {
        assert_eq!(client.get(path, &[]).await.status, 200);
    }
    assert_eq!((pods.requests(), other.requests()), (3, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_bounded() {
    let (cluster, backend) = cluster("").await;
    let pair = cluster.pair("alice", &[]);
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&pair), http2).await;
        let answer = client.post("/api/v1/namespaces/a/configmaps", vec![0; 2 << 20]).await;
        assert_eq!(answer.status, 200, "kube-apiserver decides");
        assert_eq!(answer.json["bytes"], 2 << 20);

        let mut client = cluster.client(Some(&pair), http2).await;
        let before = backend.requests();
        let answer = client.post("/api/v1/namespaces/a/configmaps", vec![0; 4 << 20]).await;
        assert_eq!(answer.status, 413);
        assert_eq!(answer.reason(), "RequestEntityTooLarge");
        assert_eq!(backend.requests(), before, "nothing was passed on");

        // Without a length the bound shows only on the way.
        let mut client = cluster.client(Some(&pair), http2).await;
        let chunks = (0..64).map(|_| Ok(Frame::data(Bytes::from(vec![0; 64 << 10]))));
        let body = StreamBody::new(futures::stream::iter(chunks)).boxed_unsync();
        let request = client.request(Method::POST, "/api/v1/namespaces/a/configmaps", &[], body);
        assert_eq!(client.ask(request).await.status, 413);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_above_the_bound_are_told_to_wait() {
    let (cluster, backend) = cluster("maxInFlight: 2, maxWatches: 1").await;
    let pair = cluster.pair("alice", &[]);
    let mut hanging = Vec::new();
    for _ in 0..2 {
        let mut client = cluster.client(Some(&pair), true).await;
        hanging.push(tokio::spawn(async move { client.get("/api/v1/hang", &[]).await.status }));
    }
    until("both hang", || backend.hanging() == 2).await;
    let mut client = cluster.client(Some(&pair), true).await;
    let answer = client.get("/api/v1/pods", &[]).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.reason(), "TooManyRequests");
    assert_eq!(answer.headers["retry-after"], "1");
    let mut admin = cluster.client(Some(&cluster.pair("root", &["system:masters"])), true).await;
    assert_eq!(admin.get("/api/v1/pods", &[]).await.status, 200, "someone must get in");

    // Watches have a bound of their own.
    let request = client.request(Method::GET, WATCH, &[], empty());
    let watch = client.send(request).await.unwrap();
    assert_eq!(watch.status(), 200);
    assert_eq!(client.get(WATCH, &[]).await.status, 429);
    drop(watch);
    until("the watch's place is free", || backend.open_watches() == 0).await;
    let request = client.request(Method::GET, WATCH, &[], empty());
    until("the watch's place is free", || cluster.app.router.metrics().watches.taken() == 0).await;
    assert_eq!(client.send(request).await.unwrap().status(), 200);

    backend.state.release.notify_waiters();
    for task in hanging {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    until("all places are free", || cluster.app.router.metrics().in_flight.taken() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_passes_event_by_event_and_ends_with_its_client() {
    let (cluster, backend) = cluster("").await;
    let pair = cluster.pair("alice", &[]);
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&pair), http2).await;
        let request = client.request(Method::GET, WATCH, &[], empty());
        let mut body = client.send(request).await.unwrap().into_body();
        for number in 0..5 {
            let event = event(&mut body).await.unwrap().unwrap();
            assert!(String::from_utf8_lossy(&event).contains(&format!("\"n\":{number}")));
        }
        assert_eq!(backend.open_watches(), 1);
        drop((body, client));
        until("the backend's watch ends", || backend.open_watches() == 0).await;
        until("its place is free", || cluster.app.router.watches().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_request_along() {
    let (cluster, backend) = cluster("").await;
    let pair = cluster.pair("alice", &[]);
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&pair), http2).await;
        let request = client.request(Method::GET, "/api/v1/hang", &[], empty());
        let asked = tokio::spawn(async move { client.send(request).await.map(drop) });
        until("it hangs", || backend.hanging() == 1).await;
        asked.abort();
        until("the backend's request ends", || backend.hanging() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_its_backend() {
    let (cluster, backend) = cluster("").await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    let request = client.request(Method::GET, WATCH, &[], empty());
    let mut body = client.send(request).await.unwrap().into_body();
    assert!(event(&mut body).await.unwrap().is_ok());
    backend.kill().await;
    loop {
        match event(&mut body).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("reset, client-go begins anew with a list: {error}"),
            None => break,
        }
    }
}

/// Clients that stop reading must not stop others on the same connection to the backend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_watches_do_not_stop_others() {
    let (cluster, _backend) = cluster("").await;
    let pair = cluster.pair("alice", &[]);
    let mut stuck = Vec::new();
    for _ in 0..60 {
        let mut client = cluster.client(Some(&pair), true).await;
        let path = "/api/v1/pods?watch=1&flood";
        let request = client.request(Method::GET, path, &[], empty());
        stuck.push((client.send(request).await.unwrap(), client));
    }
    // Until every window is full.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut client = cluster.client(Some(&pair), true).await;
    for _ in 0..100 {
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_changes_the_protocol() {
    let (cluster, _backend) = cluster("").await;
    let pair = cluster.pair("alice", &[]);
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Remote-User", "admin")];
    for (pair, greeting) in [(Some(&pair), "hello alice\n"), (None, "hello -\n")] {
        let mut client = cluster.client(pair, false).await;
        let request = client.request(Method::POST, EXEC, &upgrade, empty());
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut read = vec![0; greeting.len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, greeting.as_bytes());
        let large: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent = large.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.flush().await.unwrap();
            writer
        });
        let mut read = vec![0; large.len()];
        reader.read_exact(&mut read).await.unwrap();
        assert!(read == large);
        let mut writer = writing.await.unwrap();
        assert_eq!(cluster.app.router.metrics().watches.taken(), 1);
        writer.write_all(b"bye").await.unwrap();
        writer.flush().await.unwrap();
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        until("its place is free", || cluster.app.router.metrics().watches.taken() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let (cluster, _backend) = cluster("").await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), false).await;
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let request = client.request(Method::GET, "/api/v1/namespaces/a/pods/p", &upgrade, empty());
    let answer = client.ask(request).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.seen("upgrade"), ["websocket"]);
    assert_eq!(answer.seen("x-remote-user"), ["alice"]);
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_is_given_up() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let text = config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let cluster = Cluster::start_with(&certificates, &text, &["--response-timeout", "300ms"]).await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    let answer = client.get("/api/v1/hang", &[]).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.reason(), "Timeout");
    until("the backend's request ends", || backend.hanging() == 0).await;
    // A long-running request may take its time.
    let path = "/api/v1/namespaces/a/pods/p/proxy/hang";
    let asked = tokio::spawn(async move { client.get(path, &[]).await.status });
    until("it hangs", || backend.hanging() == 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    backend.state.release.notify_waiters();
    assert_eq!(asked.await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_above_the_bound_are_closed() {
    let (cluster, _backend) = cluster("maxConnections: 1").await;
    let pair = cluster.pair("alice", &[]);
    let mut first = cluster.client(Some(&pair), true).await;
    assert_eq!(first.get("/api/v1/pods", &[]).await.status, 200);
    let second = crate::client::Client::try_connect(
        &cluster.certificates,
        cluster.app.address,
        Some(&pair),
        true,
    );
    assert!(second.await.is_err());
    assert_eq!(first.get("/api/v1/pods", &[]).await.status, 200);
}
