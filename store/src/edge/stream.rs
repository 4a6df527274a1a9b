//! A call as a task of its own, through tonic's services: streams, the calls that are rare, and
//! answers that are larger than what the client takes at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::grpc;
use crate::api::Pieces;
use crate::metrics::{Meter, Ticket};

/// Bytes handed to the codec at once for one stream.
const PIECE: usize = 64 * 1024;

/// A request's body, which gives the client's window back as it is read.
#[derive(Debug)]
struct Incoming {
    body: RecvStream,
    meter: Meter,
    ticket: Option<Arc<Ticket>>,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => {
                let this = &mut *self;
                if let Some(ticket) = &this.ticket {
                    let (messages, bytes) = this.meter.measure(&data);
                    ticket.received(messages, bytes);
                }
                this.body.flow_control().release_capacity(data.len())?;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            // Trailers of a request mean nothing in gRPC.
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The client took its call back, or is gone.
pub(super) struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Answers a call through `routes`. Ends when the answer is handed to the codec, when the client
/// takes the call back, or when its time is over.
pub(super) async fn route(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut routes: Routes,
    deadline: Option<Instant>,
    ticket: Option<Ticket>,
) {
    let path = request.uri().path().to_owned();
    let ticket = ticket.map(Arc::new);
    let incoming = |body| Incoming { body, meter: Meter::default(), ticket: ticket.clone() };
    let request = request.map(|body| Body::new(incoming(body)));
    // `Routes` is always ready and answers every error itself.
    let call = routes.call(request);
    let answered = tokio::select! {
        answered = within(deadline, call) => answered,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let response = match answered {
        Some(Ok(response)) => response,
        Some(Err(impossible)) => match impossible {},
        None => {
            end(ticket.as_ref(), Code::DeadlineExceeded);
            let _ = respond.send_response(grpc::refusal(&grpc::too_late()), true);
            return;
        }
    };
    let (mut head, body) = response.into_parts();
    grpc::name_the_unknown(&path, &mut head.headers);
    grpc::name_the_large(&mut head.headers);
    let whole = body.is_end_stream();
    let code = grpc::code(&head.headers);
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), whole) else {
        return;
    };
    if whole {
        return end(ticket.as_ref(), code);
    }
    match within(deadline, copy(body, &mut stream, ticket.as_deref())).await {
        Some(Ok(code)) => end(ticket.as_ref(), code),
        Some(Err(Gone)) => {}
        None => {
            end(ticket.as_ref(), Code::DeadlineExceeded);
            let _ = stream.send_trailers(grpc::trailers(&grpc::too_late()));
        }
    }
}

fn end(ticket: Option<&Arc<Ticket>>, code: Code) {
    if let Some(ticket) = ticket {
        ticket.end(code);
    }
}

/// `None` if the deadline came first.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// Sends a body at the client's pace: the next frame is asked for when there is room for it. Gives
/// the code at its end.
async fn copy(
    mut body: Body,
    stream: &mut SendStream<Bytes>,
    ticket: Option<&Ticket>,
) -> Result<Code, Gone> {
    let mut meter = Meter::default();
    loop {
        // A reset while the body has nothing to say ends the call too.
        let frame = tokio::select! {
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Err(Gone),
            frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => {
                stream.send_trailers(grpc::trailers(&status))?;
                return Ok(status.code());
            }
            None => {
                stream.send_data(Bytes::new(), true)?;
                return Ok(Code::Ok);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                if let Some(ticket) = ticket {
                    let (messages, bytes) = meter.measure(&data);
                    ticket.sent(messages, bytes);
                }
                send(stream, data).await?;
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_else(|_| grpc::ok_trailers());
                grpc::name_the_large(&mut trailers);
                let code = grpc::code(&trailers);
                stream.send_trailers(trailers)?;
                return Ok(code);
            }
        }
    }
}

/// Sends bytes as the client's windows open.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Gone> {
    while data.has_remaining() {
        stream.reserve_capacity(data.len().min(PIECE));
        // Room that is there already is not announced again.
        let mut room = stream.capacity();
        while room == 0 {
            room = poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Gone)??;
        }
        let piece = data.split_to(room.min(data.len()));
        stream.send_data(piece, false)?;
    }
    Ok(())
}

/// Answers a call with one message that is still to be found, and encoded as the client takes it.
pub(super) async fn answer(
    message: impl Future<Output = Result<Pieces, Status>>,
    mut respond: SendResponse<Bytes>,
    deadline: Option<Instant>,
    held: Arc<AtomicUsize>,
    ticket: Ticket,
) {
    let made = tokio::select! {
        made = within(deadline, message) => made.unwrap_or_else(|| Err(grpc::too_late())),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    // Errors mean that nobody waits any more.
    match made {
        Ok(message) => {
            ticket.sent(1, message.len().saturating_sub(grpc::PREFIX) as u64);
            ticket.end(Code::Ok);
            if let Ok(stream) = respond.send_response(grpc::head(), false) {
                // Its versions may be replaced before the client takes them.
                let size = message.len();
                held.fetch_add(size, Ordering::Relaxed);
                finish(stream, message, size, deadline, held).await;
            }
        }
        Err(status) => {
            ticket.end(status.code());
            let _ = respond.send_response(grpc::refusal(&status), true);
        }
    }
}

/// Sends an answer of one message that is larger than what the client takes now, in pieces. Its
/// caller counted its `size` as `held`.
pub(super) async fn finish(
    mut stream: SendStream<Bytes>,
    message: impl IntoIterator<Item = Bytes>,
    size: usize,
    deadline: Option<Instant>,
    held: Arc<AtomicUsize>,
) {
    let sent = async {
        for piece in message {
            send(&mut stream, piece).await?;
        }
        Ok(())
    };
    match within(deadline, sent).await {
        Some(Ok(())) => {
            let _ = stream.send_trailers(grpc::ok_trailers());
        }
        Some(Err(Gone)) => {}
        None => stream.send_reset(Reason::CANCEL),
    }
    held.fetch_sub(size, Ordering::Relaxed);
}
