//! One HTTP/2 connection.
//!
//! Everything that a client sent by the time its socket is looked at is decoded in one turn, and
//! the calls of [`Call`] among it go to the sequencer as one parcel; its replies come back as one
//! delivery, are encoded one behind the other, and leave with one write. All other calls are tasks
//! of their own ([`stream`]). A connection with nothing to do is a socket and the codec's tables.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream};
use http::request::Parts;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::{Code, Status};

use super::http::Pages;
use super::io::Io;
use super::{grpc, stream};
use crate::api::{Api, Call, Way};
use crate::core::{Error, Reply};
use crate::metrics::Tally;
use crate::sequencer::{Asked, Outbox, Replies};

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
/// Bytes of answers of one connection that may wait for its windows to open. Who asks for more
/// without reading is refused.
const HELD: usize = 64 << 20;
/// Bytes of requests that came in part, on all connections together.
const PARTIAL: usize = 256 << 20;
/// How exactly a client's deadline is kept. It keeps it too; here it frees what it holds.
const TICK: Duration = Duration::from_millis(20);

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
        let keepalive = Keepalive {
            interval: self.keepalive_interval,
            timeout: self.keepalive_timeout,
            sleep: Box::pin(sleep_until(Instant::now() + self.keepalive_interval)),
            received: 0,
            asked: false,
        };
        Connection {
            h2,
            io,
            calls: Calls {
                api,
                routes,
                pages,
                tally,
                mailbox: Arc::default(),
                waiting: Slab::new(),
                batch: Vec::new(),
                room: BytesMut::new(),
                held: Arc::default(),
                timed: 0,
            },
            partial: self.partial.clone(),
            gathering: FuturesUnordered::new(),
            draining: Some(Box::pin(drain.cancelled_owned())),
            tick: None,
            ping,
            keepalive,
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

/// Where the sequencer puts a connection's replies.
#[derive(Debug, Default)]
struct Mailbox {
    replies: Mutex<Replies>,
    waker: AtomicWaker,
}

impl Outbox for Mailbox {
    fn deliver(&self, replies: Replies) {
        {
            let mut waiting = self.replies.lock();
            if waiting.is_empty() {
                *waiting = replies;
            } else {
                waiting.extend(replies);
            }
        }
        self.waker.wake();
    }
}

/// A call whose reply the sequencer owes.
struct Waiting {
    kind: Call,
    /// `None` once it was answered that its time is over.
    respond: Option<SendResponse<Bytes>>,
    deadline: Option<Instant>,
}

/// The calls of a connection that go to the sequencer.
struct Calls {
    api: Api,
    pages: Pages,
    tally: Tally,
    routes: Routes,
    mailbox: Arc<Mailbox>,
    /// By tag. A call keeps its place until its reply is there, whatever becomes of the client.
    waiting: Slab<Waiting>,
    /// Those of this turn.
    batch: Vec<Asked>,
    /// Where answers are encoded.
    room: BytesMut,
    /// Bytes of answers that wait for the client's windows.
    held: Arc<AtomicUsize>,
    /// Waiting calls with a deadline.
    timed: usize,
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
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = Result<(), Ended>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.calls.mailbox.waker.register(cx.waker());
        let replies = std::mem::take(&mut *this.calls.mailbox.replies.lock());
        for (tag, result) in replies {
            this.calls.reply(tag, result);
        }
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
                cx.waker().wake_by_ref();
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
        let mut gathering = Gathering {
            call: Some(call),
            body,
            message: grpc::Assembly::default(),
            largest: self.calls.api.largest_message(),
            partial: Partial { all: self.partial.clone(), mine: 0 },
        };
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

/// Sends an answer that is a head only.
fn send(respond: &mut SendResponse<Bytes>, response: Response<()>) {
    // An error means that the client took its call back, or is gone: nobody waits.
    let _ = respond.send_response(response, true);
}

// ---- requests -----------------------------------------------------------------------------------

/// A call that is coming in.
struct Incoming {
    kind: Call,
    head: Parts,
    respond: SendResponse<Bytes>,
    deadline: Option<Instant>,
}

/// A request that may still be coming in.
struct Gathering {
    /// `None` once it is done.
    call: Option<Incoming>,
    body: RecvStream,
    message: grpc::Assembly,
    largest: usize,
    partial: Partial,
}

/// Accounts for what requests hold that came in part.
struct Partial {
    all: Arc<AtomicUsize>,
    mine: usize,
}

impl Partial {
    /// False if there is too much of it.
    fn set(&mut self, held: usize) -> bool {
        let more = held - self.mine;
        self.mine = held;
        self.all.fetch_add(more, Ordering::Relaxed) + more <= PARTIAL
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.mine > 0 {
            self.all.fetch_sub(self.mine, Ordering::Relaxed);
        }
    }
}

/// How the request ended.
enum Finished {
    /// It is whole.
    Message(Bytes),
    /// It is refused.
    Fault(grpc::Fault),
    /// Too much waits in parts already.
    Crowded,
    /// The client took it back, or is gone.
    Gone,
}

struct Gathered {
    call: Option<Incoming>,
    finished: Finished,
}

impl Future for Gathering {
    type Output = Gathered;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Gathered> {
        let this = self.get_mut();
        let finished = loop {
            match this.body.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(data))) => {
                    let _ = this.body.flow_control().release_capacity(data.len());
                    if let Err(fault) = this.message.push(data, this.largest) {
                        break Finished::Fault(fault);
                    }
                    let held = this.message.held();
                    if held > this.partial.mine && !this.partial.set(held) {
                        break Finished::Crowded;
                    }
                    if this.body.is_end_stream() {
                        break this.finish();
                    }
                }
                Poll::Ready(Some(Err(_))) => break Finished::Gone,
                Poll::Ready(None) => break this.finish(),
            }
        };
        Poll::Ready(Gathered { call: this.call.take(), finished })
    }
}

