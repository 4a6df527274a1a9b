//! One watch stream (etcd `server/etcdserver/api/v3rpc/watch.go`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::{Status, Streaming};

use super::super::{Api, OVERHEAD_BYTES};
use crate::core::watch::{Chunk, Cursor, Filter, WatchKey};
use crate::core::{Command, Error, Event, KeyRange, Reply};
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::{self, event::EventType};
use crate::sequencer::Inbox;

/// The id in answers that concern no single watch.
const NO_WATCH: i64 = -1;
/// Watches of one stream; more are refused.
const MAX_WATCHES: usize = 1 << 16;

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
    /// It is in the queue of watches with news.
    queued: bool,
}

/// The client is gone, or the stream is over.
struct Gone;

type Step = Result<(), Gone>;

pub(super) struct Session {
    api: Api,
    inbox: Arc<Inbox>,
    outgoing: mpsc::Sender<Result<WatchResponse, Status>>,
    watches: HashMap<i64, Watch>,
    /// Watches with news, in turn.
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
    pub(super) fn new(
        api: Api,
        inbox: Arc<Inbox>,
        outgoing: mpsc::Sender<Result<WatchResponse, Status>>,
    ) -> Self {
        Self {
            api,
            inbox,
            outgoing,
            watches: HashMap::new(),
            pending: VecDeque::new(),
            next_id: 0,
            progress_asked: false,
            told_up_to: 0,
        }
    }

