//! The engine against an executable specification: a naive store that keeps a whole map for every
//! revision. Random commands run on both; every answer, every watch and a recovery from the records
//! must agree.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use megacluster_store::core::watch::{Chunk, Cursor, Filter};
use megacluster_store::core::{
    Command, Engine, EngineConfig, Error, KeyRange, KeyValue, Reply, State,
};
use megacluster_store::log::{Class, Record};
use megacluster_store::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use megacluster_store::pb::etcdserverpb::request_op::Request;
use megacluster_store::pb::etcdserverpb::response_op::Response;
use megacluster_store::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use proptest::prelude::*;

// ---- the specification -------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    value: Bytes,
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
}

type Map = BTreeMap<Bytes, Entry>;

#[derive(Clone, Debug, PartialEq)]
struct Change {
    revision: i64,
    key: Bytes,
    /// `None` for a delete.
    now: Option<Entry>,
    before: Option<Entry>,
}

/// Keys, count and more.
type Found = (Vec<(Bytes, Entry)>, i64, bool);

/// One map for every revision.
struct Spec {
    /// `maps[r]` is the state at revision `r`; the first two are empty, as etcd starts at 1.
    maps: Vec<Map>,
    compacted: i64,
    changes: Vec<Change>,
}

fn bounds(key: &Bytes, end: &Bytes) -> (Bound<Bytes>, Bound<Bytes>) {
    let start = Bound::Included(key.clone());
    match end.as_ref() {
        [] => (start, Bound::Included(key.clone())),
        [0] => (start, Bound::Unbounded),
        // BTreeMap refuses a start above the end.
        _ if end <= key => (start, Bound::Excluded(key.clone())),
        _ => (start, Bound::Excluded(end.clone())),
    }
}

fn within(map: &Map, key: &Bytes, end: &Bytes) -> Vec<(Bytes, Entry)> {
    if !end.is_empty() && end.as_ref() != [0] && end <= key {
        return Vec::new();
    }
    map.range(bounds(key, end)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Spec {
    fn new() -> Self {
        Self { maps: vec![Map::new(), Map::new()], compacted: -1, changes: Vec::new() }
    }

    fn revision(&self) -> i64 {
        i64::try_from(self.maps.len()).unwrap() - 1
    }

    fn newest(&self) -> &Map {
        self.maps.last().unwrap()
    }

    fn range(map: &Map, r: &RangeRequest) -> Found {
        let all = within(map, &r.key, &r.range_end);
        let count = i64::try_from(all.len()).unwrap();
        if r.count_only {
            return (Vec::new(), count, false);
        }
        let mut kept: Vec<_> = all
            .into_iter()
            .filter(|(_, e)| {
                (r.min_mod_revision == 0 || e.modified >= r.min_mod_revision)
                    && (r.max_mod_revision == 0 || e.modified <= r.max_mod_revision)
                    && (r.min_create_revision == 0 || e.create >= r.min_create_revision)
                    && (r.max_create_revision == 0 || e.create <= r.max_create_revision)
            })
            .collect();
        match r.sort_target() {
            SortTarget::Key => {}
            SortTarget::Version => kept.sort_by_key(|(_, e)| e.version),
            SortTarget::Create => kept.sort_by_key(|(_, e)| e.create),
            SortTarget::Mod => kept.sort_by_key(|(_, e)| e.modified),
            SortTarget::Value => kept.sort_by_key(|(_, e)| e.value.clone()),
        }
        if r.sort_order() == SortOrder::Descend {
            kept.reverse();
        }
        let limit = usize::try_from(r.limit).unwrap();
        let more = limit > 0 && kept.len() > limit;
        if more {
            kept.truncate(limit);
        }
        (kept, count, more)
    }

    fn read(&self, r: &RangeRequest) -> Result<Found, Error> {
        if r.revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        let at = if r.revision == 0 { self.revision() } else { r.revision };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(Self::range(&self.maps[usize::try_from(at).unwrap()], r))
    }

    fn holds(&self, c: &Compare) -> bool {
        let found = within(self.newest(), &c.key, &c.range_end);
        let test = |e: &Entry| {
            let order = match &c.target_union {
                Some(TargetUnion::Version(n)) => e.version.cmp(n),
                Some(TargetUnion::CreateRevision(n)) => e.create.cmp(n),
                Some(TargetUnion::ModRevision(n)) => e.modified.cmp(n),
                Some(TargetUnion::Lease(n)) => e.lease.cmp(n),
                Some(TargetUnion::Value(v)) => e.value.cmp(v),
                None => unreachable!("the generator sets one"),
            };
            match c.result() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Less => order.is_lt(),
                CompareResult::Greater => order.is_gt(),
            }
        };
        if found.is_empty() {
            let zero = Entry { value: Bytes::new(), create: 0, modified: 0, version: 0, lease: 0 };
            return c.target() != CompareTarget::Value && test(&zero);
        }
        found.iter().all(|(_, e)| test(e))
    }

    fn branch<'a>(&self, t: &'a TxnRequest, path: &mut Vec<bool>) -> &'a [RequestOp] {
        let taken = t.compare.iter().all(|c| self.holds(c));
        path.push(taken);
        let ops = if taken { &t.success } else { &t.failure };
        for op in ops {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.branch(nested, path);
            }
        }
        ops
    }

    fn write(&mut self, run: impl FnOnce(&mut Map, i64, &mut Vec<Change>)) {
        let revision = self.revision() + 1;
        let mut map = self.newest().clone();
        let before = self.changes.len();
        let mut changes = std::mem::take(&mut self.changes);
        run(&mut map, revision, &mut changes);
        self.changes = changes;
        if self.changes.len() > before {
            self.maps.push(map);
        }
    }
}

