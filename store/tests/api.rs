//! What a client may ask of the API, one by one, with the defects that other stores of this kind
//! have as a list of what to look at.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use megacluster_store::core::KeyValue;
use megacluster_store::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::kv_client::KvClient;
use megacluster_store::pb::etcdserverpb::lease_client::LeaseClient;
use megacluster_store::pb::etcdserverpb::request_op::Request as Op;
use megacluster_store::pb::etcdserverpb::response_op::Response as Answer;
use megacluster_store::pb::etcdserverpb::watch_client::WatchClient;
use megacluster_store::pb::etcdserverpb::watch_request::RequestUnion;
use megacluster_store::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest,
};
use megacluster_store::pb::mvccpb::event::EventType;
use support::Store;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

const SOON: Duration = Duration::from_secs(20);
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

fn client(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(256 << 20)
}

fn put_op(key: &str, value: impl Into<Bytes>) -> RequestOp {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), value.into());
    RequestOp { request: Some(Op::RequestPut(PutRequest { key, value, ..Default::default() })) }
}

fn get_op(key: &str) -> RequestOp {
    let key = Bytes::copy_from_slice(key.as_bytes());
    RequestOp { request: Some(Op::RequestRange(RangeRequest { key, ..Default::default() })) }
}

fn delete_op(key: &str) -> RequestOp {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let delete = DeleteRangeRequest { key, prev_kv: true, ..Default::default() };
    RequestOp { request: Some(Op::RequestDeleteRange(delete)) }
}

/// Puts `keys` keys `/k/…`, a hundred at a revision.
async fn fill(channel: &Channel, keys: usize, value: &str) -> i64 {
    let mut revision = 0;
    for from in (0..keys).step_by(100) {
        let success = (from..keys.min(from + 100))
            .map(|n| put_op(&format!("/k/{n:06}"), value.to_owned()))
            .collect();
        let txn = TxnRequest { success, ..Default::default() };
        revision = client(channel).txn(txn).await.unwrap().into_inner().header.unwrap().revision;
    }
    revision
}

fn everything() -> RangeRequest {
    RangeRequest { key: "/k/".into(), range_end: "/k0".into(), ..Default::default() }
}

async fn range(channel: &Channel, request: RangeRequest) -> RangeResponse {
    client(channel).range(request).await.unwrap().into_inner()
}

async fn streamed(channel: &Channel, request: RangeRequest) -> Vec<RangeResponse> {
    let mut stream = client(channel).range_stream(request).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = timeout(SOON, stream.message()).await.unwrap().unwrap() {
        parts.push(part.range_response.unwrap());
    }
    parts
}

fn keys(kvs: &[KeyValue]) -> Vec<Bytes> {
    kvs.iter().map(|kv| Bytes::copy_from_slice(kv.key())).collect()
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    let (requests, outgoing) = mpsc::channel(4);
    let create = WatchCreateRequest { key: "k".into(), start_revision: 2, ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).await.unwrap();
    let watch = WatchClient::new(channel.clone()).watch(ReceiverStream::new(outgoing)).await;
    let mut watch = watch.unwrap().into_inner();
    for value in ["", "full", ""] {
        let txn = TxnRequest { success: vec![put_op("k", value)], ..Default::default() };
        client(&channel).txn(txn).await.unwrap();
    }
    let found = range(&channel, RangeRequest { key: "k".into(), ..Default::default() }).await;
    assert_eq!((found.count, found.kvs[0].value(), found.kvs[0].version()), (1, &b""[..], 3));
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap().events);
    }
    assert!(events.iter().all(|event| event.r#type() == EventType::Put));
    let store = store.restart().await;
    let channel = store.connect().await;
    let found = range(&channel, RangeRequest { key: "k".into(), ..Default::default() }).await;
    assert_eq!((found.count, found.kvs[0].version()), (1, 3));
    store.server.finish().await;
}

#[tokio::test]
async fn a_transaction_is_as_many_compares_and_operations_as_asked_for() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    fill(&channel, 3, "v").await;
    let compare = |result: CompareResult, number| Compare {
        result: result.into(),
        target: CompareTarget::Version.into(),
        key: "/k/000000".into(),
        target_union: Some(TargetUnion::Version(number)),
        ..Default::default()
    };
    // The version is 1.
    for (result, number, holds) in [
        (CompareResult::Equal, 1, true),
        (CompareResult::Equal, 2, false),
        (CompareResult::Greater, 0, true),
        (CompareResult::Greater, 1, false),
        (CompareResult::Less, 2, true),
        (CompareResult::Less, 1, false),
        (CompareResult::NotEqual, 2, true),
        (CompareResult::NotEqual, 1, false),
    ] {
        let txn = TxnRequest {
            compare: vec![compare(CompareResult::Equal, 1), compare(result, number)],
            success: vec![get_op("/k/000000"), get_op("/k/000001")],
            failure: vec![get_op("/k/000002")],
        };
        let answer = client(&channel).txn(txn).await.unwrap().into_inner();
        assert_eq!(answer.succeeded, holds, "{result:?} {number}");
        assert_eq!(answer.responses.len(), if holds { 2 } else { 1 });
    }
    let nested = TxnRequest {
        compare: vec![compare(CompareResult::Equal, 7)],
        success: vec![],
        failure: vec![put_op("/n", "nested"), get_op("/n")],
    };
    let txn = TxnRequest {
        compare: vec![],
        success: vec![
            put_op("/k/000000", "new"),
            get_op("/k/000000"),
            delete_op("/k/000001"),
            get_op("/k/000001"),
            RequestOp { request: Some(Op::RequestTxn(nested)) },
        ],
        failure: vec![],
    };
    let answer = client(&channel).txn(txn).await.unwrap().into_inner();
    let revision = answer.header.unwrap().revision;
    let answers: Vec<Answer> = answer.responses.into_iter().map(|r| r.response.unwrap()).collect();
    let Answer::ResponseRange(own) = &answers[1] else { panic!("{answers:?}") };
    // A transaction reads its own writes, all at its one revision.
    assert_eq!((own.kvs[0].value(), own.kvs[0].mod_revision()), (&b"new"[..], revision));
    let Answer::ResponseDeleteRange(deleted) = &answers[2] else { panic!("{answers:?}") };
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].value()), (1, &b"v"[..]));
    assert!(matches!(&answers[3], Answer::ResponseRange(none) if none.count == 0));
    let Answer::ResponseTxn(nested) = &answers[4] else { panic!("{answers:?}") };
    assert!(!nested.succeeded && nested.responses.len() == 2);
    store.server.finish().await;
}

