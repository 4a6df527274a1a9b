//! Applies commands one by one and says what must be logged.
//!
//! The engine knows nothing of durability but the class of each record. Whoever drives it takes the
//! records, makes them durable, and then calls [`Engine::publish`]; until then no reply may leave.

use bytes::Bytes;
use prost::Message;

use super::error::Error;
use super::history::Batch;
use super::kv::KeyValue;
use super::lease::{LeaseView, Millis};
use super::mvcc::{Mvcc, Page};
use super::range::KeyRange;
use super::read;
use super::txn::{State, has_put, is_read_only};
use super::watch::{Filter, WatchIndex, WatchKey};
use crate::log::{self, Class, DurabilityRules, OpenError, Record, Recovered, SnapshotItem};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse,
};

/// Events of the log that are replayed between two slices of housekeeping.
const REPLAY: usize = 512;

/// One request, checked by [`check`](super::check) where a check exists.
#[derive(Debug)]
pub enum Command {
    /// Read a range.
    Range(RangeRequest),
    /// Read a part of a range that was begun by a [`Command::Range`], at its revision: what it
    /// counted is not counted again.
    Page {
        /// The whole range.
        range: KeyRange,
        /// The revision; 0 is the newest.
        revision: i64,
        /// The key to go on from.
        from: Bytes,
        /// See [`Mvcc::page`].
        max_bytes: usize,
    },
    /// Put a key.
    Put(PutRequest),
    /// Delete a range.
    Delete(DeleteRangeRequest),
    /// Run a transaction.
    Txn(TxnRequest),
    /// Forget history below a revision.
    Compact(i64),
    /// Grant a lease with an id (not 0) and seconds to live.
    LeaseGrant {
        /// The id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Revoke a lease and delete its keys.
    LeaseRevoke(i64),
    /// Start a lease's time anew.
    LeaseRenew(i64),
    /// Look at a lease, with or without its keys.
    LeaseView(i64, bool),
    /// List leases.
    LeaseList,
    /// Watch a range from a revision on; 0 means from now on.
    Watch {
        /// Names the watcher.
        key: WatchKey,
        /// What it watches.
        range: KeyRange,
        /// What it does not want.
        filter: Filter,
        /// The first revision it wants.
        start: i64,
    },
    /// End a watch.
    Unwatch(WatchKey),
    /// Sizes and revisions.
    Status,
    /// Take the alarm for space back.
    Disarm,
}

impl Command {
    /// The key that it looks at first, if it names one.
    fn first_key(&self) -> Option<&[u8]> {
        match self {
            Self::Range(range) if range.range_end.is_empty() => Some(&range.key),
            Self::Put(put) => Some(&put.key),
            Self::Delete(delete) if delete.range_end.is_empty() => Some(&delete.key),
            // An update by an apiserver is of one key.
            Self::Txn(txn) => match txn.compare.first() {
                Some(compare) => Some(&compare.key),
                None => txn.success.first().and_then(|op| match &op.request {
                    Some(Request::RequestPut(put)) => Some(put.key.as_ref()),
                    _ => None,
                }),
            },
            _ => None,
        }
    }
}

/// Answer to a [`Command`]. Headers carry the revision only.
#[derive(Debug)]
pub enum Reply {
    /// To [`Command::Range`].
    Range(RangeResponse),
    /// To [`Command::Page`].
    Page(Page),
    /// To [`Command::Put`].
    Put(PutResponse),
    /// To [`Command::Delete`].
    Delete(DeleteRangeResponse),
    /// To [`Command::Txn`].
    Txn(TxnResponse),
    /// Done, as of this revision.
    Done(i64),
    /// To [`Command::LeaseGrant`] and [`Command::LeaseRenew`]: seconds to live.
    Lease {
        /// Revision.
        revision: i64,
        /// Seconds.
        ttl: i64,
    },
    /// To [`Command::LeaseView`].
    LeaseView(i64, Option<LeaseView>),
    /// To [`Command::LeaseList`].
    LeaseList(i64, Vec<i64>),
    /// To [`Command::Watch`].
    Watch(Watching),
    /// To [`Command::Status`].
    Status(Status),
}

/// What became of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watching {
    /// The newest revision.
    pub revision: i64,
    /// The first revision whose events will come.
    pub next: i64,
    /// Set if the start is before history begins, to where it begins: there is no watch then.
    pub compacted: Option<i64>,
    /// The compacted revision. An event at it is still told, but what its key held before is gone.
    pub floor: i64,
}

