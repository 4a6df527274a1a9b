//! The whole store in this process, driven over mTLS by the generated client.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use megacluster_store::pb::etcdserverpb::compare::{CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::kv_client::KvClient;
use megacluster_store::pb::etcdserverpb::lease_client::LeaseClient;
use megacluster_store::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use megacluster_store::pb::etcdserverpb::request_op::Request as Op;
use megacluster_store::pb::etcdserverpb::watch_client::WatchClient;
use megacluster_store::pb::etcdserverpb::watch_request::RequestUnion;
use megacluster_store::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseTimeToLiveRequest, PutRequest, PutResponse, RangeRequest, RequestOp, SnapshotRequest,
    StatusRequest, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use megacluster_store::pb::mvccpb::event::EventType;
use support::{Ca, Store};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const SOON: Duration = Duration::from_secs(10);

async fn put(channel: &Channel, key: &str, value: impl Into<Bytes>) -> Result<PutResponse, Status> {
    let request = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        ..Default::default()
    };
    let mut client = KvClient::new(channel.clone()).max_encoding_message_size(64 << 20);
    client.put(request).await.map(tonic::Response::into_inner)
}

async fn revision(channel: &Channel) -> i64 {
    let request = RangeRequest { key: "absent".into(), ..Default::default() };
    let found = KvClient::new(channel.clone()).range(request).await.unwrap().into_inner();
    found.header.unwrap().revision
}

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watch {
    async fn open(channel: &Channel) -> Self {
        let (requests, outgoing) = mpsc::channel(64);
        let stream = ReceiverStream::new(outgoing);
        let answers = WatchClient::new(channel.clone()).watch(stream).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn send(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    async fn create(&self, create: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> WatchResponse {
        timeout(SOON, self.answers.message()).await.unwrap().unwrap().unwrap()
    }

    /// The next answer with events, or that is not mere progress.
    async fn news(&mut self) -> WatchResponse {
        loop {
            let answer = self.next().await;
            let progress = answer.events.is_empty() && !answer.created && !answer.canceled;
            if !progress {
                return answer;
            }
        }
    }
}

fn prefix(prefix: &'static str, start_revision: i64) -> WatchCreateRequest {
    let end = megacluster_store::core::prefix_end(prefix.as_bytes()).unwrap();
    WatchCreateRequest {
        key: prefix.into(),
        range_end: end.into(),
        start_revision,
        prev_kv: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn wrong_certificates_stay_outside() {
    let store = Store::start(&[]).await;
    let get = |channel: Channel| async move {
        let request = RangeRequest { key: "k".into(), ..Default::default() };
        KvClient::new(channel).range(request).await
    };
    for identity in [None, Some(Ca::new("other-ca").leaf("client"))] {
        // In TLS 1.3 the client learns of the refusal with its first request.
        let refused = match store.endpoint(identity).connect().await {
            Ok(channel) => get(channel).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    assert!(get(store.connect().await).await.is_ok());
    store.server.finish().await;
}

#[tokio::test]
async fn requests_over_the_limits_are_refused_in_etcds_words() {
    let store = Store::start(&["--max-txn-ops=4"]).await;
    let channel = store.connect().await;
    put(&channel, "k", vec![b'x'; 1_500_000]).await.unwrap();
    let large = put(&channel, "k", vec![b'x'; 1_600_000]).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    assert_eq!(large.message(), "etcdserver: request is too large");
    let larger = put(&channel, "k", vec![b'x'; 2 << 20]).await.unwrap_err();
    assert_eq!(larger.code(), Code::ResourceExhausted);
    assert!(larger.message().starts_with("grpc: received message larger than max"));
    assert!(put(&channel, "k", vec![b'x'; 32 << 20]).await.is_err());

    let op = RequestOp {
        request: Some(Op::RequestRange(RangeRequest { key: "k".into(), ..Default::default() })),
    };
    let txn = TxnRequest { success: vec![op; 5], ..Default::default() };
    let many = KvClient::new(channel.clone()).txn(txn).await.unwrap_err();
    assert_eq!(many.message(), "etcdserver: too many operations in txn request");
    // None of it did any harm.
    assert_eq!(revision(&channel).await, 2);
    store.server.finish().await;
}

#[tokio::test]
async fn of_a_hundred_creates_one_succeeds() {
    let store = Store::start(&[]).await;
    let channels = [store.connect().await, store.connect().await];
    let create = |n: usize| {
        let channel = channels[n % 2].clone();
        let txn = TxnRequest {
            compare: vec![Compare {
                target: CompareTarget::Mod.into(),
                key: "lock".into(),
                target_union: Some(TargetUnion::ModRevision(0)),
                ..Default::default()
            }],
            success: vec![RequestOp {
                request: Some(Op::RequestPut(PutRequest {
                    key: "lock".into(),
                    value: Bytes::from(n.to_string()),
                    ..Default::default()
                })),
            }],
            failure: vec![],
        };
        async move { KvClient::new(channel).txn(txn).await.unwrap().into_inner().succeeded }
    };
    let outcomes = futures::future::join_all((0..100).map(create)).await;
    assert_eq!(outcomes.iter().filter(|succeeded| **succeeded).count(), 1);
    assert_eq!(revision(&channels[0]).await, 2);
    store.server.finish().await;
}

#[tokio::test]
async fn many_watches_share_a_stream() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    put(&channel, "/a/1", "old").await.unwrap();
    let mut watch = Watch::open(&channel).await;
    watch.create(prefix("/a/", 2)).await;
    let created = watch.next().await;
    assert!(created.created && created.watch_id == 0);
    // From the past, with the revision of the list.
    let past = watch.news().await;
    assert_eq!((past.watch_id, past.events.len()), (0, 1));

    watch.create(WatchCreateRequest { watch_id: 7, filters: vec![0], ..prefix("/a/", 0) }).await;
    assert_eq!(watch.news().await.watch_id, 7);
    // An id in use, an empty range and a negative revision make no watch.
    for bad in [
        WatchCreateRequest { watch_id: 7, ..prefix("/a/", 0) },
        WatchCreateRequest { range_end: "/".into(), ..prefix("/a/", 0) },
        prefix("/a/", -1),
    ] {
        watch.create(bad).await;
        let refused = watch.news().await;
        assert!(refused.created && refused.canceled && refused.watch_id == -1);
        assert!(!refused.cancel_reason.is_empty());
    }

    put(&channel, "/a/1", "new").await.unwrap();
    let event = watch.news().await;
    assert_eq!(event.watch_id, 0);
    let kv = event.events[0].kv.as_ref().unwrap();
    assert_eq!((kv.value(), kv.version(), kv.mod_revision()), (&b"new"[..], 2, 3));
    assert_eq!(event.events[0].prev_kv.as_ref().unwrap().value(), b"old");
    // Watch 7 does not want puts; both want the delete.
    let delete = DeleteRangeRequest { key: "/a/1".into(), ..Default::default() };
    KvClient::new(channel.clone()).delete_range(delete).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let event = watch.news().await;
        assert_eq!(event.events[0].r#type(), EventType::Delete);
        assert_eq!(event.events[0].prev_kv.as_ref().unwrap().value(), b"new");
        assert_eq!(event.events[0].kv.as_ref().unwrap().mod_revision(), 4);
        ids.push(event.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 7]);

    watch.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })).await;
    let canceled = watch.news().await;
    assert!(canceled.canceled && canceled.watch_id == 0 && canceled.compact_revision == 0);
    // The id may be used again at once.
    watch.create(WatchCreateRequest { watch_id: 7, ..prefix("/b/", 0) }).await;
    assert_eq!(watch.news().await.watch_id, -1);
    watch.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })).await;
    watch.create(WatchCreateRequest { watch_id: 7, ..prefix("/b/", 0) }).await;
    assert!(watch.news().await.canceled);
    assert!(watch.news().await.created);
    put(&channel, "/b/1", "v").await.unwrap();
    assert_eq!(watch.news().await.watch_id, 7);
    store.server.finish().await;
}

