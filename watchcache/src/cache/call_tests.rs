//! Calls to servers that answer as they should, and as they should not.

use hyper_util::rt::TokioExecutor;
use megacluster_service::tls::{ClientAuth, ServerTls, ServerTlsFiles};
use proptest::prelude::*;
use tokio::net::TcpListener;

use super::super::etcd::{Etcd, RangeRequest, RangeResponse, ResponseHeader};
use super::super::store::Store;
use super::*;
use crate::testing::Pki;

/// What a server answers.
#[derive(Clone, Debug)]
struct Told {
    status: u16,
    /// Pieces of the body; none where all is said in the headers.
    body: Option<Vec<Vec<u8>>>,
    /// `grpc-status`, where it is said.
    code: Option<&'static str>,
}

fn message(revision: i64) -> RangeResponse {
    let header = ResponseHeader { cluster_id: 7, revision };
    RangeResponse { header: Some(header), ..RangeResponse::default() }
}

/// Answers each call in this way.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, told: Told) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        let mut answer = http::Response::new(());
        *answer.status_mut() = StatusCode::from_u16(told.status).unwrap();
        let mut said = HeaderMap::new();
        if let Some(code) = told.code {
            said.insert("grpc-status", HeaderValue::from_static(code));
            said.insert("grpc-message", HeaderValue::from_static("so%20it%20is"));
        }
        let Some(body) = &told.body else {
            *answer.headers_mut() = said;
            respond.send_response(answer, true).unwrap();
            continue;
        };
        let mut stream = respond.send_response(answer, false).unwrap();
        for piece in body {
            stream.send_data(piece.clone().into(), false).unwrap();
        }
        if told.code.is_some() {
            stream.send_trailers(said).unwrap();
        } else {
            stream.send_data(Bytes::new(), true).unwrap();
        }
    }
}

async fn caller(told: Told) -> Caller {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(serve(far, told));
    let uri = Uri::from_static("http://store:1");
    Caller::start(near, uri, &TokioExecutor::new()).await.unwrap()
}

async fn asked(told: Told) -> Result<RangeResponse, CallError> {
    Etcd::new(caller(told).await).range(RangeRequest::default()).await
}

fn good() -> Told {
    Told { status: 200, body: Some(vec![framed(&message(5)).into()]), code: Some("0") }
}

#[tokio::test]
async fn one_whole_answer_is_taken_and_nothing_else() {
    assert_eq!(asked(good()).await.unwrap(), message(5));
    let whole: Vec<u8> = framed(&message(5)).into();
    let with = |body: &[Vec<u8>]| Told { body: Some(body.to_vec()), ..good() };
    let cut = whole[..whole.len() - 1].to_vec();
    let twice = [whole.clone(), whole.clone()];
    for told in [with(&[]), with(&[cut]), with(&twice), Told { code: None, ..good() }] {
        assert!(matches!(asked(told.clone()).await, Err(CallError::Cut)), "{told:?}");
    }
    let none = Told { body: None, code: None, ..good() };
    assert!(matches!(asked(none).await, Err(CallError::Cut)));
    let compressed = [&[1], &whole[1..]].concat();
    let long = vec![0, 0x7f, 0xff, 0xff, 0xff];
    for body in [compressed, long] {
        assert!(matches!(asked(with(&[body])).await, Err(CallError::Message(_))));
    }
    let other = with(&[vec![0, 0, 0, 0, 2, 0xff, 0xff]]);
    assert!(matches!(asked(other).await, Err(CallError::Decode(_))));
    let page = Told { status: 502, ..good() };
    assert!(matches!(asked(page).await, Err(CallError::Answer(StatusCode::BAD_GATEWAY))));
    // With a body or without one.
    for body in [Some(Vec::new()), None] {
        let failed = asked(Told { body, code: Some("14"), ..good() }).await.unwrap_err();
        assert_eq!(failed.to_string(), "grpc-status 14: so%20it%20is");
    }
}

proptest! {
    /// However they are cut, messages come whole and in order.
    #[test]
    fn messages_in_pieces(
        revisions in proptest::collection::vec(any::<i64>(), 0..8),
        cuts in proptest::collection::vec(0usize..40, 0..30),
    ) {
        let mut rest: Vec<u8> = Vec::new();
        for revision in &revisions {
            rest.extend_from_slice(&framed(&message(*revision)));
        }
        let mut pieces = Vec::new();
        for cut in cuts {
            let tail = rest.split_off(cut.min(rest.len()));
            pieces.push(std::mem::replace(&mut rest, tail));
        }
        pieces.push(rest);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(async {
            let caller = caller(Told { body: Some(pieces), ..good() }).await;
            let (_questions, mut answers) = caller.open("/x").await.unwrap();
            let mut seen = Vec::new();
            while let Some(next) = answers.next::<RangeResponse>().await.unwrap() {
                seen.push(next.header.unwrap().revision);
            }
            seen
        });
        prop_assert_eq!(seen, revisions);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let uri = Uri::from_static("http://store:1");
    let caller = Caller::start(near, uri, &TokioExecutor::new()).await.unwrap();
    let start = tokio::time::Instant::now();
    let answer = Etcd::new(caller).range(RangeRequest::default()).await;
    assert!(matches!(answer, Err(CallError::Http2(_))), "{answer:?}");
    assert_eq!(start.elapsed(), PING_INTERVAL + PING_DEADLINE);
    drop(far);
}

/// By TLS it shows its certificate, and trusts the servers of its CA alone.
#[tokio::test]
async fn by_tls() {
    megacluster_service::crypto::install();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (server_ca, client_ca) = (Pki::new("store-ca"), Pki::new("client-ca"));
    let pair = |name: &str, (certificate, key): (rustls_pki_types::CertificateDer<'_>, String)| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        (file(&format!("{name}.crt"), &pem), file(&format!("{name}.key"), &key))
    };
    let (cert, key) = pair("server", server_ca.server(&["localhost"]));
    let client_ca_file = Some(file("client-ca.pem", client_ca.ca_pem()));
    let client_auth = ClientAuth::Required;
    let files = ServerTlsFiles { cert, key, client_ca: client_ca_file, client_auth };
    let tls = ServerTls::new(files, &[b"h2"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Refused by the one or the other.
            if let Ok(stream) = tls.acceptor().accept(stream).await {
                tokio::spawn(serve(stream, good()));
            }
        }
    });
    let own = pair("client", client_ca.client("door", &[]));
    let other = pair("other", server_ca.client("door", &[]));
    let known = file("store-ca.pem", server_ca.ca_pem());
    let unknown = file("other-ca.pem", Pki::new("other").ca_pem());
    for (ca, identity, host, answers) in [
        (&known, Some(&own), "localhost", true),
        (&known, Some(&other), "localhost", false),
        (&known, None, "localhost", false),
        (&known, Some(&own), "127.0.0.1", false),
        (&unknown, Some(&own), "localhost", false),
    ] {
        let store = Store {
            endpoints: vec![format!("https://{host}:{port}")],
            ca: Some(ca.clone()),
            identity: identity.cloned(),
            next: std::sync::Arc::default(),
        };
        let asked = async {
            let etcd = store.connect(&TokioExecutor::new()).await.ok()?;
            etcd.range(RangeRequest::default()).await.ok()
        };
        let expected = answers.then(|| message(5));
        assert_eq!(asked.await, expected, "{host} {ca:?} {identity:?}");
    }
}
