//! Calls by gRPC on the `h2` crate: one connection, whose frames are one future. Through tonic and
//! hyper a question went by five tasks and as two writes, and cost more than the store's answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use hyper::rt::Executor;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

/// A message of the store's: a page of objects, or the events that came at a time.
const MAX_MESSAGE: usize = 1 << 30;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// A store that does not answer a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes that may be on their way: of a watch, and in all. With HTTP/2's own 64 KiB a busy store
/// would wait for us after every few dozen events.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of a message that room is made for before they come.
const ROOM: usize = 4 << 20;
/// Bytes of an answer's headers and trailers.
const MAX_HEADERS: u32 = 16 * 1024;

/// What reads and writes a connection's frames.
pub(super) type Frames = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection, or the stream.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// It is not gRPC that answers.
    #[error("{0}, not an answer by gRPC")]
    Answer(StatusCode),
    /// The store says that it failed.
    #[error("grpc-status {code}: {message}")]
    Status {
        /// gRPC's code.
        code: String,
        /// Its words, percent-encoded as they come.
        message: String,
    },
    /// The answer breaks off, or there is more than one.
    #[error("not one whole answer")]
    Cut,
    /// What comes is not a message that can be read.
    #[error("not a message: {0}")]
    Message(&'static str),
    /// Nor is this.
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
}

/// Makes calls on one connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    send: SendRequest<Bytes>,
    scheme: Scheme,
    authority: Authority,
}

impl Caller {
    /// Speaks HTTP/2 on a stream to the server of `uri`. `executor` is given what reads and writes
    /// its frames, until the connection ends.
    pub(super) async fn start<S, E>(stream: S, uri: Uri, executor: &E) -> Result<Self, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        E: Executor<Frames>,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .enable_push(false)
            .handshake(stream)
            .await?;
        executor.execute(Box::pin(drive(connection)));
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(CallError::Message("the store's address"));
        };
        Ok(Self { send, scheme, authority })
    }

    /// A call with one answer.
    pub(super) async fn unary<A: Message + Default>(
        &self,
        path: &'static str,
        question: &impl Message,
    ) -> Result<A, CallError> {
        let (mut questions, mut answers) = self.open(path).await?;
        // Nobody asks so much at once that it would have to wait.
        questions.0.send_data(framed(question), true)?;
        drop(questions);
        let answer = answers.next().await?.ok_or(CallError::Cut)?;
        if answers.next::<A>().await?.is_some() { Err(CallError::Cut) } else { Ok(answer) }
    }

    /// A call that goes on both ways.
    pub(super) async fn open(&self, path: &'static str) -> Result<(Questions, Answers), CallError> {
        let mut send = self.send.clone().ready().await?;
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(PathAndQuery::from_static(path));
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.build().map_err(|_| CallError::Message("its path"))?;
        let headers = request.headers_mut();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let (response, questions) = send.send_request(request, false)?;
        let answers = Answers { state: State::Awaited(response), buffer: BytesMut::new() };
        Ok((Questions(questions), answers))
    }
}

/// Reads and writes a connection's frames until it ends, or the server is silent.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(mut connection: Connection<S, Bytes>) {
    let ping = connection.ping_pong();
    tokio::select! {
        ended = connection => debug!(?ended, "the store's connection"),
        () = silence(ping) => debug!("the store does not answer a ping"),
    }
}

/// Waits until a ping has no answer.
async fn silence(ping: Option<PingPong>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        // An error is the connection's, which tells it, too.
        if timeout(PING_DEADLINE, ping.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    // A question is a key or two.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for it.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// What is said in a call.
#[derive(Debug)]
pub(super) struct Questions(SendStream<Bytes>);

impl Questions {
    /// Says something, once the server has room for it.
    pub(super) async fn send(&mut self, question: &impl Message) -> Result<(), CallError> {
        let bytes = framed(question);
        self.0.reserve_capacity(bytes.len());
        while self.0.capacity() < bytes.len() {
            poll_fn(|context| self.0.poll_capacity(context)).await.ok_or(CallError::Cut)??;
        }
        Ok(self.0.send_data(bytes, false)?)
    }
}

#[derive(Debug)]
enum State {
    /// Its headers are still to come.
    Awaited(ResponseFuture),
    Open(RecvStream),
    Ended,
}

/// What is answered in a call.
#[derive(Debug)]
pub(super) struct Answers {
    state: State,
    buffer: BytesMut,
}

impl Answers {
    /// The next message; none at the end of a call that went well. Nothing is lost where this is
    /// dropped and called again.
    pub(super) async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, CallError> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(A::decode(message)?));
            }
            match &mut self.state {
                State::Awaited(response) => {
                    let (head, body) = response.await?.into_parts();
                    if head.status != StatusCode::OK {
                        return Err(CallError::Answer(head.status));
                    }
                    // An error alone has no body and no trailers.
                    check(&head.headers, body.is_end_stream())?;
                    self.state =
                        if body.is_end_stream() { State::Ended } else { State::Open(body) };
                }
                State::Open(body) => {
                    if let Some(bytes) = body.data().await {
                        let bytes = bytes?;
                        body.flow_control().release_capacity(bytes.len())?;
                        self.buffer.extend_from_slice(&bytes);
                    } else {
                        check(&body.trailers().await?.unwrap_or_default(), true)?;
                        self.state = State::Ended;
                    }
                }
                State::Ended if self.buffer.is_empty() => return Ok(None),
                State::Ended => return Err(CallError::Cut),
            }
        }
    }

    /// A message that has come whole.
    fn whole(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(CallError::Message("it is compressed"));
        }
        if length > MAX_MESSAGE {
            return Err(CallError::Message("it is too large"));
        }
        let missing = length.saturating_sub(rest.len());
        if missing > 0 {
            self.buffer.reserve(missing.min(ROOM));
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// What the server says of a call; at its end it must say something.
fn check(headers: &HeaderMap, end: bool) -> Result<(), CallError> {
    let text = |name| {
        let value = headers.get(name).map(HeaderValue::as_bytes);
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    match text("grpc-status") {
        Some(code) if code == "0" => Ok(()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(CallError::Status { code, message })
        }
        None if end => Err(CallError::Cut),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
