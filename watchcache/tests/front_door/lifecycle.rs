//! Configuration that changes, and the end.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::Backend;
use crate::certificates::Certificates;
use crate::client::{Client, empty, event};
use crate::cluster::{Cluster, Pool, config, until};

const PODS: &str = "{group: \"\", resource: pods}";

async fn admin(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_configuration_takes_effect_and_a_bad_one_does_not() {
    let certificates = Arc::new(Certificates::new());
    let (pods, other) = (Backend::start(&certificates).await, Backend::start(&certificates).await);
    let cluster = Cluster::start(&certificates, "", &[&other]).await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    assert_eq!((pods.requests(), other.requests()), (0, 1));

    certificates.write("config.yaml", "kind: [");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    assert_eq!((pods.requests(), other.requests()), (0, 2));
    let metrics = admin(cluster.app.admin_address, "/metrics").await;
    assert!(metrics.contains("megacluster_watchcache_config_reloads_total{result=\"error\"} 1"));

    let kept = cluster.app.router.current().pools[0].clone();
    let new = config(
        &certificates,
        "maxInFlight: 7",
        &[Pool("default", &[&other], ""), Pool("pods", &[&pods], PODS)],
    );
    certificates.write("config.yaml", &new);
    until("it is read", || cluster.app.router.current().pools.len() == 2).await;
    let current = cluster.app.router.current();
    assert!(Arc::ptr_eq(&kept, &current.pools[0]), "connections are kept");
    assert_eq!(current.limits.max_in_flight, 7);
    until("the pool is ready", || current.pools[1].has_been_ready()).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    assert_eq!((pods.requests(), other.requests()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_tells_what_happens() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let cluster = Cluster::start(&certificates, "", &[&backend]).await;
    let address = cluster.app.admin_address;
    let mut ready = String::new();
    for _ in 0..50 {
        ready = admin(address, "/readyz?verbose").await;
        if ready.starts_with("HTTP/1.1 200") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ready.contains("[+]pools ok"), "{ready}");
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    client.get("/api/v1/pods", &[]).await;
    let metrics = admin(address, "/metrics").await;
    for line in [
        "megacluster_watchcache_requests_total{pool=\"default\",verb=\"list\",code=\"200\"} 1",
        "megacluster_watchcache_upstream_response_seconds_count{pool=\"default\",verb=\"list\"} 1",
        "megacluster_watchcache_connections 1",
        "megacluster_watchcache_in_flight_requests 0",
        &format!(
            "megacluster_watchcache_backend_ready{{pool=\"default\",address=\"{}\"}} 1",
            backend.address
        ),
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// The order of the end: not ready, still serving; then no new connection, GOAWAY, watches end
/// as if timed out, running requests finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_in_order() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let text = config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let flags = ["--shutdown-delay-duration", "700ms", "--shutdown-timeout", "4s"];
    let cluster = Cluster::start_with(&certificates, &text, &flags).await;
    let pair = cluster.pair("alice", &[]);
    let (address, admin_address) = (cluster.app.address, cluster.app.admin_address);
    let mut watches = Vec::new();
    for http2 in [true, false, true] {
        let mut client = cluster.client(Some(&pair), http2).await;
        let request = client.request(Method::GET, "/api/v1/pods?watch=1", &[], empty());
        let mut body = client.send(request).await.unwrap().into_body();
        event(&mut body).await.unwrap().unwrap();
        watches.push((client, body));
    }
    let mut hanging = cluster.client(Some(&pair), true).await;
    let request = hanging.request(Method::POST, "/api/v1/hang", &[], empty());
    let hanging = tokio::spawn(async move { hanging.ask(request).await.status });
    until("it hangs", || backend.hanging() == 1).await;
    let mut idle = cluster.client(Some(&pair), true).await;

    let stopping = tokio::spawn(cluster.app.stop());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(admin(admin_address, "/readyz").await.starts_with("HTTP/1.1 500"));
    assert_eq!(idle.get("/api/v1/pods", &[]).await.status, 200, "still serving");
    until("idle connections end", || idle.is_closed()).await;
    assert!(Client::try_connect(&certificates, address, Some(&pair), true).await.is_err());
    for (_client, body) in watches {
        // A regular end, after whole events.
        let bytes = body.collect().await.unwrap().to_bytes();
        assert!(bytes.is_empty() || bytes.ends_with(b"}\n"));
    }
    backend.state.release.notify_waiters();
    assert_eq!(hanging.await.unwrap(), 200, "a running request finishes");
    tokio::time::timeout(Duration::from_secs(3), stopping).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_end_is_cut_off() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let text = config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let cluster = Cluster::start_with(&certificates, &text, &["--shutdown-timeout", "500ms"]).await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    let request = client.request(Method::GET, "/api/v1/hang", &[], empty());
    let asked = tokio::spawn(async move { client.send(request).await.map(drop) });
    until("it hangs", || backend.hanging() == 1).await;
    tokio::time::timeout(Duration::from_secs(3), cluster.app.stop()).await.unwrap();
    assert!(asked.await.unwrap().is_err());
    until("the backend's request ends", || backend.hanging() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_now_and_then_to_connect_anew() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let text = config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let flags = ["--goaway-chance", "0.02", "--goaway-min-age", "0s"];
    let cluster = Cluster::start_with(&certificates, &text, &flags).await;
    let pair = cluster.pair("alice", &[]);
    let mut client = cluster.client(Some(&pair), true).await;
    // A watch that is open goes on when its connection takes no new requests.
    let request = client.request(Method::GET, "/api/v1/pods?watch=1", &[], empty());
    let mut watch = client.send(request).await.unwrap().into_body();
    // 2,000 requests without a GOAWAY: a chance of 3e-18.
    for _ in 0..2_000 {
        if client.is_closed() {
            break;
        }
        let request = client.request(Method::GET, "/api/v1/pods", &[], empty());
        let Ok(response) = client.send(request).await else { break };
        let _ = response.into_body().collect().await;
    }
    until("the connection takes no new requests", || client.is_closed()).await;
    for _ in 0..10 {
        assert!(event(&mut watch).await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_young_connection_is_not_told_to_connect_anew() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let text = config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let cluster = Cluster::start_with(&certificates, &text, &["--goaway-chance", "0.02"]).await;
    let mut client = cluster.client(Some(&cluster.pair("alice", &[])), true).await;
    // A thousand requests without a GOAWAY by chance alone: 2e-9.
    for _ in 0..1_000 {
        let request = client.request(Method::GET, "/api/v1/pods", &[], empty());
        client.send(request).await.unwrap().into_body().collect().await.unwrap();
    }
    assert!(!client.is_closed());
}
