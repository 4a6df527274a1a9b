//! Who asks, and who the backend believes it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::certificates::Certificates;
use crate::cluster::{Cluster, Pool, until};

const SPOOFED: [(&str, &str); 6] = [
    ("X-Remote-User", "admin"),
    ("x-remote-group", "system:masters"),
    ("X-REMOTE-UID", "0"),
    ("X-Remote-Extra-Scopes", "all"),
    ("X_Remote_User", "admin"),
    ("x_remote-group", "system:masters"),
];

async fn cluster() -> (Cluster, Backend) {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    (Cluster::start(&certificates, "", &[&backend]).await, backend)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_handed_on() {
    let (cluster, _backend) = cluster().await;
    let pair = cluster.pair("alice", &["dev"]);
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&pair), http2).await;
        let mut headers = SPOOFED.to_vec();
        headers.push(("Authorization", "Bearer token"));
        headers.push(("Impersonate-User", "bob"));
        headers.push(("Audit-ID", "7"));
        headers.push(("X-Forwarded-For", "192.0.2.1"));
        let answer = client.get("/api/v1/pods?limit=5", &headers).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.seen("x-remote-user"), ["alice"]);
        assert!(answer.seen("x_remote_user").is_empty());
        assert!(answer.seen("x_remote-group").is_empty());
        assert!(answer.seen("x-remote-uid").is_empty());
        assert!(answer.seen("x-remote-extra-scopes").is_empty());
        assert!(answer.seen("authorization").is_empty());
        let id = answer.seen("x-remote-extra-authentication.kubernetes.io%2fcredential-id");
        assert!(id[0].starts_with("X509SHA256="));
        assert_eq!(answer.seen("x-remote-group"), ["dev"]);
        assert_eq!(answer.seen("impersonate-user"), ["bob"]);
        assert_eq!(answer.seen("audit-id"), ["7"]);
        assert_eq!(answer.seen("x-forwarded-for"), ["192.0.2.1, 127.0.0.1"]);
        assert_eq!(answer.json["certificate"], "front-proxy-client");
        assert_eq!(answer.json["http2"], true);
        assert!(answer.json["uri"].as_str().unwrap().ends_with("/api/v1/pods?limit=5"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_on_without_our_certificate() {
    let (cluster, _backend) = cluster().await;
    for http2 in [true, false] {
        let mut client = cluster.client(None, http2).await;
        let mut headers = SPOOFED.to_vec();
        headers.push(("Authorization", "Bearer token"));
        let answer = client.get("/api/v1/pods", &headers).await;
        // Unproven tokens stay off the connections that others share.
        assert_eq!(answer.json["http2"], !http2);
        let answer = client.get("/api/v1/pods", &headers).await;
        assert_eq!(answer.json["http2"], true);
        assert_eq!(answer.seen("authorization"), ["Bearer token"]);
        assert_eq!(answer.json["certificate"], serde_json::Value::Null);
        assert!(answer.seen("x-remote-user").is_empty());
        assert!(answer.seen("x-remote-group").is_empty());
        assert!(answer.seen("x_remote_user").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_goes_on_with_nothing() {
    let (cluster, _backend) = cluster().await;
    for http2 in [true, false] {
        let mut client = cluster.client(None, http2).await;
        let answer = client.get("/version", &SPOOFED).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json["certificate"], serde_json::Value::Null);
        assert_eq!(answer.json["http2"], false, "shared HTTP/2 connections would be closed");
        assert!(answer.seen("x-remote-user").is_empty());
        if http2 {
            until("the connection ends", || client.is_closed()).await;
        } else {
            assert_eq!(client.get("/version", &[]).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_client_certificate_is_answered_with_401() {
    let (cluster, backend) = cluster().await;
    let stranger = crate::pki::Pki::new("client-ca").client("admin", &["system:masters"]);
    let expired =
        cluster.certificates.client_ca.client_valid("admin", &["system:masters"], 1_000, 2_000);
    let trimmed = cluster.pair("mallory", &["system:masters "]);
    for pair in [&stranger, &expired, &trimmed] {
        for http2 in [true, false] {
            let mut client = cluster.client(Some(pair), http2).await;
            let answer = client.get("/api/v1/pods", &SPOOFED).await;
            assert_eq!(answer.status, 401);
            assert_eq!(answer.reason(), "Unauthorized");
            let mut client = cluster.client(Some(pair), http2).await;
            let answer = client.get("/api/v1/pods", &[("authorization", "Basic eA==")]).await;
            assert_eq!(answer.status, 401, "never anonymous");
            assert_eq!(backend.requests(), 0);
        }
    }
    // kube-apiserver goes on to the token.
    let mut client = cluster.client(Some(&stranger), true).await;
    let answer = client.get("/api/v1/pods", &[("authorization", "Bearer t")]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.seen("authorization"), ["Bearer t"]);
    assert_eq!(answer.json["certificate"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_ca_counts_for_open_connections() {
    let (cluster, _backend) = cluster().await;
    let pair = cluster.pair("alice", &[]);
    let mut client = cluster.client(Some(&pair), true).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
    let other = crate::pki::Pki::new("other-ca");
    let before = cluster.app.router.client_ca().generation();
    cluster.certificates.write("client-ca.pem", other.ca_pem());
    until("the CA is read", || cluster.app.router.client_ca().generation() > before).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 401);
    let mut client = cluster.client(Some(&other.client("bob", &[])), true).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.seen("x-remote-user"), ["bob"]);
    // A file without a certificate changes nothing.
    cluster.certificates.write("client-ca.pem", "");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(client.get("/api/v1/pods", &[]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_ends_the_connection() {
    let (cluster, _backend) = cluster().await;
    let mut client = cluster.client(None, true).await;
    let answer = client.get("/unauthorized", &[("authorization", "Bearer bad")]).await;
    assert_eq!(answer.status, 401);
    until("the connection ends", || client.is_closed()).await;
}

/// Another front door, or any proxy with a certificate of the configured CA and name, says whom it
/// asks for; nobody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_names_the_user() {
    let certificates = Arc::new(Certificates::new());
    let backend = Backend::start(&certificates).await;
    let config = crate::cluster::config(&certificates, "", &[Pool("default", &[&backend], "")]);
    let ca = certificates.path("proxy-ca.pem").display().to_string();
    let flags = ["--requestheader-client-ca-file", ca.as_str()];
    let allowed = ["--requestheader-allowed-names", "front-proxy-client"];
    let cluster = Cluster::start_with(&certificates, &config, &[flags, allowed].concat()).await;
    let named = [
        ("X-Remote-User", "alice"),
        ("X-Remote-Group", "dev"),
        ("X-Remote-Group", "ops"),
        ("X-Remote-Extra-Scopes", "some"),
        ("X_Remote_User", "admin"),
        ("X-MegaCluster-Part", "1"),
        ("Authorization", "Bearer token"),
    ];
    let proxy = certificates.proxy("front-proxy-client");
    for http2 in [true, false] {
        let mut client = cluster.client(Some(&proxy), http2).await;
        for _ in 0..2 {
            let answer = client.get("/api/v1/pods", &named).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.seen("x-remote-user"), ["alice"]);
            assert_eq!(answer.seen("x-remote-group"), ["dev", "ops"]);
            assert_eq!(answer.seen("x-remote-extra-scopes"), ["some"]);
            for none in ["x_remote_user", "x-megacluster-part", "authorization"] {
                assert!(answer.seen(none).is_empty(), "{none}");
            }
        }
        // A token without a name is the token's user; nothing at all is no one.
        let answer = client.get("/api/v1/pods", &[("authorization", "Bearer token")]).await;
        assert_eq!(answer.seen("authorization"), ["Bearer token"]);
        assert!(answer.seen("x-remote-user").is_empty());
        assert_eq!(client.get("/api/v1/pods", &[]).await.status, 401);
        // One user's refusal does not end the connection of all.
        assert_eq!(client.get("/api/v1/pods", &named).await.status, 200);
    }
    // A peer asks of the front door itself whether it is ready; others ask of kube-apiserver.
    backend.state.ready.store(false, Ordering::SeqCst);
    let of_peer = [named[0], named[5]];
    let mut client = cluster.client(Some(&proxy), true).await;
    assert_eq!(client.get("/readyz", &of_peer).await.status, 200);
    assert_eq!(client.get("/readyz", &of_peer[..1]).await.status, 500);
    let mut client = cluster.client(Some(&cluster.pair("bob", &[])), true).await;
    assert_eq!(client.get("/readyz", &of_peer).await.status, 500);
    backend.state.ready.store(true, Ordering::SeqCst);
    // The right CA under another name, the right name of another CA, and a user.
    let misnamed = certificates.proxy("other");
    let stranger = crate::pki::Pki::new("front-proxy-ca").client("front-proxy-client", &[]);
    for pair in [&misnamed, &stranger] {
        let mut client = cluster.client(Some(pair), true).await;
        let answer = client.get("/api/v1/pods", &named[..6]).await;
        assert_eq!(answer.status, 401);
        let mut client = cluster.client(Some(pair), true).await;
        let answer = client.get("/api/v1/pods", &named).await;
        assert_eq!(answer.seen("authorization"), ["Bearer token"], "the token, as without a proxy");
        assert!(answer.seen("x-remote-user").is_empty());
    }
    for name in ["bob", "front-proxy-client"] {
        let mut client = cluster.client(Some(&cluster.pair(name, &[])), true).await;
        let answer = client.get("/api/v1/pods", &named).await;
        assert_eq!(answer.seen("x-remote-user"), [name]);
        assert!(answer.seen("x-remote-group").is_empty());
        assert!(answer.seen("x-remote-extra-scopes").is_empty());
        assert!(answer.seen("x-megacluster-part").is_empty());
    }
}
