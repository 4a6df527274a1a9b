//! Client listeners: TCP with or without TLS, HTTP/2 for gRPC and HTTP/1 for health pages.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use megacluster_service::admin::Admin;
use megacluster_service::linger::Linger;
use megacluster_service::tls::ServerTls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, join, split};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{debug, info, warn};

use super::connection::Http2;
use super::http::Pages;
use super::runtimes::{Place, Runtimes};
use crate::api::Api;
use crate::metrics::Metrics;

/// A handshake takes no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has this long for the first bytes of a connection, and for the head of an HTTP/1
/// request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 20_000;
/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
    pages: Pages,
    routes: Routes,
    tls: Option<ServerTls>,
    http2: Http2,
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
    /// Binds all addresses and serves them until `drain` is cancelled. `admin` makes those pages that
    /// both ports have.
    pub async fn start(
        config: ServeConfig,
        api: Api,
        admin: Admin,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
    ) -> Result<Self, ServeError> {
        let runtimes = Arc::new(Runtimes::start(config.runtimes).map_err(ServeError::Runtime)?);
        let http2 =
            Http2::new(config.max_streams, config.keepalive_interval, config.keepalive_timeout);
        let routes = api.routes();
        let pages = Pages::new(api.clone(), admin);
        let serve = Serve { api, pages, routes, tls: config.tls, http2, metrics, drain };
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
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    serve: &Serve,
) {
    // A client may take its time before it asks, but not before it says what it speaks.
    let (read, is_http2) = match tokio::time::timeout(HEADER_TIMEOUT, sniff(&mut stream)).await {
        Ok(Ok(sniffed)) => sniffed,
        Ok(Err(error)) => return debug!(%peer, %error, "connection"),
        Err(_) => return debug!(%peer, "nothing was said in time"),
    };
    let stream = Linger::new(stream);
    if is_http2 {
        let (pages, routes) = (serve.pages.clone(), serve.routes.clone());
        let served =
            serve.http2.serve(stream, read, serve.api.clone(), pages, routes, serve.drain.clone());
        if let Err(error) = served.await {
            debug!(%peer, %error, "connection");
        }
    } else {
        pages(stream, read, peer, serve).await;
    }
}

/// Reads until it is clear whether the client speaks HTTP/2.
async fn sniff(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(BytesMut, bool)> {
    let mut read = BytesMut::with_capacity(256);
    while read.len() < PREFACE.len() {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let common = read.len().min(PREFACE.len());
        if read[..common] != PREFACE[..common] {
            return Ok((read, false));
        }
    }
    Ok((read, true))
}

/// Serves the pages over HTTP/1.
async fn pages(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    read: BytesMut,
    peer: SocketAddr,
    serve: &Serve,
) {
    let (input, output) = split(stream);
    let stream = join(io::Cursor::new(read.freeze()).chain(input), output);
    let pages = serve.pages.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(request.method(), request.uri()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = serve.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "connection");
    }
}
