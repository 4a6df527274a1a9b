//! The specification: what a store of etcd's kind answers, written to be read. It keeps a whole map
//! for every revision and looks at nothing but those maps.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use megacluster_store::core::Error;
use megacluster_store::core::watch::Filter;
use megacluster_store::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use megacluster_store::pb::etcdserverpb::request_op::Request;
use megacluster_store::pb::etcdserverpb::response_op::Response;
use megacluster_store::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};

use crate::compare::same;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) create: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

pub(crate) type Map = BTreeMap<Bytes, Entry>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) key: Bytes,
    /// `None` for a delete.
    pub(crate) now: Option<Entry>,
    pub(crate) before: Option<Entry>,
}

impl Change {
    pub(crate) fn passes(&self, filter: Filter) -> bool {
        if self.now.is_some() { !filter.no_put } else { !filter.no_delete }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lease {
    pub(crate) ttl: i64,
    pub(crate) deadline: u64,
}

/// Keys, count and more.
pub(crate) type Found = (Vec<(Bytes, Entry)>, i64, bool);

#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// `maps[r]` is the state at revision `r`; the first two are empty, as etcd starts at 1.
    maps: Vec<Rc<Map>>,
    pub(crate) compacted: i64,
    /// Watches below are cut off: the compacted revision a moment later, or the first one above
    /// the snapshot that a start began with.
    pub(crate) released: i64,
    pub(crate) changes: Vec<Change>,
    pub(crate) leases: BTreeMap<i64, Lease>,
}

fn bounds(key: &Bytes, end: &Bytes) -> (Bound<Bytes>, Bound<Bytes>) {
    let start = Bound::Included(key.clone());
    match end.as_ref() {
        [] => (start, Bound::Included(key.clone())),
        [0] => (start, Bound::Unbounded),
        _ => (start, Bound::Excluded(end.clone())),
    }
}

pub(crate) fn within(map: &Map, key: &Bytes, end: &Bytes) -> Vec<(Bytes, Entry)> {
    // BTreeMap refuses a start above the end.
    if !end.is_empty() && end.as_ref() != [0] && end <= key {
        return Vec::new();
    }
    map.range(bounds(key, end)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Spec {
    pub(crate) fn new() -> Self {
        Self {
            maps: vec![Rc::default(), Rc::default()],
            compacted: -1,
            released: i64::MIN,
            changes: Vec::new(),
            leases: BTreeMap::new(),
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        i64::try_from(self.maps.len()).unwrap() - 1
    }

    pub(crate) fn newest(&self) -> &Map {
        self.maps.last().unwrap()
    }

    pub(crate) fn at(&self, revision: i64) -> &Map {
        &self.maps[usize::try_from(revision).unwrap()]
    }

    /// Goes on at a later revision with a changed state and no event (a restart that lost keys).
    pub(crate) fn jump(&mut self, revision: i64, keep: impl Fn(&Bytes) -> bool) {
        let mut map = self.newest().clone();
        map.retain(|key, _| keep(key));
        self.maps.resize(usize::try_from(revision).unwrap() + 1, Rc::new(map));
    }

    // ---- reading -------------------------------------------------------------------------------

    pub(crate) fn range(map: &Map, r: &RangeRequest) -> Found {
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
        if r.keys_only {
            for (_, e) in &mut kept {
                e.value = Bytes::new();
            }
        }
        (kept, count, more)
    }

    pub(crate) fn read(&self, r: &RangeRequest) -> Result<Found, Error> {
        if r.revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        let at = if r.revision <= 0 { self.revision() } else { r.revision };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(Self::range(self.at(at), r))
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

    // ---- writing -------------------------------------------------------------------------------

    /// Runs a write at the next revision, which it takes only if something changed.
    fn write<T>(&mut self, run: impl FnOnce(&mut Map, i64, &mut Vec<Change>) -> T) -> T {
        let revision = self.revision() + 1;
        let mut map = self.newest().clone();
        let mut changes = Vec::new();
        let result = run(&mut map, revision, &mut changes);
        if !changes.is_empty() {
            self.maps.push(Rc::new(map));
            self.changes.append(&mut changes);
        }
        result
    }

    /// etcd looks for the lease first, in a transaction for the key first.
    fn lease_exists(&self, p: &PutRequest) -> Result<(), Error> {
        if p.lease == 0 || self.leases.contains_key(&p.lease) {
            return Ok(());
        }
        Err(Error::LeaseNotFound)
    }

    fn key_exists(&self, p: &PutRequest) -> Result<(), Error> {
        if (p.ignore_value || p.ignore_lease) && !self.newest().contains_key(&p.key) {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    pub(crate) fn put(&mut self, p: &PutRequest) -> Result<(), Error> {
        self.lease_exists(p)?;
        self.key_exists(p)?;
        self.write(|map, revision, changes| put(map, revision, changes, p));
        Ok(())
    }

    pub(crate) fn delete(&mut self, d: &DeleteRangeRequest) -> Vec<(Bytes, Entry)> {
        self.write(|map, revision, changes| delete(map, revision, changes, d))
    }

    /// Runs a transaction and holds the engine's answer against it.
    pub(crate) fn txn(&mut self, t: &TxnRequest, answer: Result<&TxnResponse, Error>) {
        let mut path = Vec::new();
        self.decide(t, &mut path);
        if let Err(wanted) = self.check(t, &mut path.iter().copied()) {
            assert_eq!(answer.err(), Some(wanted));
            return;
        }
        let answer = answer.unwrap_or_else(|error| panic!("refused with {error}"));
        let past = self.maps.clone();
        self.write(|map, revision, changes| {
            let mut world = World { map, revision, changes, past: &past };
            world.run(t, &mut path.into_iter(), answer);
        });
    }

    /// All compares come before all operations, those of nested transactions too.
    fn decide(&self, t: &TxnRequest, path: &mut Vec<bool>) {
        let taken = t.compare.iter().all(|c| self.holds(c));
        path.push(taken);
        for op in branch(t, taken) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, path);
            }
        }
    }

    fn check(&self, t: &TxnRequest, path: &mut impl Iterator<Item = bool>) -> Result<(), Error> {
        for op in branch(t, path.next().unwrap()) {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(r) if r.revision != 0 => {
                    if r.revision > self.revision() {
                        return Err(Error::FutureRevision);
                    }
                    if r.revision < self.compacted {
                        return Err(Error::Compacted);
                    }
                }
                Request::RequestPut(p) => {
                    self.key_exists(p)?;
                    self.lease_exists(p)?;
                }
                Request::RequestTxn(nested) => self.check(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        Ok(())
    }

    pub(crate) fn release(&mut self) {
        if self.compacted > 0 {
            self.released = self.released.max(self.compacted);
        }
    }

    // ---- leases --------------------------------------------------------------------------------

    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: u64) -> Result<i64, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > 9_000_000_000 {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl = ttl.max(2);
        self.leases.insert(id, Lease { ttl, deadline: now + ttl.cast_unsigned() * 1000 });
        Ok(ttl)
    }

    pub(crate) fn renew(&mut self, id: i64, now: u64) -> Result<i64, Error> {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.deadline > now);
        let lease = lease.ok_or(Error::LeaseNotFound)?;
        lease.deadline = now + lease.ttl.cast_unsigned() * 1000;
        Ok(lease.ttl)
    }

    pub(crate) fn keys_of(&self, id: i64) -> Vec<Bytes> {
        let keys = self.newest().iter().filter(|(_, entry)| entry.lease == id);
        keys.map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), Error> {
        if self.leases.remove(&id).is_none() {
            return Err(Error::LeaseNotFound);
        }
        let keys = self.keys_of(id);
        self.write(|map, revision, changes| {
            for key in keys {
                delete(map, revision, changes, &DeleteRangeRequest { key, ..Default::default() });
            }
        });
        Ok(())
    }

    /// Ids, the soonest due first.
    pub(crate) fn lease_ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.leases.iter().map(|(id, l)| (l.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    pub(crate) fn expire(&mut self, now: u64, limit: usize) -> usize {
        let due = self.lease_ids().into_iter().filter(|id| self.leases[id].deadline <= now);
        let due: Vec<i64> = due.take(limit).collect();
        for id in &due {
            self.revoke(*id).unwrap();
        }
        due.len()
    }
}

pub(crate) fn branch(t: &TxnRequest, taken: bool) -> &[RequestOp] {
    if taken { &t.success } else { &t.failure }
}

fn put(map: &mut Map, revision: i64, changes: &mut Vec<Change>, p: &PutRequest) {
    let before = map.get(&p.key).cloned();
    let (create, version) = before.as_ref().map_or((revision, 1), |e| (e.create, e.version + 1));
    let kept = before.as_ref();
    let value = if p.ignore_value {
        kept.map_or(Bytes::new(), |e| e.value.clone())
    } else {
        p.value.clone()
    };
    let lease = if p.ignore_lease { kept.map_or(0, |e| e.lease) } else { p.lease };
    let now = Entry { value, create, modified: revision, version, lease };
    map.insert(p.key.clone(), now.clone());
    changes.push(Change { revision, key: p.key.clone(), now: Some(now), before });
}

fn delete(
    map: &mut Map,
    revision: i64,
    changes: &mut Vec<Change>,
    d: &DeleteRangeRequest,
) -> Vec<(Bytes, Entry)> {
    let found = within(map, &d.key, &d.range_end);
    for (key, before) in &found {
        map.remove(key);
        let (key, before) = (key.clone(), Some(before.clone()));
        changes.push(Change { revision, key, now: None, before });
    }
    found
}

/// A transaction at work.
struct World<'a> {
    map: &'a mut Map,
    revision: i64,
    changes: &'a mut Vec<Change>,
    past: &'a [Rc<Map>],
}

impl World<'_> {
    fn run(&mut self, t: &TxnRequest, path: &mut impl Iterator<Item = bool>, answer: &TxnResponse) {
        let taken = path.next().unwrap();
        assert_eq!(answer.succeeded, taken);
        let ops = branch(t, taken);
        assert_eq!(ops.len(), answer.responses.len());
        for (op, response) in ops.iter().zip(&answer.responses) {
            match (op.request.as_ref().unwrap(), response.response.as_ref().unwrap()) {
                (Request::RequestRange(r), Response::ResponseRange(found)) => {
                    // The newest revision is the transaction's own, with what it did so far.
                    let past = usize::try_from(r.revision).ok().filter(|r| *r > 0);
                    let map = past.map_or(&*self.map, |r| &*self.past[r]);
                    same(found, &Spec::range(map, r));
                }
                (Request::RequestPut(p), Response::ResponsePut(found)) => {
                    let before = self.map.get(&p.key).cloned().filter(|_| p.prev_kv);
                    let got = found.prev_kv.as_ref().map(|kv| crate::compare::entry(kv).1);
                    assert_eq!(got, before);
                    put(self.map, self.revision, self.changes, p);
                }
                (Request::RequestDeleteRange(d), Response::ResponseDeleteRange(found)) => {
                    let gone = delete(self.map, self.revision, self.changes, d);
                    assert_eq!(found.deleted, i64::try_from(gone.len()).unwrap());
                    let prev: Vec<_> = found.prev_kvs.iter().map(crate::compare::entry).collect();
                    assert_eq!(prev, if d.prev_kv { gone } else { Vec::new() });
                }
                (Request::RequestTxn(nested), Response::ResponseTxn(inner)) => {
                    self.run(nested, path, inner);
                }
                other => panic!("answer of another kind: {other:?}"),
            }
        }
    }
}
