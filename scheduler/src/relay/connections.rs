//! A client of the apiserver for what is sent once for each pod: binds, events, conditions,
//! evictions.
//!
//! It sends what kube's own client does, by the same credentials, with less around it: whoever
//! sends a request writes it and reads the answer, so that no task is woken but the sender's.
//! Connections are HTTP/1.1, each for one exchange at a time, and the one that was used last is
//! taken first. A request that is given up takes its connection along, and none is sent twice. How
//! many connections there are is up to the senders, which are bounded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use kube::client::{Body, ConfigExt};
use kube::core::Status;
use kube::{Client, Config};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::http1::{self, Answer};

/// Idle connections that are kept.
const IDLE: usize = 128;
/// An idle connection is closed after this long; kube-apiserver keeps it for three minutes.
const IDLE_FOR: Duration = Duration::from_mins(1);
/// Read at once, and kept for each connection.
const READ: usize = 8 << 10;

/// What layers make of requests is good for this long. Credentials that end are renewed a minute
/// before.
const COMMON_FOR: Duration = Duration::from_secs(5);

/// A client for short requests, each of which must have a deadline.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a client has none")]
pub struct Requests {
    client: Client,
    direct: Option<Direct>,
}

impl Requests {
    /// By a proxy requests go as all others do.
    pub fn new(config: Config) -> kube::Result<Self> {
        if config.proxy_url.is_some() {
            return Ok(Self { client: Client::try_from(config)?, direct: None });
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = config.rustls_https_connector_with_connector(connector)?;
        let connections = Arc::new(Connections { connector, idle: Mutex::default() });
        let layers = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service_fn(async |request: Request<Body>| {
                with_host(request.into_parts().0).map(Response::new)
            });
        let direct = Direct {
            layers: BoxCloneSyncService::new(layers),
            common: Arc::default(),
            exchange: Arc::new(move |uri, request| {
                let connections = connections.clone();
                Box::pin(async move { connections.exchange(uri, &request).await })
            }),
        };
        Ok(Self {
            client: Client::new(direct.clone(), config.default_namespace),
            direct: Some(direct),
        })
    }

    /// The same as a client of kube's.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request and takes in its answer. One that is no success is an error, as kube's client
    /// has it.
    pub async fn send(&self, request: Request<Vec<u8>>) -> kube::Result<Bytes> {
        let (status, body) = if let Some(direct) = &self.direct {
            let answer = direct.send(request).await;
            let answer = answer.map_err(|error| match error.downcast::<kube::Error>() {
                Ok(error) => *error,
                Err(error) => kube::Error::Service(error),
            })?;
            (answer.status(), answer.into_response().into_body())
        } else {
            let request = request.map(Body::from);
            let (head, body) = self.client.send(request).await?.into_parts();
            (head.status, body.collect().await?.to_bytes())
        };
        if !status.is_success() {
            let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
                let text = String::from_utf8_lossy(&body);
                Status::failure(text.trim(), "no status").with_code(status.as_u16())
            });
            return Err(kube::Error::Api(status.boxed()));
        }
        Ok(body)
    }
}

fn with_host(mut head: Parts) -> Result<Parts, BoxError> {
    if let Some(authority) = head.uri.authority()
        && !head.headers.contains_key(HOST)
    {
        head.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    }
    Ok(head)
}

type Exchange = dyn Fn(Uri, Vec<u8>) -> BoxFuture<'static, Result<Answer, BoxError>> + Send + Sync;

/// kube's layers, and connections.
#[derive(Clone)]
struct Direct {
    /// They answer with the head of the request.
    layers: BoxCloneSyncService<Request<Body>, Response<Parts>, BoxError>,
    common: Arc<Mutex<Option<Arc<Common>>>>,
    exchange: Arc<Exchange>,
}

/// What layers give to every request.
struct Common {
    uri: Uri,
    headers: HeaderMap,
    since: Instant,
}

