//! One watch stream (etcd `server/etcdserver/api/v3rpc/watch.go`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use hashbrown::HashMap;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::{Code, Status};

use super::super::{Api, OVERHEAD_BYTES};
use super::{Piece, encode};
use crate::core::watch::{Cursor, Filter, Mark, Picked, WatchKey};
use crate::core::{Batch, Command, Error, Event, KeyRange, Read, Reply};
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::sequencer::{Inbox, News};

/// The id in answers that concern no single watch.
const NO_WATCH: i64 = -1;
/// Watches of one stream; more are refused.
const MAX_WATCHES: usize = 1 << 16;
/// Bytes of answers that are handed over as one piece, if so many are there.
const PIECE: usize = 128 << 10;
/// Events of the history looked at in one go before another watch gets its turn.
const SCAN: usize = 16 * 1024;

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own in the request or the loop"
)]
struct Watch {
    cursor: Cursor,
    /// Below this revision it has nothing to be told, not even progress.
    start: i64,
    /// Events above this revision carry what the key held before; `None` if it wasn't asked for.
    /// As in etcd, a watch that starts at the compacted revision does not get it for that revision.
    prev_kv_above: Option<i64>,
    fragment: bool,
    progress: bool,
    /// It was sent something since the last tick.
    told: bool,
    /// It is in the queue of watches that read the history.
    queued: bool,
    /// Marks for it that wait.
    marks: usize,
}

/// The client is gone, or the stream is over.
struct Gone;

type Step = Result<(), Gone>;

pub(super) struct Session {
    api: Api,
    inbox: Arc<Inbox>,
    outgoing: mpsc::Sender<Piece>,
    /// Answers that were not handed over yet.
    out: BytesMut,
    watches: HashMap<i64, Watch>,
    /// Where there is news, in order.
    marks: VecDeque<Mark>,
    /// The batch of the last mark.
    batch: Option<Batch>,
    /// Watches that read the history, in turn.
    pending: VecDeque<i64>,
    next_id: i64,
    /// A progress request waits until all watches are told.
    progress_asked: bool,
    /// Up to where some watch was told. It may be a batch ahead of the visible revision, for the
    /// moment in which the sequencer marks that batch's watches; no progress may be told then, as it
    /// would go back.
    told_up_to: i64,
}

impl Session {
    pub(super) fn new(api: Api, inbox: Arc<Inbox>, outgoing: mpsc::Sender<Piece>) -> Self {
        Self {
            api,
            inbox,
            outgoing,
            out: BytesMut::new(),
            watches: HashMap::new(),
            marks: VecDeque::new(),
            batch: None,
            pending: VecDeque::new(),
            next_id: 0,
            progress_asked: false,
            told_up_to: 0,
        }
    }

