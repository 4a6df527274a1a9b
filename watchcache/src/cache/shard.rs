//! One resource as the cache has it, and the watch of the store that keeps it so.

mod read;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioExecutor;
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::call::CallError;
use super::custom::Followed;
use super::etcd::{
    Etcd, Event, EventType, KeyValue, RangeRequest, WatchCreate, WatchProgress, WatchRequest,
    WatchResponse, Wish,
};
use super::form::Form;
use super::kinds::{Field, Kind};
use super::parts::Parts;
use super::query::{Freshness, Pass};
use super::store::{Store, StoreError};
use super::stream::Pieces;
use super::table::{Stored, Table};
use super::wire::{self, Unsupported};
use crate::executor::{Executor, executor};

pub use self::read::{Room, Taken};

/// Objects read at a time.
const PAGE: i64 = 500;
/// A read waits this long for the shard to come as far as it must, as kube-apiserver's cache does
/// (`blockTimeout`, `k8s.io/apiserver/pkg/storage/cacher/watch_cache.go`).
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the store is asked how far its events have been sent, while a read waits for that
/// (`progressRequestPeriod` there).
const PROGRESS: Duration = Duration::from_millis(100);
/// Between attempts to reach the store.
const PAUSE: Duration = Duration::from_millis(500);
/// Watches live on without the store for this long; then they end, so that their clients learn
/// that nothing would reach them here.
const ALONE: Duration = Duration::from_secs(20);
/// After a stored value that the cache can't read.
const LONG_PAUSE: Duration = Duration::from_mins(1);

/// Why a shard has no session with the store any more.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The store, or the way to it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The store has ended the watch.
    #[error("the store has ended the watch: {0}")]
    Watch(String),
    /// What the shard knows is not what the store holds: events are gone, or it is another store.
    #[error("the store does not go on from what is known: {0}")]
    Anew(&'static str),
    /// A value.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A custom resource is to be shown differently.
    #[error("its definition has changed")]
    Redefined,
}

/// What happened to an object.
struct Change<'a> {
    key: &'a str,
    /// What it was, where the table may not know.
    before: Option<Stored>,
    /// None where it is gone.
    after: Option<Stored>,
    revision: u64,
}

/// One resource.
#[derive(Debug)]
pub struct Shard {
    /// Which.
    pub kind: &'static Kind,
    /// Key of the first object, less its name: `/registry/pods/`.
    prefix: String,
    /// The field that is indexed.
    indexed: Option<&'static Field>,
    /// Those whose objects are in the table.
    parts: Parts,
    table: RwLock<Option<Table>>,
    /// The table's revision.
    reached: watch::Sender<u64>,
    /// The store that the table is of, by its cluster id.
    cluster: AtomicU64,
    connected: AtomicBool,
    /// For reads of what is not in the table, apart from the connection that events come by.
    reads: RwLock<Option<Etcd>>,
    /// A reader wants the store's revision.
    wanted: Notify,
    /// Looks at the store's revision that were begun.
    begun: AtomicU64,
    /// The last look that ended, and what it saw; 0 where it failed.
    seen: watch::Sender<(u64, u64)>,
    /// A reader waits for the shard to come as far as the store.
    lagging: Notify,
    /// An object was met that can't be shown in JSON.
    no_json: Arc<AtomicBool>,
    /// Of a custom resource.
    custom: Option<Followed>,
    /// What nobody has asked for is not read: a version that others are shown in as well.
    unasked: AtomicBool,
    asked: Notify,
}

impl Shard {
    /// A shard that knows nothing yet. `prefix` is kube-apiserver's `--etcd-prefix`.
    #[must_use]
    pub fn new(kind: &'static Kind, prefix: &str) -> Self {
        Self {
            kind,
            prefix: format!("{}/{}/", prefix.trim_end_matches('/'), kind.prefix),
            indexed: kind.index.and_then(|name| kind.field(name)),
            parts: Parts::default(),
            table: RwLock::new(None),
            reached: watch::Sender::new(0),
            cluster: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            reads: RwLock::new(None),
            wanted: Notify::new(),
            begun: AtomicU64::new(0),
            seen: watch::Sender::new((0, 0)),
            lagging: Notify::new(),
            no_json: Arc::default(),
            custom: None,
            unasked: AtomicBool::new(false),
            asked: Notify::new(),
        }
    }

