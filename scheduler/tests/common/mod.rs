//! What the tests share: certificates and an apiserver that answers as it is told.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]

pub(crate) mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use megacluster_scheduler::relay::connections::Requests;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A CA in a directory, with what it has issued.
pub(crate) struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("CA");
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).expect("directory");
        std::fs::write(directory.join("ca.crt"), certificate.pem()).expect("write");
        Self { directory, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// A leaf for loopback: certificate and key.
    pub(crate) fn leaf(&self, name: &str) -> (PathBuf, PathBuf) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("parameters");
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");
        let cert = self.directory.join(format!("{name}.crt"));
        let private = self.directory.join(format!("{name}.key"));
        std::fs::write(&cert, certificate.pem()).expect("write");
        std::fs::write(&private, key.serialize_pem()).expect("write");
        (cert, private)
    }
}

/// An answer of the fake apiserver; `None` never answers.
pub(crate) type Reply = Option<(u16, Value)>;

/// Serves `answer` on loopback and gives a client of it.
pub(crate) async fn apiserver(
    answer: impl Fn(&Method, &str, Value) -> Reply + Send + Sync + 'static,
) -> Client {
    requests(answer).await.client().clone()
}

/// The same, as a client for short requests.
pub(crate) async fn requests(
    answer: impl Fn(&Method, &str, Value) -> Reply + Send + Sync + 'static,
) -> Requests {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address: SocketAddr = listener.local_addr().expect("address");
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                    let Some((status, reply)) = answer(&head.method, head.uri.path(), body) else {
                        std::future::pending::<()>().await;
                        unreachable!("pending never ends");
                    };
                    let mut response = Response::new(Full::new(Bytes::from(reply.to_string())));
                    *response.status_mut() = StatusCode::from_u16(status).expect("status");
                    let json = http::HeaderValue::from_static("application/json");
                    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let mut config = kube::Config::new(format!("http://{address}").parse().expect("URI"));
    config.default_retry = false;
    Requests::new(config).expect("client")
}

/// A `Status` as the apiserver sends it.
pub(crate) fn status(code: u16, message: &str) -> (u16, Value) {
    let summary = if code < 300 { "Success" } else { "Failure" };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": summary, "code": code, "message": message, "reason": "x",
    });
    (code, body)
}

pub(crate) fn node(name: &str, cpu: u32) -> Node {
    let amounts = json!({"cpu": cpu.to_string(), "memory": "64Gi", "pods": "110"});
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"allocatable": amounts, "capacity": amounts},
    }))
    .expect("node")
}

pub(crate) fn pod(number: usize, cpu: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": uid(number)},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
    }))
    .expect("pod")
}

pub(crate) fn uid(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012x}")
}
