//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Client;
use super::watches::Registered;
use crate::limits::Permit;
use crate::upstream::Lease;

/// An answer's body.
#[derive(Debug)]
pub enum ResponseBody {
    /// The front door's own.
    Own(Option<Bytes>),
    /// A backend's, passed on as it comes.
    Backend(Passing),
}

type Held = (Arc<Client>, Permit);

/// A body being passed on, and what is held meanwhile.
#[derive(Debug)]
pub struct Passing {
    /// None after the end.
    body: Option<Incoming>,
    lease: Lease,
    /// The client's connection is busy while this lives.
    _held: Held,
    watch: Option<Registered>,
}

impl ResponseBody {
    /// Passes a backend's body on. A watch can be ended from outside.
    #[must_use]
    pub fn passing(body: Incoming, lease: Lease, held: Held, watch: Option<Registered>) -> Self {
        let mut passing = Passing { body: Some(body), lease, _held: held, watch };
        passing.finish_if_ended();
        Self::Backend(passing)
    }
}

impl Passing {
    /// hyper does not poll a body that says it has ended.
    fn finish_if_ended(&mut self) {
        if self.body.as_ref().is_some_and(Body::is_end_stream) {
            self.body = None;
            self.lease.finish();
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Some(watch) = &self.watch
            && watch.is_ended(context.waker())
        {
            // Dropped, the backend's stream is cancelled; the client sees a regular end.
            self.body = None;
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(watch), Some(data)) = (&mut self.watch, frame.data_ref()) {
                    watch.passed(data);
                }
                self.finish_if_ended();
            }
            Some(Err(_)) => {}
            None => {
                self.body = None;
                self.lease.finish();
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Backend(passing) => passing.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Backend(passing) => passing.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Backend(passing) => {
                passing.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
            }
        }
    }
}
