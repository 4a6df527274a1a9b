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
    let order = request.sort_order();
    let target = request.sort_target();
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    // Keys come in ascending order as they are.
    let sorts_all = match order {
        SortOrder::None => false,
        SortOrder::Ascend => target != SortTarget::Key,
        SortOrder::Descend => true,
    };
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    let want = match limit {
        _ if request.count_only => Want::Count,
        // One more than asked for, to know whether there is more. As in etcd a target without an
        // order sorts what the limit let through.
        Some(limit) if !sorts_all && !filtered => Want::First(limit.saturating_add(1)),
        _ => Want::All,
    };
    let mut found = mvcc.range(&range, at, want);
    if filtered {
        found.kvs.retain(|kv| {
            (request.max_mod_revision == 0 || kv.mod_revision() <= request.max_mod_revision)
                && (request.min_mod_revision == 0 || kv.mod_revision() >= request.min_mod_revision)
                && (request.max_create_revision == 0
                    || kv.create_revision() <= request.max_create_revision)
                && (request.min_create_revision == 0
                    || kv.create_revision() >= request.min_create_revision)
        });
    }
    sort(&mut found.kvs, order, target);
    let mut more = false;
    if let Some(limit) = limit.filter(|limit| found.kvs.len() > *limit) {
        found.kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        found.kvs = found.kvs.iter().map(KeyValue::without_value).collect();
    }
    Ok(RangeResponse {
        header: Some(header(current)),
        kvs: found.kvs,
        more,
        count: i64::try_from(found.count).unwrap_or(i64::MAX),
    })
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