#[tokio::test]
async fn progress_says_how_far_a_watch_is() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    let mut watch = Watch::open(&channel).await;
    watch.create(WatchCreateRequest { progress_notify: true, ..prefix("/a/", 0) }).await;
    watch.create(prefix("/b/", 0)).await;
    assert!(watch.news().await.created && watch.news().await.created);
    put(&channel, "/c/1", "v").await.unwrap();
    let at = revision(&channel).await;

    // Asked for: on behalf of all watches, and never below what a reader saw.
    watch.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    loop {
        let progress = watch.next().await;
        assert!(progress.events.is_empty());
        assert!(progress.header.unwrap().revision >= at);
        if progress.watch_id == -1 {
            break;
        }
        assert_eq!(progress.watch_id, 0, "only the watch that asked is told by the clock");
    }
    // By the clock.
    assert_eq!(watch.next().await.watch_id, 0);
    store.server.finish().await;
}

#[tokio::test]
async fn a_compacted_watch_is_created_and_cancelled() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    for n in 0..5 {
        put(&channel, "k", n.to_string()).await.unwrap();
    }
    let mut running = Watch::open(&channel).await;
    running.create(WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
    assert!(running.next().await.created);
    let mut client = KvClient::new(channel.clone());
    client.compact(CompactionRequest { revision: 5, physical: true }).await.unwrap();
    let again = client.compact(CompactionRequest { revision: 5, physical: false }).await;
    let again = again.unwrap_err();
    assert_eq!(
        (again.code(), again.message()),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
    );
    let future = client.compact(CompactionRequest { revision: 50, physical: false }).await;
    let future = future.unwrap_err();
    assert_eq!(future.message(), "etcdserver: mvcc: required revision is a future revision");

    let mut watch = Watch::open(&channel).await;
    watch
        .create(WatchCreateRequest { key: "k".into(), start_revision: 4, ..Default::default() })
        .await;
    let created = watch.next().await;
    assert!(created.created && !created.canceled);
    let canceled = watch.next().await;
    assert!(canceled.canceled && canceled.watch_id == created.watch_id);
    assert_eq!(canceled.compact_revision, 5);
    // At the compacted revision itself history is whole.
    watch
        .create(WatchCreateRequest { key: "k".into(), start_revision: 5, ..Default::default() })
        .await;
    assert!(watch.news().await.created);
    assert_eq!(watch.news().await.events.len(), 2);
    // The watch that was up to date goes on.
    put(&channel, "k", "on").await.unwrap();
    assert_eq!(running.news().await.events.len(), 1);
    store.server.finish().await;
}

