//! The protocol over gRPC with mTLS: a server in front of a shard or relay, and a peer as its
//! client sees it. Both read certificates anew when the files change.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use megacluster_service::tls::{ClientTls, ServerTls};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tracing::{debug, info, warn};

use super::generated as pb;
use super::wire::{self, ClassCache, Dialect};
use super::{Refusal, Request, Response};

/// ALPN of gRPC.
pub const ALPN: &[&[u8]] = &[b"h2"];
/// A client has this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once; further connections wait in the kernel's queue.
const HANDSHAKES: usize = 64;
/// Messages at work at once on one connection.
const CONCURRENCY: usize = 64;
/// The longest message.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// A connection that is silent for this long is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A peer's kernel has this long to take a connection: longer only where the host is gone or a
/// message was lost. All shards of a message wait for it, so it is short.
const CONNECT: Duration = Duration::from_millis(250);
/// A connection is there after this long, all in all.
const CONNECTED: Duration = Duration::from_secs(2);

/// What answers: a shard, or a relay with shards below.
pub trait Serve: Send + Sync + 'static {
    /// Answers one message.
    fn exchange(&self, request: Request) -> impl Future<Output = Response> + Send;
}

struct Service<S> {
    inner: Arc<S>,
    classes: Arc<ClassCache>,
    /// Ends sessions.
    token: CancellationToken,
}

impl<S> Clone for Service<S> {
    fn clone(&self) -> Self {
        let Self { inner, classes, token } = self;
        Self { inner: inner.clone(), classes: classes.clone(), token: token.clone() }
    }
}

impl<S: Serve> Service<S> {
    async fn answer(
        &self,
        request: pb::ExchangeRequest,
    ) -> Result<pb::ExchangeResponse, tonic::Status> {
        let dialect = Dialect::of_request(&request);
        let request = wire::decode_request(request, &self.classes)
            .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        let response = self.inner.exchange(request).await;
        Ok(wire::encode_response(&response, dialect))
    }

    /// The answer to the next message of a session; `None` at its end.
    async fn next_answer(
        &self,
        requests: &mut Streaming<pb::ExchangeRequest>,
    ) -> Result<Option<pb::ExchangeResponse>, tonic::Status> {
        let request = tokio::select! {
            biased;
            request = requests.message() => request?,
            () = self.token.cancelled() => None,
        };
        match request {
            Some(request) => self.answer(request).await.map(Some),
            None => Ok(None),
        }
    }
}

#[tonic::async_trait]
impl<S: Serve> pb::scheduler_server::Scheduler for Service<S> {
    async fn exchange(
        &self,
        request: tonic::Request<pb::ExchangeRequest>,
    ) -> Result<tonic::Response<pb::ExchangeResponse>, tonic::Status> {
        self.answer(request.into_inner()).await.map(tonic::Response::new)
    }

    type SessionStream = BoxStream<'static, Result<pb::ExchangeResponse, tonic::Status>>;

    async fn session(
        &self,
        request: tonic::Request<Streaming<pb::ExchangeRequest>>,
    ) -> Result<tonic::Response<Self::SessionStream>, tonic::Status> {
        let begin = (self.clone(), request.into_inner());
        let answers = futures::stream::try_unfold(begin, |(service, mut requests)| async move {
            let answer = service.next_answer(&mut requests).await?;
            Ok(answer.map(|answer| (answer, (service, requests))))
        });
        Ok(tonic::Response::new(Box::pin(answers)))
    }
}

/// Binds `address` and serves it on tasks until `token` is cancelled; messages that are at work
/// then are still answered. Gives the bound address.
pub async fn serve<S: Serve>(
    inner: Arc<S>,
    address: SocketAddr,
    tls: ServerTls,
    token: CancellationToken,
) -> std::io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    info!(address = %bound, "gRPC port");
    let (ready, streams) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept(listener, tls, ready, token.clone()));
    let service = pb::scheduler_server::SchedulerServer::new(Service {
        inner,
        classes: Arc::default(),
        token: token.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .concurrency_limit_per_connection(CONCURRENCY)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(service);
    let task = tokio::spawn(async move {
        let streams = ReceiverStream::new(streams);
        let stop = token.cancelled_owned();
        if let Err(error) = server.serve_with_incoming_shutdown(streams, stop).await {
            warn!(%error, "gRPC port");
        }
    });
    Ok((bound, task))
}

async fn accept(
    listener: TcpListener,
    tls: ServerTls,
    ready: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
    token: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "gRPC port: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, ready) = (tls.acceptor(), ready.clone());
        tokio::spawn(async move {
            let _place = place;
            // The protocol is many small messages, each waited for.
            if stream.set_nodelay(true).is_err() {
                return;
            }
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => info!(%from, %error, "gRPC client refused"),
                Err(_) => debug!(%from, "gRPC client: no handshake in time"),
            }
        });
    }
}

