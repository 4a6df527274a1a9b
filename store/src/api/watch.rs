//! The Watch service: one task for each stream, which reads the history with a cursor for each
//! watch and sends at the pace of its client.
//!
//! Answers are written here as they go over the wire, many to a piece: with a hundred watchers of
//! one prefix, making a message of each answer and encoding that costs more than all else.

mod encode;
mod session;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, Streaming};
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use self::session::Session;
use super::Api;
use crate::pb::etcdserverpb::WatchRequest;
use crate::sequencer::Inbox;

/// Pieces of answers that may wait for a client. Beyond, the stream's task waits and its watches
/// fall back on the history; nobody else notices.
const OUTGOING: usize = 4;

/// What a stream sends.
#[derive(Debug)]
enum Piece {
    /// Whole messages, each with the head that gRPC puts before it.
    Messages(Bytes),
    /// The end, and how it came to it.
    End(Status),
}

/// The service: in place of `tonic`'s server, which would encode each answer by itself.
#[derive(Clone, Debug)]
pub(super) struct WatchService {
    api: Api,
    /// Largest request in bytes.
    decode: usize,
}

impl WatchService {
    pub(super) fn new(api: Api, decode: usize) -> Self {
        Self { api, decode }
    }

    fn watch(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() != "/etcdserverpb.Watch/Watch" {
            return Err(Status::new(Code::Unimplemented, ""));
        }
        // As tonic answers where no compression was enabled.
        let encoding = request.headers().get("grpc-encoding").map(HeaderValue::as_bytes);
        if encoding.is_some_and(|encoding| encoding != b"identity") {
            return Err(Status::unimplemented("compressed requests are not supported"));
        }
        let inner = &self.api.inner;
        let number = inner.streams.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::new(number));
        inner.handle.open(inbox.clone())?;
        let decoder = ProstCodec::<(), WatchRequest>::default().decoder();
        let requests =
            Streaming::new_request(decoder, request.into_body(), None, Some(self.decode));
        let (outgoing, pieces) = mpsc::channel(OUTGOING);
        tokio::spawn(Session::new(self.api.clone(), inbox, outgoing).run(requests));
        let frames = ReceiverStream::new(pieces).map(|piece| match piece {
            Piece::Messages(bytes) => Ok(Frame::data(bytes)),
            Piece::End(status) => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Ok::<_, Status>(Frame::trailers(trailers))
            }
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        Ok(response)
    }
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<Request<Body>> for WatchService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ready(Ok(self.watch(request).unwrap_or_else(Status::into_http)))
    }
}