/// List, then watch from the next revision while writers go on: every change is seen once.
#[tokio::test]
async fn between_list_and_watch_there_is_no_gap() {
    let store = Store::start(&["--durability=buffered"]).await;
    let writers: Vec<_> = futures::future::join_all((0..4).map(|_| store.connect())).await;
    let load = writers.into_iter().enumerate().map(|(w, channel)| {
        tokio::spawn(async move {
            for n in 0..200 {
                put(&channel, &format!("/w/{w}/{}", n % 7), n.to_string()).await.unwrap();
            }
        })
    });
    let load: Vec<_> = load.collect();
    let channel = store.connect().await;
    let mut seen: Vec<(Vec<i64>, i64)> = Vec::new();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let all = RangeRequest { key: "/w/".into(), range_end: "/w0".into(), ..Default::default() };
        let list = KvClient::new(channel.clone()).range(all).await.unwrap().into_inner();
        let listed = list.header.unwrap().revision;
        assert!(list.kvs.iter().all(|kv| kv.mod_revision() <= listed));
        let mut watch = Watch::open(&channel).await;
        watch.create(prefix("/w/", listed + 1)).await;
        let mut revisions = Vec::new();
        while revisions.last() != Some(&801) {
            for event in watch.next().await.events {
                revisions.push(event.kv.unwrap().mod_revision());
            }
            if listed == 801 {
                break;
            }
        }
        seen.push((revisions, listed));
    }
    for task in load {
        task.await.unwrap();
    }
    for (revisions, listed) in seen {
        let wanted: Vec<i64> = (listed + 1..=801).collect();
        assert_eq!(revisions, wanted);
    }
    store.server.finish().await;
}

/// A client that never reads holds up nobody, and gets everything once it does.
#[tokio::test]
async fn a_slow_watcher_delays_nobody() {
    let store = Store::start(&["--durability=buffered"]).await;
    let channel = store.connect().await;
    let mut slow = Watch::open(&channel).await;
    slow.create(prefix("/s/", 0)).await;
    let quick_channel = store.connect().await;
    let mut quick = Watch::open(&quick_channel).await;
    quick.create(prefix("/s/", 0)).await;
    assert!(quick.next().await.created);
    let mut got = 0;
    for n in 0..64 {
        put(&quick_channel, &format!("/s/{n}"), vec![b'x'; 500_000]).await.unwrap();
        while got <= n {
            got += i32::try_from(quick.news().await.events.len()).unwrap();
        }
    }
    assert!(slow.next().await.created);
    let mut late = Vec::new();
    while late.len() < 64 {
        late.extend(slow.news().await.events.into_iter().map(|e| e.kv.unwrap().mod_revision()));
    }
    assert_eq!(late, (2..66).collect::<Vec<i64>>());
    store.server.finish().await;
}

