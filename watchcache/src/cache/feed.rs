//! Events of late, shared by all who watch. A watch keeps only how far it has read. One that
//! reads too slowly finds that what it wants is gone, and ends: its client resumes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::table::{Filter, Object};

/// Events kept for all.
const KEPT: usize = 16 * 1024;
/// Events kept of one node.
const KEPT_OF_NODE: usize = 256;

/// Nodes whose feeds are remembered before those that nobody reads are thrown out.
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

impl Event {
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
}

/// The events of all objects, or of one node.
#[derive(Debug)]
pub struct Feed {
    ring: Mutex<Ring>,
    most: usize,
    changed: watch::Sender<()>,
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
    fn new(most: usize, reached: &Arc<AtomicU64>) -> Self {
        let complete_after = reached.load(Ordering::Acquire);
        let ring = Mutex::new(Ring { complete_after, ..Ring::default() });
        Self { ring, most, changed: watch::Sender::new(()), reached: reached.clone() }
    }

    fn push(&self, event: &Arc<Event>) {
        let mut ring = self.ring.lock();
        if ring.events.len() == self.most
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.complete_after = oldest.revision;
        }
        ring.events.push_back(event.clone());
    }

    /// Told when there is something to read. Subscribe before reading.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
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

/// The feeds of a table.
#[derive(Debug)]
pub struct Feeds {
    all: Arc<Feed>,
    /// Of the nodes that are watched; those without a watch go when the map has doubled.
    nodes: HashMap<Box<str>, Weak<Feed>>,
    sweep_at: usize,
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
        let all = Arc::new(Feed::new(KEPT, &reached));
        Self { all, nodes: HashMap::new(), sweep_at: SWEEP, reached, touched: Vec::new() }
    }

    /// The feed of all objects.
    #[must_use]
    pub fn all(&self) -> &Arc<Feed> {
        &self.all
    }

    /// The feed of one node, or of all objects.
    pub fn of(&mut self, node: Option<&str>) -> Arc<Feed> {
        let Some(node) = node else { return self.all.clone() };
        if let Some(feed) = self.nodes.get(node).and_then(Weak::upgrade) {
            return feed;
        }
        if self.nodes.len() >= self.sweep_at {
            self.nodes.retain(|_, feed| feed.strong_count() > 0);
            self.sweep_at = (self.nodes.len() * 2).max(SWEEP);
        }
        let feed = Arc::new(Feed::new(KEPT_OF_NODE, &self.reached));
        self.nodes.insert(node.into(), Arc::downgrade(&feed));
        feed
    }

    /// Takes an event in. Nobody reads it before its revision is reached.
    pub fn push(&mut self, event: Event) {
        let event = Arc::new(event);
        let node = |object: &Option<Arc<Object>>| {
            let object = object.as_ref()?;
            self.nodes.get(&object.seen.node).and_then(Weak::upgrade)
        };
        let (before, after) = (node(&event.before), node(&event.after));
        let same = before.as_ref().map(Arc::as_ptr) == after.as_ref().map(Arc::as_ptr);
        let feeds = [Some(self.all.clone()), after, before.filter(|_| !same)];
        for feed in feeds.into_iter().flatten() {
            feed.push(&event);
            self.touched.push(feed);
        }
    }

    /// All events up to a revision have been pushed.
    pub fn reach(&mut self, revision: u64) {
        self.reached.store(revision, Ordering::Release);
        for feed in self.touched.drain(..) {
            feed.changed.send_replace(());
        }
    }

    /// Ends all who read.
    pub fn close(&mut self) {
        let nodes = self.nodes.values().filter_map(Weak::upgrade);
        for feed in nodes.chain([self.all.clone()]) {
            feed.ring.lock().closed = true;
            feed.changed.send_replace(());
        }
    }
}
