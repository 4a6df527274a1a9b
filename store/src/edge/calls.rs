//! The calls of a connection that the sequencer answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use h2::server::SendResponse;
use http::Response;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::service::Routes;
use tonic::{Code, Status};

use super::gather::{Finished, Incoming};
use super::http::Pages;
use super::{grpc, stream};
use crate::api::{Api, Call, Way};
use crate::core::{Error, Reply};
use crate::metrics::Tally;
use crate::sequencer::{Asked, Outbox, Replies};

/// Bytes of answers of one connection that may wait for its windows to open. Who asks for more
/// without reading is refused.
const HELD: usize = 64 << 20;
/// Calls of one connection that may wait for the sequencer before its next are read.
const AHEAD: usize = 1024;
/// How exactly a client's deadline is kept. It keeps it too; here it frees what it holds.
const TICK: Duration = Duration::from_millis(20);

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
pub(super) struct Calls {
    pub(super) api: Api,
    pub(super) pages: Pages,
    pub(super) tally: Tally,
    pub(super) routes: Routes,
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

impl Calls {
    pub(super) fn new(api: Api, pages: Pages, routes: Routes, tally: Tally) -> Self {
        Self {
            api,
            pages,
            tally,
            routes,
            mailbox: Arc::default(),
            waiting: Slab::new(),
            batch: Vec::new(),
            room: BytesMut::new(),
            held: Arc::default(),
            timed: 0,
        }
    }

    /// Sends the replies that came, and has `cx` woken by the next.
    pub(super) fn answers(&mut self, cx: &mut Context<'_>) {
        self.mailbox.waker.register(cx.waker());
        let replies = std::mem::take(&mut *self.mailbox.replies.lock());
        for (tag, result) in replies {
            self.reply(tag, result);
        }
    }

    /// Takes a request that came in: into this turn's batch, or back with an error.
    pub(super) fn take(&mut self, call: Option<Incoming>, finished: Finished) {
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

    /// Whether enough of them wait.
    pub(super) fn crowded(&self) -> bool {
        self.waiting.len() >= AHEAD
    }

    pub(super) fn submit(&mut self) {
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
            let message = Held::count(message, &self.held);
            if stream.send_data(message, false).is_ok() {
                let _ = stream.send_trailers(grpc::ok_trailers());
            }
            return;
        }
        // Here, not in the task: of many answers in one turn the next must see it.
        let size = message.len();
        self.held.fetch_add(size, Ordering::Relaxed);
        tokio::spawn(stream::finish(stream, [message], size, deadline, self.held.clone()));
    }

    /// Answers calls whose time is over, and sees to it that the others are looked at again.
    pub(super) fn expire(&mut self, tick: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) {
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

/// An answer that the codec has, until the socket took it. Many calls may be read before the first
/// of them is answered.
struct Held {
    message: Bytes,
    held: Arc<AtomicUsize>,
}

impl Held {
    /// Small ones are bounded by the number of streams.
    const SMALL: usize = 4096;

    fn count(message: Bytes, held: &Arc<AtomicUsize>) -> Bytes {
        if message.len() < Self::SMALL {
            return message;
        }
        held.fetch_add(message.len(), Ordering::Relaxed);
        Bytes::from_owner(Self { message, held: held.clone() })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.message.len(), Ordering::Relaxed);
    }
}

/// Sends an answer that is a head only.
pub(super) fn send(respond: &mut SendResponse<Bytes>, response: Response<()>) {
    // An error means that the client took its call back, or is gone: nobody waits.
    let _ = respond.send_response(response, true);
}
