//! A shard against stores that do what a good one never does.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;

use super::super::custom;
use super::super::etcd::{RangeResponse, ResponseHeader};
use super::super::feed::Found;
use super::super::filter::Filter;
use super::super::kinds;
use super::super::table::{Start, Window};
use super::*;

#[derive(Default)]
struct State {
    cluster: u64,
    revision: i64,
    kvs: Vec<KeyValue>,
    watches: Vec<UnboundedSender<WatchResponse>>,
    /// What stands at a key by itself: a definition.
    definition: Option<KeyValue>,
    /// Reads get no answer.
    silent: bool,
}

/// A store that tells what it is told to tell.
struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut out).unwrap();
    out.freeze()
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Response<Body> {
    let header = {
        let state = state.lock();
        Some(ResponseHeader { cluster_id: state.cluster, revision: state.revision })
    };
    let body = if request.uri().path().ends_with("/Range") {
        if state.lock().silent {
            std::future::pending::<()>().await;
        }
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let asked = RangeRequest::decode(&bytes[5..]).unwrap();
        let kvs = if asked.limit > 0 {
            state.lock().kvs.clone()
        } else {
            let one = state.lock().definition.clone();
            let one = one.filter(|one| one.key == asked.key);
            let value =
                |one: &KeyValue| if asked.keys_only { Bytes::new() } else { one.value.clone() };
            one.map(|one| KeyValue { value: value(&one), ..one }).into_iter().collect()
        };
        let range = framed(&RangeResponse {
            header,
            count: kvs.len().try_into().unwrap(),
            kvs,
            more: false,
        });
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Ok(Frame::data(range)), Ok(Frame::trailers(trailers))];
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    } else {
        let (sender, receiver) = unbounded();
        let created = WatchResponse { header, created: true, ..WatchResponse::default() };
        // Of a resource and, if it has one, of its definition.
        for created in [created.clone(), created] {
            sender.unbounded_send(created).unwrap();
        }
        state.lock().watches.push(sender);
        let requests = request.into_body();
        let told = receiver.map(move |response| {
            let _open = &requests;
            Ok(Frame::data(framed(&response)))
        });
        StreamBody::new(told).boxed_unsync()
    };
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