    /// Runs until the client or the process ends the stream.
    pub(super) async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let mut ticks = ticks(self.api.inner.limits.progress_interval);
        let drain = self.api.inner.drain.clone();
        loop {
            let step = tokio::select! {
                biased;
                () = drain.cancelled() => {
                    let _ = self.outgoing.send(Err(Error::Stopped.into())).await;
                    Err(Gone)
                }
                () = self.outgoing.closed() => Err(Gone),
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) => Err(Gone),
                    // Not a message: the client is told what was wrong with it, if it still listens.
                    Err(status) => {
                        let _ = self.outgoing.send(Err(status)).await;
                        Err(Gone)
                    }
                },
                () = self.inbox.news() => {
                    self.collect();
                    Ok(())
                }
                _ = ticks.tick() => self.tick().await,
                // Always ready while something is pending: one chunk, then look at the others.
                () = std::future::ready(()), if !self.pending.is_empty() => self.advance().await,
                // Only for the moment that `told_up_to` is about.
                () = tokio::task::yield_now(), if self.progress_asked => Ok(()),
            };
            if step.is_err() || self.answer_progress().await.is_err() {
                break;
            }
        }
        self.api.inner.handle.close(&self.inbox);
    }

    async fn send(&self, response: WatchResponse) -> Step {
        self.outgoing.send(Ok(response)).await.map_err(|_| Gone)
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

    async fn request(&mut self, request: WatchRequest) -> Step {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                // Answered once; if a watch lags now, the client will ask again.
                self.collect();
                self.progress_asked = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    // ---- creating and cancelling ---------------------------------------------------------------

    async fn create(&mut self, request: WatchCreateRequest) -> Step {
        let filter = filter(&request);
        // An empty key is the least key there can be.
        let key: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
        // Copied: the request's bytes share a larger receive buffer, and a watch lives long.
        let copy = Bytes::copy_from_slice;
        let range = KeyRange::new(copy(key), copy(&request.range_end));
        if request.start_revision < 0 {
            return self.refuse(&Error::Compacted.to_string()).await;
        }
        if let KeyRange::Until(start, end) = &range
            && start >= end
        {
            return self.refuse("mvcc: watcher range is empty").await;
        }
        let id = match request.watch_id {
            0 => self.free_id(),
            id if self.watches.contains_key(&id) => {
                return self.refuse("mvcc: duplicate watch ID provided on the WatchStream").await;
            }
            id => id,
        };
        if self.watches.len() >= MAX_WATCHES {
            return self.refuse(&Error::TooManyRequests.to_string()).await;
        }
        let start = request.start_revision;
        let key = WatchKey { stream: self.inbox.stream(), id };
        let size = range.start().len() + range.end().map_or(0, Bytes::len);
        let command = Command::Watch { key, range: range.clone(), filter, start };
        let watching = match self.api.inner.handle.ask(command, size).await {
            Ok(Reply::Watch(watching)) => watching,
            Ok(_) => return self.refuse("megacluster-store: reply of another kind").await,
            Err(error) => return self.refuse(&error.to_string()).await,
        };
        let mut created = self.response(watching.revision, id);
        created.created = true;
        self.send(created).await?;
        if let Some(compacted) = watching.compacted {
            return self.compacted(id, compacted).await;
        }
        let watch = Watch {
            cursor: Cursor::new(range, filter, watching.next),
            start,
            prev_kv_above: request.prev_kv.then_some(watching.floor),
            fragment: request.fragment,
            progress: request.progress_notify,
            told: false,
            queued: false,
        };
        self.watches.insert(id, watch);
        if watching.next <= watching.revision {
            self.queue(id);
        }
        Ok(())
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// A watch that could not be made: created and canceled at once, with the id −1.
    async fn refuse(&self, reason: &str) -> Step {
        let mut response = self.response(self.now(), NO_WATCH);
        response.created = true;
        response.canceled = true;
        reason.clone_into(&mut response.cancel_reason);
        self.send(response).await
    }

    async fn cancel(&mut self, id: i64) -> Step {
        if !self.forget(id).await {
            return Ok(());
        }
        let mut response = self.response(self.now(), id);
        response.canceled = true;
        self.send(response).await
    }

    async fn compacted(&mut self, id: i64, revision: i64) -> Step {
        self.forget(id).await;
        // etcd sends no revision in this header.
        let mut response = self.response(0, id);
        response.canceled = true;
        response.compact_revision = revision;
        self.send(response).await
    }

    /// Drops a watch here and in the sequencer's index, in this order and before anything else is
    /// done: the client may use the id again. If the sequencer's queue is full the index keeps the
    /// watch until the stream ends or the id is used again; marks for it are passed over.
    async fn forget(&mut self, id: i64) -> bool {
        if self.watches.remove(&id).is_none() {
            return false;
        }
        self.pending.retain(|pending| *pending != id);
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
        for (id, revision) in self.inbox.take() {
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            if !watch.queued {
                // Told of all before the mark: no need to search there.
                watch.cursor.skip_to(revision);
            }
            self.queue(id);
        }
    }

    /// Sends one chunk to the watch whose turn it is.
    async fn advance(&mut self) -> Step {
        let Some(id) = self.pending.pop_front() else { return Ok(()) };
        let Some(watch) = self.watches.get_mut(&id) else { return Ok(()) };
        watch.queued = false;
        match watch.cursor.read(self.api.inner.handle.history()) {
            Chunk::Compacted(revision) => self.compacted(id, revision).await,
            Chunk::Events { events, through, more } => {
                if more {
                    watch.queued = true;
                    self.pending.push_back(id);
                }
                if events.is_empty() {
                    return Ok(());
                }
                watch.told = true;
                self.told_up_to = self.told_up_to.max(through);
                self.api.inner.metrics.events.inc_by(events.len() as u64);
                let (prev_kv_above, fragment) = (watch.prev_kv_above, watch.fragment);
                let mut response = self.response(through, id);
                response.events =
                    events.into_iter().map(|event| wire(event, prev_kv_above)).collect();
                if fragment {
                    return self.send_fragments(response).await;
                }
                self.send(response).await
            }
        }
    }

    /// Splits an answer that is larger than a request may be (etcd's `sendFragments`).
    async fn send_fragments(&self, response: WatchResponse) -> Step {
        let limit = self.api.inner.limits.request_bytes + OVERHEAD_BYTES;
        if response.encoded_len() < limit {
            return self.send(response).await;
        }
        let mut events = VecDeque::from(response.events);
        let empty = WatchResponse { events: Vec::new(), ..response };
        while !events.is_empty() {
            let mut part = empty.clone();
            let mut size = empty.encoded_len();
            while let Some(event) = events.front() {
                // Tag and length take up to eleven bytes.
                size += event.encoded_len() + 11;
                if size >= limit && !part.events.is_empty() {
                    break;
                }
                part.events.extend(events.pop_front());
            }
            part.fragment = !events.is_empty();
            self.send(part).await?;
        }
        Ok(())
    }

    // ---- progress ------------------------------------------------------------------------------

    /// Answers a progress request once every watch is told everything.
    async fn answer_progress(&mut self) -> Step {
        if !self.progress_asked || !self.pending.is_empty() {
            return Ok(());
        }
        // The order is that of `tick`.
        let revision = self.now();
        self.collect();
        if !self.pending.is_empty() || revision < self.told_up_to {
            return Ok(());
        }
        self.progress_asked = false;
        if self.watches.is_empty() || self.watches.values().any(|watch| watch.start > revision) {
            return Ok(());
        }
        self.send(self.response(revision, NO_WATCH)).await
    }

    /// Tells watches that asked for it, and had nothing since the last tick, how far they are.
    async fn tick(&mut self) -> Step {
        // In this order: what is visible now was marked before, so a watch without news after the
        // marks are in knows everything up to this revision.
        let revision = self.now();
        self.collect();
        if revision < self.told_up_to {
            return Ok(());
        }
        let mut idle = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress && !watch.told && !watch.queued && watch.start <= revision {
                idle.push(*id);
            }
            watch.told = false;
        }
        for id in idle {
            self.send(self.response(revision, id)).await?;
        }
        Ok(())
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

fn wire(event: Event, prev_kv_above: Option<i64>) -> mvccpb::Event {
    let kind = if event.kv.is_tombstone() { EventType::Delete } else { EventType::Put };
    let prev_kv =
        event.prev.filter(|_| prev_kv_above.is_some_and(|above| event.kv.mod_revision() > above));
    mvccpb::Event { r#type: kind.into(), kv: Some(event.kv), prev_kv }
}
