//! Events of late, shared by all who watch. A watch keeps only how far it has read. One that
//! reads too slowly finds that what it wants is gone, and ends: its client resumes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::filter::Filter;
use super::form::Form;
use super::table::Object;

/// Events kept for all.
const KEPT: usize = 16 * 1024;
/// Events kept of a part: a node, a namespace, one object.
const KEPT_OF_PART: usize = 256;
/// With so many watchers an event's bytes are kept for the others.
const CROWD: usize = 8;
/// Groups in which those who read the feed of all objects are woken. The streams of a connection are
/// in one: woken one after the other, they find its state in the CPU's caches, and their frames go
/// out together.
const GROUPS: usize = 64;
/// Parts whose feeds are remembered before those that nobody reads are thrown out.
const SWEEP: usize = 1024;

/// A change of one object.
#[derive(Debug)]
pub struct Event {
    /// The store's revision.
    pub revision: u64,
    /// The object before; none where it is new.
    pub before: Option<Arc<Object>>,
    /// The object after; none where it is gone.
    pub after: Option<Arc<Object>>,
    /// Its bytes as most of its watchers are told of it.
    frame: OnceLock<(Form, Change, Bytes)>,
}

/// What happened to an object, as a watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `ADDED`
    Added,
    /// `MODIFIED`
    Modified,
    /// `DELETED`
    Deleted,
}

impl Change {
    /// As it is sent.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// What an event is to one who asks for some objects, as
/// `k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go`, `convertToWatchEvent`, decides it.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// It is there, or has come to be asked for.
    Added(&'a Object),
    /// It has changed.
    Modified(&'a Object),
    /// It is gone, or is not asked for any more: as it was, under the event's revision.
    Deleted(&'a Object),
}

impl Told<'_> {
    /// What happened, and to what.
    #[must_use]
    pub fn parts(&self) -> (Change, &Object) {
        match self {
            Self::Added(object) => (Change::Added, object),
            Self::Modified(object) => (Change::Modified, object),
            Self::Deleted(object) => (Change::Deleted, object),
        }
    }
}

impl Event {
    /// An event.
    #[must_use]
    pub fn new(revision: u64, before: Option<Arc<Object>>, after: Option<Arc<Object>>) -> Self {
        Self { revision, before, after, frame: OnceLock::new() }
    }

    /// Its bytes in a form, made once for all watchers that are told the same; who is told
    /// something else makes its own.
    pub fn frame<E>(
        &self,
        form: Form,
        change: Change,
        make: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        if let Some((known, what, bytes)) = self.frame.get() {
            if (*known, *what) == (form, change) {
                return Ok(bytes.clone());
            }
            return make();
        }
        let bytes = make()?;
        // Another may have been first.
        let _ = self.frame.set((form, change, bytes.clone()));
        Ok(bytes)
    }

    /// What it is to one who asks for these objects; none where it is nothing.
    #[must_use]
    pub fn told(&self, filter: &Filter) -> Option<Told<'_>> {
        let before = self.before.as_deref().filter(|object| filter.matches(object));
        let after = self.after.as_deref().filter(|object| filter.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(Told::Added(after)),
            (Some(_), Some(after)) => Some(Told::Modified(after)),
            (Some(before), None) => Some(Told::Deleted(before)),
        }
    }
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// All events after this revision are here, up to what was reached.
    complete_after: u64,
    closed: bool,
    /// An event was pushed that is not reached yet.
    touched: bool,
}

/// The events of all objects, or of one node.
#[derive(Debug)]
pub struct Feed {
    ring: Mutex<Ring>,
    most: usize,
    changed: Box<[watch::Sender<()>]>,
    crowded: AtomicBool,
    /// Shared by all feeds of a table: every event up to this revision was pushed.
    reached: Arc<AtomicU64>,
}

/// What a watch finds.
#[derive(Debug)]
pub enum Found {
    /// Events, and the revision up to which they are all.
    Events(Vec<Arc<Event>>, u64),
    /// It has read too slowly, or the table has begun anew.
    Gone,
}

impl Feed {
    fn new(most: usize, groups: usize, reached: &Arc<AtomicU64>) -> Self {
        let complete_after = reached.load(Ordering::Acquire);
        let ring = Mutex::new(Ring { complete_after, ..Ring::default() });
        let changed = (0..groups).map(|_| watch::Sender::new(())).collect();
        Self { ring, most, changed, crowded: AtomicBool::new(false), reached: reached.clone() }
    }

    /// Whether it is the first event since the last that was reached.
    fn push(&self, event: &Arc<Event>) -> bool {
        let mut ring = self.ring.lock();
        if ring.events.len() == self.most
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.complete_after = oldest.revision;
        }
        ring.events.push_back(event.clone());
        !std::mem::replace(&mut ring.touched, true)
    }

    /// All that was pushed is reached.
    fn tell(&self) {
        self.ring.lock().touched = false;
        self.wake();
    }

    fn wake(&self) {
        let watchers: usize = self.changed.iter().map(watch::Sender::receiver_count).sum();
        self.crowded.store(watchers >= CROWD, Ordering::Relaxed);
        for group in self.changed.iter().filter(|group| group.receiver_count() > 0) {
            group.send_replace(());
        }
    }

    /// Whether so many watch that what they are told is better made once.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Told when there is something to read, together with the connection's other streams.
    /// Subscribe before reading.
    #[must_use]
    pub fn changes(&self, connection: usize) -> watch::Receiver<()> {
        let group = connection % self.changed.len().max(1);
        // There is one, of a feed that nobody reads at least.
        self.changed.get(group).map_or_else(|| watch::channel(()).1, watch::Sender::subscribe)
    }