fn put(map: &mut Map, revision: i64, changes: &mut Vec<Change>, p: &PutRequest) {
    let before = map.get(&p.key).cloned();
    let (create, version) = before.as_ref().map_or((revision, 1), |e| (e.create, e.version + 1));
    let value =
        if p.ignore_value { before.as_ref().unwrap().value.clone() } else { p.value.clone() };
    let now = Entry { value, create, modified: revision, version, lease: 0 };
    map.insert(p.key.clone(), now.clone());
    changes.push(Change { revision, key: p.key.clone(), now: Some(now), before });
}

fn delete(map: &mut Map, revision: i64, changes: &mut Vec<Change>, d: &DeleteRangeRequest) -> i64 {
    let found = within(map, &d.key, &d.range_end);
    for (key, before) in &found {
        map.remove(key);
        changes.push(Change {
            revision,
            key: key.clone(),
            now: None,
            before: Some(before.clone()),
        });
    }
    i64::try_from(found.len()).unwrap()
}

/// Runs the branches of `path`; checks reads inside against `responses`.
fn run_txn(
    t: &TxnRequest,
    path: &mut impl Iterator<Item = bool>,
    world: (&mut Map, i64, &mut Vec<Change>),
    answer: &megacluster_store::pb::etcdserverpb::TxnResponse,
) {
    let (map, revision, changes) = world;
    let taken = path.next().unwrap();
    assert_eq!(answer.succeeded, taken);
    let ops = if taken { &t.success } else { &t.failure };
    assert_eq!(ops.len(), answer.responses.len());
    for (op, response) in ops.iter().zip(&answer.responses) {
        match (op.request.as_ref().unwrap(), response.response.as_ref().unwrap()) {
            (Request::RequestRange(r), Response::ResponseRange(found)) => {
                same(found, &Spec::range(map, r));
            }
            (Request::RequestPut(p), Response::ResponsePut(_)) => put(map, revision, changes, p),
            (Request::RequestDeleteRange(d), Response::ResponseDeleteRange(found)) => {
                assert_eq!(found.deleted, delete(map, revision, changes, d));
            }
            (Request::RequestTxn(nested), Response::ResponseTxn(inner)) => {
                run_txn(nested, path, (map, revision, changes), inner);
            }
            other => panic!("answer of another kind: {other:?}"),
        }
    }
}