/// Sizes and revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The newest revision.
    pub revision: i64,
    /// The compacted revision; −1 before the first compaction.
    pub compacted: i64,
    /// Live keys.
    pub keys: usize,
    /// Bytes of all versions, with an estimate of what surrounds them.
    pub bytes: usize,
    /// Leases.
    pub leases: usize,
    /// Watchers.
    pub watchers: usize,
    /// The space alarm is on.
    pub no_space: bool,
}

/// What the engine must know of its surroundings.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Durability of keys.
    pub rules: DurabilityRules,
    /// Durability of leases: the strongest of any key.
    pub lease_class: Class,
    /// Bytes above which puts are refused with an alarm; 0 is no bound.
    pub quota: usize,
}

/// The state machine.
#[derive(Debug)]
pub struct Engine {
    state: State,
    watches: WatchIndex,
    config: EngineConfig,
    records: Vec<(Class, Record)>,
    /// Reads see only what was published: the log could not take what was applied since.
    frozen: bool,
    no_space: bool,
}

impl Engine {
    /// An engine on a state, which may be recovered.
    #[must_use]
    pub fn new(state: State, config: EngineConfig) -> Self {
        Self {
            state,
            watches: WatchIndex::default(),
            config,
            records: Vec::new(),
            frozen: false,
            no_space: false,
        }
    }

    /// The keys.
    #[must_use]
    pub fn mvcc(&self) -> &Mvcc {
        &self.state.mvcc
    }

    /// The keys, for housekeeping: compaction's slices.
    pub fn mvcc_mut(&mut self) -> &mut Mvcc {
        &mut self.state.mvcc
    }

    /// The state, for a snapshot.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The index of watchers.
    pub fn watches_mut(&mut self) -> &mut WatchIndex {
        &mut self.watches
    }

    /// From now on, while `frozen`, reads see only what was published. Writes are the caller's to
    /// refuse.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// The newest revision that a reply may carry.
    #[must_use]
    pub fn current(&self) -> i64 {
        if self.frozen { self.state.mvcc.history().revision() } else { self.state.mvcc.revision() }
    }

    /// Takes what must be logged, in order.
    pub fn take_records(&mut self) -> Vec<(Class, Record)> {
        std::mem::take(&mut self.records)
    }

    /// Moves what was applied into the history: all of it is durable for its class now. Gives the
    /// batch for the watch index; then call [`Mvcc::show`].
    pub fn publish(&mut self) -> Option<Batch> {
        self.state.mvcc.publish()
    }

    /// Sizes and revisions.
    #[must_use]
    pub fn status(&self) -> Status {
        let mvcc = &self.state.mvcc;
        Status {
            revision: self.current(),
            compacted: mvcc.compacted(),
            keys: mvcc.keys(),
            bytes: mvcc.bytes(),
            leases: self.state.leases.len(),
            watchers: self.watches.len(),
            no_space: self.no_space,
        }
    }

