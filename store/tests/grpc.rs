//! gRPC's rules beyond what a well-behaved client shows, over plain HTTP/2.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use megacluster_store::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use prost::Message;
use support::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

const SOON: Duration = Duration::from_secs(20);
const RANGE: &str = "/etcdserverpb.KV/Range";

async fn plain_store() -> Store {
    Store::start(&[
        "--durability=buffered",
        "--listen-client-urls=https://127.0.0.1:0,http://127.0.0.1:0",
    ])
    .await
}

fn plain(store: &Store) -> SocketAddr {
    store.server.client_addresses()[1]
}

struct Answer {
    http: StatusCode,
    body: Vec<u8>,
    /// Trailers, or the headers of an answer that has nothing else.
    end: HeaderMap,
}

impl Answer {
    fn status(&self) -> (Code, String) {
        let status = tonic::Status::from_header_map(&self.end).unwrap();
        (status.code(), status.message().to_owned())
    }
}

struct Client(SendRequest<Bytes>);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn send(&mut self, request: Request<()>, body: Vec<u8>) -> Answer {
        let mut ready = self.0.clone().ready().await.unwrap();
        let (response, mut stream) = ready.send_request(request, false).unwrap();
        stream.send_data(body.into(), true).unwrap();
        let response = timeout(SOON, response).await.unwrap().unwrap();
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(data) = timeout(SOON, incoming.data()).await.unwrap() {
            let data = data.unwrap();
            incoming.flow_control().release_capacity(data.len()).unwrap();
            body.extend(data);
        }
        let end = incoming.trailers().await.unwrap().unwrap_or(head.headers);
        Answer { http: head.status, body, end }
    }

    async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = Request::post(format!("http://test{path}"));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(()).unwrap(), body).await
    }
}