// ---- comparing ---------------------------------------------------------------------------------

fn entry(kv: &KeyValue) -> (Bytes, Entry) {
    let entry = Entry {
        value: kv.value.clone(),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    };
    (kv.key.clone(), entry)
}

fn same(found: &RangeResponse, wanted: &Found) {
    let kvs: Vec<_> = found.kvs.iter().map(entry).collect();
    // etcd's sort is not stable, and neither order of equals is promised.
    let mut sorted = (kvs.clone(), wanted.0.clone());
    sorted.0.sort_by(|a, b| a.0.cmp(&b.0));
    sorted.1.sort_by(|a, b| a.0.cmp(&b.0));
    if !found.more {
        assert_eq!(sorted.0, sorted.1);
    }
    assert_eq!(kvs.len(), wanted.0.len());
    assert_eq!((found.count, found.more), (wanted.1, wanted.2));
}

/// Reads a watch to its end.
fn watch(engine: &Engine, range: &KeyRange, start: i64) -> Vec<Change> {
    let mut cursor = Cursor::new(range.clone(), Filter::default(), start);
    let mut found = Vec::new();
    loop {
        match cursor.read(&engine.mvcc().history()) {
            Chunk::Compacted(_) => panic!("a start at or above the compaction is in the history"),
            Chunk::Events { events, more, .. } => {
                for event in events {
                    let (key, now) = entry(&event.kv);
                    found.push(Change {
                        revision: event.kv.mod_revision,
                        key,
                        now: (!event.kv.is_tombstone()).then_some(now),
                        before: event.prev.as_ref().map(|kv| entry(kv).1),
                    });
                }
                if !more {
                    return found;
                }
            }
        }
    }
}

// ---- commands ----------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Range(RangeRequest, i64),
    Compact(i64),
    Publish,
    Release,
    Collect(usize),
}

fn key() -> impl Strategy<Value = Bytes> {
    (0..3u8, 0..4u8).prop_map(|(a, b)| Bytes::from(format!("/{a}/{b}")))
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"\0")),
        4 => (0..3u8, 0..5u8).prop_map(|(a, b)| Bytes::from(format!("/{a}/{b}"))),
        2 => (0..3u8).prop_map(|a| Bytes::from(format!("/{a}0"))),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), (0..4u8).prop_map(|n| Bytes::from(format!("v{n}")))]
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    (key(), value()).prop_map(|(key, value)| PutRequest { key, value, ..Default::default() })
}

