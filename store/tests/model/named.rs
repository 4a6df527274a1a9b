//! Single cases with a name.

use megacluster_store::core::{
    Command, Engine, EngineConfig, Error, KeyRange, KeyValue, Reply, State,
};
use megacluster_store::log::Record;
use megacluster_store::pb::etcdserverpb::compare::{CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::request_op::Request;
use megacluster_store::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};

use crate::generate::op;

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

#[test]
fn a_pinned_revision_is_read_on_after_a_compaction() {
    let mut engine = Engine::new(State::new(1), EngineConfig::default());
    let put = |engine: &mut Engine, value: &'static str| {
        for key in ["a", "b", "c"] {
            let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
            engine.apply(Command::Put(put), 0).unwrap();
        }
        engine.publish();
        engine.mvcc().show();
    };
    put(&mut engine, "old");
    let range = KeyRange::new("a".into(), "d".into());
    let pin = engine.mvcc().pin(4);
    let first = engine.mvcc().page(&range, 4, None, 1);
    put(&mut engine, "new");
    let delete = DeleteRangeRequest { key: "c".into(), ..Default::default() };
    engine.apply(Command::Delete(delete), 0).unwrap();
    engine.publish();
    engine.apply(Command::Compact(8), 0).unwrap();
    assert!(!engine.mvcc_mut().release());
    while engine.mvcc_mut().collect(10) {}
    let rest = engine.mvcc().page(&range, pin.revision(), first.next.as_ref(), 1000);
    let values: Vec<&[u8]> = first.kvs.iter().chain(&rest.kvs).map(KeyValue::value).collect();
    assert_eq!((values, rest.next), (vec![b"old".as_slice(); 3], None));
    drop(pin);
    assert!(engine.mvcc_mut().release());
    while engine.mvcc_mut().collect(10) {}
    assert_eq!(engine.mvcc().page(&range, 8, None, 1000).kvs.len(), 2);
}
