//! A kube-apiserver for tests: says what it was asked, watches, hangs, dies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::Certificates;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What the backend does and has seen.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) ready: AtomicBool,
    /// Requests but for health checks.
    pub(crate) requests: AtomicUsize,
    pub(crate) open_watches: AtomicUsize,
    /// Requests to `/hang` being served.
    pub(crate) hanging: AtomicUsize,
    /// Lets requests to `/hang` go on.
    pub(crate) release: tokio::sync::Notify,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    graceful: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct OpenWatch(Arc<State>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.open_watches.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend {
    pub(crate) async fn start(certificates: &Certificates) -> Self {
        Self::start_at(certificates, ([127, 0, 0, 1], 0).into()).await
    }

    /// At an address; a port that was just left may take a moment.
    pub(crate) async fn start_at(certificates: &Certificates, address: SocketAddr) -> Self {
        let listener = loop {
            match megacluster_watchcache::serve::bind(address) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(certificates.backend_config());
        let state = Arc::new(State { ready: AtomicBool::new(true), ..State::default() });
        let backend = Self {
            address,
            state: state.clone(),
            graceful: CancellationToken::new(),
            kill: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (graceful, kill, tasks) =
            (backend.graceful.clone(), backend.kill.clone(), backend.tasks.clone());
        backend.tasks.spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = graceful.cancelled() => return,
                    () = kill.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let connection = connection(
                    stream,
                    acceptor.clone(),
                    state.clone(),
                    graceful.clone(),
                    kill.clone(),
                );
                tasks.spawn(connection);
            }
        });
        backend
    }

    /// Ends as a kube-apiserver does on SIGTERM: not ready, GOAWAY, what runs finishes.
    pub(crate) async fn stop(&self, delay: Duration) {
        self.state.ready.store(false, Ordering::SeqCst);
        tokio::time::sleep(delay).await;
        self.graceful.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
        self.kill().await;
    }

    /// Ends at once, as by SIGKILL.
    pub(crate) async fn kill(&self) {
        self.kill.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn open_watches(&self) -> usize {
        self.state.open_watches.load(Ordering::SeqCst)
    }

    pub(crate) fn hanging(&self) -> usize {
        self.state.hanging.load(Ordering::SeqCst)
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    acceptor: TlsAcceptor,
    state: Arc<State>,
    graceful: CancellationToken,
    kill: CancellationToken,
) {
    let serve = async {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let session = stream.get_ref().1;
        let http2 = session.alpn_protocol() == Some(b"h2");
        let certificate = session
            .peer_certificates()
            .map(|chain| megacluster_service::tls::peer_identity(&chain[0]).unwrap().common_name);
        let kill = kill.clone();
        let service = service_fn(move |request| {
            answer(request, state.clone(), certificate.clone(), kill.clone())
        });
        if http2 {
            let mut connection = std::pin::pin!(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(250)
                    .serve_connection(TokioIo::new(stream), service)
            );
            tokio::select! {
                _ = &mut connection => return,
                () = graceful.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        } else {
            let mut connection = std::pin::pin!(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
            );
            tokio::select! {
                _ = &mut connection => return,
                () = graceful.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    };
    tokio::select! {
        () = serve => {}
        () = kill.cancelled() => {}
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn answer(
    mut request: Request<Incoming>,
    state: Arc<State>,
    certificate: Option<String>,
    kill: CancellationToken,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    if path == "/readyz" {
        let mut response = Response::new(full("ok"));
        if !state.ready.load(Ordering::SeqCst) {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        return Ok(response);
    }
    state.requests.fetch_add(1, Ordering::SeqCst);
    if path.ends_with("/exec") && request.headers().contains_key(http::header::UPGRADE) {
        return Ok(echo_upgrade(&mut request));
    }
    if path.ends_with("/hang") {
        let _hanging = Counted::new(&state.hanging);
        state.release.notified().await;
    }
    if path.ends_with("/abort") {
        // Before a byte of the answer.
        kill.cancel();
        std::future::pending::<()>().await;
    }
    if request.uri().query().is_some_and(|query| query.contains("watch=1")) {
        let flood = request.uri().query().is_some_and(|query| query.contains("flood"));
        return Ok(watch(state, flood));
    }
    let (parts, body) = request.into_parts();
    let mut bytes = 0;
    let mut body = body;
    while let Some(frame) = body.frame().await {
        bytes += frame.map_err(std::io::Error::other)?.data_ref().map_or(0, Bytes::len);
    }
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let said = json!({
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "headers": headers,
        "certificate": certificate,
        "http2": parts.version == Version::HTTP_2,
        "bytes": bytes,
    });
    let mut response = Response::new(full(said.to_string()));
    if path.ends_with("/unauthorized") {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    Ok(response)
}

/// An event each 20 ms, or large ones without a pause.
fn watch(state: Arc<State>, flood: bool) -> Response<Body> {
    state.open_watches.fetch_add(1, Ordering::SeqCst);
    let open = OpenWatch(state);
    let events = futures::stream::unfold((0u64, open), move |(number, open)| async move {
        if number > 0 && !flood {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let padding = "x".repeat(if flood { 32 * 1024 } else { 0 });
        let event = format!("{{\"type\":\"ADDED\",\"object\":{{\"n\":{number}}}}}{padding}\n");
        Some((Ok(Frame::data(Bytes::from(event))), (number + 1, open)))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(events.boxed())));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn echo_upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let user = request.headers().get("x-remote-user").cloned();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let greeting = format!("hello {}\n", user.as_ref().map_or("-", |u| u.to_str().unwrap()));
        stream.write_all(greeting.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) if buffer[..read].ends_with(b"bye") => return,
                Ok(read) => stream.write_all(&buffer[..read]).await.unwrap(),
            }
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("SPDY/3.1"));
    response
}