#[tokio::test]
async fn leases_expire_and_live_on_when_kept() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    let mut leases = LeaseClient::new(channel.clone());
    let short = leases.lease_grant(LeaseGrantRequest { ttl: 1, id: 0 }).await.unwrap().into_inner();
    assert_eq!(short.ttl, 2, "etcd's least time to live");
    let kept = leases.lease_grant(LeaseGrantRequest { ttl: 2, id: 77 }).await.unwrap().into_inner();
    let twice = leases.lease_grant(LeaseGrantRequest { ttl: 2, id: 77 }).await.unwrap_err();
    assert_eq!(twice.message(), "etcdserver: lease already exists");
    for (key, lease) in [("gone", short.id), ("kept", kept.id)] {
        let put = PutRequest { key: key.into(), lease, ..Default::default() };
        KvClient::new(channel.clone()).put(put).await.unwrap();
    }
    let (beats, outgoing) = mpsc::channel(4);
    let answers = leases.lease_keep_alive(ReceiverStream::new(outgoing)).await;
    let mut answers = answers.unwrap().into_inner();
    for _ in 0..7 {
        beats.send(LeaseKeepAliveRequest { id: 77 }).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 2);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    beats.send(LeaseKeepAliveRequest { id: short.id }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0);
    let view = LeaseTimeToLiveRequest { id: short.id, keys: true };
    assert_eq!(leases.lease_time_to_live(view).await.unwrap().into_inner().ttl, -1);
    let view = LeaseTimeToLiveRequest { id: 77, keys: true };
    let view = leases.lease_time_to_live(view).await.unwrap().into_inner();
    assert_eq!((view.granted_ttl, view.keys), (2, vec![Bytes::from_static(b"kept")]));
    let get = RangeRequest { key: "a".into(), range_end: "\0".into(), ..Default::default() };
    let left = KvClient::new(channel.clone()).range(get).await.unwrap().into_inner();
    assert_eq!(left.kvs.len(), 1);
    store.server.finish().await;
}

#[tokio::test]
async fn a_restart_in_order_keeps_keys_leases_and_revisions() {
    let store = Store::start(&["--durability=buffered", "--durability-rule=/volatile/=none"]).await;
    let channel = store.connect().await;
    let grant = LeaseGrantRequest { ttl: 600, id: 5 };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    for n in 0..100 {
        put(&channel, &format!("/k/{}", n % 10), n.to_string()).await.unwrap();
    }
    let leased = PutRequest { key: "/k/leased".into(), lease: 5, ..Default::default() };
    KvClient::new(channel.clone()).put(leased).await.unwrap();
    put(&channel, "/volatile/1", "v").await.unwrap();
    let before = revision(&channel).await;
    assert_eq!(before, 103);

    let mut watch = Watch::open(&channel).await;
    watch.create(prefix("/k/", 0)).await;
    assert!(watch.next().await.created);
    let store = store.restart().await;
    // The stream was ended with etcd's error.
    let end = timeout(SOON, watch.answers.message()).await.unwrap().unwrap_err();
    assert_eq!(end.message(), "etcdserver: server stopped");

    let channel = store.connect().await;
    let after = revision(&channel).await;
    assert!(after >= before, "{after} after {before}");
    let all = RangeRequest { key: "/".into(), range_end: "0".into(), ..Default::default() };
    let found = KvClient::new(channel.clone()).range(all).await.unwrap().into_inner();
    assert_eq!(found.kvs.len(), 11, "the key of class none is gone");
    assert_eq!(found.kvs[3].value(), b"93");
    assert_eq!((found.kvs[3].create_revision(), found.kvs[3].version()), (5, 10));
    let view = LeaseTimeToLiveRequest { id: 5, keys: true };
    let view = LeaseClient::new(channel.clone()).lease_time_to_live(view).await.unwrap();
    assert_eq!(view.into_inner().keys, vec![Bytes::from_static(b"/k/leased")]);
    // Something that was seen is gone, so a watch from before must list anew.
    let mut watch = Watch::open(&channel).await;
    watch.create(prefix("/volatile/", before + 1)).await;
    assert!(watch.next().await.created);
    assert!(watch.next().await.compact_revision > before);
    store.server.finish().await;
}