impl Direct {
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Answer, BoxError> {
        let common = self.common().await?;
        let (head, body) = request.into_parts();
        let prefix = common.uri.path().trim_end_matches('/');
        let bytes = http1::request(&head, (prefix, &common.headers), &body);
        let answer = (self.exchange)(common.uri.clone(), bytes).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            *self.common.lock() = None;
        }
        Ok(answer)
    }

    /// The layers are asked now and then: for each request they cost more than the request.
    async fn common(&self) -> Result<Arc<Common>, BoxError> {
        let kept = self.common.lock().clone();
        if let Some(common) = kept.filter(|common| common.since.elapsed() < COMMON_FOR) {
            return Ok(common);
        }
        let since = Instant::now();
        let asks = Box::pin(self.layers.clone().oneshot(Request::new(Body::empty())));
        let Parts { uri, headers, .. } = asks.await?.into_body();
        let common = Arc::new(Common { uri, headers, since });
        *self.common.lock() = Some(common.clone());
        Ok(common)
    }

    async fn exchange(self, request: Request<Body>) -> Result<Response<Full<Bytes>>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(head, Body::empty());
        let head = self.layers.oneshot(request).await?.into_body();
        let bytes = http1::request(&head, ("", &HeaderMap::new()), &body);
        let answer = (self.exchange)(head.uri, bytes).await?;
        Ok(answer.into_response().map(Full::new))
    }
}

impl Service<Request<Body>> for Direct {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

struct Connection<S> {
    stream: S,
    /// What was read and not taken, and room for more.
    read: BytesMut,
    since: Instant,
}

impl<S: AsyncRead + tokio::io::AsyncWrite + Unpin> Connection<S> {
    /// Whether it takes a request: nothing has come since the last answer, not even its end.
    fn is_ready(&mut self) -> bool {
        if self.since.elapsed() > IDLE_FOR || !self.read.is_empty() {
            return false;
        }
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        let mut byte = ReadBuf::new(&mut byte);
        Pin::new(&mut self.stream).poll_read(&mut context, &mut byte).is_pending()
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Answer, BoxError> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let mut answer = Answer::default();
        loop {
            self.read.reserve(READ);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                answer.ends()?;
                return Ok(answer);
            }
            if answer.take(&mut self.read)? {
                return Ok(answer);
            }
        }
    }
}

/// Opens connections and keeps the idle ones, the last used at the end.
struct Connections<C: Service<Uri>> {
    connector: C,
    idle: Mutex<VecDeque<Connection<TokioIo<C::Response>>>>,
}

impl<C> Connections<C>
where
    C: Service<Uri, Error = BoxError> + Clone,
    C::Response: Read + Write + Unpin + Send + 'static,
{
    async fn exchange(&self, uri: Uri, request: &[u8]) -> Result<Answer, BoxError> {
        let mut connection = if let Some(connection) = self.idle() {
            connection
        } else {
            // Boxed, since it is large and seldom.
            let connects = Box::pin(self.connector.clone().oneshot(uri));
            let stream = TokioIo::new(connects.await?);
            Connection { stream, read: BytesMut::new(), since: Instant::now() }
        };
        let answer = connection.exchange(request).await?;
        if answer.keeps() {
            self.put_back(connection);
        }
        Ok(answer)
    }

    /// The connection that was used last of those that are still good.
    fn idle(&self) -> Option<Connection<TokioIo<C::Response>>> {
        loop {
            let mut connection = self.idle.lock().pop_back()?;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    fn put_back(&self, mut connection: Connection<TokioIo<C::Response>>) {
        if connection.read.capacity() > 2 * READ {
            connection.read = BytesMut::new();
        }
        connection.since = Instant::now();
        let mut idle = self.idle.lock();
        idle.push_back(connection);
        let old = |oldest: &Connection<_>| oldest.since.elapsed() > IDLE_FOR;
        while idle.len() > IDLE || idle.front().is_some_and(old) {
            idle.pop_front();
        }
    }
}
