//! Writes: put, delete and the general transaction with nested transactions
//! (etcd `server/etcdserver/txn/txn.go`).
//!
//! A transaction runs in three steps, as in etcd: all compares are evaluated on the state before
//! it, then all that could fail is checked, and only then anything changes. So a transaction either
//! happens as a whole at one revision, or leaves no trace.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::error::Error;
use super::kv::KeyValue;
use super::lease::Leases;
use super::mvcc::{Mvcc, Want};
use super::range::KeyRange;
use super::read::{self, header};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op::Request,
    response_op::Response,
};

/// A delete of keys with more bytes than this is refused as too large: it must fit into one record
/// of the log.
const MAX_DELETE_BYTES: usize = 32 << 20;

/// Keys and leases: what a transaction changes.
#[derive(Debug)]
pub struct State {
    /// The keys.
    pub mvcc: Mvcc,
    /// The leases.
    pub leases: Leases,
}

/// A running write: the revision it will have, and whether anything changed yet.
#[derive(Debug)]
struct Write {
    revision: i64,
    changed: bool,
}

impl Write {
    fn begin(state: &State) -> Self {
        Self { revision: state.mvcc.revision() + 1, changed: false }
    }

    /// The revision that its own reads see, and its answers carry.
    fn view(&self) -> i64 {
        if self.changed { self.revision } else { self.revision - 1 }
    }

    fn finish(self, state: &mut State) -> i64 {
        if self.changed {
            state.mvcc.finish(self.revision);
        }
        self.view()
    }
}

impl State {
    /// An empty state at `revision`.
    #[must_use]
    pub fn new(revision: i64) -> Self {
        Self { mvcc: Mvcc::new(revision), leases: Leases::default() }
    }

    /// A put of its own.
    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Error> {
        if request.lease != 0 && !self.leases.contains(request.lease) {
            return Err(Error::LeaseNotFound);
        }
        self.check_previous(request)?;
        let mut write = Write::begin(self);
        let response = self.put_in(request, &mut write);
        write.finish(self);
        Ok(response)
    }

