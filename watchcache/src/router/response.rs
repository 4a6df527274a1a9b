//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Client;
use super::watches::Registered;
use crate::audit::Ending;
use crate::cache::{Pieces, Unsupported};
use crate::limits::Permit;
use crate::upstream::Lease;

/// Why an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The backend's did.
    #[error(transparent)]
    Backend(hyper::Error),
    /// The cache holds what it can't show.
    #[error(transparent)]
    Cached(Unsupported),
}

/// An answer's body.
#[derive(Debug)]
pub enum ResponseBody {
    /// The front door's own.
    Own(Option<Bytes>),
    /// A backend's, passed on as it comes.
    Backend(Passing),
    /// The cache's.
    Cached(Cached),
}

pub(super) type Held = (Arc<Client>, Permit);

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

    /// An answer of the cache.
    #[must_use]
    pub fn cached(
        pieces: Pieces,
        held: Held,
        watch: Option<Registered>,
        recorded: Option<Ending>,
    ) -> Self {
        Self::Cached(Cached { pieces: Some(pieces), _held: held, watch, _recorded: recorded })
    }
}

/// An answer of the cache, and what is held meanwhile.
pub struct Cached {
    /// None after the end.
    pieces: Option<Pieces>,
    _held: Held,
    watch: Option<Registered>,
    /// Records its end.
    _recorded: Option<Ending>,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl Cached {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Unsupported>>> {
        // Each piece of a watch ends with an event.
        let ended = self.watch.as_mut().is_some_and(|watch| watch.is_ended(context.waker()));
        if ended {
            self.pieces = None;
        }
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        let piece = std::task::ready!(pieces.poll_next_unpin(context));
        if piece.is_none() {
            self.pieces = None;
        }
        Poll::Ready(piece)
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
        if let Some(watch) = &mut self.watch
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
            // The backend is gone. To client-go a watch that just ends, also amid an event, is one to
            // go on with from where it was; a stream that is reset it begins anew with a list, after
            // a pause (`k8s.io/client-go/tools/cache/reflector.go`, `IsProbableEOF`).
            Some(Err(_)) if self.watch.is_some() => {
                self.body = None;
                return Poll::Ready(None);
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
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Backend(passing) => passing.poll(context).map_err(BodyError::Backend),
            Self::Cached(cached) => {
                cached.poll(context).map_ok(Frame::data).map_err(BodyError::Cached)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Backend(passing) => passing.body.as_ref().is_none_or(Body::is_end_stream),
            Self::Cached(cached) => cached.pieces.is_none(),
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
            Self::Cached(_) => SizeHint::default(),
        }
    }
}
