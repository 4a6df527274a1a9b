//! The Watch service: one task for each stream, which reads the history with a cursor for each
//! watch and sends at the pace of its client.

mod session;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::session::Session;
use super::{Answer, Api};
use crate::pb::etcdserverpb::{WatchRequest, WatchResponse, watch_server::Watch};
use crate::sequencer::Inbox;

/// Answers that may wait for a client. Beyond, the stream's task waits and its watches fall back
/// on the history; nobody else notices.
const OUTGOING: usize = 4;

#[tonic::async_trait]
impl Watch for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        let number = self.inner.streams.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::new(number));
        self.inner.handle.open(inbox.clone())?;
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        let session = Session::new(self.clone(), inbox, outgoing);
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