fn delete_request() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), range_end()).prop_map(|(key, range_end)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv: true,
    })
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    let filter = prop_oneof![3 => Just(0_i64), 1 => 1..40_i64];
    (key(), range_end(), 0..5i64, 0..3i32, 0..5i32, any::<bool>(), filter.clone(), filter).prop_map(
        |(key, range_end, limit, order, target, count_only, min, max)| RangeRequest {
            key,
            range_end,
            // A target without an order sorts what the limit let through: not in the naive store.
            sort_order: order,
            sort_target: if order == 0 { 0 } else { target },
            limit,
            count_only,
            min_mod_revision: min,
            max_create_revision: max,
            ..Default::default()
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0..4i64).prop_map(|n| (CompareTarget::Version, TargetUnion::Version(n))),
        (0..40i64).prop_map(|n| (CompareTarget::Create, TargetUnion::CreateRevision(n))),
        (0..40i64).prop_map(|n| (CompareTarget::Mod, TargetUnion::ModRevision(n))),
        Just((CompareTarget::Lease, TargetUnion::Lease(0))),
        value().prop_map(|v| (CompareTarget::Value, TargetUnion::Value(v))),
    ];
    (key(), range_end(), 0..4i32, target).prop_map(|(key, range_end, result, (target, union))| {
        Compare { result, target: target.into(), key, range_end, target_union: Some(union) }
    })
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn_request() -> impl Strategy<Value = TxnRequest> {
    let leaf = prop_oneof![
        put_request().prop_map(|r| op(Request::RequestPut(r))),
        delete_request().prop_map(|r| op(Request::RequestDeleteRange(r))),
        range_request().prop_map(|r| op(Request::RequestRange(r))),
    ];
    let node = leaf.prop_recursive(2, 8, 3, |inner| {
        (
            prop::collection::vec(compare(), 0..2),
            prop::collection::vec(inner.clone(), 0..3),
            prop::collection::vec(inner, 0..3),
        )
            .prop_map(|(compare, success, failure)| {
                op(Request::RequestTxn(TxnRequest { compare, success, failure }))
            })
    });
    (
        prop::collection::vec(compare(), 0..3),
        prop::collection::vec(node.clone(), 0..4),
        prop::collection::vec(node, 0..4),
    )
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
        .prop_filter("etcd refuses it", |t| megacluster_store::core::check::txn(t, 128).is_ok())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => put_request().prop_map(Step::Put),
        2 => delete_request().prop_map(Step::Delete),
        5 => txn_request().prop_map(Step::Txn),
        6 => (range_request(), 0..50i64).prop_map(|(r, back)| Step::Range(r, back)),
        1 => (-1..8i64).prop_map(Step::Compact),
        3 => Just(Step::Publish),
        1 => Just(Step::Release),
        2 => (1..9usize).prop_map(Step::Collect),
    ]
}

struct Pair {
    engine: Engine,
    spec: Spec,
    records: Vec<(Class, Record)>,
}

impl Pair {
    fn publish(&mut self) {
        self.records.extend(self.engine.take_records());
        self.engine.publish();
        self.engine.mvcc().show();
    }

    fn apply(&mut self, command: Command) -> Result<Reply, Error> {
        self.engine.apply(command, 0)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(request) => {
                let before = self.spec.newest().get(&request.key).cloned();
                let asked = PutRequest { prev_kv: true, ..request.clone() };
                let Ok(Reply::Put(reply)) = self.apply(Command::Put(asked)) else { panic!("put") };
                self.spec.write(|map, revision, changes| put(map, revision, changes, &request));
                assert_eq!(reply.header.unwrap().revision, self.spec.revision());
                assert_eq!(reply.prev_kv.as_ref().map(|kv| entry(kv).1), before);
            }
            Step::Delete(request) => {
                let wanted = within(self.spec.newest(), &request.key, &request.range_end);
                let reply = self.apply(Command::Delete(request.clone()));
                let Ok(Reply::Delete(reply)) = reply else { panic!("delete") };
                self.spec.write(|map, revision, changes| {
                    delete(map, revision, changes, &request);
                });
                assert_eq!(reply.header.unwrap().revision, self.spec.revision());
                assert_eq!(reply.prev_kvs.iter().map(entry).collect::<Vec<_>>(), wanted);
            }
            Step::Txn(request) => {
                let Ok(Reply::Txn(reply)) = self.apply(Command::Txn(request.clone())) else {
                    panic!("txn")
                };
                let mut path = Vec::new();
                self.spec.branch(&request, &mut path);
                let revision = self.spec.revision() + 1;
                let mut map = self.spec.newest().clone();
                let mut changes = Vec::new();
                let world = (&mut map, revision, &mut changes);
                run_txn(&request, &mut path.into_iter(), world, &reply);
                if !changes.is_empty() {
                    self.spec.maps.push(map);
                    self.spec.changes.append(&mut changes);
                }
                assert_eq!(reply.header.unwrap().revision, self.spec.revision());
            }
            Step::Range(request, back) => {
                // From a little in the future to before the compaction.
                let revision = if back == 0 { 0 } else { (self.spec.revision() + 2 - back).max(1) };
                let request = RangeRequest { revision, ..request };
                let found = self.apply(Command::Range(request.clone()));
                match (found, self.spec.read(&request)) {
                    (Ok(Reply::Range(found)), Ok(wanted)) => {
                        same(&found, &wanted);
                        assert_eq!(found.header.unwrap().revision, self.spec.revision());
                    }
                    (Err(found), Err(wanted)) => assert_eq!(found, wanted),
                    (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
                }
            }
            Step::Compact(back) => {
                let revision = self.spec.revision() - back;
                let wanted = if revision <= self.spec.compacted {
                    Err(Error::Compacted)
                } else if revision > self.spec.revision() {
                    Err(Error::FutureRevision)
                } else {
                    self.spec.compacted = revision;
                    Ok(())
                };
                assert_eq!(self.apply(Command::Compact(revision)).map(|_| ()), wanted);
            }
            Step::Publish => self.publish(),
            Step::Release => self.engine.mvcc_mut().release(),
            Step::Collect(limit) => {
                self.engine.mvcc_mut().collect(limit);
            }
        }
    }

