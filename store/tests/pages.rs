//! The pages that a browser, a probe or Prometheus reads, on the client port over mTLS, as etcd has
//! them there; and gRPC's own health service.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use megacluster_store::pb::health::health_check_response::ServingStatus;
use megacluster_store::pb::health::{HealthCheckRequest, health_client::HealthClient};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use support::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::{Code, Request as Call};

const SOON: Duration = Duration::from_secs(10);

/// A connection that offers one protocol, with a certificate of the store's CA or none.
async fn connect(
    store: &Store,
    protocol: &[u8],
    known: bool,
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(store.ca.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = if known {
        let (cert, key) = store.ca.leaf("client");
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        builder.with_client_auth_cert(vec![cert], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(store.address()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// A page over HTTP/1.1: head and body.
async fn get(store: &Store, path: &str) -> String {
    let mut stream = connect(store, b"http/1.1", true).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// A page over HTTP/2: status and body.
async fn get2(store: &Store, path: &str) -> (u16, String) {
    let stream = connect(store, b"h2", true).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::get(format!("https://localhost{path}")).body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let (head, mut body) = timeout(SOON, answer).await.unwrap().unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(data) = timeout(SOON, body.data()).await.unwrap() {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.extend_from_slice(&data);
    }
    driver.abort();
    (head.status.as_u16(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn pages_are_on_the_client_port_over_tls() {
    let store = Store::start(&[]).await;
    for (path, status, part) in [
        ("/health", 200, r#"{"health":"true","reason":""}"#),
        ("/version", 200, r#""etcdserver":"3.6.8""#),
        ("/metrics", 200, "\netcd_server_has_leader 1\n"),
        ("/livez", 200, "ok"),
        ("/readyz", 200, ""),
        ("/else", 404, "404 page not found"),
    ] {
        let answer = get(&store, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains(part), "{path}: {answer}");
        let (code, body) = get2(&store, path).await;
        assert_eq!(code, status, "{path}");
        assert!(body.contains(part), "{path}: {body}");
    }
    store.server.finish().await;
}

/// They say as much of the cluster as any read: who has no certificate gets none.
#[tokio::test]
async fn no_page_without_a_certificate() {
    let store = Store::start(&[]).await;
    for path in ["/health", "/metrics", "/version"] {
        // In TLS 1.3 the client's side of the handshake ends before the server refuses.
        let Ok(mut stream) = connect(&store, b"http/1.1", false).await else { continue };
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let end = timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(end.is_err() && answer.is_empty(), "{path}: {answer:?}");
    }
    store.server.finish().await;
}

#[tokio::test]
async fn grpc_health_is_served() {
    let store = Store::start(&[]).await;
    let mut health = HealthClient::new(store.connect().await);
    let ask = |service: &str| Call::new(HealthCheckRequest { service: service.to_owned() });
    let whole = health.check(ask("")).await.unwrap().into_inner();
    assert_eq!(whole.status(), ServingStatus::Serving);
    let error = health.check(ask("etcdserverpb.KV")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "unknown service"));
    let mut unknown = health.watch(ask("else")).await.unwrap().into_inner();
    let first = unknown.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    drop(unknown);
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (end, ()) = tokio::join!(timeout(SOON, watch.message()), store.server.finish());
    assert!(end.unwrap().is_err(), "a watch ends with the server");
}