/// An address of a peer makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is no URL of a peer.
    #[error("{url}: must be https://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
    },
}

/// A shard or relay at the other end of a connection, which is made when it is first needed and
/// again when it breaks.
#[derive(Clone, Debug)]
pub struct Peer {
    client: pb::scheduler_client::SchedulerClient<Channel>,
    /// By its last answer.
    dialect: Arc<Mutex<Dialect>>,
    /// One that no message is under way on. A message that finds none begins another one; of several
    /// the last one that is done is kept.
    session: Arc<Mutex<Option<Session>>>,
}

/// A stream of messages and their answers. What would be done for each call, from its headers to its
/// trailers, is done once for all of them.
#[derive(Debug)]
struct Session {
    requests: mpsc::Sender<pb::ExchangeRequest>,
    answers: Streaming<pb::ExchangeResponse>,
}

impl Session {
    /// Whether it has ended while nobody looked: nothing is to be answered.
    fn has_ended(&mut self) -> bool {
        self.requests.is_closed() || self.answers.message().now_or_never().is_some()
    }

    async fn exchange(
        &mut self,
        message: pb::ExchangeRequest,
    ) -> Result<pb::ExchangeResponse, tonic::Status> {
        let ended = || tonic::Status::unavailable("the session has ended");
        self.requests.send(message).await.map_err(|_| ended())?;
        self.answers.message().await?.ok_or_else(ended)
    }
}

impl Peer {
    /// The peer at `url`, `https://HOST:PORT`.
    pub fn new(url: &str, tls: &ClientTls) -> Result<Self, PeerError> {
        let wrong = || PeerError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some("https"), Some(host), Some(port)) =
            (uri.scheme_str(), uri.host(), uri.port_u16())
        else {
            return Err(wrong());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        let tls = tls.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
            async move {
                let stream = reach(&host, port).await?;
                stream.set_nodelay(true)?;
                let connector = tokio_rustls::TlsConnector::from(tls.config());
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        // TLS is the connector's work, so the endpoint itself is plain.
        let plain = url.replacen("https://", "http://", 1);
        let channel = Endpoint::from_shared(plain)
            .map_err(|_| wrong())?
            .connect_timeout(CONNECTED)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connect);
        let client = pb::scheduler_client::SchedulerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { client, dialect: Arc::default(), session: Arc::default() })
    }

    /// Sends one message. Without an answer in time, or with one that can't be read, every target
    /// is reported as unreachable: whether the operations were carried out is then unknown.
    pub async fn exchange(&self, request: &Request) -> Response {
        let lost = |why: String| Response::refused(&request.targets, &Refusal::Unreachable(why));
        let dialect = *self.dialect.lock();
        let message = match wire::encode_request(request, dialect) {
            Ok(message) => message,
            Err(error) => {
                let refusal = Refusal::Malformed(error.to_string());
                return Response::refused(&request.targets, &refusal);
            }
        };
        match timeout(request.deadline, self.ask(message, dialect)).await {
            Ok(Ok(answer)) => {
                *self.dialect.lock() = Dialect::of_response(&answer);
                wire::decode_response(answer)
            }
            Ok(Err(status)) => {
                *self.dialect.lock() = Dialect::First;
                lost(describe(&status))
            }
            Err(_) => lost("no answer in time".to_owned()),
        }
    }

    async fn ask(
        &self,
        message: pb::ExchangeRequest,
        dialect: Dialect,
    ) -> Result<pb::ExchangeResponse, tonic::Status> {
        if dialect < Dialect::Runs {
            return Ok(self.client.clone().exchange(message).await?.into_inner());
        }
        // Given back with an answer alone: one whose answer is not waited for is over.
        let mut idle = self.session.lock().take();
        if idle.as_mut().is_some_and(Session::has_ended) {
            idle = None;
        }
        let mut session = match idle {
            Some(session) => session,
            None => self.begin().await?,
        };
        let answer = session.exchange(message).await?;
        *self.session.lock() = Some(session);
        Ok(answer)
    }

    async fn begin(&self) -> Result<Session, tonic::Status> {
        let (requests, messages) = mpsc::channel(1);
        let answers = self.client.clone().session(ReceiverStream::new(messages)).await?;
        Ok(Session { requests, answers: answers.into_inner() })
    }
}

/// Connects to the first of the host's addresses that answers.
async fn reach(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host((host, port)).await? {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// A status with the causes below it: "transport error" alone helps nobody.
fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