impl Fake {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { cluster: 1, revision: 10, kvs: vec![pod("a/p", 5)], ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = shared.clone();
                let service = service_fn(move |request| {
                    let answer = answer(state.clone(), request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, state }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
    }

    /// To the watch that is open.
    fn tell(&self, response: WatchResponse) {
        self.state.lock().watches.last().unwrap().unbounded_send(response).unwrap();
    }

    fn put(&self, kv: KeyValue) {
        let header = Some(ResponseHeader { cluster_id: 1, revision: kv.mod_revision });
        let events = vec![Event { kv: Some(kv), ..Event::default() }];
        self.tell(WatchResponse { header, events, ..WatchResponse::default() });
    }
}

fn pod(key: &str, mod_revision: i64) -> KeyValue {
    let value = wire::tests::stored("p", "n", &[]);
    let key = format!("/registry/pods/{key}").into();
    KeyValue { key, mod_revision, value, ..KeyValue::default() }
}

/// A shard that has come to know what the store holds, and a watch of it.
async fn shard(fake: &Fake) -> (Arc<Shard>, Start, CancellationToken) {
    shard_of(fake, Parts::default()).await
}

async fn shard_of(fake: &Fake, parts: Parts) -> (Arc<Shard>, Start, CancellationToken) {
    megacluster_service::crypto::install();
    let shard = Shard::new(kinds::find("", "pods").unwrap(), "/registry").of_parts(parts);
    let shard = Arc::new(shard);
    let store = Store {
        endpoints: vec![format!("http://{}", fake.address)],
        ca: None,
        identity: None,
        next: Arc::default(),
    };
    let token = CancellationToken::new();
    tokio::spawn(shard.clone().run(store, token.clone()));
    until(|| shard.connected.load(Ordering::Acquire)).await;
    assert_eq!(keys(&shard).as_deref(), Some(&["a/p".to_owned()][..]));
    let start = shard.begin(|table| table.watch(&Filter::default(), None)).unwrap().unwrap();
    (shard, start, token)
}

async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time");
}

fn keys(shard: &Shard) -> Option<Vec<String>> {
    shard.read(|table| {
        table.list(&Filter::default()).iter().map(|object| object.key.to_string()).collect()
    })
}

fn is_gone(start: &Start) -> bool {
    matches!(start.feed.read(start.revision, 1), Found::Gone)
}

/// What the shard has told is not what the store goes on from: all who watch are ended, and all is
/// read anew.
#[tokio::test]
async fn a_store_that_does_not_go_on_is_read_anew() {
    let compacted = |fake: &Fake| {
        fake.change(|state| (state.revision, state.kvs) = (50, vec![pod("a/q", 45)]));
        let end = WatchResponse { canceled: true, compact_revision: 40, ..Default::default() };
        fake.tell(end);
        50
    };
    let another = |fake: &Fake| {
        fake.change(|state| {
            (state.cluster, state.revision, state.kvs) = (2, 99, vec![pod("a/q", 45)]);
            state.watches.clear();
        });
        99
    };
    let restored = |fake: &Fake| {
        fake.change(|state| {
            (state.revision, state.kvs) = (7, vec![pod("a/q", 6)]);
            state.watches.clear();
        });
        7
    };
    let cases: [&dyn Fn(&Fake) -> u64; 3] = [&compacted, &another, &restored];
    for case in cases {
        let fake = Fake::start().await;
        let (shard, start, token) = shard(&fake).await;
        let revision = case(&fake);
        until(|| is_gone(&start)).await;
        until(|| keys(&shard).is_some_and(|keys| keys == ["a/q"])).await;
        assert_eq!(shard.read(Table::revision), Some(revision));
        token.cancel();
    }
}

/// A watch that just ends is begun again where it was, and nobody hears of it.
#[tokio::test]
async fn a_watch_that_ends_goes_on() {
    let fake = Fake::start().await;
    let (shard, start, token) = shard(&fake).await;
    fake.put(pod("a/q", 11));
    until(|| shard.read(Table::revision) == Some(11)).await;
    fake.change(|state| {
        // If all were read anew, this would be missing.
        state.kvs.clear();
        state.revision = 11;
        state.watches.clear();
    });
    until(|| !fake.state.lock().watches.is_empty()).await;
    fake.put(pod("a/r", 12));
    until(|| shard.read(Table::revision) == Some(12)).await;
    assert_eq!(keys(&shard).unwrap(), ["a/p", "a/q", "a/r"]);
    let Found::Events(events, 12) = start.feed.read(start.revision, 9) else { panic!() };
    assert_eq!(events.len(), 2);
    token.cancel();
}

/// Of a value that can't be read nothing is guessed: reads go on to a kube-apiserver from then on.
#[tokio::test]
async fn values_of_others_end_the_cache() {
    let encrypted = Bytes::from_static(b"k8s:enc:aescbc:v1:key1:abc");
    let other = b"k8s\0\x0a\x0e\x0a\x07v2beta1\x12\x03Pod\x12\x04\x0a\x02\x32\x00\x1a\x00\x22\x00";
    for value in [encrypted, Bytes::from_static(other)] {
        let fake = Fake::start().await;
        let (shard, start, token) = shard(&fake).await;
        fake.put(KeyValue { value, ..pod("a/q", 11) });
        until(|| keys(&shard).is_none()).await;
        assert!(is_gone(&start));
        assert!(!shard.is_fresh(Freshness::Any).await);
        token.cancel();
    }
}

/// A shard that lags says so, after as long as kube-apiserver would wait.
#[tokio::test]
async fn a_shard_that_lags_does_not_answer() {
    let fake = Fake::start().await;
    let (shard, _, token) = shard(&fake).await;
    assert!(shard.is_fresh(Freshness::Latest).await);
    fake.change(|state| state.revision = 20);
    let begun = Instant::now();
    assert!(!shard.is_fresh(Freshness::Latest).await);
    assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()));
    // From the future, or from another cluster.
    assert!(!shard.is_fresh(Freshness::NotOlderThan(1 << 60)).await);
    assert!(shard.is_fresh(Freshness::Any).await);
    let header = Some(ResponseHeader { cluster_id: 1, revision: 20 });
    fake.tell(WatchResponse { header, ..WatchResponse::default() });
    assert!(shard.is_fresh(Freshness::Latest).await);
    // A store that can't say where it is.
    fake.change(|state| state.silent = true);
    assert!(!shard.is_fresh(Freshness::Latest).await);
    token.cancel();
}