    /// Everything that can still be asked.
    fn check_all(&mut self) {
        self.publish();
        let from = self.spec.compacted.max(1);
        for revision in from..=self.spec.revision() {
            let request = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision,
                ..Default::default()
            };
            let wanted = self.spec.read(&request).unwrap();
            let found = self.apply(Command::Range(request.clone()));
            let Ok(Reply::Range(found)) = found else { panic!("range") };
            same(&found, &wanted);
            let limited = RangeRequest { limit: 1, ..request };
            let found = self.apply(Command::Range(limited));
            let Ok(Reply::Range(found)) = found else { panic!("range") };
            assert_eq!(found.count, wanted.1, "count at {revision}");
        }
        for (key, end) in [("/1/", "/10"), ("/0/1", ""), ("\0", "\0"), ("/0/2", "/2/1")] {
            let range = KeyRange::new(key.into(), end.into());
            for start in [from, i64::midpoint(from, self.spec.revision())] {
                let wanted: Vec<Change> = self
                    .spec
                    .changes
                    .iter()
                    .filter(|c| c.revision >= start && range.contains(&c.key))
                    .cloned()
                    .collect();
                assert_eq!(watch(&self.engine, &range, start), wanted, "watch from {start}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_engine_does_what_the_specification_says(steps in prop::collection::vec(step(), 1..60)) {
        let engine = Engine::new(State::new(1), EngineConfig::default());
        let mut pair = Pair { engine, spec: Spec::new(), records: Vec::new() };
        for step in steps {
            pair.step(step);
        }
        pair.check_all();

        // What the records rebuild is the same store.
        let mut state = State::new(1);
        for (_, record) in std::mem::take(&mut pair.records) {
            state.replay(record, 0);
        }
        state.recover_at(pair.spec.revision(), pair.spec.compacted);
        pair.engine.mvcc_mut().release();
        while pair.engine.mvcc_mut().collect(1000) {}
        prop_assert_eq!(state.mvcc.bytes(), pair.engine.mvcc().bytes());
        prop_assert_eq!(
            state.mvcc.hash(pair.spec.revision()),
            pair.engine.mvcc().hash(pair.spec.revision())
        );
        pair.engine = Engine::new(state, EngineConfig::default());
        pair.check_all();
    }
}

#[test]
fn of_two_creates_one_succeeds() {
    let mut engine = Engine::new(State::new(1), EngineConfig::default());
    let create = TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Mod.into(),
            key: "k".into(),
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Default::default()
        }],
        success: vec![op(Request::RequestPut(PutRequest {
            key: "k".into(),
            ..Default::default()
        }))],
        failure: vec![],
    };
    // Both in one batch: neither is published in between.
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let Ok(Reply::Txn(reply)) = engine.apply(Command::Txn(create.clone()), 0) else {
            panic!("txn")
        };
        outcomes.push((reply.succeeded, reply.header.unwrap().revision));
    }
    assert_eq!(outcomes, [(true, 2), (false, 2)]);
    assert_eq!(engine.take_records().len(), 1);
}

