//! Both stores side by side: each step runs on the two, and the answers are held together.

use bytes::Bytes;
use megacluster_store::core::watch::{Cursor, Filter, Mark, Picked, WatchKey};
use megacluster_store::core::{Command, Error, KeyRange, Read, Reply, Watching};
use megacluster_store::log::{Class, DurabilityRules};
use megacluster_store::pb::etcdserverpb::{PutRequest, RangeRequest};

use crate::compare::{change, entry, same};
use crate::generate::{End, Step, place, place_all};
use crate::spec::{Change, Spec, within};
use crate::subject::Subject;

/// Events that a watch looks at in one go.
const SCAN: usize = 64;

/// A watch, and what it was told.
struct Watch {
    key: WatchKey,
    range: KeyRange,
    filter: Filter,
    start: i64,
    cursor: Cursor,
    /// Changes so far.
    told: usize,
}

pub(crate) struct Pair {
    subject: Subject,
    spec: Spec,
    rules: DurabilityRules,
    now: u64,
    /// Revision that clients may see.
    published: i64,
    /// What the specification was at each end of the log that was ever written in this run, and
    /// before it.
    commits: Vec<(Option<(String, usize)>, Spec)>,
    /// Revision of the last finished snapshot.
    snapshot: i64,
    watches: Vec<Watch>,
    next_watch: i64,
}

impl Pair {
    pub(crate) fn new(rules: DurabilityRules) -> Self {
        Self {
            subject: Subject::new(rules.clone()),
            spec: Spec::new(),
            rules,
            now: 0,
            published: 1,
            commits: vec![(None, Spec::new())],
            snapshot: 0,
            watches: Vec::new(),
            next_watch: 0,
        }
    }

