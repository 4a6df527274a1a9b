//! Random commands. Revisions are drawn as distances from the newest one and placed when the step
//! runs ([`place`]), so that most of them hit the interesting region.

use bytes::Bytes;
use megacluster_store::core::check;
use megacluster_store::core::watch::Filter;
use megacluster_store::pb::etcdserverpb::compare::{CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::request_op::Request;
use megacluster_store::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use proptest::prelude::*;

/// How a run of the store ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// SIGTERM: the log is closed.
    Stop,
    /// kill -9: what was written stays.
    Kill,
    /// Loss of power: so many thousandths of what was not synced stay.
    Power(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Range(RangeRequest),
    Compact(i64),
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    View(i64, bool),
    Leases,
    /// Time passes, and so many leases may expire.
    Pass(u64, usize),
    /// A watch of a range from a revision on.
    Watch(Bytes, Bytes, Filter, i64),
    /// One of the watches reads on.
    Read(usize),
    Unwatch(usize),
    Publish,
    /// What was only written is synced.
    Sync,
    Release,
    Collect(usize),
    BeginSnapshot,
    EndSnapshot,
    Restart(End),
}

/// From a distance drawn to a revision: 0 and −1 stay, else a little in the future to far back.
pub(crate) fn place(back: i64, newest: i64) -> i64 {
    if back <= 0 { back } else { (newest + 2 - back).max(1) }
}

/// Places the revisions of all ranges in a transaction.
pub(crate) fn place_all(txn: &mut TxnRequest, newest: i64) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match op.request.as_mut() {
            Some(Request::RequestRange(r)) => r.revision = place(r.revision, newest),
            Some(Request::RequestTxn(nested)) => place_all(nested, newest),
            _ => {}
        }
    }
}

/// Keys of three classes where the rules say so, by their first letter.
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

/// Values that are alike but for a few bytes, as those of a renewed lease are, and ones that are not.
fn value() -> impl Strategy<Value = Bytes> {
    let body = |n: u16, tail: u8| {
        let mut value = b"{\"holder\":\"node-0000\",\"renewed\":\"0000\",\"padding\":\"".to_vec();
        value.extend_from_slice(&[b'x'; 120]);
        value.extend_from_slice(format!("\",\"n\":{n},\"t\":{tail}}}").as_bytes());
        Bytes::from(value)
    };
    prop_oneof![
        1 => Just(Bytes::new()),
        3 => (0..4u8).prop_map(|n| Bytes::from(format!("v{n}"))),
        3 => (0..500u16, 0..3u8).prop_map(move |(n, tail)| body(n, tail)),
        1 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from),
    ]
}

/// None, a few that may live, and one that never does.
fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0_i64), 4 => 1..4i64, 1 => Just(99_i64)]
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    (key(), value(), lease(), 0..10u8, any::<bool>()).prop_map(|(key, value, lease, keep, prev)| {
        let (ignore_value, ignore_lease) = (keep & 1 == 1 && keep < 4, keep & 2 == 2 && keep < 4);
        PutRequest {
            key,
            value: if ignore_value { Bytes::new() } else { value },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv: prev,
            ignore_value,
            ignore_lease,
        }
    })
}

fn delete_request() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn back() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0_i64), 1 => Just(-1_i64), 6 => 1..12i64, 3 => 12..60i64]
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    let filter = || prop_oneof![4 => Just(0_i64), 1 => 1..40_i64];
    let filters = (filter(), filter(), filter(), filter());
    (key(), range_end(), back(), 0..5i64, 0..3i32, 0..5i32, 0..8u8, filters).prop_map(
        |(key, range_end, revision, limit, order, target, form, (a, b, c, d))| RangeRequest {
            key,
            range_end,
            revision,
            // A target without an order sorts what the limit let through: not in the naive store.
            sort_order: order,
            sort_target: if order == 0 { 0 } else { target },
            limit,
            count_only: form == 0,
            keys_only: form == 1,
            min_mod_revision: a,
            max_mod_revision: b,
            min_create_revision: c,
            max_create_revision: d,
            ..Default::default()
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0..4i64).prop_map(|n| (CompareTarget::Version, TargetUnion::Version(n))),
        (0..40i64).prop_map(|n| (CompareTarget::Create, TargetUnion::CreateRevision(n))),
        (0..40i64).prop_map(|n| (CompareTarget::Mod, TargetUnion::ModRevision(n))),
        (0..3i64).prop_map(|n| (CompareTarget::Lease, TargetUnion::Lease(n))),
        value().prop_map(|v| (CompareTarget::Value, TargetUnion::Value(v))),
    ];
    (key(), range_end(), 0..4i32, target).prop_map(|(key, range_end, result, (target, union))| {
        Compare { result, target: target.into(), key, range_end, target_union: Some(union) }
    })
}

pub(crate) fn op(request: Request) -> RequestOp {
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
        .prop_filter("etcd refuses it", |t| check::txn(t, 128).is_ok())
}

fn watch() -> impl Strategy<Value = Step> {
    (key(), range_end(), 0..8u8, back()).prop_map(|(key, end, filter, back)| {
        let filter = Filter { no_put: filter == 0, no_delete: filter == 1 };
        Step::Watch(key, end, filter, back.max(0))
    })
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![Just(End::Stop), Just(End::Kill), (0..=1000usize).prop_map(End::Power),];
    prop_oneof![
        24 => put_request().prop_map(Step::Put),
        8 => delete_request().prop_map(Step::Delete),
        20 => txn_request().prop_map(Step::Txn),
        16 => range_request().prop_map(Step::Range),
        4 => (-1..8i64).prop_map(Step::Compact),
        4 => (0..5i64, prop_oneof![6 => 0..20i64, 1 => Just(9_000_000_001)])
            .prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        2 => (1..5i64).prop_map(Step::Revoke),
        2 => (1..5i64).prop_map(Step::Renew),
        2 => (1..5i64, any::<bool>()).prop_map(|(id, keys)| Step::View(id, keys)),
        1 => Just(Step::Leases),
        3 => (0..6000u64, 0..3usize).prop_map(|(ms, limit)| Step::Pass(ms, limit)),
        5 => watch(),
        8 => (0..8usize).prop_map(Step::Read),
        1 => (0..8usize).prop_map(Step::Unwatch),
        12 => Just(Step::Publish),
        3 => Just(Step::Sync),
        4 => Just(Step::Release),
        8 => (1..9usize).prop_map(Step::Collect),
        2 => Just(Step::BeginSnapshot),
        3 => Just(Step::EndSnapshot),
        3 => end.prop_map(Step::Restart),
    ]
}