#[tokio::test]
async fn a_range_stream_is_one_read_in_parts() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    let revision = fill(&channel, 6000, &"x".repeat(300)).await;
    let whole = range(&channel, everything()).await;
    assert_eq!((whole.kvs.len(), whole.count, whole.more), (6000, 6000, false));

    let parts = streamed(&channel, everything()).await;
    assert!(parts.len() > 3);
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|part| part.header.is_none() && part.count == 0 && !part.more));
    assert_eq!(last.header.as_ref().unwrap().revision, revision);
    assert_eq!((last.count, last.more), (6000, false));
    assert_eq!(parts.iter().flat_map(|part| part.kvs.clone()).collect::<Vec<_>>(), whole.kvs);

    // A limit that ends within a part, and one that ends where the keys do.
    for (limit, more) in [(2500, true), (6000, false), (1, true)] {
        let parts = streamed(&channel, RangeRequest { limit, ..everything() }).await;
        let found: usize = parts.iter().map(|part| part.kvs.len()).sum();
        let last = parts.last().unwrap();
        assert_eq!((found, last.count, last.more), (usize::try_from(limit).unwrap(), 6000, more));
        let plain = range(&channel, RangeRequest { limit, ..everything() }).await;
        assert_eq!((plain.kvs.len(), plain.count, plain.more), (found, 6000, more));
    }
    let count = streamed(&channel, RangeRequest { count_only: true, ..everything() }).await;
    assert_eq!((count.len(), count[0].count, count[0].kvs.len()), (1, 6000, 0));
    let names = streamed(&channel, RangeRequest { keys_only: true, ..everything() }).await;
    assert!(names.iter().flat_map(|part| &part.kvs).all(|kv| kv.value().is_empty()));
    let none = streamed(&channel, RangeRequest { key: "/x".into(), ..Default::default() }).await;
    assert_eq!((none.len(), none[0].header.as_ref().unwrap().revision), (1, revision));

    // As in etcd 3.7.
    for request in [
        RangeRequest { sort_order: 2, ..everything() },
        RangeRequest { min_mod_revision: 3, ..everything() },
    ] {
        let refused = client(&channel).range_stream(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    }
    let future = RangeRequest { revision: revision + 1, ..everything() };
    let refused = client(&channel).range_stream(future).await.unwrap_err();
    assert!(refused.message().ends_with("required revision is a future revision"));
    store.server.finish().await;
}

#[tokio::test]
async fn writes_between_the_parts_are_not_seen() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    let writer = store.connect().await;
    let revision = fill(&channel, 6000, &"x".repeat(1000)).await;
    let whole = range(&channel, everything()).await.kvs;
    let mut stream = client(&channel).range_stream(everything()).await.unwrap().into_inner();
    let mut found = stream.message().await.unwrap().unwrap().range_response.unwrap().kvs;
    // Nothing more is read before the client asks; by then much has changed.
    fill(&writer, 6000, "changed").await;
    let delete = DeleteRangeRequest {
        key: "/k/003".into(),
        range_end: "/k/005".into(),
        ..Default::default()
    };
    client(&writer).delete_range(delete).await.unwrap();
    let mut header = None;
    while let Some(part) = timeout(SOON, stream.message()).await.unwrap().unwrap() {
        let part = part.range_response.unwrap();
        header = part.header.or(header);
        found.extend(part.kvs);
    }
    assert_eq!(header.unwrap().revision, revision);
    assert_eq!(found, whole);
    // And a plain read of a past revision in several pages.
    let past = range(&channel, RangeRequest { revision, ..everything() }).await;
    assert_eq!((past.kvs == whole, past.count), (true, 6000));
    store.server.finish().await;
}

