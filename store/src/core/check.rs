//! What is checked in a request before it reaches the sequencer, in etcd's order
//! (etcd `server/etcdserver/api/v3rpc/key.go`), so that the first error is the same.

use std::collections::HashSet;

use super::error::Error;
use super::range::KeyRange;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request, request_op,
};

/// Transactions nested deeper are refused as having too many operations; each level costs stack.
/// etcd has no such bound of its own: there `--max-txn-ops` shrinks by each level's operations.
const MAX_DEPTH: usize = 32;

/// Checks a range.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if range_request::SortOrder::try_from(request.sort_order).is_err()
        || range_request::SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put.
pub fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        Err(Error::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Error::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(Error::LeaseProvided)
    } else {
        Ok(())
    }
}

/// Checks a range delete.
pub fn delete(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction: sizes, each operation, then that no key is put twice or put and deleted.
pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    txn_ops(request, max_ops, MAX_DEPTH)?;
    // Nothing can overlap in the transactions that nearly all clients send.
    if request.success.len() > 1 || request.success.iter().any(is_txn) {
        overlaps(&request.success)?;
    }
    if request.failure.len() > 1 || request.failure.iter().any(is_txn) {
        overlaps(&request.failure)?;
    }
    Ok(())
}

fn is_txn(op: &RequestOp) -> bool {
    matches!(op.request, Some(request_op::Request::RequestTxn(_)))
}

fn txn_ops(request: &TxnRequest, max_ops: usize, depth: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > max_ops || depth == 0 {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(request_op::Request::RequestRange(r)) => range(r)?,
            Some(request_op::Request::RequestPut(r)) => put(r)?,
            Some(request_op::Request::RequestDeleteRange(r)) => delete(r)?,
            Some(request_op::Request::RequestTxn(r)) => txn_ops(r, max_ops - ops, depth - 1)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

type Puts<'a> = HashSet<&'a [u8]>;

/// etcd's `checkIntervals`. As there, a put in one nested transaction and a delete in a later one
/// pass: only deletes that were collected before a put are held against it. But a delete of
/// everything from a key on (range end `\0`) is held against them too: etcd overlooks it, and
/// panics when the transaction runs.
fn overlaps(ops: &[RequestOp]) -> Result<(Puts<'_>, Vec<KeyRange>), Error> {
    let mut deletes: Vec<KeyRange> = ops
        .iter()
        .filter_map(|op| match &op.request {
            Some(request_op::Request::RequestDeleteRange(r)) => {
                Some(KeyRange::new(r.key.clone(), r.range_end.clone()))
            }
            _ => None,
        })
        .collect();
    let mut puts = Puts::new();
    for op in ops {
        let Some(request_op::Request::RequestTxn(nested)) = &op.request else { continue };
        let (then_puts, then_deletes) = overlaps(&nested.success)?;
        let (else_puts, else_deletes) = overlaps(&nested.failure)?;
        for key in &then_puts {
            if puts.contains(key) || hits(&deletes, key) {
                return Err(Error::DuplicateKey);
            }
        }
        puts.extend(&then_puts);
        for key in &else_puts {
            // Only one of the two branches will run.
            let twice = puts.contains(key) && !then_puts.contains(key);
            if twice || hits(&deletes, key) {
                return Err(Error::DuplicateKey);
            }
        }
        puts.extend(&else_puts);
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        let Some(request_op::Request::RequestPut(put)) = &op.request else { continue };
        if hits(&deletes, &put.key) || !puts.insert(&put.key) {
            return Err(Error::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

fn hits(deletes: &[KeyRange], key: &[u8]) -> bool {
    deletes.iter().any(|range| range.contains(key))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use request_op::Request::{RequestDeleteRange, RequestPut, RequestTxn};

    fn put_op(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), ..Default::default() };
        RequestOp { request: Some(RequestPut(put)) }
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        let delete = DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false };
        RequestOp { request: Some(RequestDeleteRange(delete)) }
    }

    fn nest(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        let txn = TxnRequest { compare: Vec::new(), success, failure };
        RequestOp { request: Some(RequestTxn(txn)) }
    }

    fn check(success: Vec<RequestOp>) -> Result<(), Error> {
        txn(&TxnRequest { compare: Vec::new(), success, failure: Vec::new() }, 128)
    }

    #[test]
    fn a_key_is_changed_once() {
        let twice = Err(Error::DuplicateKey);
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), twice);
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), twice);
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "\0")]), twice);
        assert_eq!(check(vec![nest(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(check(vec![nest(vec![put_op("a")], vec![]), put_op("a")]), twice);
        assert_eq!(check(vec![nest(vec![put_op("a")], vec![]), delete_op("a", "")]), twice);
        let (first, second) =
            (nest(vec![put_op("a")], vec![]), nest(vec![delete_op("a", "")], vec![]));
        assert_eq!(check(vec![first.clone(), second.clone()]), Ok(()));
        assert_eq!(check(vec![second, first]), twice);
    }

    #[test]
    fn sizes_and_shapes() {
        let many = (0..129).map(|i| put_op(Box::leak(format!("{i}").into_boxed_str()))).collect();
        assert_eq!(check(many), Err(Error::TooManyOps));
        assert_eq!(check(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
        let mut deep = put_op("a");
        for _ in 0..40 {
            deep = nest(vec![deep], vec![]);
        }
        assert_eq!(check(vec![deep]), Err(Error::TooManyOps));
        let bad = RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(&bad), Err(Error::InvalidSortOption));
        let both = PutRequest {
            key: "a".into(),
            value: Bytes::from_static(b"v"),
            ignore_value: true,
            ..Default::default()
        };
        assert_eq!(put(&both), Err(Error::ValueProvided));
    }
}