#[test]
fn a_frozen_engine_shows_what_was_published() {
    let mut engine = Engine::new(State::new(1), EngineConfig::default());
    let put = |key: &'static str| {
        Command::Put(PutRequest { key: key.into(), value: "v".into(), ..Default::default() })
    };
    let list = || {
        Command::Range(RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            limit: 10,
            ..Default::default()
        })
    };
    engine.apply(put("a"), 0).unwrap();
    engine.publish();
    engine.mvcc().show();
    engine.apply(put("b"), 0).unwrap();
    engine.set_frozen(true);
    let Ok(Reply::Range(found)) = engine.apply(list(), 0) else { panic!("range") };
    assert_eq!((found.kvs.len(), found.count), (1, 1));
    assert_eq!(found.header.unwrap().revision, 2);
    engine.publish();
    engine.mvcc().show();
    engine.set_frozen(false);
    let Ok(Reply::Range(found)) = engine.apply(list(), 0) else { panic!("range") };
    assert_eq!((found.kvs.len(), found.header.unwrap().revision), (2, 3));
}

#[test]
fn leases_take_their_keys_along() {
    let mut engine = Engine::new(State::new(1), EngineConfig::default());
    engine.apply(Command::LeaseGrant { id: 7, ttl: 5 }, 0).unwrap();
    for key in ["b", "a", "c"] {
        let put = PutRequest { key: key.into(), lease: 7, ..Default::default() };
        engine.apply(Command::Put(put), 0).unwrap();
    }
    // A put without the lease takes the key off it.
    let put = PutRequest { key: "c".into(), ..Default::default() };
    engine.apply(Command::Put(put), 0).unwrap();
    let unknown = PutRequest { key: "d".into(), lease: 8, ..Default::default() };
    assert_eq!(engine.apply(Command::Put(unknown), 0).unwrap_err(), Error::LeaseNotFound);
    assert_eq!(engine.expire(4999, 10), 0);
    assert_eq!(engine.expire(5000, 10), 1);
    let Ok(Reply::Status(status)) = engine.apply(Command::Status, 0) else { panic!("status") };
    // Both keys went in one transaction.
    assert_eq!((status.keys, status.leases, status.revision), (1, 0, 6));
    let records = engine.take_records();
    let [.., (_, Record::Txn { revision: 6, ops }), (_, Record::LeaseRevoke { id: 7 })] =
        records.as_slice()
    else {
        panic!("the deletes come before the revocation: {records:?}")
    };
    assert_eq!(ops.len(), 2);
}

#[test]
fn the_quota_stops_puts_and_not_deletes() {
    let config = EngineConfig { quota: 1900, ..EngineConfig::default() };
    let mut engine = Engine::new(State::new(1), config);
    let put = || {
        Command::Put(PutRequest {
            key: "k".into(),
            value: vec![b'x'; 900].into(),
            ..Default::default()
        })
    };
    engine.apply(put(), 0).unwrap();
    assert_eq!(engine.apply(put(), 0).unwrap_err(), Error::NoSpace);
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    engine.apply(Command::Delete(delete), 0).unwrap();
    engine.publish();
    engine.apply(Command::Compact(3), 0).unwrap();
    engine.mvcc_mut().release();
    while engine.mvcc_mut().collect(10) {}
    assert_eq!(engine.status().bytes, 0);
    // The alarm stays until it is taken back.
    assert_eq!(engine.apply(put(), 0).unwrap_err(), Error::NoSpace);
    engine.apply(Command::Disarm, 0).unwrap();
    engine.apply(put(), 0).unwrap();
}
