//! One HTTP/2 connection.
//!
//! Everything that a client sent by the time its socket is looked at is decoded in one turn, and
//! the calls of [`Call`] among it go to the sequencer as one parcel; its replies come back as one
//! delivery, are encoded one behind the other, and leave with one write. All other calls are tasks
//! of their own ([`stream`]). A connection with nothing to do is a socket and the codec's tables.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{PingPong, RecvStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;

use super::calls::{Calls, send};
use super::gather::{Gathered, Gathering, Incoming};
use super::http::Pages;
use super::io::Io;
use super::keepalive::Keepalive;
use super::{grpc, stream};
use crate::api::{Api, Call};
use crate::metrics::Tally;

/// Flow-control windows: large enough that a list of many MiB does not wait for the client's
/// window updates at every turn.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const MAX_FRAME: u32 = 64 << 10;
/// Bytes of answers buffered for one stream before its task waits for the client. A client may ask
/// for a thousand answers in one breath and read none.
const SEND_BUFFER: usize = 64 << 10;
/// A request's headers, uncompressed.
const HEADER_LIST: u32 = 16 << 10;
/// Calls that a client took back before they were looked at. A turn may find many: a client whose
/// context ends takes back all it asked at once. Beyond, it is sent away.
const RESETS: usize = 512;
/// Requests looked at in one turn, before others get theirs.
const TURN: usize = 512;

/// How HTTP/2 is spoken.
#[derive(Clone, Debug)]
pub(super) struct Http2 {
    builder: h2::server::Builder,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    /// Bytes of requests that came in part.
    partial: Arc<AtomicUsize>,
}

impl Http2 {
    pub(super) fn new(
        max_streams: u32,
        keepalive_interval: Duration,
        keepalive_timeout: Duration,
    ) -> Self {
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(max_streams)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESETS);
        Self { builder, keepalive_interval, keepalive_timeout, partial: Arc::default() }
    }

    /// Serves a connection until it ends; after `drain` it takes nothing new.
    ///
    /// # Errors
    /// [`Ended`]: what ended it before its time.
    pub(super) async fn serve<S>(
        &self,
        stream: S,
        read: BytesMut,
        api: Api,
        pages: Pages,
        routes: Routes,
        drain: CancellationToken,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let io = Io::new(stream, read);
        let mut h2 = self.builder.handshake::<_, Bytes>(io.clone()).await?;
        let ping = h2.ping_pong();
        let tally = Tally::new(api.metrics().grpc.clone());
        let keepalive = Keepalive::new(self.keepalive_interval, self.keepalive_timeout);
        Connection {
            h2,
            io,
            calls: Calls::new(api, pages, routes, tally),
            partial: self.partial.clone(),
            gathering: FuturesUnordered::new(),
            draining: Some(Box::pin(drain.cancelled_owned())),
            tick: None,
            ping,
            keepalive,
            behind: false,
        }
        .await
    }
}

/// What ends a connection before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The client broke the protocol, or left without a word.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The socket.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The client does not answer pings.
    #[error("no sign of life from the client")]
    Silent,
}

struct Connection<S> {
    h2: h2::server::Connection<Io<S>, Bytes>,
    io: Io<S>,
    calls: Calls,
    partial: Arc<AtomicUsize>,
    /// Requests of which a part is still to come.
    gathering: FuturesUnordered<Gathering>,
    /// `None` once it goes on.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Runs while a call with a deadline waits.
    tick: Option<Pin<Box<Sleep>>>,
    ping: Option<PingPong>,
    keepalive: Keepalive,
    /// The codec has requests that were not looked at.
    behind: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = Result<(), Ended>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.calls.answers(cx);
        if let Some(draining) = &mut this.draining
            && draining.as_mut().poll(cx).is_ready()
        {
            // GOAWAY: answers what was asked, takes nothing new.
            this.draining = None;
            this.h2.graceful_shutdown();
        }
        // What a full socket held back, before the codec is asked whether it can go on.
        if let Poll::Ready(Err(error)) = this.io.write_out(cx) {
            return Poll::Ready(Err(error.into()));
        }
        this.io.begin_turn(!this.behind && !this.calls.crowded());
        this.behind = false;
        let mut ended = None;
        for turn in 0.. {
            match this.h2.poll_accept(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok((request, respond)))) => this.accept(request, respond, cx),
                Poll::Ready(Some(Err(error))) => ended = Some(Err(error.into())),
                Poll::Ready(None) => ended = Some(Ok(())),
            }
            if ended.is_some() {
                break;
            }
            if turn == TURN {
                this.behind = true;
                break;
            }
        }
        while let Poll::Ready(Some(Gathered { call, finished })) =
            this.gathering.poll_next_unpin(cx)
        {
            this.calls.take(call, finished);
        }
        this.calls.submit();
        if let Some(ended) = ended {
            return Poll::Ready(ended);
        }
        this.calls.expire(&mut this.tick, cx);
        this.calls.tally.tell();
        // Else the next reply does it.
        if this.behind || (this.io.stopped() && !this.calls.crowded()) {
            cx.waker().wake_by_ref();
        }
        if this.keepalive.poll(&this.io, this.ping.as_mut(), cx).is_ready() {
            return Poll::Ready(Err(Ended::Silent));
        }
        match this.io.write_out(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn accept(
        &mut self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        cx: &mut Context<'_>,
    ) {
        if request.method() != Method::POST {
            self.page(&request, respond);
            return;
        }
        if !grpc::is_grpc(request.headers()) {
            send(&mut respond, grpc::not_grpc());
            return;
        }
        let deadline = match grpc::timeout(request.headers()) {
            Ok(Some(Duration::ZERO)) => {
                return send(&mut respond, grpc::refusal(&grpc::too_late()));
            }
            Ok(timeout) => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            Err(status) => return send(&mut respond, grpc::refusal(&status)),
        };
        let Some(kind) = Call::at(request.uri().path()) else {
            let ticket = self.calls.api.metrics().grpc.begin(request.uri().path());
            let routes = self.calls.routes.clone();
            tokio::spawn(stream::route(request, respond, routes, deadline, ticket));
            return;
        };
        let (head, body) = request.into_parts();
        let call = Incoming { kind, head, respond, deadline };
        let largest = self.calls.api.largest_message();
        let mut gathering = Gathering::new(call, body, largest, self.partial.clone());
        // Nearly always the whole request is there.
        match Pin::new(&mut gathering).poll(cx) {
            Poll::Ready(Gathered { call, finished }) => self.calls.take(call, finished),
            Poll::Pending => self.gathering.push(gathering),
        }
    }

    fn page(&self, request: &Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let pages = self.calls.pages.clone();
        tokio::spawn(async move {
            let (head, body) = pages.answer(&method, &uri).await.into_parts();
            let text = body.into_inner().unwrap_or_default();
            // The client may be gone.
            if let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), false) {
                let _ = stream::send(&mut stream, text).await;
                let _ = stream.send_data(Bytes::new(), true);
            }
        });
    }
}
