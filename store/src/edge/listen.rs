//! Client listeners: TCP with or without TLS, HTTP/2 for gRPC and HTTP/1 for health pages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use megacluster_service::linger::Linger;
use megacluster_service::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;
use tracing::{debug, info, warn};

use super::http::health_pages;
use super::runtimes::{Place, Runtimes};
use crate::api::Api;
use crate::metrics::Metrics;

/// A handshake takes no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has this long to send the head of an HTTP/1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 20_000;
/// Flow-control windows: large enough that a list of many MiB does not wait for the client's
/// window updates at every turn.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const MAX_FRAME: u32 = 64 << 10;
/// Bytes of answers buffered for one stream before its task waits for the client.
const SEND_BUFFER: usize = 512 << 10;

/// How clients are served.
#[derive(Debug)]
pub struct ServeConfig {
    /// Addresses of plain listeners, and of those with TLS.
    pub addresses: Vec<(SocketAddr, Security)>,
    /// TLS for the listeners that ask for it.
    pub tls: Option<ServerTls>,
    /// Streams of one connection (`--max-concurrent-streams`).
    pub max_streams: u32,
    /// An idle connection is asked for a sign of life after this long (`--grpc-keepalive-interval`).
    pub keepalive_interval: Duration,
    /// And closed if none comes in this time (`--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// Single-threaded runtimes.
    pub runtimes: usize,
}

/// Whether a listener speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Plain TCP.
    Plain,
    /// TLS only.
    Tls,
}

/// Why the listeners could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address can't be bound.
    #[error("listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A runtime can't be started.
    #[error("start a runtime: {0}")]
    Runtime(std::io::Error),
    /// An https address without certificates.
    #[error("{0} is an https address: --cert-file and --key-file are needed")]
    NoTls(SocketAddr),
}

/// What a connection needs.
#[derive(Clone, Debug)]
struct Serve {
    api: Api,
    routes: Routes,
    tls: Option<ServerTls>,
    http: auto::Builder<TokioExecutor>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
}

/// Running listeners.
#[derive(Debug)]
pub struct Listeners {
    runtimes: Arc<Runtimes>,
    addresses: Vec<SocketAddr>,
}

impl Listeners {
    /// Binds all addresses and serves them until `drain` is cancelled.
    pub async fn start(
        config: ServeConfig,
        api: Api,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
    ) -> Result<Self, ServeError> {
        let runtimes = Arc::new(Runtimes::start(config.runtimes).map_err(ServeError::Runtime)?);
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(config.max_streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(Some(config.keepalive_interval))
            .keep_alive_timeout(config.keepalive_timeout);
        let routes = api.routes();
        let serve = Serve { api, routes, tls: config.tls, http, metrics, drain };
        let mut addresses = Vec::new();
        for (address, security) in config.addresses {
            if security == Security::Tls && serve.tls.is_none() {
                return Err(ServeError::NoTls(address));
            }
            let bind = |source| ServeError::Bind { address, source };
            let listener = TcpListener::bind(address).await.map_err(bind)?;
            let bound = listener.local_addr().map_err(bind)?;
            info!(address = %bound, tls = security == Security::Tls, "serving clients");
            addresses.push(bound);
            tokio::spawn(accept(listener, security, serve.clone(), runtimes.clone()));
        }
        Ok(Self { runtimes, addresses })
    }

    /// The bound addresses, in the order asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until connections are done, up to `patience`, and ends the rest. Call after the drain
    /// began.
    pub async fn finish(self, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        while self.runtimes.connections() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = self.runtimes.connections();
        if left > 0 {
            warn!(connections = left, "connections ended before they were done");
        }
        self.runtimes.cancel();
        // A listener's task may hold on to them for a moment more; they end without us then.
        if let Ok(runtimes) = Arc::try_unwrap(self.runtimes) {
            let _ = tokio::task::spawn_blocking(move || runtimes.join()).await;
        }
    }
}

async fn accept(listener: TcpListener, security: Security, serve: Serve, runtimes: Arc<Runtimes>) {
    loop {
        let (stream, peer) = tokio::select! {
            () = serve.drain.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to come back.
                    warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        if runtimes.connections() >= MAX_CONNECTIONS {
            warn!(%peer, limit = MAX_CONNECTIONS, "connection refused: too many");
            continue;
        }
        serve.metrics.connections.inc();
        // Taken off this runtime's reactor, so that the other can register it.
        let Ok(stream) = stream.into_std() else { continue };
        let serve = serve.clone();
        runtimes.spawn(move |place| connection(stream, peer, security, serve, place));
    }
}

async fn connection(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    security: Security,
    serve: Serve,
    place: Place,
) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let _ = stream.set_nodelay(true);
    match (security, &serve.tls) {
        (Security::Tls, Some(tls)) => {
            let handshake = tls.acceptor().accept(stream);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => speak(stream, peer, &serve).await,
                Ok(Err(error)) => {
                    serve.metrics.handshakes_failed.inc();
                    info!(%peer, %error, "TLS handshake failed");
                }
                Err(_) => {
                    serve.metrics.handshakes_failed.inc();
                    info!(%peer, "TLS handshake timed out");
                }
            }
        }
        _ => speak(stream, peer, &serve).await,
    }
    drop(place);
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    serve: &Serve,
) {
    let (api, routes) = (serve.api.clone(), serve.routes.clone());
    let service = service_fn(move |request| answer(request, api.clone(), routes.clone()));
    let connection = serve.http.serve_connection(TokioIo::new(Linger::new(stream)), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = serve.drain.cancelled() => {
            // GOAWAY: answers what was asked, takes nothing new.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "connection");
    }
}

async fn answer(
    request: Request<Incoming>,
    api: Api,
    mut routes: Routes,
) -> Result<Response<Body>, Infallible> {
    if request.version() == Version::HTTP_2 && request.method() == Method::POST {
        // `Routes` is always ready.
        return routes.call(request).await;
    }
    let page = health_pages(Some(&api), request.method(), request.uri().path());
    let response = page.unwrap_or_else(|| {
        let mut response = Response::new(Full::from("404 page not found\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    });
    Ok(response.map(Body::new))
}
