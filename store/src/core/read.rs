//! The Range request.

use std::cmp::Ordering;

use super::error::Error;
use super::kv::KeyValue;
use super::mvcc::{Mvcc, Want};
use super::range::KeyRange;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};

/// A header that carries a revision; the edge adds who answers.
pub(super) fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

/// Answers a range as of `current`, the revision that counts as the newest
/// (etcd `server/etcdserver/txn/txn.go`, `executeRange`).
pub fn range(mvcc: &Mvcc, request: &RangeRequest, current: i64) -> Result<RangeResponse, Error> {
    let at = mvcc.resolve(request.revision, current)?;
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let want = match limit(request) {
        _ if request.count_only => Want::Count,
        // One more than asked for, to know whether there is more. As in etcd a target without an
        // order sorts what the limit let through.
        Some(limit) if !needs_all(request) => Want::First(limit.saturating_add(1)),
        _ => Want::All,
    };
    let found = mvcc.range(&range, at, want);
    let (kvs, more) = arrange(found.kvs, request);
    Ok(RangeResponse {
        header: Some(header(current)),
        kvs,
        more,
        count: i64::try_from(found.count).unwrap_or(i64::MAX),
    })
}

fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|limit| *limit > 0)
}

fn is_filtered(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Whether the answer's first keys can't be told before all keys of the range are looked at.
#[must_use]
pub fn needs_all(request: &RangeRequest) -> bool {
    // Keys come in ascending order as they are.
    let sorts_all = match request.sort_order() {
        SortOrder::None => false,
        SortOrder::Ascend => request.sort_target() != SortTarget::Key,
        SortOrder::Descend => true,
    };
    sorts_all || is_filtered(request)
}

/// Filters, sorts and cuts what a range holds, as the request asks. Also gives whether the limit cut
/// anything off.
#[must_use]
pub fn arrange(mut kvs: Vec<KeyValue>, request: &RangeRequest) -> (Vec<KeyValue>, bool) {
    if is_filtered(request) {
        kvs.retain(|kv| {
            (request.max_mod_revision == 0 || kv.mod_revision() <= request.max_mod_revision)
                && (request.min_mod_revision == 0 || kv.mod_revision() >= request.min_mod_revision)
                && (request.max_create_revision == 0
                    || kv.create_revision() <= request.max_create_revision)
                && (request.min_create_revision == 0
                    || kv.create_revision() >= request.min_create_revision)
        });
    }
    sort(&mut kvs, request.sort_order(), request.sort_target());
    let mut more = false;
    if let Some(limit) = limit(request).filter(|limit| kvs.len() > *limit) {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        kvs = kvs.iter().map(KeyValue::without_value).collect();
    }
    (kvs, more)
}

fn sort(kvs: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    if target == SortTarget::Key && order != SortOrder::Descend {
        return;
    }
    let ascending = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key => a.key().cmp(b.key()),
            SortTarget::Version => a.version().cmp(&b.version()),
            SortTarget::Create => a.create_revision().cmp(&b.create_revision()),
            SortTarget::Mod => a.mod_revision().cmp(&b.mod_revision()),
            SortTarget::Value => a.value().cmp(b.value()),
        }
    };
    if order == SortOrder::Descend {
        kvs.sort_by(|a, b| ascending(b, a));
    } else {
        kvs.sort_by(ascending);
    }
}