/// A shard of some parts needs to be told what objects of others were; where the store does not know
/// any more, all is read anew.
#[tokio::test]
async fn parts_need_to_know_what_was() {
    let fake = Fake::start().await;
    // All pods are on the node "n".
    let parts = Parts::new(2, &[Parts::new(2, &[0]).unwrap().of("n")]).unwrap();
    let (shard, start, token) = shard_of(&fake, parts).await;
    let elsewhere = |mod_revision, create_revision| {
        let value = wire::tests::stored("p", "n1", &[]);
        KeyValue { create_revision, value, ..pod("a/p", mod_revision) }
    };
    assert!(!parts.holds(parts.of("n1")), "another part");
    let tell = |kv: KeyValue, prev_kv| {
        let header = Some(ResponseHeader { cluster_id: 1, revision: kv.mod_revision });
        let events = vec![Event { kv: Some(kv), prev_kv, ..Event::default() }];
        fake.tell(WatchResponse { header, events, ..WatchResponse::default() });
    };
    // It goes to another part, changes there, is new under another name, and comes back.
    tell(elsewhere(11, 5), Some(pod("a/p", 5)));
    tell(elsewhere(12, 5), Some(elsewhere(11, 5)));
    tell(KeyValue { key: "/registry/pods/a/q".into(), ..elsewhere(13, 13) }, None);
    until(|| shard.read(Table::revision) == Some(13)).await;
    assert!(keys(&shard).unwrap().is_empty());
    tell(KeyValue { create_revision: 5, ..pod("a/p", 14) }, Some(elsewhere(12, 5)));
    until(|| shard.read(Table::revision) == Some(14)).await;
    assert_eq!(keys(&shard).unwrap(), ["a/p"]);
    let Found::Events(events, 14) = start.feed.read(start.revision, 9) else { panic!() };
    let told = events.iter().map(|event| event.told(&Filter::default()).unwrap().parts().0.name());
    assert_eq!(told.collect::<Vec<_>>(), ["MODIFIED", "MODIFIED", "ADDED", "MODIFIED"]);
    tell(elsewhere(15, 5), None);
    until(|| is_gone(&start)).await;
    token.cancel();
}

/// What the table does not hold is read from the store, at least as new as asked.
#[tokio::test]
async fn parts_read_from_the_store() {
    let fake = Fake::start().await;
    let of = Parts::new(2, &[0]).unwrap().of("n");
    let (shard, _, token) = shard_of(&fake, Parts::new(2, &[of]).unwrap()).await;
    fake.change(|state| (state.revision, state.kvs) = (20, vec![pod("a/q", 15), pod("b/p", 16)]));
    let (all, now, room) = (Filter::default(), Window::default(), Room::default());
    let read = |freshness| shard.fetch(&all, &now, freshness, &room);
    let (page, held) = read(Freshness::NotOlderThan(20)).await.unwrap();
    let keys: Vec<_> = page.objects.iter().map(|object| &*object.key).collect();
    assert_eq!((keys, page.revision), (vec!["a/q", "b/p"], 20));
    assert_eq!(read(Freshness::NotOlderThan(21)).await.unwrap_err(), "stale");
    drop(held);
    // Another store, and one that does not answer.
    fake.change(|state| state.cluster = 2);
    assert_eq!(read(Freshness::Latest).await.unwrap_err(), "stale");
    fake.change(|state| (state.cluster, state.silent) = (1, true));
    assert_eq!(read(Freshness::Latest).await.unwrap_err(), "stale");
    token.cancel();
}

