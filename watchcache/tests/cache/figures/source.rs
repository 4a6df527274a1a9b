//! Stores to measure against: objects written past kube-apiserver, and a store that does nothing
//! but tell events as fast as they are taken.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::sync::Notify;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Eq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Eq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Header {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Event {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

/// A client of the store.
#[derive(Clone)]
pub(super) struct Writer(Grpc<Channel>);

impl Writer {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        Self(Grpc::new(endpoint.unwrap().connect().await.unwrap()))
    }

    pub(super) async fn put(&mut self, key: String, value: Bytes) {
        self.0.ready().await.unwrap();
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        let request = tonic::Request::new(PutRequest { key: key.into(), value });
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        self.0.unary(request, path, codec).await.unwrap();
    }

    pub(super) async fn get(&mut self, key: &str) -> Bytes {
        self.0.ready().await.unwrap();
        let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
        let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()) };
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let answer = self.0.unary(tonic::Request::new(request), path, codec).await.unwrap();
        answer.into_inner().kvs.remove(0).value
    }
}

/// One object in many: fixed places of its bytes are filled with a number.
pub(crate) struct Template {
    value: Bytes,
    places: Vec<(usize, usize, usize, usize)>,
}

impl Template {
    /// Each text ends with zeros that are replaced by the number, divided by the one and reduced
    /// modulo the other.
    pub(super) fn new(value: Bytes, texts: &[(&str, usize, usize)]) -> Self {
        let mut places = Vec::new();
        for (text, divisor, modulus) in texts {
            let found = value.windows(text.len()).enumerate();
            let found = found.filter(|(_, window)| window == &text.as_bytes()).map(|(at, _)| at);
            let zeros = text.len() - text.trim_end_matches('0').len();
            places.extend(found.map(|at| (at + text.len() - zeros, zeros, *divisor, *modulus)));
        }
        assert!(places.len() >= texts.len(), "{places:?}");
        Self { value, places }
    }

    pub(super) fn of(&self, number: usize) -> Bytes {
        let mut value = self.value.to_vec();
        for (at, width, divisor, modulus) in &self.places {
            let mut rest = number / divisor % modulus;
            for place in (0..*width).rev() {
                value[at + place] = b'0' + u8::try_from(rest % 10).unwrap();
                rest /= 10;
            }
        }
        value.into()
    }
}

type Chunk = Result<Frame<Bytes>, Infallible>;

fn message(message: &impl Message) -> Frame<Bytes> {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut out).unwrap();
    Frame::data(out.freeze())
}

/// A store with these objects. It tells its watch's events once it is told to.
pub(super) struct Source {
    pub(super) address: SocketAddr,
    pub(super) go: Arc<Notify>,
}

impl Source {
    /// The objects are of revision 1; messages of events follow, from revision 2 on.
    pub(super) async fn start(objects: Vec<KeyValue>, batches: Vec<Vec<KeyValue>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let header = |revision| Some(Header { cluster_id: 1, revision });
        let range = message(&RangeResponse { header: header(1), kvs: objects });
        let event = |kv| Event { kind: 0, kv: Some(kv) };
        let events: Arc<Vec<Bytes>> = Arc::new(
            batches
                .into_iter()
                .map(|batch| {
                    let events: Vec<_> = batch.into_iter().map(event).collect();
                    let revision = events.last().unwrap().kv.as_ref().unwrap().mod_revision;
                    let header = header(revision);
                    message(&WatchResponse { header, events, created: false }).into_data().unwrap()
                })
                .collect(),
        );
        let created = WatchResponse { header: header(1), created: true, events: Vec::new() };
        let created = message(&created).into_data().unwrap();
        let range = range.into_data().unwrap();
        let go = Arc::new(Notify::new());
        let told = go.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (range, created) = (range.clone(), created.clone());
                let (events, told) = (events.clone(), told.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = if request.uri().path().ends_with("/Range") {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        let chunks: [Chunk; 2] =
                            [Ok(Frame::data(range.clone())), Ok(Frame::trailers(trailers))];
                        StreamBody::new(futures::stream::iter(chunks)).boxed_unsync()
                    } else {
                        StreamBody::new(events_of(
                            request.into_body(),
                            created.clone(),
                            events.clone(),
                            told.clone(),
                        ))
                        .boxed_unsync()
                    };
                    let response = Response::builder().header("content-type", "application/grpc");
                    std::future::ready(response.body(answer))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_send_buf_size(4 << 20)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // It ends when the front door does.
                    let _ = server.await;
                });
            }
        });
        Self { address, go }
    }
}

fn events_of(
    requests: Incoming,
    created: Bytes,
    events: Arc<Vec<Bytes>>,
    told: Arc<Notify>,
) -> impl futures::Stream<Item = Chunk> {
    futures::stream::unfold((requests, 0usize), move |(requests, place)| {
        let (created, events, told) = (created.clone(), events.clone(), told.clone());
        async move {
            let chunk = match place {
                0 => created,
                place => {
                    if place == 1 {
                        told.notified().await;
                    }
                    match events.get(place - 1) {
                        Some(chunk) => chunk.clone(),
                        None => loop {
                            tokio::time::sleep(Duration::from_mins(10)).await;
                        },
                    }
                }
            };
            Some((Ok(Frame::data(chunk)), (requests, place + 1)))
        }
    })
}