fn framed(flag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![flag];
    out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn get() -> Vec<u8> {
    RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn errors_have_the_codes_and_words_of_grpc() {
    let store = plain_store().await;
    let mut client = Client::connect(plain(&store)).await;
    let good = framed(0, &get());
    let twice = [good.clone(), good.clone()].concat();
    let larger = {
        let mut prefix = framed(0, b"");
        prefix[1..5].copy_from_slice(&(100_u32 << 20).to_be_bytes());
        prefix
    };
    for (path, headers, body, code, words) in [
        (RANGE, vec![], vec![], Code::Internal, "unexpected EOF"),
        (RANGE, vec![], good[..good.len() - 1].to_vec(), Code::Internal, "unexpected EOF"),
        (RANGE, vec![], twice, Code::Internal, "more than one message"),
        (RANGE, vec![], framed(0, &[0xff; 9]), Code::Internal, "error unmarshalling request"),
        (RANGE, vec![], framed(1, &get()), Code::Internal, "identity or empty encoding"),
        (
            RANGE,
            vec![("grpc-encoding", "gzip")],
            framed(1, &get()),
            Code::Unimplemented,
            "Decompressor is not installed for grpc-encoding \"gzip\"",
        ),
        (RANGE, vec![], larger, Code::ResourceExhausted, "received message larger than max"),
        (
            RANGE,
            vec![("grpc-timeout", "1")],
            good.clone(),
            Code::Internal,
            "malformed grpc-timeout",
        ),
        (RANGE, vec![("grpc-timeout", "0n")], good.clone(), Code::DeadlineExceeded, "deadline"),
        (RANGE, vec![], framed(0, b""), Code::InvalidArgument, "etcdserver: key is not provided"),
        ("/etcdserverpb.KV/Fly", vec![], good.clone(), Code::Unimplemented, "unknown method Fly"),
        ("/a.B/C", vec![], good.clone(), Code::Unimplemented, "unknown service a.B"),
    ] {
        let answer = client.call(path, &headers, body).await;
        let (found, text) = answer.status();
        assert_eq!((answer.http, found), (StatusCode::OK, code), "{words}: {text}");
        assert!(text.contains(words), "{text:?} instead of {words:?}");
    }
    let json = client.call(RANGE, &[("content-type", "application/json")], good.clone()).await;
    assert_eq!(json.http, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // A compressed message is refused, one that only could be is not; nor is one with time left.
    let plain = [("grpc-encoding", "gzip"), ("grpc-timeout", "10S")];
    let answer = client.call(RANGE, &plain, good).await;
    assert_eq!(answer.status().0, Code::Ok);
    assert_eq!(RangeResponse::decode(&answer.body[5..]).unwrap().count, 0);
    store.server.finish().await;
}

#[tokio::test]
async fn pages_are_served_beside_grpc() {
    let store = plain_store().await;
    let mut client = Client::connect(plain(&store)).await;
    for (path, status, text) in [
        ("/health", StatusCode::OK, r#"{"health":"true","reason":""}"#),
        ("/version", StatusCode::OK, r#""etcdserver":"3.6.8""#),
        ("/metrics", StatusCode::OK, "etcd_server_has_leader 1\n"),
        ("/readyz?verbose", StatusCode::OK, "[+]log ok"),
        ("/livez", StatusCode::OK, "ok\n"),
        ("/nothing", StatusCode::NOT_FOUND, "404 page not found"),
    ] {
        let request = Request::builder().method(Method::GET).uri(format!("http://test{path}"));
        let answer = client.send(request.body(()).unwrap(), Vec::new()).await;
        assert_eq!(answer.http, status, "{path}");
        assert!(String::from_utf8_lossy(&answer.body).contains(text), "{path}");
        // And over HTTP/1, two on one connection.
        let mut stream = TcpStream::connect(plain(&store)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        let last = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        // Byte by byte first: it must not be taken for HTTP/2.
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).await.unwrap();
        }
        stream.write_all(last.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer.matches(&format!("HTTP/1.1 {}", status.as_u16())).count(), 2);
        assert_eq!(answer.matches(text).count(), 2, "{answer}");
    }
    store.server.finish().await;
}

#[tokio::test]
async fn pages_are_only_read() {
    let store = plain_store().await;
    for (method, path, status) in [
        ("POST", "/health", "405 Method Not Allowed"),
        ("PUT", "/metrics", "405 Method Not Allowed"),
        ("POST", "/nothing", "404 Not Found"),
    ] {
        let mut stream = TcpStream::connect(plain(&store)).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    store.server.finish().await;
}

/// What was asked before the drain is answered, however many ask.
#[tokio::test]
async fn a_drain_loses_no_answer() {
    let store = plain_store().await;
    let mut asking = Vec::new();
    for n in 0..8 {
        let mut client = Client::connect(plain(&store)).await;
        asking.push(tokio::spawn(async move {
            let mut answered = 0;
            loop {
                let put = PutRequest {
                    key: format!("/drain/{n}").into(),
                    value: vec![b'x'; 1000].into(),
                    ..Default::default()
                };
                // Refused before it is sent, or answered: a request that was sent is never lost.
                let Ok(mut ready) = client.0.clone().ready().await else { return answered };
                let request = Request::post("http://test/etcdserverpb.KV/Put")
                    .header("content-type", "application/grpc");
                let sent = ready.send_request(request.body(()).unwrap(), false);
                let Ok((response, mut stream)) = sent else { return answered };
                if stream.send_data(framed(0, &put.encode_to_vec()).into(), true).is_err() {
                    return answered;
                }
                match timeout(SOON, response).await.unwrap() {
                    Ok(response) => {
                        let mut body = response.into_body();
                        while let Some(data) = body.data().await {
                            data.unwrap();
                        }
                        let end = body.trailers().await.unwrap().unwrap();
                        assert_eq!(end["grpc-status"], "0");
                        answered += 1;
                    }
                    // Not taken, by the GOAWAY's word.
                    Err(error) => {
                        let untouched = error.is_go_away()
                            || error.reason() == Some(h2::Reason::REFUSED_STREAM);
                        assert!(untouched, "{error}");
                        return answered;
                    }
                }
                client.0 = ready;
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = std::time::Instant::now();
    store.server.finish().await;
    assert!(before.elapsed() < SOON);
    for task in asking {
        assert!(task.await.unwrap() > 0);
    }
}