    /// When the next lease is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.state.leases.next_deadline()
    }

    /// Revokes up to `limit` leases that are due; gives how many.
    pub fn expire(&mut self, now: Millis, limit: usize) -> usize {
        let due = self.state.leases.due(now, limit);
        for id in &due {
            // They are there: they were just listed.
            let _ = self.revoke(*id);
        }
        due.len()
    }

    /// Begins to bring what these commands will read and write.
    pub fn prefetch<'a>(&self, commands: impl Iterator<Item = &'a Command>) {
        self.state.mvcc.prefetch(commands.filter_map(Command::first_key));
    }

    /// Applies one command at time `now`.
    pub fn apply(&mut self, command: Command, now: Millis) -> Result<Reply, Error> {
        let current = self.current();
        match command {
            Command::Range(request) => {
                read::range(&self.state.mvcc, &request, current).map(Reply::Range)
            }
            Command::Page { range, revision, from, max_bytes } => {
                let at = self.state.mvcc.resolve(revision, current)?;
                Ok(Reply::Page(self.state.mvcc.page(&range, at, Some(&from), max_bytes)))
            }
            Command::Put(request) => {
                self.room_for(request.encoded_len())?;
                self.logged(|state| state.put(&request)).map(Reply::Put)
            }
            Command::Delete(request) => {
                self.logged(|state| state.delete(&request)).map(Reply::Delete)
            }
            Command::Txn(request) => {
                if is_read_only(&request) {
                    return self.state.txn(&request, current).map(Reply::Txn);
                }
                if has_put(&request) {
                    self.room_for(request.encoded_len())?;
                }
                self.logged(|state| state.txn(&request, current)).map(Reply::Txn)
            }
            Command::Compact(revision) => {
                self.state.mvcc.compact(revision)?;
                // As durable as anything: a client that was told so must not read below it again.
                self.records.push((self.config.lease_class, Record::Compact { revision }));
                Ok(Reply::Done(current))
            }
            Command::LeaseGrant { id, ttl } => {
                self.room_for(0)?;
                let ttl = self.state.leases.grant(id, ttl, now)?;
                self.records.push((self.config.lease_class, Record::LeaseGrant { id, ttl }));
                Ok(Reply::Lease { revision: current, ttl })
            }
            Command::LeaseRevoke(id) => {
                self.revoke(id)?;
                Ok(Reply::Done(self.current()))
            }
            Command::LeaseRenew(id) => {
                let ttl = self.state.leases.renew(id, now)?;
                Ok(Reply::Lease { revision: current, ttl })
            }
            Command::LeaseView(id, keys) => {
                Ok(Reply::LeaseView(current, self.state.leases.view(id, now, keys)))
            }
            Command::LeaseList => Ok(Reply::LeaseList(current, self.state.leases.ids())),
            Command::Watch { key, range, filter, start } => {
                Ok(Reply::Watch(self.watch(key, range, filter, start)))
            }
            Command::Unwatch(key) => {
                self.watches.remove(key);
                Ok(Reply::Done(current))
            }
            Command::Status => Ok(Reply::Status(self.status())),
            Command::Disarm => {
                self.no_space = false;
                Ok(Reply::Done(current))
            }
        }
    }

    fn watch(&mut self, key: WatchKey, range: KeyRange, filter: Filter, start: i64) -> Watching {
        // Watches know the published history; what this batch applied before them comes as events.
        let revision = self.state.mvcc.history().revision();
        // After a start from a snapshot the events of its own revision are gone, though the keys
        // can be read at it: such a watch must be told to begin above.
        let floor = self.state.mvcc.compacted();
        let begins = self.state.mvcc.history().floor().max(floor);
        if start > 0 && start < begins {
            return Watching { revision, next: start, compacted: Some(begins), floor };
        }
        let next = if start == 0 { revision + 1 } else { start };
        self.watches.add(key, range, filter, next);
        Watching { revision, next, compacted: None, floor }
    }

    fn revoke(&mut self, id: i64) -> Result<(), Error> {
        let keys: Vec<Bytes> = self.state.leases.revoke(id)?;
        self.logged(|state| {
            state.delete_keys(&keys);
            Ok(())
        })?;
        self.records.push((self.config.lease_class, Record::LeaseRevoke { id }));
        Ok(())
    }

    /// Refuses what adds data while the quota is exceeded (etcd `server/storage/quota.go`).
    fn room_for(&mut self, bytes: usize) -> Result<(), Error> {
        if self.no_space {
            return Err(Error::NoSpace);
        }
        if self.config.quota > 0 && self.state.mvcc.bytes() + bytes > self.config.quota {
            self.no_space = true;
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Runs a write, and records what it changed as one transaction.
    fn logged<T>(
        &mut self,
        write: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let before = self.state.mvcc.fresh().len();
        let reply = write(&mut self.state)?;
        let events = &self.state.mvcc.fresh()[before..];
        let rules = &self.config.rules;
        if let Some(class) = events.iter().map(|event| rules.class(event.kv.key())).max() {
            let ops = if class == Class::None {
                Vec::new()
            } else {
                events.iter().map(|event| event.kv.clone()).collect()
            };
            let revision = self.state.mvcc.revision();
            self.records.push((class, Record::Txn { revision, ops }));
        }
        Ok(reply)
    }
}

impl State {
    /// The state that a log holds.
    pub fn recover(recovered: Recovered) -> Result<Self, OpenError> {
        let mut state = Self::new(1);
        let snapshot_revision =
            recovered.snapshot.as_ref().map(|snapshot| snapshot.meta().revision);
        for item in log::read_ahead(recovered.snapshot.into_iter().flatten())? {
            match item? {
                SnapshotItem::Lease { id, ttl } => {
                    let _ = state.leases.grant(id, ttl, 0);
                }
                SnapshotItem::Key(kv) => state.restore(&kv),
            }
        }
        if let Some(revision) = snapshot_revision {
            state.restored(revision);
        }
        for record in log::read_ahead(recovered.records)? {
            state.replay(record?, 0);
        }
        state.recover_at(recovered.start_revision, recovered.compact_revision);
        Ok(state)
    }

    /// Applies a record of the log, in the log's order.
    pub fn replay(&mut self, record: Record, now: Millis) {
        match record {
            Record::Txn { revision, ops } => {
                for kv in ops {
                    self.replay_version(&kv);
                }
                self.mvcc.finish(revision);
                // Not all at the end: what is old is packed as it comes.
                if self.mvcc.fresh().len() >= REPLAY {
                    self.mvcc.publish();
                    self.mvcc.collect(REPLAY);
                }
            }
            Record::LeaseGrant { id, ttl } => {
                let _ = self.leases.grant(id, ttl, now);
            }
            Record::LeaseRevoke { id } => {
                let _ = self.leases.revoke(id);
            }
            Record::Compact { revision } => self.recover_compacted(revision),
        }
    }

    fn replay_version(&mut self, kv: &KeyValue) {
        // A delete of a key that was not recovered (class none) changes nothing.
        if kv.is_tombstone() && self.mvcc.get(kv.key(), i64::MAX).is_none() {
            return;
        }
        let had = self.mvcc.push(kv).map_or(0, |prev| prev.lease());
        self.leases.attach(kv.key(), had, kv.lease());
    }

    /// Takes a live key out of a snapshot. Snapshots come before all records.
    pub fn restore(&mut self, kv: &KeyValue) {
        self.leases.attach(kv.key(), 0, kv.lease());
        let revision = kv.mod_revision();
        self.mvcc.push(kv);
        self.mvcc.finish(revision);
        self.mvcc.forget_fresh();
    }

    /// The snapshot was of this revision, and all of it was taken: history begins above.
    pub fn restored(&mut self, revision: i64) {
        self.mvcc.finish(revision);
        self.mvcc.begin_history(revision + 1);
    }

    /// Goes on from a revision, with what is below another forgotten.
    pub fn recover_at(&mut self, start_revision: i64, compact_revision: i64) {
        self.mvcc.finish(start_revision);
        self.mvcc.publish();
        self.recover_compacted(compact_revision);
        self.mvcc.show();
    }

    fn recover_compacted(&mut self, revision: i64) {
        if revision > 0 && self.mvcc.compact(revision).is_ok() {
            self.mvcc.publish();
            self.mvcc.release();
            while self.mvcc.collect(usize::MAX) {}
        }
    }
}