    /// With the objects of these parts alone.
    #[must_use]
    pub fn of_parts(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    /// A shard of a custom resource, in one version; `patient` waits until it is asked for.
    pub(super) fn custom(followed: Followed, prefix: &str, patient: bool) -> Self {
        let shard = Self::new(followed.rules.kind, prefix);
        Self { custom: Some(followed), unasked: AtomicBool::new(patient), ..shard }
    }

    /// Someone asks for it.
    pub(super) fn want(&self) {
        if self.unasked.swap(false, Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// An answer's bytes. Where an object turns out to be one that JSON can't be made of, the answer
    /// breaks off; from then on kube-apiserver is asked for JSON, since it may know better.
    pub fn unless_refused(&self, form: Form, pieces: Pieces) -> Result<Pieces, Pass> {
        if !form.json {
            return Ok(pieces);
        }
        if self.no_json.load(Ordering::Relaxed) {
            return Err("content-type");
        }
        let no_json = self.no_json.clone();
        let watched = pieces.inspect_err(move |error| {
            warn!(%error, "no JSON of a stored object");
            no_json.store(true, Ordering::Relaxed);
        });
        Ok(watched.boxed())
    }

    /// Reads the table; none where nothing is known.
    pub fn read<T>(&self, read: impl FnOnce(&Table) -> T) -> Option<T> {
        self.table.read().as_ref().map(read)
    }

    /// Begins something at the table; none where nothing is known.
    pub fn begin<T>(&self, begin: impl FnOnce(&mut Table) -> T) -> Option<T> {
        self.table.write().as_mut().map(begin)
    }

    /// Waits until the table is as new as it must be; false where it does not get there in time.
    pub async fn is_fresh(&self, freshness: Freshness) -> bool {
        let wait = async {
            // However old a custom resource may be, it is not shown by what its definition was.
            let latest = if freshness == Freshness::Latest || self.custom.is_some() {
                let Some(revision) = self.latest().await else { return false };
                revision
            } else {
                0
            };
            let revision = match freshness {
                // Not from a past of which no one knows how long ago it was.
                Freshness::Any => return self.connected.load(Ordering::Acquire),
                Freshness::NotOlderThan(revision) => revision,
                Freshness::Latest => latest,
            };
            let mut reached = self.reached.subscribe();
            loop {
                if *reached.borrow_and_update() >= revision {
                    return true;
                }
                if !self.connected.load(Ordering::Acquire) {
                    return false;
                }
                self.lagging.notify_one();
                // An elapsed pause is a reason to ask the store again, no more.
                let _ = tokio::time::timeout(PROGRESS, reached.changed()).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or(false)
    }

    /// A revision that the store had after this was called.
    async fn latest(&self) -> Option<u64> {
        if !self.connected.load(Ordering::Acquire) {
            return None;
        }
        let mut seen = self.seen.subscribe();
        // A look that begins after this is counted above it.
        let before = self.begun.load(Ordering::SeqCst);
        self.wanted.notify_one();
        let (_, revision) = *seen.wait_for(|(look, _)| *look > before).await.ok()?;
        (revision > 0).then_some(revision)
    }

    /// Follows the store until the token is cancelled.
    pub async fn run(self: Arc<Self>, store: Store, token: CancellationToken) {
        if self.unasked.load(Ordering::Relaxed) {
            tokio::select! {
                () = token.cancelled() => return,
                () = self.asked.notified() => {}
            }
        }
        let mut seen = Instant::now();
        loop {
            let alone = async {
                tokio::time::sleep_until(seen + ALONE).await;
                if !self.connected.load(Ordering::Acquire) {
                    self.forget();
                }
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! {
                () = token.cancelled() => return,
                ended = self.session(&store) => ended,
                () = alone => return,
            };
            if self.disconnect() {
                seen = Instant::now();
            }
            let pause = match &ended {
                Err(End::Redefined) => {
                    self.forget();
                    // Ends this one, too.
                    self.custom.iter().for_each(|custom| custom.changed.cancel());
                    Duration::ZERO
                }
                Err(End::Anew(_)) => {
                    self.forget();
                    Duration::ZERO
                }
                Err(End::Unsupported(_)) => {
                    self.forget();
                    LONG_PAUSE
                }
                _ => PAUSE,
            };
            if let Err(error) = ended {
                warn!(resource = self.kind.full_name(), %error, "cache");
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Reads of the latest state go on to kube-apiserver from here on, those that wait first.
    /// Whether there was a connection.
    fn disconnect(&self) -> bool {
        let connected = self.connected.swap(false, Ordering::AcqRel);
        self.reached.send_modify(|_| {});
        self.seen.send_replace((u64::MAX >> 1, 0));
        self.begun.store(u64::MAX >> 1, Ordering::SeqCst);
        *self.reads.write() = None;
        connected
    }

    /// Ends all watches; requests go on.
    pub(super) fn forget(&self) {
        if let Some(mut table) = self.table.write().take() {
            table.close();
        }
    }

    async fn session(&self, store: &Store) -> Result<(), End> {
        // The connection is one task with what asks and what follows.
        let (executor, mut parts) = executor();
        let session = std::pin::pin!(self.session_by(store, executor));
        parts.run(session, |_, _| {}).await
    }

    async fn session_by(&self, store: &Store, executor: Executor) -> Result<(), End> {
        let etcd = store.connect(&executor).await?;
        let known = self.read(Table::revision);
        let from = match known {
            Some(revision) => revision,
            None => self.load(&etcd).await?,
        };
        if !self.parts.is_whole() {
            // A task apart.
            let reads = store.connect(&TokioExecutor::new()).await?;
            *self.reads.write() = Some(reads);
        }
        self.begun.store(0, Ordering::SeqCst);
        self.seen.send_replace((0, 0));
        tokio::select! {
            ended = self.follow(&etcd, from) => ended,
            never = self.look(&etcd) => match never {},
        }
    }

    /// Looks at the store's revision for readers that want it: once for all that came meanwhile.
    async fn look(&self, etcd: &Etcd) -> std::convert::Infallible {
        loop {
            self.wanted.notified().await;
            let look = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let key = Bytes::copy_from_slice(self.prefix.as_bytes());
            let range = RangeRequest { key, ..RangeRequest::default() };
            let revision = async {
                match &self.custom {
                    Some(custom) => custom.look(etcd).await,
                    None => Ok(etcd.range(range).await?.header.map(|header| header.revision)),
                }
            };
            let revision = match tokio::time::timeout(PATIENCE, revision).await {
                Ok(Ok(Some(revision))) => revision,
                _ => 0,
            };
            self.seen.send_replace((look, u64::try_from(revision).unwrap_or(0)));
        }
    }

    /// Reads all objects as of one revision.
    async fn load(&self, etcd: &Etcd) -> Result<u64, End> {
        let end = prefix_end(self.prefix.as_bytes());
        let mut key = Bytes::copy_from_slice(self.prefix.as_bytes());
        let (mut revision, mut objects) = (0, Vec::new());
        if let Some(custom) = &self.custom {
            let range = RangeRequest { key: custom.key.clone(), ..RangeRequest::default() };
            let answer = etcd.range(range).await?;
            if !custom.holds(answer.kvs.first()) {
                return Err(End::Redefined);
            }
            // Of the same moment.
            revision = answer.header.unwrap_or_default().revision;
        }
        let mut known = false;
        loop {
            let range = RangeRequest {
                key,
                range_end: end.clone(),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let answer = etcd.range(range).await?;
            if !std::mem::replace(&mut known, true) {
                let header = answer.header.clone().unwrap_or_default();
                self.cluster.store(header.cluster_id, Ordering::Relaxed);
                if revision == 0 {
                    revision = header.revision;
                }
            }
            for kv in &answer.kvs {
                let (key, object) = (self.key(&kv.key)?, self.object(kv)?);
                if object.is_held(self.parts, key) {
                    objects.push((Arc::from(key), object));
                }
            }
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
            key = [&last.key[..], &[0]].concat().into();
        }
        let revision = u64::try_from(revision).unwrap_or(0);
        info!(resource = self.kind.full_name(), objects = objects.len(), revision, "cache loaded");
        *self.table.write() = Some(Table::of(self.parts, objects, revision));
        self.reached.send_replace(revision);
        Ok(revision)
    }

    fn object(&self, kv: &KeyValue) -> Result<Stored, Unsupported> {
        let (message, labels) = match &self.custom {
            Some(custom) => custom.rules.read(&kv.value)?,
            None => wire::read(self.kind, &kv.value)?,
        };
        let revision = u64::try_from(kv.mod_revision).unwrap_or(0);
        Ok(Stored { message, labels, indexed: self.indexed, revision })
    }

    fn key<'a>(&self, key: &'a [u8]) -> Result<&'a str, Unsupported> {
        key.strip_prefix(self.prefix.as_bytes())
            .and_then(|key| std::str::from_utf8(key).ok())
            .filter(|key| key.split('/').count() == 1 + usize::from(self.kind.namespaced))
            .ok_or(Unsupported { kind: self.kind.name, problem: "its key" })
    }

    /// Takes in events until the watch ends.
    async fn follow(&self, etcd: &Etcd, from: u64) -> Result<(), End> {
        let (mut requests, mut responses) = etcd.watch().await?;
        let create = WatchCreate {
            key: Bytes::copy_from_slice(self.prefix.as_bytes()),
            range_end: prefix_end(self.prefix.as_bytes()),
            start_revision: i64::try_from(from + 1).unwrap_or(i64::MAX),
            progress_notify: true,
            prev_kv: !self.parts.is_whole(),
        };
        let gone = || End::Watch("the stream is closed".to_owned());
        // The definition first: it is watched once its objects are.
        let definition = self.custom.as_ref().map(|custom| WatchCreate {
            key: custom.key.clone(),
            range_end: Bytes::new(),
            // Its word on progress would be taken for that of the objects.
            progress_notify: false,
            prev_kv: false,
            ..create
        });
        let mut awaited = 1 + usize::from(definition.is_some());
        for create in definition.into_iter().chain([create]) {
            let wish = Some(Wish::Create(create));
            requests.send(&WatchRequest { wish }).await?;
        }
        let mut created = false;
        loop {
            let response = tokio::select! {
                response = responses.next::<WatchResponse>() => response?,
                () = self.lagging.notified(), if created => {
                    let wish = Some(Wish::Progress(WatchProgress {}));
                    requests.send(&WatchRequest { wish }).await?;
                    continue;
                }
            };
            let Some(response) = response else { return Err(gone()) };
            if response.created && !created {
                awaited -= 1;
                created = awaited == 0;
                let header = response.header.clone().unwrap_or_default();
                if header.cluster_id != self.cluster.load(Ordering::Relaxed) {
                    return Err(End::Anew("it is another store"));
                }
                if u64::try_from(header.revision).unwrap_or(0) < from {
                    return Err(End::Anew("its revision is lower"));
                }
                self.connected.store(created, Ordering::Release);
            }
            self.take(response)?;
        }
    }

    /// Takes in one message of the watch.
    fn take(&self, response: WatchResponse) -> Result<(), End> {
        if response.canceled {
            if response.compact_revision > 0 {
                return Err(End::Anew("events are compacted"));
            }
            return Err(End::Watch(response.cancel_reason));
        }
        if response.created {
            return Ok(());
        }
        if self.is_of_definition(&response)? {
            return Ok(());
        }
        // Values are read before the table is locked.
        let mut changes = Vec::with_capacity(response.events.len());
        for event in &response.events {
            changes.push(self.change(event)?);
        }
        let revision = match response.events.last() {
            Some(Event { kv: Some(last), .. }) => last.mod_revision,
            // A word on progress: all events up to here have been sent.
            _ => response.header.map_or(0, |header| header.revision),
        };
        let revision = u64::try_from(revision).unwrap_or(0);
        let mut table = self.table.write();
        let Some(table) = table.as_mut() else { return Err(End::Anew("nothing is known")) };
        for Change { key, before, after, revision } in changes {
            table.apply_to(key, before, after, revision);
        }
        table.reach(revision);
        let reached = table.revision();
        self.reached.send_if_modified(|known| std::mem::replace(known, reached) != reached);
        Ok(())
    }

    /// Whether what the watch tells is about the definition; it ends where that has changed.
    fn is_of_definition(&self, response: &WatchResponse) -> Result<bool, End> {
        let Some(custom) = &self.custom else { return Ok(false) };
        // Each watch tells of its own in messages of its own.
        let Some(Event { kv: Some(kv), .. }) = response.events.last() else { return Ok(false) };
        if kv.key != custom.key {
            return Ok(false);
        }
        let last = response.events.last().filter(|event| event.kind() == EventType::Put);
        let same = custom.holds(last.and_then(|event| event.kv.as_ref()));
        // It may have been another for a moment.
        if same && response.events.len() == 1 { Ok(true) } else { Err(End::Redefined) }
    }

    fn change<'a>(&self, event: &'a Event) -> Result<Change<'a>, End> {
        let kv =
            event.kv.as_ref().ok_or_else(|| End::Watch("an event without a key".to_owned()))?;
        let revision = u64::try_from(kv.mod_revision).unwrap_or(0);
        let after = match event.kind() {
            EventType::Put => Some(self.object(kv)?),
            EventType::Delete => None,
        };
        let key = self.key(&kv.key)?;
        // Of what the table holds it knows what it was.
        let in_table = match self.indexed {
            Some(_) => self.parts.is_whole(),
            None => self.parts.holds(self.parts.of(key)),
        };
        let is_new = after.is_some() && kv.create_revision == kv.mod_revision;
        let before = match &event.prev_kv {
            _ if in_table || is_new => None,
            Some(before) => Some(self.object(before)?),
            // Compacted since.
            None => return Err(End::Anew("what an object was is not kept any more")),
        };
        Ok(Change { key, before, after, revision })
    }
}

/// The end of the range of keys with a prefix.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    // Ends with a slash, which has a successor.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