#[tokio::test]
async fn maintenance_tells_the_truth() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    put(&channel, "k", "v").await.unwrap();
    let mut client = MaintenanceClient::new(channel.clone());
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.version, "3.6.8");
    assert_eq!(status.leader, status.header.unwrap().member_id);
    assert!(status.db_size > 0 && status.errors.is_empty());
    let mut snapshot = client.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(part) = snapshot.message().await.unwrap() {
        file.extend_from_slice(&part.blob);
    }
    // Whole pages, and a checksum; etcdutl itself reads one in the conformance tests.
    assert_eq!(file.len() % 4096, 32);

    let stream = KvClient::new(channel.clone())
        .range_stream(RangeRequest { key: "k".into(), ..Default::default() })
        .await;
    let part = stream.unwrap().into_inner().message().await.unwrap().unwrap();
    let part = part.range_response.unwrap();
    assert_eq!((part.kvs.len(), part.count, part.header.unwrap().revision), (1, 1, 2));
    store.server.finish().await;
}

async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn health_and_metrics_are_etcds() {
    let store = Store::start(&["--quota-backend-bytes=3000"]).await;
    let channel = store.connect().await;
    let admin = store.server.admin_addresses()[0];
    put(&channel, "k", vec![b'x'; 1000]).await.unwrap();
    let health = http_get(admin, "/health").await;
    assert!(health.starts_with("HTTP/1.1 200"));
    assert!(health.ends_with(r#"{"health":"true","reason":""}"#), "{health}");
    assert!(http_get(admin, "/version").await.contains(r#""etcdserver":"3.6.8""#));
    assert!(http_get(admin, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = http_get(admin, "/metrics").await;
    assert!(metrics.contains("etcd_mvcc_put_total 1\n"), "{metrics}");
    assert!(metrics.contains("etcd_debugging_mvcc_current_revision 2\n"));

    // Over the quota: no puts, the alarm, and health says so; deletes and reads go on.
    let full = put(&channel, "k", vec![b'x'; 2000]).await.unwrap_err();
    assert_eq!(
        (full.code(), full.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    let health = http_get(admin, "/health").await;
    assert!(health.contains("503") && health.contains("ALARM NOSPACE"), "{health}");
    let status = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await.unwrap();
    assert!(status.into_inner().errors[0].contains("NOSPACE"));
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    KvClient::new(channel.clone()).delete_range(delete).await.unwrap();
    store.server.finish().await;
}

#[tokio::test]
async fn calls_are_counted_under_etcds_names() {
    let store = Store::start(&[]).await;
    let channel = store.connect().await;
    for n in 0..5 {
        put(&channel, "k", n.to_string()).await.unwrap();
    }
    let future = RangeRequest { key: "k".into(), revision: 99, ..Default::default() };
    KvClient::new(channel.clone()).range(future).await.unwrap_err();
    let all = RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
    KvClient::new(channel.clone()).range(all).await.unwrap();
    MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await.unwrap();
    let mut watch = Watch::open(&channel).await;
    watch.create(prefix("k", 2)).await;
    let mut events = 0;
    while events < 5 {
        events += watch.next().await.events.len();
    }
    let expected = |sent: &str| {
        let of = |method: &str, service: &str, kind: &str| {
            format!(
                r#"grpc_type="{kind}",grpc_service="etcdserverpb.{service}",grpc_method="{method}""#
            )
        };
        let (put, range) = (of("Put", "KV", "unary"), of("Range", "KV", "unary"));
        let watch = of("Watch", "Watch", "bidi_stream");
        let status = of("Status", "Maintenance", "unary");
        [
            format!("grpc_server_started_total{{{put}}} 5"),
            format!("grpc_server_msg_received_total{{{put}}} 5"),
            format!("grpc_server_msg_sent_total{{{put}}} 5"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}} 5"),
            format!("grpc_server_started_total{{{range}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{range}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OutOfRange\",{range}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{status}}} 1"),
            format!("grpc_server_started_total{{{watch}}} 1"),
            format!("grpc_server_msg_received_total{{{watch}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{watch}}} {sent}"),
        ]
    };
    let admin = store.server.admin_addresses()[0];
    let metrics = http_get(admin, "/metrics").await;
    for line in expected("0") {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
    let bytes = |metrics: &str, name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    assert!(bytes(&metrics, "etcd_network_client_grpc_received_bytes_total") > 40);
    assert!(bytes(&metrics, "etcd_network_client_grpc_sent_bytes_total") > 200);

    // A watch whose client is gone has ended: dashboards show the difference as open streams.
    drop(watch);
    let last = expected("1").into_iter().next_back().unwrap();
    timeout(SOON, async {
        while !http_get(admin, "/metrics").await.contains(&last) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    store.server.finish().await;
}