#[tokio::test]
async fn long_reads_are_sorted_and_filtered_as_a_whole() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    fill(&channel, 5000, "v").await;
    let newest = client(&channel)
        .put(PutRequest { key: "/k/000007".into(), value: "new".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let newest = newest.header.unwrap().revision;
    // By mod revision, newest first.
    let sorted = RangeRequest { sort_order: 2, sort_target: 3, limit: 3, ..everything() };
    let found = range(&channel, sorted).await;
    assert_eq!(found.kvs[0].key(), b"/k/000007");
    assert_eq!((found.kvs.len(), found.count, found.more), (3, 5000, true));
    let filtered = RangeRequest { min_mod_revision: newest, ..everything() };
    let found = range(&channel, filtered).await;
    assert_eq!((keys(&found.kvs), found.count), (vec![Bytes::from_static(b"/k/000007")], 5000));
    let descending = RangeRequest { sort_order: 2, keys_only: true, ..everything() };
    let found = range(&channel, descending).await;
    assert!(found.kvs.len() == 5000 && found.kvs.is_sorted_by(|a, b| a.key() > b.key()));
    store.server.finish().await;
}

/// Compaction keeps the newest version of each live key, at the compacted revision itself, while
/// writers, readers and a watch that is up to date go on.
#[tokio::test]
async fn compaction_at_the_current_revision_under_load() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    fill(&channel, 3000, "v").await;
    let (requests, outgoing) = mpsc::channel(4);
    let create = WatchCreateRequest {
        key: "/k/".into(),
        range_end: "/k0".into(),
        prev_kv: true,
        ..Default::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).await.unwrap();
    let watch = WatchClient::new(channel.clone()).watch(ReceiverStream::new(outgoing)).await;
    let mut watch = watch.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().created);
    let writer = store.connect().await;
    let load = tokio::spawn(async move {
        for n in 0..200 {
            let key = format!("/k/{:06}", n * 7 % 3000);
            let put = PutRequest { key: key.into(), value: "w".into(), ..Default::default() };
            client(&writer).put(put).await.unwrap();
        }
    });
    let mut compacted = 0;
    while !load.is_finished() {
        let current = range(&channel, RangeRequest { key: "a".into(), ..Default::default() }).await;
        let current = current.header.unwrap().revision;
        if current > compacted {
            compacted = current;
            let compact = CompactionRequest { revision: current, physical: false };
            client(&channel).compact(compact).await.unwrap();
            // All keys are still there, at the compacted revision and now; below it none are. The
            // next compaction may have come first only if it is ours, and it is not.
            for revision in [0, current] {
                let all = range(&channel, RangeRequest { revision, ..everything() }).await;
                assert_eq!((all.kvs.len(), all.count), (3000, 3000));
            }
            let below = RangeRequest { revision: current - 1, ..everything() };
            assert_eq!(client(&channel).range(below).await.unwrap_err().message(), COMPACTED);
        }
    }
    load.await.unwrap();
    let mut events = 0;
    while events < 200 {
        let news = timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap();
        assert!(!news.canceled, "{news:?}");
        events += news.events.len();
    }
    store.server.finish().await;
}

#[tokio::test]
async fn leases_of_all_lengths() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    let mut leases = LeaseClient::new(channel.clone());
    // As etcd rounds: seconds are the least there are, and two of them the least that is granted.
    for (asked, granted) in [(0, 2), (-5, 2), (1, 2), (31_536_000, 31_536_000)] {
        let lease = leases.lease_grant(LeaseGrantRequest { ttl: asked, id: 0 }).await.unwrap();
        let lease = lease.into_inner();
        assert_eq!(lease.ttl, granted);
        let view = LeaseTimeToLiveRequest { id: lease.id, keys: false };
        let view = leases.lease_time_to_live(view).await.unwrap().into_inner();
        assert!(view.granted_ttl == granted && (0..=granted).contains(&view.ttl));
    }
    let longest = LeaseGrantRequest { ttl: 9_000_000_000, id: 0 };
    assert_eq!(leases.lease_grant(longest).await.unwrap().into_inner().ttl, 9_000_000_000);
    let longer = LeaseGrantRequest { ttl: 9_000_000_001, id: 0 };
    let refused = leases.lease_grant(longer).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::OutOfRange, "etcdserver: too large lease TTL")
    );
    store.server.finish().await;
}
