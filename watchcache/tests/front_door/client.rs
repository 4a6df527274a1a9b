//! A client of the front door: one connection, HTTP/2 or HTTP/1.1.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use megacluster_watchcache::upstream::Together;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificates::{Certificates, Pair};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

impl Client {
    pub(crate) async fn connect(
        certificates: &Certificates,
        address: SocketAddr,
        pair: Option<&Pair>,
        http2: bool,
    ) -> Self {
        Self::try_connect(certificates, address, pair, http2).await.unwrap()
    }

    pub(crate) async fn try_connect(
        certificates: &Certificates,
        address: SocketAddr,
        pair: Option<&Pair>,
        http2: bool,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let config = certificates.client_config(pair, http2);
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream =
            TokioIo::new(TlsConnector::from(Arc::clone(&config)).connect(name, stream).await?);
        if http2 {
            // Not on two tasks: hyper would now and then drop an answer that a GOAWAY follows.
            let together = Together::default();
            let (sender, connection) =
                hyper::client::conn::http2::handshake(together.clone(), stream).await?;
            // Tests see by their requests how it ended.
            tokio::spawn(together.run(connection, drop));
            Ok(Self::Http2(sender))
        } else {
            let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection.with_upgrades());
            Ok(Self::Http1(sender))
        }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Request<Body> {
        let uri = match self {
            Self::Http1(_) => path.to_owned(),
            Self::Http2(_) => format!("https://localhost{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self, Self::Http1(_)) {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = self.request(Method::GET, path, headers, empty());
        self.ask(request).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.request(Method::POST, path, &[], full(body));
        self.ask(request).await
    }

    pub(crate) async fn ask(&mut self, request: Request<Body>) -> Answer {
        let response = self.send(request).await.unwrap();
        Answer::read(response).await
    }
}

/// An answer read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// Values of a header that the backend has seen.
    pub(crate) fn seen(&self, name: &str) -> Vec<&str> {
        let headers = self.json["headers"].as_array().unwrap();
        headers
            .iter()
            .filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name))
            .map(|pair| pair[1].as_str().unwrap())
            .collect()
    }

    /// The Status object's reason.
    pub(crate) fn reason(&self) -> &str {
        assert_eq!(self.json["kind"], "Status", "{self:?}");
        assert_eq!(self.json["code"], self.status.as_u16());
        self.json["reason"].as_str().unwrap()
    }
}

/// The next event of a watch; none at a regular end.
pub(crate) async fn event(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame());
    let frame = frame.await.expect("an event or the end");
    frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
}