const DEFINITION: &str =
    "/registry/apiextensions.k8s.io/customresourcedefinitions/widgets.example.com";

fn definition(schema: &serde_json::Value, mod_revision: i64) -> KeyValue {
    let value = custom::tests::stored(&[("v1", schema.clone())]).into();
    KeyValue { key: DEFINITION.into(), mod_revision, value, ..KeyValue::default() }
}

fn widget(mod_revision: i64) -> KeyValue {
    let value = r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"}}"#;
    let key = "/registry/example.com/widgets/a/w".into();
    KeyValue { key, mod_revision, value: value.into(), ..KeyValue::default() }
}

/// A shard of widgets that has come to know what the store holds, and a watch of it.
async fn widgets(fake: &Fake) -> (Arc<Shard>, Start, CancellationToken) {
    megacluster_service::crypto::install();
    let known = definition(&serde_json::json!({}), 3);
    fake.change(|state| {
        state.kvs = vec![widget(5)];
        state.definition = Some(known.clone());
    });
    let changed = CancellationToken::new();
    let followed = custom::tests::followed(&known.value, &changed);
    let shard = Arc::new(Shard::custom(followed, "/registry", false));
    let store = Store {
        endpoints: vec![format!("http://{}", fake.address)],
        ca: None,
        identity: None,
        next: Arc::default(),
    };
    tokio::spawn(shard.clone().run(store, changed.clone()));
    until(|| shard.connected.load(Ordering::Acquire)).await;
    assert_eq!(keys(&shard).as_deref(), Some(&["a/w".to_owned()][..]));
    let start = shard.begin(|table| table.watch(&Filter::default(), None)).unwrap().unwrap();
    (shard, start, changed)
}

/// A definition that says the same is no reason to end anything, and is not taken for an object.
#[tokio::test]
async fn a_definition_that_says_the_same_changes_nothing() {
    let fake = Fake::start().await;
    let (shard, start, changed) = widgets(&fake).await;
    assert!(shard.is_fresh(Freshness::Latest).await);
    let same = definition(&serde_json::json!({}), 11);
    fake.change(|state| state.definition = Some(same.clone()));
    // Also where the read comes before the event.
    assert!(shard.is_fresh(Freshness::Latest).await);
    fake.put(same);
    fake.put(widget(12));
    until(|| shard.read(Table::revision) == Some(12)).await;
    assert!(!is_gone(&start) && !changed.is_cancelled());
    changed.cancel();
}

/// Watches end when the definition changes, and the shard with them: by the event, or by a read that
/// comes before it.
#[tokio::test]
async fn a_definition_that_changes_ends_all() {
    let other = definition(&serde_json::json!({"default": {"a": 1}, "properties": {"a": {}}}), 11);
    let event = |fake: &Fake| fake.put(other.clone());
    let gone = |fake: &Fake| {
        let kv = Some(KeyValue { value: Bytes::new(), ..other.clone() });
        let events = vec![Event { kind: 1, kv, ..Event::default() }];
        fake.tell(WatchResponse { events, ..WatchResponse::default() });
    };
    let cases: [&dyn Fn(&Fake); 2] = [&event, &gone];
    for case in cases {
        let fake = Fake::start().await;
        let (shard, start, changed) = widgets(&fake).await;
        case(&fake);
        until(|| is_gone(&start)).await;
        until(|| changed.is_cancelled()).await;
        assert!(keys(&shard).is_none());
    }
    for freshness in [Freshness::Latest, Freshness::Any, Freshness::NotOlderThan(5)] {
        for now in [Some(&other), None] {
            let fake = Fake::start().await;
            let (shard, _, changed) = widgets(&fake).await;
            fake.change(|state| state.definition = now.cloned());
            assert!(!shard.is_fresh(freshness).await);
            assert!(changed.is_cancelled());
        }
    }
}