    fn ask(&mut self, command: Command) -> Result<Reply, Error> {
        self.subject.apply(command, self.now)
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Put(request) => self.put(&request),
            Step::Delete(request) => {
                let Ok(Reply::Delete(reply)) = self.ask(Command::Delete(request.clone())) else {
                    panic!("delete")
                };
                let gone = self.spec.delete(&request);
                assert_eq!(reply.header.unwrap().revision, self.spec.revision());
                assert_eq!(reply.deleted, i64::try_from(gone.len()).unwrap());
                let prev: Vec<_> = reply.prev_kvs.iter().map(entry).collect();
                assert_eq!(prev, if request.prev_kv { gone } else { Vec::new() });
            }
            Step::Txn(mut request) => {
                place_all(&mut request, self.spec.revision());
                match self.ask(Command::Txn(request.clone())) {
                    Ok(Reply::Txn(reply)) => {
                        self.spec.txn(&request, Ok(&reply));
                        assert_eq!(reply.header.unwrap().revision, self.spec.revision());
                    }
                    Err(error) => self.spec.txn(&request, Err(error)),
                    other => panic!("{other:?}"),
                }
            }
            Step::Range(request) => self.range(&RangeRequest {
                revision: place(request.revision, self.spec.revision()),
                ..request
            }),
            Step::Compact(back) => {
                let revision = self.spec.revision() - back;
                let found = self.ask(Command::Compact(revision)).map(|_| ());
                assert_eq!(found, self.spec.compact(revision));
            }
            Step::Publish => self.publish(),
            Step::Sync => self.subject.sync(),
            // As the sequencer does: not while a snapshot reads the past.
            Step::Release if self.subject.snapshot_pending() => {}
            Step::Release => {
                self.subject.engine.mvcc_mut().release();
                self.spec.release();
            }
            Step::Collect(limit) => {
                self.subject.engine.mvcc_mut().collect(limit);
            }
            Step::BeginSnapshot => {
                self.publish();
                self.subject.begin_snapshot();
            }
            Step::EndSnapshot => {
                if let Some(revision) = self.subject.end_snapshot() {
                    self.snapshot = revision;
                }
            }
            Step::Watch(key, end, filter, back) => self.watch(key, end, filter, back),
            Step::Read(which) => {
                if let Some(at) = which.checked_rem(self.watches.len()) {
                    self.read(at);
                }
            }
            Step::Unwatch(which) => {
                if let Some(at) = which.checked_rem(self.watches.len()) {
                    let watch = self.watches.remove(at);
                    self.ask(Command::Unwatch(watch.key)).unwrap();
                }
            }
            Step::Restart(end) => self.restart(end),
            lease => self.lease(&lease),
        }
    }

    fn put(&mut self, request: &PutRequest) {
        let before = self.spec.newest().get(&request.key).cloned().filter(|_| request.prev_kv);
        let reply = self.ask(Command::Put(request.clone()));
        match (reply, self.spec.put(request)) {
            (Ok(Reply::Put(reply)), Ok(())) => {
                assert_eq!(reply.header.unwrap().revision, self.spec.revision());
                assert_eq!(reply.prev_kv.as_ref().map(|kv| entry(kv).1), before);
            }
            (Err(found), Err(wanted)) => assert_eq!(found, wanted),
            (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
        }
    }

    fn range(&mut self, request: &RangeRequest) {
        match (self.ask(Command::Range(request.clone())), self.spec.read(request)) {
            (Ok(Reply::Range(found)), Ok(wanted)) => {
                same(&found, &wanted);
                assert_eq!(found.header.unwrap().revision, self.spec.revision());
            }
            (Err(found), Err(wanted)) => assert_eq!(found, wanted, "{request:?}"),
            (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
        }
    }

    /// Everything at a revision, in parts of several sizes.
    fn pages(&self, revision: i64) {
        let map = self.spec.at(revision);
        let wanted = within(map, &"\0".into(), &"\0".into());
        for max_bytes in [1, 60, 100_000] {
            let mut found = Vec::new();
            let mut from = None;
            loop {
                let range = KeyRange::From("\0".into());
                let mvcc = self.subject.engine.mvcc();
                let page = mvcc.page(&range, revision, from.as_ref(), max_bytes);
                assert!(!page.kvs.is_empty() || found.is_empty());
                found.extend(page.kvs.iter().map(entry));
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(found, wanted, "pages of {max_bytes} at {revision}");
        }
    }

    fn lease(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Grant(id, ttl) => {
                let wanted = self.spec.grant(id, ttl, now);
                self.lease_reply(Command::LeaseGrant { id, ttl }, wanted);
            }
            Step::Renew(id) => {
                let wanted = self.spec.renew(id, now);
                self.lease_reply(Command::LeaseRenew(id), wanted);
            }
            Step::Revoke(id) => {
                let wanted = self.spec.revoke(id);
                match (self.ask(Command::LeaseRevoke(id)), wanted) {
                    (Ok(Reply::Done(revision)), Ok(())) => {
                        assert_eq!(revision, self.spec.revision());
                    }
                    (found, wanted) => assert_eq!(found.err(), wanted.err()),
                }
            }
            Step::View(id, keys) => {
                let Ok(Reply::LeaseView(revision, found)) = self.ask(Command::LeaseView(id, keys))
                else {
                    panic!("view")
                };
                assert_eq!(revision, self.spec.revision());
                let wanted = self.spec.leases.get(&id).map(|lease| {
                    let left = lease.deadline.saturating_sub(now) / 1000;
                    let keys = if keys { self.spec.keys_of(id) } else { Vec::new() };
                    (lease.ttl, left.cast_signed(), keys)
                });
                assert_eq!(found.map(|v| (v.granted_ttl, v.remaining, v.keys)), wanted);
            }
            Step::Leases => self.same_leases(),
            Step::Pass(ms, limit) => {
                self.now += ms;
                let found = self.subject.engine.expire(self.now, limit);
                assert_eq!(found, self.spec.expire(self.now, limit));
            }
            _ => unreachable!("not of leases: {step:?}"),
        }
    }

    fn lease_reply(&mut self, command: Command, wanted: Result<i64, Error>) {
        match (self.ask(command), wanted) {
            (Ok(Reply::Lease { revision, ttl }), Ok(wanted)) => {
                assert_eq!((revision, ttl), (self.spec.revision(), wanted));
            }
            (found, wanted) => assert_eq!(found.err(), wanted.err()),
        }
    }

    fn same_leases(&mut self) {
        let Ok(Reply::LeaseList(_, found)) = self.ask(Command::LeaseList) else { panic!("list") };
        assert_eq!(found, self.spec.lease_ids());
    }

    // ---- watches -------------------------------------------------------------------------------

    fn watch(&mut self, key: Bytes, end: Bytes, filter: Filter, back: i64) {
        // The edge refuses an empty range.
        let range = KeyRange::new(key, end);
        if range.end().is_some_and(|end| end <= range.start()) {
            return;
        }
        let start = place(back, self.published);
        self.next_watch += 1;
        let key = WatchKey { stream: 1, id: self.next_watch };
        let command = Command::Watch { key, range: range.clone(), filter, start };
        let Ok(Reply::Watch(found)) = self.ask(command) else { panic!("watch") };
        let begins = self.spec.compacted.max(self.spec.released);
        if start > 0 && start < begins {
            assert_eq!(found.compacted, Some(begins), "watch from {start}");
            return;
        }
        let Watching { revision, next, compacted, .. } = found;
        let start = if start == 0 { self.published + 1 } else { start };
        assert_eq!((revision, next, compacted), (self.published, start, None));
        let cursor = Cursor::new(range.clone(), filter, next);
        self.watches.push(Watch { key, range, filter, start, cursor, told: 0 });
    }

    /// What a watch must have been told once it knows all up to `through`.
    fn wanted(&self, watch: &Watch, through: i64) -> Vec<Change> {
        let changes = self.spec.changes.iter().filter(|change| {
            (watch.start..=through).contains(&change.revision)
                && watch.range.contains(&change.key)
                && change.passes(watch.filter)
        });
        changes.cloned().collect()
    }

    /// Lets a watch read on, and checks that nothing is missing, doubled or out of order.
    fn read(&mut self, at: usize) {
        let history = self.subject.engine.mvcc().history();
        let next = self.watches[at].cursor.next_revision();
        match history.read(next, SCAN, &self.watches[at].range) {
            Read::Compacted(floor) => {
                assert!(next < self.spec.released, "cut off at {next} without a compaction");
                assert_eq!(floor, self.spec.released);
                let watch = self.watches.remove(at);
                self.ask(Command::Unwatch(watch.key)).unwrap();
            }
            Read::Events(batches, reach) => {
                let events = batches.iter().flat_map(|batch| batch.iter());
                let Picked { events, through, more } = self.watches[at].cursor.pick(events, reach);
                let more = more || reach < history.revision();
                assert!(next >= self.spec.released, "{next} is below the compaction");
                assert!(more || through >= self.published);
                assert!(through.min(self.published) + 1 >= next.min(self.published + 1));
                let watch = &self.watches[at];
                let wanted = self.wanted(watch, through.min(self.published));
                let wanted = &wanted[watch.told..];
                assert_eq!(events.len(), wanted.len(), "{events:?} instead of {wanted:?}");
                for (event, wanted) in events.iter().zip(wanted) {
                    let mut found = change(event);
                    if found.before.is_none() && found.revision <= self.spec.compacted {
                        // What a key held before a compacted revision may be forgotten.
                        found.before.clone_from(&wanted.before);
                    }
                    assert_eq!(&found, wanted);
                }
                self.watches[at].told += events.len();
            }
        }
    }

    /// Ends a batch, and checks that just the watches that it concerns are marked.
    fn publish(&mut self) {
        let before = self.published;
        let (marks, written) = self.subject.publish();
        self.published = self.spec.revision();
        let mut wanted: Vec<Mark> = Vec::new();
        for watch in &self.watches {
            let mut news = self.spec.changes.iter().filter(|change| {
                change.revision > before
                    && change.revision >= watch.start
                    && watch.range.contains(&change.key)
                    && change.passes(watch.filter)
            });
            if let Some(Change { revision, .. }) = news.next() {
                let (watch, revision) = (watch.key, *revision);
                let last = news.last().map_or(revision, |change| change.revision);
                wanted.push(Mark { watch, revision, last });
            }
        }
        let mut marks = marks;
        marks.sort_by_key(|mark| mark.watch);
        assert_eq!(marks, wanted);
        if let Some(tail) = written {
            self.commits.push((Some(tail), self.spec.clone()));
        }
    }

    // ---- restarts ------------------------------------------------------------------------------

    fn restart(&mut self, end: End) {
        // What was applied and not published was never acknowledged; a stop in order has none.
        self.publish();
        let shown = self.published;
        let volatile = self.subject.volatile;
        self.subject.end(end);
        let clean = matches!(end, End::Stop);
        if !clean {
            let survived = self
                .commits
                .iter()
                .rposition(|(tail, _)| tail.as_ref().is_none_or(|tail| self.subject.holds(tail)));
            self.spec = self.commits.swap_remove(survived.unwrap()).1;
        }
        let started = self.subject.begin();
        let snapshot = self.snapshot;
        self.spec.compacted = self.spec.compacted.max(snapshot);
        if self.spec.compacted == 0 {
            // etcd forgets that revision 0 was compacted, and so may we: nothing is there.
            self.spec.compacted = -1;
        }
        let lost = if clean { volatile } else { !self.rules.all_fsync() };
        if lost {
            assert!(started.revision >= shown + 2, "{started:?} after {shown}");
            assert_eq!(started.compacted, started.revision);
            let rules = &self.rules;
            self.spec.jump(started.revision, |key| rules.class(key) != Class::None);
            self.spec.compacted = started.revision;
        } else {
            assert_eq!(started.revision, self.spec.revision());
            assert_eq!(started.compacted.max(-1), self.spec.compacted.max(0));
        }
        self.spec.released = i64::MIN;
        if snapshot > 0 {
            self.spec.released = snapshot + 1;
        }
        self.spec.release();
        self.now = 0;
        for lease in self.spec.leases.values_mut() {
            lease.deadline = lease.ttl.cast_unsigned() * 1000;
        }
        self.published = self.spec.revision();
        self.commits = vec![(None, self.spec.clone())];
        self.watches.clear();
        self.check_all();
    }

    /// Everything that can still be asked.
    pub(crate) fn check_all(&mut self) {
        self.publish();
        let from = self.spec.compacted.max(1);
        for revision in from..=self.spec.revision() {
            let request = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision,
                ..Default::default()
            };
            self.range(&request);
            self.pages(revision);
            self.range(&RangeRequest { limit: 1, ..request });
        }
        for (key, end) in [("/1/", "/10"), ("/0/1", ""), ("\0", "\0"), ("/0/2", "/2/1")] {
            for back in [from, i64::midpoint(from, self.spec.revision())] {
                let count = self.watches.len();
                let back = self.published + 2 - back;
                self.watch(key.into(), end.into(), Filter::default(), back);
                if self.watches.len() > count {
                    self.read(count);
                }
            }
        }
        for at in (0..self.watches.len()).rev() {
            self.read(at);
        }
        self.same_leases();
        let live = within(self.spec.newest(), &"\0".into(), &"\0".into());
        let mvcc = self.subject.engine.mvcc();
        assert_eq!(mvcc.keys(), live.len());
        assert_eq!(mvcc.bytes(), mvcc.count_bytes());
        for id in 1..5 {
            self.lease(&Step::View(id, true));
        }
    }
}
