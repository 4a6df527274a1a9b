//! What happened, in revision order: the ring that every watch reads with a cursor of its own.
//!
//! The sequencer appends what is durable; readers on other threads take shared batches out under a
//! lock that is held for pointer copies only. The newest batches are whole. Older ones are packed
//! to places in the keys' own chains of versions, from where a reader makes the events anew: there
//! is one copy of history. Compaction takes batches off the front, so the ring is as long as the
//! history that clients asked to keep, and a slow reader holds nothing back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use super::mvcc::CellRef;
use super::{KeyRange, KeyValue};

/// Bytes of versions that one read makes anew from packed history; it ends with the revision that
/// goes over.
const MAKE_BYTES: usize = 2 << 20;

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The new version; a tombstone if the key was deleted.
    pub kv: KeyValue,
    /// The version before it, if the key was there.
    pub prev: Option<KeyValue>,
}

/// Events of whole revisions, in order; never empty.
pub type Batch = Arc<[Event]>;

/// Where an event is to be found.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) cell: CellRef,
    pub(super) revision: i64,
}

/// A stretch of the ring; never empty.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Whole(Batch),
    Packed(Arc<[Place]>),
}

impl Part {
    pub(super) fn first(&self) -> i64 {
        match self {
            Self::Whole(batch) => first(batch),
            Self::Packed(places) => places.first().map_or(0, |place| place.revision),
        }
    }

    fn last(&self) -> i64 {
        match self {
            Self::Whole(batch) => last(batch),
            Self::Packed(places) => places.last().map_or(0, |place| place.revision),
        }
    }

    /// A version of each key that changed above `revision`.
    pub(super) fn changed(&self, revision: i64) -> Vec<KeyValue> {
        match self {
            Self::Whole(batch) => {
                let above = batch.iter().filter(|event| event.kv.mod_revision() > revision);
                above.map(|event| event.kv.clone()).collect()
            }
            Self::Packed(places) => {
                let above = places.iter().filter(|place| place.revision > revision);
                above.map(|place| place.cell.latest()).collect()
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(batch) => batch.len(),
            Self::Packed(places) => places.len(),
        }
    }
}

pub(super) fn first(batch: &Batch) -> i64 {
    batch.first().map_or(0, |event| event.kv.mod_revision())
}

fn last(batch: &Batch) -> i64 {
    batch.last().map_or(0, |event| event.kv.mod_revision())
}

/// A whole batch, with the cells of its events' keys until it is packed.
#[derive(Debug)]
struct Whole {
    batch: Batch,
    cells: Vec<CellRef>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Older than all of `tip`. A part may begin with the revision that the one before ends with.
    old: VecDeque<Part>,
    tip: VecDeque<Whole>,
}

/// The ring, and the two revisions that readers on other threads need.
#[derive(Debug)]
pub struct History {
    ring: RwLock<Ring>,
    revision: AtomicI64,
    /// Events below are gone.
    floor: AtomicI64,
}

/// What [`History::read`] found.
#[derive(Debug)]
pub enum Read {
    /// Batches that may hold events from the cursor on, and the revision they reach.
    Events(Vec<Batch>, i64),
    /// The cursor is below this revision, where history begins.
    Compacted(i64),
}

impl History {
    /// An empty history at `revision`.
    #[must_use]
    pub fn new(revision: i64) -> Self {
        Self {
            ring: RwLock::default(),
            revision: AtomicI64::new(revision),
            floor: AtomicI64::new(i64::MIN),
        }
    }

    /// The newest revision that any client may see.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Events below this revision are gone.
    pub(super) fn floor(&self) -> i64 {
        self.floor.load(Ordering::Acquire)
    }

    /// Events below `revision` were never here: a snapshot holds what they led to.
    pub(super) fn begin_at(&self, revision: i64) {
        self.floor.fetch_max(revision, Ordering::AcqRel);
    }

    /// Adds a batch, with the cells of its events' keys, without making its revision visible yet.
    /// See [`History::show`].
    pub(super) fn push(&self, batch: Batch, cells: Vec<CellRef>) {
        self.ring.write().tip.push_back(Whole { batch, cells });
    }

    /// Makes all that was pushed, up to `revision`, visible.
    pub(super) fn show(&self, revision: i64) {
        self.revision.store(revision, Ordering::Release);
    }

    // ---- packing -------------------------------------------------------------------------------

    /// The oldest batch that nobody tried to pack, and its cells, which are taken out.
    pub(super) fn unpacked(&self) -> Option<(Batch, Vec<CellRef>)> {
        let mut ring = self.ring.write();
        let Whole { batch, cells } = ring.tip.front_mut()?;
        Some((batch.clone(), std::mem::take(cells)))
    }

    /// Puts parts in the place of the batch that [`History::unpacked`] gives.
    pub(super) fn replace(&self, parts: impl IntoIterator<Item = Part>) {
        let mut ring = self.ring.write();
        ring.tip.pop_front();
        ring.old.extend(parts);
    }

    // ---- forgetting ----------------------------------------------------------------------------

    /// Forgets what is below `revision`: it is to be taken with [`History::forgotten`]. A watch may
    /// still start at `revision`, so what happened there is made whole: its past may go.
    pub(super) fn forget(&self, revision: i64) {
        let mut ring = self.ring.write();
        self.floor.fetch_max(revision, Ordering::AcqRel);
        let mut at = ring.old.partition_point(|part| part.last() < revision);
        while let Some(Part::Packed(places)) =
            ring.old.get(at).filter(|part| part.first() <= revision)
        {
            let (below, rest) = places.split_at(places.partition_point(|p| p.revision < revision));
            let (here, above) = rest.split_at(rest.partition_point(|p| p.revision <= revision));
            let copy = |places: &[Place]| {
                let copy = |p: &Place| Place { cell: p.cell.clone(), revision: p.revision };
                Part::Packed(places.iter().map(copy).collect())
            };
            let here: Batch = here.iter().filter_map(|p| p.cell.event(p.revision)).collect();
            let parts = [
                (!below.is_empty()).then(|| copy(below)),
                (!here.is_empty()).then_some(Part::Whole(here)),
                (!above.is_empty()).then(|| copy(above)),
            ];
            ring.old.remove(at);
            for part in parts.into_iter().flatten() {
                ring.old.insert(at, part);
                at += 1;
            }
        }
    }

