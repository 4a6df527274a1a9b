//! One kube-apiserver.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::RequestBody;
use super::connection::{Http1Connection, Http1Lane, Http2Lane, Lane, open_http1};
use super::connector::{ConnectError, Connector, Protocol};
use super::{Health, Observation, Usability};
use crate::limits::{Bounded, Permit};
use crate::metrics::{BackendLabels, Metrics};

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing of it was sent: no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Nothing of it was sent: the connection had ended.
    #[error("the connection had ended: {0}")]
    NotSent(hyper::Error),
    /// The backend said that it did not look at it (a GOAWAY below its stream, or
    /// `REFUSED_STREAM`).
    #[error("the backend refused the stream: {0}")]
    Refused(hyper::Error),
    /// It may have been acted on.
    #[error("the answer was lost: {0}")]
    Lost(hyper::Error),
}

/// What an exchange holds until its answer is read to the end.
#[derive(Debug)]
pub struct Lease {
    _load: Permit,
    connection: Held,
}

#[derive(Debug)]
enum Held {
    Stream { _permit: Permit },
    Exclusive { connection: Option<Http1Connection>, lane: Option<Http1Lane> },
}

impl Lease {
    /// The answer was read to its end: the connection can serve another request.
    pub fn finish(&mut self) {
        if let Held::Exclusive { connection, lane: Some(lane) } = &mut self.connection
            && let Some(connection) = connection.take()
        {
            lane.put_back(connection);
        }
    }
}

/// One kube-apiserver.
#[derive(Debug)]
pub struct Backend {
    pool: Arc<str>,
    host: Arc<str>,
    address: SocketAddr,
    connector: Arc<Connector>,
    health: Mutex<Health>,
    short: Bounded,
    long: Bounded,
    identity: Http2Lane,
    token: Http2Lane,
    unproven: Http1Lane,
    metrics: Metrics,
    /// Cancelled when the backend's address is gone.
    gone: CancellationToken,
}

impl Backend {
    pub(super) fn new(
        pool: &Arc<str>,
        host: &Arc<str>,
        address: SocketAddr,
        connector: &Arc<Connector>,
        metrics: &Metrics,
        gone: CancellationToken,
    ) -> Self {
        let backend = Self {
            pool: pool.clone(),
            host: host.clone(),
            address,
            connector: connector.clone(),
            health: Mutex::default(),
            short: Bounded::default(),
            long: Bounded::default(),
            identity: Http2Lane::default(),
            token: Http2Lane::default(),
            unproven: Http1Lane::default(),
            metrics: metrics.clone(),
            gone,
        };
        backend.metrics.backend_ready.get_or_create(&backend.labels()).set(0);
        backend
    }

    fn labels(&self) -> BackendLabels {
        BackendLabels { pool: self.pool.to_string(), address: self.address.to_string() }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether identities can be handed on to it.
    #[must_use]
    pub fn has_proxy_certificate(&self) -> bool {
        self.connector.has_proxy_certificate()
    }

    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Ends the health checks; requests being served go on.
    pub(super) fn retire(&self) {
        self.gone.cancel();
        self.metrics.backend_ready.remove(&self.labels());
    }

    /// Whether it may be chosen.
    #[must_use]
    pub fn usability(&self) -> Usability {
        self.health.lock().usability()
    }

    /// Takes in what was seen of it.
    pub fn observe(&self, observation: Observation) {
        let (before, after) = {
            let mut health = self.health.lock();
            let before = health.usability();
            health.observe(observation);
            (before, health.usability())
        };
        if before != after {
            info!(pool = %self.pool, address = %self.address, ?before, ?after, ?observation, "backend");
        }
        if !self.gone.is_cancelled() {
            let ready = i64::from(after == Usability::Ready);
            self.metrics.backend_ready.get_or_create(&self.labels()).set(ready);
        }
    }

    /// Requests being served, of one kind.
    #[must_use]
    pub fn load(&self, long_running: bool) -> usize {
        self.counter(long_running).taken()
    }

    fn counter(&self, long_running: bool) -> &Bounded {
        if long_running { &self.long } else { &self.short }
    }

    /// Sends a request and waits for the head of its answer. Dropping the future or the answer's
    /// body cancels the request at the backend.
    pub async fn send(
        &self,
        lane: Lane,
        long_running: bool,
        request: impl FnOnce() -> Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let load = self.counter(long_running).take_always();
        let lanes = match lane {
            Lane::Unproven => {
                let connect = || self.connect(false, Protocol::Http1);
                let connection = self.unproven.connection(connect).await?;
                return exchange(connection, request(), load, Some(self.unproven.clone())).await;
            }
            Lane::Identity => (&self.identity, true),
            Lane::Token => (&self.token, false),
        };
        let (lane, with_certificate) = lanes;
        let (connector, host, address) = (self.connector.clone(), self.host.clone(), self.address);
        let connect = move || {
            let (connector, host) = (connector.clone(), host.clone());
            async move { connector.connect(&host, address, with_certificate, Protocol::Http2).await }
        };
        let mut stream = lane.stream(connect).await?;
        let answer = stream.sender.try_send_request(request()).await.map_err(classify)?;
        let connection = Held::Stream { _permit: stream.permit };
        Ok((answer, Lease { _load: load, connection }))
    }

    /// Sends a request that changes the protocol, on a connection of its own.
    pub async fn send_upgrade(
        &self,
        with_certificate: bool,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let load = self.long.take_always();
        let connection = open_http1(self.connect(with_certificate, Protocol::Http1).await?).await?;
        exchange(connection, request, load, None).await
    }

    async fn connect(
        &self,
        with_certificate: bool,
        protocol: Protocol,
    ) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, ConnectError> {
        self.connector.connect(&self.host, self.address, with_certificate, protocol).await
    }
}

async fn exchange(
    mut connection: Http1Connection,
    request: Request<RequestBody>,
    load: Permit,
    lane: Option<Http1Lane>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let answer = connection.sender.try_send_request(request).await.map_err(classify)?;
    let connection = Held::Exclusive { connection: Some(connection), lane };
    Ok((answer, Lease { _load: load, connection }))
}

fn classify(mut error: TrySendError<Request<RequestBody>>) -> SendError {
    let sent = error.take_message().is_none();
    let error = error.into_error();
    if !sent {
        return SendError::NotSent(error);
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            let refused = cause.is_go_away() || cause.reason() == Some(h2::Reason::REFUSED_STREAM);
            if cause.is_remote() && refused {
                return SendError::Refused(error);
            }
        }
        source = cause.source();
    }
    SendError::Lost(error)
}
