//! One task for an HTTP/2 client connection.
//!
//! hyper runs the frames of a client connection on one task and the sending of requests on
//! another. When it has queued a request it looks whether the connection still takes new ones; if
//! on another thread the request was sent, acted on and answered with a GOAWAY meanwhile, it
//! takes that for a failure of the request and drops the answer
//! (`ClientTask::poll`, `src/proto/h2/client.rs` of hyper 1.12). The error is the same as for a
//! request that the server has refused unread, so it would be sent again: a write done twice. On
//! one task nothing happens between the two steps.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;

type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An executor for hyper that keeps what it is given until [`Together::run`] takes it: a few
/// futures for each stream.
#[derive(Clone, Default)]
pub struct Together(Arc<Mutex<Vec<Part>>>);

impl std::fmt::Debug for Together {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Together").finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Together {
    fn execute(&self, future: F) {
        // Called from within what `run` polls, or before it runs: nobody needs to be woken.
        self.0.lock().push(Box::pin(future));
    }
}

impl Together {
    /// Runs a connection and its parts until all have ended. `ended` is called when the
    /// connection takes no new requests; those it has go on.
    pub async fn run<C: Future>(self, connection: C, ended: impl FnOnce(C::Output)) {
        let mut open = Some((Box::pin(connection), ended));
        let mut parts = FuturesUnordered::new();
        std::future::poll_fn(|context| {
            loop {
                if let Some((connection, _)) = &mut open
                    && let Poll::Ready(output) = connection.as_mut().poll(context)
                    // Dropped, or the parts would wait for its requests.
                    && let Some((_, ended)) = open.take()
                {
                    ended(output);
                }
                let mut at_rest = false;
                while !at_rest {
                    at_rest = !matches!(parts.poll_next_unpin(context), Poll::Ready(Some(())));
                }
                let new = std::mem::take(&mut *self.0.lock());
                if new.is_empty() {
                    break;
                }
                parts.extend(new);
            }
            if open.is_none() && parts.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