    /// Takes the oldest part out if it is forgotten; with its cells if it was of the tip.
    pub(super) fn forgotten(&self) -> Option<(Part, Option<Vec<CellRef>>)> {
        let mut ring = self.ring.write();
        let floor = self.floor();
        if let Some(part) = ring.old.front() {
            return if part.last() < floor { Some((ring.old.pop_front()?, None)) } else { None };
        }
        ring.tip.front().filter(|whole| last(&whole.batch) < floor)?;
        let Whole { batch, cells } = ring.tip.pop_front()?;
        Some((Part::Whole(batch), Some(cells)))
    }

    /// The parts with events at the floor, when all below are taken out.
    pub(super) fn at_floor(&self) -> Vec<Part> {
        let ring = self.ring.read();
        let floor = self.floor();
        let mut parts: Vec<Part> =
            ring.old.iter().take_while(|part| part.first() <= floor).cloned().collect();
        let tip = ring.tip.iter().take_while(|whole| first(&whole.batch) <= floor);
        parts.extend(tip.map(|whole| Part::Whole(whole.batch.clone())));
        parts
    }

    // ---- reading -------------------------------------------------------------------------------

    /// Batches from `cursor` on, oldest first, until `limit` events are exceeded. What was packed
    /// comes without the events that are not in `range`.
    #[must_use]
    pub fn read(&self, cursor: i64, limit: usize, range: &KeyRange) -> Read {
        loop {
            let (floor, parts, reach) = self.take(cursor, limit);
            if cursor < floor {
                return Read::Compacted(floor);
            }
            let found = make(parts, cursor, reach, range);
            // What is forgotten meanwhile may have lost its past.
            if self.floor() == floor {
                return found;
            }
        }
    }

    fn take(&self, cursor: i64, limit: usize) -> (i64, Vec<Part>, i64) {
        let ring = self.ring.read();
        let floor = self.floor();
        let mut found: Vec<Part> = Vec::new();
        let mut events = 0;
        let old = ring.old.partition_point(|part| part.last() < cursor);
        let tip = ring.tip.partition_point(|whole| last(&whole.batch) < cursor);
        let old = ring.old.range(old..).cloned();
        let tip = ring.tip.range(tip..).map(|whole| Part::Whole(whole.batch.clone()));
        let parts = old.chain(tip);
        for part in parts {
            let taken = found.last().map_or(i64::MIN, Part::last);
            if events >= limit && part.first() > taken {
                // What was taken reaches to just below the part that was not.
                return (floor, found, part.first() - 1);
            }
            events += part.len();
            found.push(part);
        }
        let newest = found.last().map_or(i64::MIN, Part::last);
        (floor, found, newest.max(self.revision()))
    }

    /// The batch that holds this revision's events, if it is one of the newest.
    #[must_use]
    pub fn batch_of(&self, revision: i64) -> Option<Batch> {
        let ring = self.ring.read();
        if revision < self.floor() {
            return None;
        }
        let at = ring.tip.partition_point(|whole| last(&whole.batch) < revision);
        let batch = &ring.tip.get(at)?.batch;
        (first(batch) <= revision).then(|| batch.clone())
    }

    /// Parts with events above `revision`, newest first, or `None` if there are more than `limit`
    /// events.
    pub(super) fn since(&self, revision: i64, limit: usize) -> Option<Vec<Part>> {
        let ring = self.ring.read();
        let mut found = Vec::new();
        let mut events = 0;
        let tip = ring.tip.iter().rev().map(|whole| Part::Whole(whole.batch.clone()));
        for part in tip.chain(ring.old.iter().rev().cloned()) {
            if part.last() <= revision {
                break;
            }
            events += part.len();
            if events > limit {
                return None;
            }
            found.push(part);
        }
        Some(found)
    }
}

/// Makes what was packed whole again.
fn make(parts: Vec<Part>, cursor: i64, reach: i64, range: &KeyRange) -> Read {
    let mut batches = Vec::with_capacity(parts.len());
    let (mut bytes, mut last) = (0, i64::MIN);
    for part in parts {
        let places = match part {
            Part::Whole(batch) => {
                let first = first(&batch);
                if bytes >= MAKE_BYTES && first > last {
                    return Read::Events(batches, first - 1);
                }
                batches.push(batch);
                continue;
            }
            Part::Packed(places) => places,
        };
        let mut events = Vec::new();
        for Place { cell, revision } in places.iter().filter(|place| place.revision >= cursor) {
            if bytes >= MAKE_BYTES && *revision > last {
                if !events.is_empty() {
                    batches.push(events.into());
                }
                return Read::Events(batches, *revision - 1);
            }
            last = *revision;
            if !cell.key(|key| range.contains(key)) {
                continue;
            }
            // It is there unless it was forgotten meanwhile.
            let Some(event) = cell.event(*revision) else { return Read::Compacted(*revision + 1) };
            bytes += event.kv.encoded().len();
            bytes += event.prev.as_ref().map_or(0, |prev| prev.encoded().len());
            events.push(event);
        }
        if !events.is_empty() {
            batches.push(events.into());
        }
    }
    Read::Events(batches, reach)
}
