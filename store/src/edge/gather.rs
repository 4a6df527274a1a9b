//! A request on its way in.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use tokio::time::Instant;

use super::grpc;
use crate::api::Call;

/// Bytes of requests that came in part, on all connections together.
const PARTIAL: usize = 256 << 20;

/// A call that is coming in.
pub(super) struct Incoming {
    pub(super) kind: Call,
    pub(super) head: Parts,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) deadline: Option<Instant>,
}

/// A request that may still be coming in.
pub(super) struct Gathering {
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
pub(super) enum Finished {
    /// It is whole.
    Message(Bytes),
    /// It is refused.
    Fault(grpc::Fault),
    /// Too much waits in parts already.
    Crowded,
    /// The client took it back, or is gone.
    Gone,
}

pub(super) struct Gathered {
    pub(super) call: Option<Incoming>,
    pub(super) finished: Finished,
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
    /// A request of at most `largest` bytes. `partial` counts what all requests hold that came in part.
    pub(super) fn new(
        call: Incoming,
        body: RecvStream,
        largest: usize,
        partial: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            call: Some(call),
            body,
            message: grpc::Assembly::default(),
            largest,
            partial: Partial { all: partial, mine: 0 },
        }
    }

    fn finish(&mut self) -> Finished {
        match std::mem::take(&mut self.message).finish() {
            Ok(message) => Finished::Message(message),
            Err(fault) => Finished::Fault(fault),
        }
    }
}