    /// Runs until the client or the process ends the stream.
    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<WatchRequest, Status>> + Unpin,
    ) {
        let mut ticks = ticks(self.api.inner.limits.progress_interval);
        let drain = self.api.inner.drain.clone();
        let outgoing = self.outgoing.clone();
        let (drained, gone) = (drain.cancelled(), outgoing.closed());
        tokio::pin!(drained, gone);
        let end = loop {
            let working = !self.marks.is_empty() || !self.pending.is_empty();
            let step = tokio::select! {
                biased;
                () = &mut drained => break Error::Stopped.into(),
                () = &mut gone => Err(Gone),
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        self.request(request).await;
                        Ok(())
                    }
                    None => Err(Gone),
                    // Not a message: the client is told what was wrong with it, if it still listens.
                    Some(Err(status)) => break status,
                },
                () = self.inbox.news() => {
                    self.collect();
                    Ok(())
                }
                _ = ticks.tick() => {
                    self.tick();
                    Ok(())
                }
                // Always ready while something is pending: one piece, then look at the others.
                () = std::future::ready(()), if working => {
                    self.advance().await;
                    Ok(())
                }
                // Only for the moment that `told_up_to` is about.
                () = tokio::task::yield_now(), if self.progress_asked => Ok(()),
            };
            if step.is_err() || self.settle().await.is_err() {
                break Status::new(Code::Ok, "");
            }
        };
        // Nobody may be there to read it.
        let _ = self.flush().await;
        let _ = self.outgoing.send(Piece::End(end)).await;
        self.api.inner.handle.close(&self.inbox);
    }

    /// Answers what waited until there was nothing else to say, and hands over what was said.
    async fn settle(&mut self) -> Step {
        if self.marks.is_empty() && self.pending.is_empty() {
            self.batch = None;
            self.answer_progress();
        }
        if self.marks.is_empty() && self.pending.is_empty() || self.out.len() >= PIECE {
            return self.flush().await;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Step {
        if self.out.is_empty() {
            return Ok(());
        }
        let piece = self.out.split().freeze();
        self.outgoing.send(Piece::Messages(piece)).await.map_err(|_| Gone)
    }

    fn say(&mut self, response: &WatchResponse) {
        encode::answer(&mut self.out, response);
    }

    fn now(&self) -> i64 {
        self.api.inner.handle.history().revision()
    }

    fn response(&self, revision: i64, watch_id: i64) -> WatchResponse {
        WatchResponse {
            header: Some(self.api.header(revision)),
            watch_id,
            ..WatchResponse::default()
        }
    }

    async fn request(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                // Answered once; if a watch lags now, the client will ask again.
                self.collect();
                self.progress_asked = true;
            }
            None => {}
        }
    }

    // ---- creating and cancelling ---------------------------------------------------------------

    async fn create(&mut self, request: WatchCreateRequest) {
        let filter = filter(&request);
        // An empty key is the least key there can be.
        let key: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
        // Copied: the request's bytes share a larger receive buffer, and a watch lives long.
        let copy = Bytes::copy_from_slice;
        let range = KeyRange::new(copy(key), copy(&request.range_end));
        if request.start_revision < 0 {
            return self.refuse(&Error::Compacted.to_string());
        }
        if let KeyRange::Until(start, end) = &range
            && start >= end
        {
            return self.refuse("mvcc: watcher range is empty");
        }
        let id = match request.watch_id {
            0 => self.free_id(),
            id if self.watches.contains_key(&id) => {
                return self.refuse("mvcc: duplicate watch ID provided on the WatchStream");
            }
            id => id,
        };
        if self.watches.len() >= MAX_WATCHES {
            return self.refuse(&Error::TooManyRequests.to_string());
        }
        let start = request.start_revision;
        let key = WatchKey { stream: self.inbox.stream(), id };
        let size = range.start().len() + range.end().map_or(0, Bytes::len);
        let command = Command::Watch { key, range: range.clone(), filter, start };
        let watching = match self.api.inner.handle.ask(command, size).await {
            Ok(Reply::Watch(watching)) => watching,
            Ok(_) => return self.refuse("megacluster-store: reply of another kind"),
            Err(error) => return self.refuse(&error.to_string()),
        };
        let mut created = self.response(watching.revision, id);
        created.created = true;
        self.say(&created);
        if let Some(compacted) = watching.compacted {
            self.compacted(id, compacted).await;
            return;
        }
        let watch = Watch {
            cursor: Cursor::new(range, filter, watching.next),
            start,
            prev_kv_above: request.prev_kv.then_some(watching.floor),
            fragment: request.fragment,
            progress: request.progress_notify,
            told: false,
            queued: false,
            marks: 0,
        };
        self.watches.insert(id, watch);
        if watching.next <= watching.revision {
            self.queue(id);
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// A watch that could not be made: created and canceled at once, with the id −1.
    fn refuse(&mut self, reason: &str) {
        let mut response = self.response(self.now(), NO_WATCH);
        response.created = true;
        response.canceled = true;
        reason.clone_into(&mut response.cancel_reason);
        self.say(&response);
    }

    async fn cancel(&mut self, id: i64) {
        if self.forget(id).await {
            let mut response = self.response(self.now(), id);
            response.canceled = true;
            self.say(&response);
        }
    }

    async fn compacted(&mut self, id: i64, revision: i64) {
        self.forget(id).await;
        // etcd sends no revision in this header.
        let mut response = self.response(0, id);
        response.canceled = true;
        response.compact_revision = revision;
        self.say(&response);
    }

    /// Drops a watch here and in the sequencer's index, in this order and before anything else is
    /// done: the client may use the id again. If the sequencer's queue is full the index keeps the
    /// watch until the stream ends or the id is used again; marks for it are passed over.
    async fn forget(&mut self, id: i64) -> bool {
        if self.watches.remove(&id).is_none() {
            return false;
        }
        self.pending.retain(|pending| *pending != id);
        self.marks.retain(|mark| mark.watch.id != id);
        let key = WatchKey { stream: self.inbox.stream(), id };
        let _ = self.api.inner.handle.ask(Command::Unwatch(key), 0).await;
        true
    }

    // ---- events --------------------------------------------------------------------------------

    fn queue(&mut self, id: i64) {
        if let Some(watch) = self.watches.get_mut(&id)
            && !watch.queued
        {
            watch.queued = true;
            self.pending.push_back(id);
        }
    }

    /// Takes the sequencer's marks.
    fn collect(&mut self) {
        let News { recent, behind } = self.inbox.take();
        for mark in recent {
            if let Some(watch) = self.watches.get_mut(&mark.watch.id) {
                watch.marks += 1;
                self.marks.push_back(mark);
            }
        }
        for (id, revision) in behind {
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            if !watch.queued && watch.marks == 0 {
                // Told of all before: no need to search there.
                watch.cursor.skip_to(revision);
            }
            self.queue(id);
        }
    }

    /// Says what is new, until that makes a piece or is all.
    async fn advance(&mut self) {
        while self.out.len() < PIECE
            && let Some(mark) = self.marks.pop_front()
        {
            self.follow(mark);
        }
        if self.out.len() < PIECE
            && let Some(id) = self.pending.pop_front()
        {
            self.read_on(id).await;
        }
    }

    /// Says what a mark points to.
    fn follow(&mut self, mark: Mark) {
        let id = mark.watch.id;
        let Some(watch) = self.watches.get_mut(&id) else { return };
        watch.marks -= 1;
        if watch.queued || mark.last < watch.cursor.next_revision() {
            // It reads the history, or has read it: all of it, this too.
            return;
        }
        watch.cursor.skip_to(mark.revision);
        let holds = |batch: &Batch| {
            let revision = |event: Option<&Event>| event.map_or(0, |e| e.kv.mod_revision());
            (revision(batch.first())..=revision(batch.last())).contains(&mark.revision)
        };
        if !self.batch.as_ref().is_some_and(holds) {
            self.batch = self.api.inner.handle.history().batch_of(mark.revision);
        }
        let Some(batch) = self.batch.clone() else {
            // No longer among the newest, or compacted: the history will say.
            self.queue(id);
            return;
        };
        loop {
            let Some(watch) = self.watches.get_mut(&id) else { return };
            let next = watch.cursor.next_revision();
            let from = batch.partition_point(|event| event.kv.mod_revision() < next);
            let until = batch.partition_point(|event| event.kv.mod_revision() <= mark.last);
            let events = batch.get(from..until).unwrap_or_default();
            let picked = watch.cursor.pick(events.iter(), mark.last);
            let more = picked.more;
            self.tell(id, &picked);
            if !more {
                return;
            }
        }
    }

    /// Reads the history on from where a watch is, and says what is there for it.
    async fn read_on(&mut self, id: i64) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        watch.queued = false;
        let history = self.api.inner.handle.history();
        match history.read(watch.cursor.next_revision(), SCAN, watch.cursor.range()) {
            Read::Compacted(floor) => self.compacted(id, floor).await,
            Read::Events(batches, reach) => {
                let events = batches.iter().flat_map(|batch| batch.iter());
                let picked = watch.cursor.pick(events, reach);
                if picked.more || reach < history.revision() {
                    watch.queued = true;
                    self.pending.push_back(id);
                }
                self.tell(id, &picked);
            }
        }
    }

    /// Says events, if there are any.
    fn tell(&mut self, id: i64, picked: &Picked<'_>) {
        if picked.events.is_empty() {
            return;
        }
        let response = self.response(picked.through, id);
        let Some(watch) = self.watches.get_mut(&id) else { return };
        watch.told = true;
        self.told_up_to = self.told_up_to.max(picked.through);
        self.api.inner.metrics.events.inc_by(picked.events.len() as u64);
        let above = watch.prev_kv_above;
        if watch.fragment {
            self.tell_fragments(&response, &picked.events, above);
        } else {
            encode::events(&mut self.out, &response, &picked.events, above);
        }
    }

    /// Splits an answer that is larger than a request may be (etcd's `sendFragments`).
    fn tell_fragments(&mut self, empty: &WatchResponse, events: &[&Event], above: Option<i64>) {
        let limit = self.api.inner.limits.request_bytes + OVERHEAD_BYTES;
        let mut rest = events;
        while !rest.is_empty() {
            let mut size = empty.encoded_len();
            let fits = rest.iter().take_while(|event| {
                size += encode::field_length(event, above);
                size < limit
            });
            let (part, behind) = rest.split_at(fits.count().max(1));
            rest = behind;
            let response = WatchResponse { fragment: !rest.is_empty(), ..empty.clone() };
            encode::events(&mut self.out, &response, part, above);
        }
    }

    // ---- progress ------------------------------------------------------------------------------

    /// Answers a progress request once every watch is told everything.
    fn answer_progress(&mut self) {
        if !self.progress_asked {
            return;
        }
        // The order is that of `tick`.
        let revision = self.now();
        self.collect();
        let lags = !self.marks.is_empty() || !self.pending.is_empty();
        if lags || revision < self.told_up_to {
            return;
        }
        self.progress_asked = false;
        if self.watches.is_empty() || self.watches.values().any(|watch| watch.start > revision) {
            return;
        }
        let response = self.response(revision, NO_WATCH);
        self.say(&response);
    }

    /// Tells watches that asked for it, and had nothing since the last tick, how far they are.
    fn tick(&mut self) {
        // In this order: what is visible now was marked before, so a watch without news after the
        // marks are in knows everything up to this revision.
        let revision = self.now();
        self.collect();
        if revision < self.told_up_to {
            return;
        }
        let mut idle = Vec::new();
        for (id, watch) in &mut self.watches {
            let waits = watch.queued || watch.marks > 0;
            if watch.progress && !watch.told && !waits && watch.start <= revision {
                idle.push(*id);
            }
            watch.told = false;
        }
        for id in idle {
            let response = self.response(revision, id);
            self.say(&response);
        }
    }
}

/// The interval with up to a tenth on top, so that clients that came together are not served in one
/// moment for ever.
fn ticks(interval: Duration) -> Interval {
    let period = interval + interval.mul_f64(rand::random::<f64>() / 10.0);
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn filter(request: &WatchCreateRequest) -> Filter {
    let mut filter = Filter::default();
    for kind in request.filters() {
        match kind {
            FilterType::Noput => filter.no_put = true,
            FilterType::Nodelete => filter.no_delete = true,
        }
    }
    filter
}