    /// A range delete of its own.
    pub fn delete(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Error> {
        self.check_delete(request)?;
        let mut write = Write::begin(self);
        let response = self.delete_in(request, &mut write);
        write.finish(self);
        Ok(response)
    }

    /// Deletes single keys as one transaction (a revoked lease).
    pub fn delete_keys(&mut self, keys: &[Bytes]) {
        let mut write = Write::begin(self);
        for key in keys {
            self.delete_key(key, &mut write);
        }
        write.finish(self);
    }

    /// A transaction. `current` is the newest revision that its compares and reads may see; it is
    /// below the applied one only for a read-only transaction while the log fails.
    pub fn txn(&mut self, request: &TxnRequest, current: i64) -> Result<TxnResponse, Error> {
        let mut path = Vec::new();
        self.decide(request, current, &mut path);
        self.check(request, current, &mut path.iter().copied())?;
        let mut steps = path.iter().copied();
        if is_read_only(request) {
            let mut response = self.read_in(request, current, &mut steps)?;
            response.header = Some(header(current));
            return Ok(response);
        }
        let mut write = Write::begin(self);
        let mut response = self.run(request, &mut write, &mut steps)?;
        response.header = Some(header(write.finish(self)));
        Ok(response)
    }

    // ---- first step: which branch of each nested transaction is taken --------------------------

    fn decide(&self, request: &TxnRequest, current: i64, path: &mut Vec<bool>) {
        let succeeded = request.compare.iter().all(|compare| self.compare(compare, current));
        path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, current, path);
            }
        }
    }

    /// True if every key in the compare's range meets it. With no key at all a compare sees zeros,
    /// except that one of values fails.
    fn compare(&self, compare: &Compare, current: i64) -> bool {
        let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
        let mut none = true;
        let mut all = true;
        self.mvcc.each(&range, current, |kv| {
            none = false;
            all = holds(compare, kv);
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if none {
            compare.target() != CompareTarget::Value && holds(compare, &KeyValue::default())
        } else {
            all
        }
    }

    // ---- second step: what could fail ----------------------------------------------------------

    fn check(
        &self,
        request: &TxnRequest,
        current: i64,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Error> {
        for op in branch(request, path.next().unwrap_or(false)) {
            match &op.request {
                Some(Request::RequestRange(range)) if range.revision != 0 => {
                    // Outside a transaction a negative revision is the newest, here it is an old one.
                    if range.revision < self.mvcc.compacted() {
                        return Err(Error::Compacted);
                    }
                    self.mvcc.resolve(range.revision, current)?;
                }
                Some(Request::RequestPut(put)) => {
                    self.check_previous(put)?;
                    if put.lease != 0 && !self.leases.contains(put.lease) {
                        return Err(Error::LeaseNotFound);
                    }
                }
                Some(Request::RequestDeleteRange(delete)) => self.check_delete(delete)?,
                Some(Request::RequestTxn(nested)) => self.check(nested, current, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_previous(&self, put: &PutRequest) -> Result<(), Error> {
        let needed = put.ignore_value || put.ignore_lease;
        if needed && self.mvcc.get(&put.key, self.mvcc.revision()).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn check_delete(&self, delete: &DeleteRangeRequest) -> Result<(), Error> {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        if let KeyRange::One(_) = range {
            return Ok(());
        }
        let mut bytes = 0;
        self.mvcc.each(&range, self.mvcc.revision(), |kv| {
            bytes += kv.key().len() + 16;
            if bytes > MAX_DELETE_BYTES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if bytes > MAX_DELETE_BYTES { Err(Error::RequestTooLarge) } else { Ok(()) }
    }

    // ---- third step: do it ---------------------------------------------------------------------

    fn read_in(
        &self,
        request: &TxnRequest,
        current: i64,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, Error> {
        let succeeded = path.next().unwrap_or(false);
        let mut responses = Vec::with_capacity(branch(request, succeeded).len());
        for op in branch(request, succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(read::range(&self.mvcc, range, current)?))
                }
                _ => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: None, succeeded, responses })
    }

    fn run(
        &mut self,
        request: &TxnRequest,
        write: &mut Write,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, Error> {
        let succeeded = path.next().unwrap_or(false);
        let mut responses = Vec::with_capacity(branch(request, succeeded).len());
        for op in branch(request, succeeded) {
            let response = match &op.request {
                // Can't fail any more: its revision was checked, and no compaction comes between.
                Some(Request::RequestRange(range)) => {
                    Response::ResponseRange(read::range(&self.mvcc, range, write.view())?)
                }
                Some(Request::RequestPut(put)) => Response::ResponsePut(self.put_in(put, write)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Response::ResponseDeleteRange(self.delete_in(delete, write))
                }
                Some(Request::RequestTxn(nested)) => {
                    Response::ResponseTxn(self.run(nested, write, path)?)
                }
                None => continue,
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        // Only the outermost header is filled in, as in etcd.
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }

    fn put_in(&mut self, request: &PutRequest, write: &mut Write) -> PutResponse {
        let keep = (request.ignore_value || request.ignore_lease)
            .then(|| self.mvcc.get(&request.key, write.view()))
            .flatten();
        let value = match &keep {
            Some(kv) if request.ignore_value => kv.value(),
            _ => &request.value,
        };
        let lease = match &keep {
            Some(kv) if request.ignore_lease => kv.lease(),
            _ => request.lease,
        };
        let prev = self.mvcc.put(write.revision, &request.key, value, lease);
        write.changed = true;
        let had = prev.as_ref().map_or(0, KeyValue::lease);
        self.leases.attach(&request.key, had, lease);
        PutResponse {
            header: Some(header(write.revision)),
            prev_kv: if request.prev_kv { prev } else { None },
        }
    }

    fn delete_in(
        &mut self,
        request: &DeleteRangeRequest,
        write: &mut Write,
    ) -> DeleteRangeResponse {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let found = self.mvcc.range(&range, write.view(), Want::All).kvs;
        for kv in &found {
            self.delete_key(kv.key(), write);
        }
        DeleteRangeResponse {
            header: Some(header(write.view())),
            deleted: i64::try_from(found.len()).unwrap_or(i64::MAX),
            prev_kvs: if request.prev_kv { found } else { Vec::new() },
        }
    }

    fn delete_key(&mut self, key: &[u8], write: &mut Write) {
        if let Some(prev) = self.mvcc.delete(write.revision, key) {
            write.changed = true;
            self.leases.attach(key, prev.lease(), 0);
        }
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a transaction can't change anything: all its operations, taken or not, are ranges.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether a transaction, or one nested in it, puts anything in any branch.
#[must_use]
pub fn has_put(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_put(nested),
        _ => false,
    })
}

fn holds(compare: &Compare, kv: &KeyValue) -> bool {
    // A union that does not fit the target counts as zero or empty, as in etcd.
    let union = compare.target_union.as_ref();
    let order = match compare.target() {
        CompareTarget::Version => kv.version().cmp(&match union {
            Some(TargetUnion::Version(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Create => kv.create_revision().cmp(&match union {
            Some(TargetUnion::CreateRevision(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Mod => kv.mod_revision().cmp(&match union {
            Some(TargetUnion::ModRevision(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Value => kv.value().cmp(match union {
            Some(TargetUnion::Value(value)) => value.as_ref(),
            _ => &[],
        }),
        CompareTarget::Lease => kv.lease().cmp(&match union {
            Some(TargetUnion::Lease(n)) => *n,
            _ => 0,
        }),
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}
