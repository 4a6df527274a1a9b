//! Connections to one backend that are kept and shared.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::RequestBody;
use super::Together;
use super::connector::ConnectError;
use crate::limits::{Bounded, Permit};

/// Which connections a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// HTTP/2 with the front-proxy certificate: identities handed on.
    Identity,
    /// HTTP/2 without a certificate: tokens that were accepted before.
    Token,
    /// HTTP/1.1 without a certificate: anonymous requests, and tokens that may be refused.
    /// kube-apiserver closes an HTTP/2 connection after each of those (feature gate
    /// `UnauthenticatedHTTP2DOSMitigation`), which would take the connections of others along.
    Unproven,
}

/// Streams on one connection. kube-apiserver allows 250 by default; fewer spread the work of a
/// connection, which is one task at either end. A backend that allows fewer makes the rest wait.
const MAX_STREAMS: usize = 100;
/// Connections of one lane to one backend. Above it requests fail over to another backend.
const MAX_CONNECTIONS: usize = 4096;
/// A connection is joined by another when it has this many streams and the lane has fewer than
/// `SPREAD_CONNECTIONS`.
const SPREAD_STREAMS: usize = 16;
const SPREAD_CONNECTIONS: usize = 4;
/// Connections being opened at a time.
const OPENING: usize = 4;
/// Idle HTTP/1.1 connections kept.
const MAX_IDLE: usize = 32;

/// What one stream may hold while its client does not read. The connection's window covers all
/// of its streams, so that no number of stuck clients stops the others; the price is at most
/// 25 MiB for each connection whose clients are all stuck.
const STREAM_WINDOW: u32 = 256 * 1024;
#[expect(clippy::cast_possible_truncation, reason = "a constant below 2^31")]
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// Bytes of a request's body on the way to the socket.
const SEND_BUFFER: usize = 256 * 1024;
/// Bytes of a response's headers.
const MAX_HEADER_BYTES: u32 = 256 * 1024;
/// A backend that does not answer a ping for this long is gone. Not less: a machine with too much
/// to do must not lose the watches on it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(15);

/// Streams that were cancelled and may still get data for a moment.
const RESET_STREAMS: usize = 1024;

type Stream = TokioIo<TlsStream<TcpStream>>;

/// One HTTP/2 connection.
#[derive(Debug)]
struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    streams: Bounded,
}

impl Http2 {
    fn take(&self) -> Option<Http2Stream> {
        if self.sender.is_closed() {
            return None;
        }
        let permit = self.streams.take(MAX_STREAMS)?;
        Some(Http2Stream { sender: self.sender.clone(), permit })
    }
}

/// A place on an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Http2Stream {
    pub(super) sender: http2::SendRequest<RequestBody>,
    pub(super) permit: Permit,
}

/// The HTTP/2 connections of one lane.
#[derive(Clone, Debug)]
pub(super) struct Http2Lane {
    connections: Arc<Mutex<Vec<Arc<Http2>>>>,
    opening: Arc<Semaphore>,
}

impl Default for Http2Lane {
    fn default() -> Self {
        Self { connections: Arc::default(), opening: Arc::new(Semaphore::new(OPENING)) }
    }
}

impl Http2Lane {
    /// A place on an open connection, or on a new one that `connect` opens.
    pub(super) async fn stream<F>(
        &self,
        connect: impl Fn() -> F + Clone + Send + 'static,
    ) -> Result<Http2Stream, ConnectError>
    where
        F: Future<Output = Result<TlsStream<TcpStream>, ConnectError>> + Send,
    {
        if let Some(stream) = self.take() {
            self.spread(connect);
            return Ok(stream);
        }
        // The semaphore is never closed.
        let _opening = self.opening.acquire().await;
        if let Some(stream) = self.take() {
            return Ok(stream);
        }
        if self.connections.lock().len() >= MAX_CONNECTIONS {
            return Err(ConnectError::Full);
        }
        self.open(connect().await?).await
    }