impl Gathering {
    fn finish(&mut self) -> Finished {
        match std::mem::take(&mut self.message).finish() {
            Ok(message) => Finished::Message(message),
            Err(fault) => Finished::Fault(fault),
        }
    }
}

impl Calls {
    /// Takes a request that came in: into this turn's batch, or back with an error.
    fn take(&mut self, call: Option<Incoming>, finished: Finished) {
        let Some(Incoming { kind, head, mut respond, deadline }) = call else { return };
        let message = match finished {
            Finished::Message(message) => message,
            Finished::Fault(fault) => {
                let status = grpc::fault(&fault, &head.headers, self.api.message_limit());
                return send(&mut respond, grpc::refusal(&status));
            }
            Finished::Crowded => {
                self.tally.begin(kind, 0);
                return self.refuse(kind, &mut respond);
            }
            Finished::Gone => return,
        };
        let bytes = message.len();
        let entry = self.waiting.vacant_entry();
        match self.api.admit(kind, entry.key(), message) {
            Ok(Way::Pages(request)) => {
                self.tally.begin(kind, bytes);
                let (api, held) = (self.api.clone(), self.held.clone());
                let answer = async move { api.pages(request).await };
                let ticket = self.tally.ticket(kind);
                tokio::spawn(stream::answer(answer, respond, deadline, held, ticket));
            }
            Ok(Way::Parcel(asked)) => {
                self.tally.begin(kind, bytes);
                self.batch.push(asked);
                self.timed += usize::from(deadline.is_some());
                entry.insert(Waiting { kind, respond: Some(respond), deadline });
            }
            Err(status) => {
                // What grpc-go itself refuses never reaches what counts.
                if !status.message().starts_with("grpc: ") {
                    self.tally.begin(kind, bytes);
                    self.tally.failed(kind, status.code());
                }
                send(&mut respond, grpc::refusal(&status));
            }
        }
    }

    fn submit(&mut self) {
        if !self.batch.is_empty() {
            self.api.submit(std::mem::take(&mut self.batch), self.mailbox.clone());
        }
    }

    // ---- answers --------------------------------------------------------------------------------

    fn reply(&mut self, tag: usize, result: Result<Reply, Error>) {
        let Some(Waiting { kind, respond, deadline }) = self.waiting.try_remove(tag) else {
            return;
        };
        let Some(mut respond) = respond else { return };
        self.timed -= usize::from(deadline.is_some());
        match self.api.message(result, &mut self.room) {
            Ok(message) => self.answer(kind, &mut respond, message, deadline),
            Err(status) => {
                self.tally.failed(kind, status.code());
                send(&mut respond, grpc::refusal(&status));
            }
        }
    }

    fn refuse(&mut self, kind: Call, respond: &mut SendResponse<Bytes>) {
        let status = Status::from(Error::TooManyRequests);
        self.tally.failed(kind, status.code());
        send(respond, grpc::refusal(&status));
    }

    fn answer(
        &mut self,
        kind: Call,
        respond: &mut SendResponse<Bytes>,
        message: Bytes,
        deadline: Option<Instant>,
    ) {
        if self.held.load(Ordering::Relaxed) > HELD {
            return self.refuse(kind, respond);
        }
        self.tally.went_well(kind, message.len().saturating_sub(grpc::PREFIX));
        // Errors mean that nobody waits any more.
        let Ok(mut stream) = respond.send_response(grpc::head(), false) else { return };
        stream.reserve_capacity(message.len());
        if stream.capacity() >= message.len() {
            if stream.send_data(message, false).is_ok() {
                let _ = stream.send_trailers(grpc::ok_trailers());
            }
            return;
        }
        // Here, not in the task: of many answers in one turn the next must see it.
        self.held.fetch_add(message.len(), Ordering::Relaxed);
        tokio::spawn(stream::finish(stream, message, deadline, self.held.clone()));
    }

    /// Answers calls whose time is over, and sees to it that the others are looked at again.
    fn expire(&mut self, tick: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) {
        if self.timed == 0 && tick.is_none() {
            return;
        }
        let sleep = tick.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + TICK)));
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            for (_, waiting) in &mut self.waiting {
                if waiting.deadline.is_some_and(|deadline| deadline <= now)
                    && let Some(mut respond) = waiting.respond.take()
                {
                    self.timed -= 1;
                    self.tally.failed(waiting.kind, Code::DeadlineExceeded);
                    send(&mut respond, grpc::refusal(&grpc::too_late()));
                }
            }
            if self.timed == 0 {
                *tick = None;
                return;
            }
            sleep.as_mut().reset(now + TICK);
        }
    }
}

/// Asks a silent client for a sign of life.
struct Keepalive {
    interval: Duration,
    timeout: Duration,
    sleep: Pin<Box<Sleep>>,
    /// What had come in when the sleep began.
    received: u64,
    asked: bool,
}

impl Keepalive {
    /// Ready if the client is dead.
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &Io<S>,
        ping: Option<&mut PingPong>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(ping) = ping else { return Poll::Pending };
        if self.asked {
            // Only so that the codec is done with it; any byte is as good a sign.
            let _ = ping.poll_pong(cx);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let received = io.received();
            let silent = received == self.received;
            self.received = received;
            let next = match (silent, self.asked) {
                (true, true) => return Poll::Ready(()),
                (true, false) => {
                    self.asked = ping.send_ping(Ping::opaque()).is_ok();
                    self.timeout
                }
                (false, _) => {
                    self.asked = false;
                    self.interval
                }
            };
            self.sleep.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    }
}