    /// The events after a revision of which something is wanted, oldest first, whether their
    /// revision is reached or not; none where they are not kept any more.
    pub fn after(
        &self,
        revision: u64,
        mut wanted: impl FnMut(&Arc<Event>) -> bool,
    ) -> Option<Vec<Arc<Event>>> {
        let ring = self.ring.lock();
        if ring.closed || revision < ring.complete_after {
            return None;
        }
        let from = ring.events.partition_point(|event| event.revision <= revision);
        Some(ring.events.range(from..).filter(|event| wanted(event)).cloned().collect())
    }

    /// About `most` events after a revision, or all where that is `usize::MAX`.
    #[must_use]
    pub fn read(&self, revision: u64, most: usize) -> Found {
        // Before the events: what was reached is in the ring then.
        let reached = self.reached.load(Ordering::Acquire);
        let ring = self.ring.lock();
        if ring.closed || revision < ring.complete_after {
            return Found::Gone;
        }
        let from = ring.events.partition_point(|event| event.revision <= revision);
        let mut events: Vec<Arc<Event>> = Vec::new();
        for event in ring.events.range(from..) {
            // The events of one transaction are not parted.
            let last = events.last().map_or(0, |last| last.revision);
            if event.revision > reached {
                break;
            }
            if events.len() >= most && event.revision != last {
                return Found::Events(events, last);
            }
            events.push(event.clone());
        }
        Found::Events(events, reached)
    }
}

/// What a feed may be of, beside all objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// All objects.
    All,
    /// Those of a namespace.
    Namespace(&'a str),
    /// Those with this value of the indexed field.
    Index(&'a str),
    /// One object, by its key.
    Key(&'a str),
}

/// Feeds by name. Those that nobody reads go when the map has doubled.
#[derive(Debug)]
struct Parts {
    feeds: HashMap<Box<str>, Weak<Feed>>,
    sweep_at: usize,
}

impl Default for Parts {
    fn default() -> Self {
        Self { feeds: HashMap::new(), sweep_at: SWEEP }
    }
}

impl Parts {
    fn get(&self, name: &str) -> Option<Arc<Feed>> {
        // Where nobody watches a part, nothing is hashed.
        if self.feeds.is_empty() { None } else { self.feeds.get(name)?.upgrade() }
    }

    fn of(&mut self, name: &str, reached: &Arc<AtomicU64>) -> Arc<Feed> {
        if let Some(feed) = self.get(name) {
            return feed;
        }
        if self.feeds.len() >= self.sweep_at {
            self.feeds.retain(|_, feed| feed.strong_count() > 0);
            self.sweep_at = (self.feeds.len() * 2).max(SWEEP);
        }
        let feed = Arc::new(Feed::new(KEPT_OF_PART, 1, reached));
        self.feeds.insert(name.into(), Arc::downgrade(&feed));
        feed
    }
}

/// The feeds of a table.
#[derive(Debug)]
pub struct Feeds {
    all: Arc<Feed>,
    namespaces: Parts,
    indexed: Parts,
    keys: Parts,
    reached: Arc<AtomicU64>,
    /// Feeds with events that are not reached yet.
    touched: Vec<Arc<Feed>>,
}

impl Default for Feeds {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Feeds {
    /// Feeds that begin after a revision.
    #[must_use]
    pub fn new(revision: u64) -> Self {
        let reached = Arc::new(AtomicU64::new(revision));
        Self {
            all: Arc::new(Feed::new(KEPT, GROUPS, &reached)),
            namespaces: Parts::default(),
            indexed: Parts::default(),
            keys: Parts::default(),
            reached,
            touched: Vec::new(),
        }
    }

    /// The feed of all objects.
    #[must_use]
    pub fn all(&self) -> &Arc<Feed> {
        &self.all
    }

    /// The feed of a part.
    pub fn of(&mut self, part: Part<'_>) -> Arc<Feed> {
        match part {
            Part::All => self.all.clone(),
            Part::Namespace(name) => self.namespaces.of(name, &self.reached),
            Part::Index(value) => self.indexed.of(value, &self.reached),
            Part::Key(key) => self.keys.of(key, &self.reached),
        }
    }

    /// Takes an event in. Nobody reads it before its revision is reached.
    pub fn push(&mut self, event: Event) {
        let event = Arc::new(event);
        let (before, after) = (event.before.as_deref(), event.after.as_deref());
        let Some(one) = after.or(before) else { return };
        let (index_before, index_after) =
            (before.map(|object| &*object.index), after.map(|object| &*object.index));
        let moved = index_before.filter(|_| index_before != index_after);
        let feeds = [
            Some(self.all.clone()),
            one.namespace().and_then(|name| self.namespaces.get(name)),
            self.keys.get(&one.key),
            index_after.and_then(|value| self.indexed.get(value)),
            moved.and_then(|value| self.indexed.get(value)),
        ];
        for feed in feeds.into_iter().flatten() {
            if feed.push(&event) {
                self.touched.push(feed);
            }
        }
    }

    /// All events up to a revision have been pushed.
    pub fn reach(&mut self, revision: u64) {
        self.reached.store(revision, Ordering::Release);
        for feed in self.touched.drain(..) {
            feed.tell();
        }
    }

    /// Ends all who read.
    pub fn close(&mut self) {
        let parts = [&self.namespaces, &self.indexed, &self.keys];
        let feeds =
            parts.into_iter().flat_map(|parts| parts.feeds.values().filter_map(Weak::upgrade));
        for feed in feeds.chain([self.all.clone()]) {
            feed.ring.lock().closed = true;
            feed.wake();
        }
    }
}