    fn take(&self) -> Option<Http2Stream> {
        let connections = self.connections.lock();
        let count = connections.len() as u64;
        if count == 0 {
            return None;
        }
        let random: u64 = rand::random();
        let draw = |place: u64| {
            usize::try_from(place % count).ok().and_then(|place| connections.get(place))
        };
        let (first, second) = (draw(random), draw(random >> 32));
        let chosen = match (first, second) {
            (Some(first), Some(second)) if second.streams.taken() < first.streams.taken() => {
                Some(second)
            }
            (first, _) => first,
        };
        chosen
            .and_then(|connection| connection.take())
            .or_else(|| connections.iter().find_map(|connection| connection.take()))
    }

    /// Opens another connection in the background where the few there are carry many streams.
    fn spread<F>(&self, connect: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<TlsStream<TcpStream>, ConnectError>> + Send,
    {
        {
            let connections = self.connections.lock();
            if connections.len() >= SPREAD_CONNECTIONS
                || connections.iter().any(|one| one.streams.taken() < SPREAD_STREAMS)
            {
                return;
            }
        }
        let Ok(opening) = self.opening.clone().try_acquire_owned() else { return };
        let lane = self.clone();
        tokio::spawn(async move {
            match connect().await {
                Ok(stream) => {
                    if let Err(error) = lane.open(stream).await {
                        debug!(%error, "another connection to the backend");
                    }
                }
                Err(error) => debug!(%error, "another connection to the backend"),
            }
            drop(opening);
        });
    }

    async fn open(&self, stream: TlsStream<TcpStream>) -> Result<Http2Stream, ConnectError> {
        let together = Together::default();
        let (sender, connection) = http2::Builder::new(together.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(true)
            // Clients give watches up all the time, and events that cross with it are no fault of
            // the backend: they must not add up until the connection is given up.
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .handshake::<Stream, RequestBody>(TokioIo::new(stream))
            .await?;
        let opened = Arc::new(Http2 { sender, streams: Bounded::default() });
        // A new connection has room: its first place is taken before others see it.
        let permit = opened.streams.take_always();
        let first = Http2Stream { sender: opened.sender.clone(), permit };
        self.connections.lock().push(opened.clone());
        let connections = Arc::downgrade(&self.connections);
        let opened = Arc::downgrade(&opened);
        tokio::spawn(together.run(connection, move |ended| {
            if let Err(error) = ended {
                debug!(%error, "connection to the backend ended");
            }
            if let (Some(connections), Some(opened)) = (connections.upgrade(), opened.upgrade()) {
                connections.lock().retain(|other| !Arc::ptr_eq(other, &opened));
            }
        }));
        Ok(first)
    }
}

/// An HTTP/1.1 connection, for one exchange at a time.
#[derive(Debug)]
pub(super) struct Http1Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
}

/// The idle HTTP/1.1 connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Http1Lane {
    idle: Arc<Mutex<Vec<Http1Connection>>>,
}

impl Http1Lane {
    pub(super) async fn connection<F>(
        &self,
        connect: impl FnOnce() -> F,
    ) -> Result<Http1Connection, ConnectError>
    where
        F: Future<Output = Result<TlsStream<TcpStream>, ConnectError>>,
    {
        loop {
            let Some(mut idle) = self.idle.lock().pop() else { break };
            // Given back when the last byte was read: the connection's task may be a step behind.
            let ready = tokio::time::timeout(Duration::from_millis(50), idle.sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                return Ok(idle);
            }
        }
        open_http1(connect().await?).await
    }

    /// Takes a connection back after its exchange.
    pub(super) fn put_back(&self, connection: Http1Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

/// Sets HTTP/1.1 up on a new connection; it may change to another protocol.
pub(super) async fn open_http1(
    stream: TlsStream<TcpStream>,
) -> Result<Http1Connection, ConnectError> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES as usize)
        .handshake::<Stream, RequestBody>(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to the backend ended");
        }
    });
    Ok(Http1Connection { sender })
}
