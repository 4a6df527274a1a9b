//! What is done between batches, in slices: packing what is no longer at the tip, and freeing what
//! was compacted.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::Mvcc;
use super::cell::{self, Cell, CellRef};
use crate::core::KeyValue;
use crate::core::history::{self, Batch, Event, Part, Place};

/// Events that stay whole for watchers at the tip, and bytes of their versions.
const TIP_EVENTS: usize = 16 * 1024;
const TIP_BYTES: usize = 64 << 20;
/// Events of one packed part.
const PART: usize = 512;
/// How many events ahead of the one that is packed its memory is asked for, step by step: see
/// [`prefetch`].
const AHEAD: [usize; 4] = [16, 12, 8, 4];

/// What waits for its turn.
#[derive(Debug)]
pub(super) struct Chores {
    /// Events and bytes of whole batches in the ring.
    tip_events: usize,
    tip_bytes: usize,
    keep_events: usize,
    /// Events published since the last slice: as many are packed, so that the tip stays short.
    published: usize,
    /// The batch that is being packed, how far, and what became of it.
    batch: Option<Batch>,
    at: usize,
    /// The cells of the events from there on.
    cells: std::vec::IntoIter<CellRef>,
    places: Vec<Place>,
    /// The part whose garbage is being freed, and how far.
    part: Option<Part>,
    part_at: usize,
    /// Parts at the floor, whose garbage is freed when all below is.
    floor: VecDeque<Part>,
    floor_pending: bool,
    /// Batches that are dropped piece by piece, and what is left of them.
    dying: VecDeque<(Batch, usize)>,
    /// The same of cells that were not needed.
    left_cells: Vec<std::vec::IntoIter<CellRef>>,
}

impl Default for Chores {
    fn default() -> Self {
        Self {
            tip_events: 0,
            tip_bytes: 0,
            keep_events: TIP_EVENTS,
            published: 0,
            batch: None,
            at: 0,
            cells: Vec::new().into_iter(),
            places: Vec::new(),
            part: None,
            part_at: 0,
            floor: VecDeque::new(),
            floor_pending: false,
            dying: VecDeque::new(),
            left_cells: Vec::new(),
        }
    }
}

fn bytes(batch: &[Event]) -> usize {
    batch.iter().map(|event| event.kv.encoded().len()).sum()
}

impl Mvcc {
    /// Sets how many of the newest events stay as they are, before older ones are packed.
    pub fn keep_whole(&mut self, events: usize) {
        self.chores.keep_events = events;
    }

    /// Lets go of the history below the compacted revision. A little later than the compaction, so
    /// that a watch that is a moment behind is not cancelled by a compaction at the current
    /// revision. Memory comes back by [`Mvcc::collect`]. False if a [`Pin`](super::Pin) holds the
    /// history: then nothing was done, and it is to be tried again.
    pub fn release(&mut self) -> bool {
        if self.pins.lowest().is_some_and(|pinned| pinned < self.compacted) {
            return false;
        }
        if self.compacted > 0 {
            self.released = self.compacted;
            self.release = self.release.wrapping_add(1);
            self.history.forget(self.compacted);
            self.chores.floor.clear();
            self.chores.floor_pending = true;
        }
        true
    }

    /// Notes a batch that was added to the ring.
    pub(super) fn note_published(&mut self, batch: &Batch) {
        self.chores.tip_events += batch.len();
        self.chores.tip_bytes += bytes(batch);
        self.chores.published += batch.len();
    }

    /// Frees versions that compaction made unreachable, and packs those that only readers of the
    /// past need, about `limit` events each. True if there is more to do.
    pub fn collect(&mut self, limit: usize) -> bool {
        let busy = self.free(limit);
        let published = std::mem::take(&mut self.chores.published);
        let packing = self.pack(limit.max(published.saturating_add(published / 4)));
        let dying = self.bury(limit);
        busy || packing || dying
    }

    // ---- freeing -------------------------------------------------------------------------------

    fn free(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(part) = &self.chores.part else {
                if !self.next_part() {
                    return false;
                }
                continue;
            };
            let at = self.chores.part_at;
            let cell = match part {
                Part::Whole(batch) => batch.get(at).map(|event| self.find(event.kv.key()).cloned()),
                Part::Packed(places) => places.get(at).map(|place| Some(place.cell.clone())),
            };
            self.chores.part_at += 1;
            match cell {
                Some(Some(cell)) => self.trim(&cell),
                Some(None) => {}
                None => {
                    if let Some(Part::Whole(batch)) = self.chores.part.take() {
                        let left = batch.len();
                        self.chores.dying.push_back((batch, left));
                    }
                }
            }
        }
        true
    }

    /// Takes the next part to free.
    fn next_part(&mut self) -> bool {
        let chores = &mut self.chores;
        chores.part_at = 0;
        if let Some((part, of_tip)) = self.history.forgotten() {
            if let (Part::Whole(batch), Some(cells)) = (&part, of_tip) {
                chores.left_cells.push(cells.into_iter());
                chores.tip_events = chores.tip_events.saturating_sub(batch.len());
                chores.tip_bytes = chores.tip_bytes.saturating_sub(bytes(batch));
                if chores.batch.as_ref().is_some_and(|packing| Arc::ptr_eq(packing, batch)) {
                    chores.batch = None;
                    chores.left_cells.push(std::mem::take(&mut chores.cells));
                    chores.places.clear();
                }
            }
            chores.part = Some(part);
            return true;
        }
        if std::mem::take(&mut chores.floor_pending) {
            chores.floor = self.history.at_floor().into();
        }
        chores.part = chores.floor.pop_front();
        chores.part.is_some()
    }

    fn trim(&mut self, cell: &CellRef) {
        self.bytes -= cell.trim(self.released, self.release);
        if cell.is_gone(self.released) {
            let kv = cell.latest();
            let hash = self.index.hash(kv.key());
            if self.index.remove(hash, cell) {
                self.bytes -= Cell::bytes_of_one(&kv);
                self.tree.remove(kv.key());
            }
        }
    }

    // ---- packing -------------------------------------------------------------------------------

    fn tip_is_long(&self) -> bool {
        let chores = &self.chores;
        chores.tip_events > chores.keep_events || chores.tip_bytes > TIP_BYTES
    }

    fn pack(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            if self.chores.batch.is_none() {
                if !self.tip_is_long() {
                    return false;
                }
                let Some((batch, cells)) = self.history.unpacked() else { return false };
                self.chores.at = 0;
                // Nothing of a batch that just begins was asked for yet.
                for (step, ahead) in AHEAD.into_iter().enumerate() {
                    for (event, cell) in batch.iter().zip(&cells).take(ahead) {
                        prefetch(step, event, cell);
                    }
                }
                self.chores.batch = Some(batch);
                self.chores.cells = cells.into_iter();
            }
            let chores = &mut self.chores;
            let Some(batch) = &chores.batch else { return false };
            let Some(event) = batch.get(chores.at) else {
                self.packed();
                continue;
            };
            for (step, ahead) in AHEAD.into_iter().enumerate() {
                let coming = (batch.get(chores.at + ahead), chores.cells.as_slice().get(ahead));
                if let (Some(event), Some(cell)) = coming {
                    prefetch(step, event, cell);
                }
            }
            chores.at += 1;
            if let Some(cell) = chores.cells.next() {
                let revision = event.kv.mod_revision();
                let change = cell.pack(revision);
                self.bytes = cell::add(self.bytes, change);
                chores.places.push(Place { cell, revision });
            }
        }
        self.tip_is_long()
    }

    /// The batch is through: packed parts take its place, unless a place would be in doubt.
    fn packed(&mut self) {
        let chores = &mut self.chores;
        let Some(batch) = chores.batch.take() else { return };
        let places = std::mem::take(&mut chores.places);
        chores.tip_events = chores.tip_events.saturating_sub(batch.len());
        chores.tip_bytes = chores.tip_bytes.saturating_sub(bytes(&batch));
        // A key that was compacted away may be gone, or have come again; and one that changed twice
        // in a transaction can't be told by the revision.
        let keep = history::first(&batch) <= self.released
            || places.len() != batch.len()
            || changes_twice(&batch);
        if keep {
            self.history.replace([Part::Whole(batch)]);
            return;
        }
        let mut parts = Vec::with_capacity(places.len().div_ceil(PART));
        let mut places = places.into_iter().peekable();
        while places.peek().is_some() {
            parts.push(Part::Packed(places.by_ref().take(PART).collect()));
        }
        self.history.replace(parts);
        let left = batch.len();
        chores.dying.push_back((batch, left));
    }

    /// Drops batches piece by piece: one of a large transaction takes long.
    fn bury(&mut self, limit: usize) -> bool {
        let mut left = limit;
        while let Some(cells) = self.chores.left_cells.last_mut() {
            if left == 0 {
                return true;
            }
            let here = left.min(cells.len());
            cells.by_ref().take(here).for_each(drop);
            left -= here;
            if cells.len() == 0 {
                self.chores.left_cells.pop();
            }
        }
        while left > 0 {
            let Some((batch, end)) = self.chores.dying.front_mut() else { return false };
            // A reader that still has it will drop it.
            let Some(events) = Arc::get_mut(batch).filter(|_| *end > left) else {
                left = left.saturating_sub(*end);
                self.chores.dying.pop_front();
                continue;
            };
            for event in &mut events[*end - left..*end] {
                *event = Event { kv: KeyValue::default(), prev: None };
            }
            *end -= left;
            left = 0;
        }
        !self.chores.dying.is_empty()
    }
}

/// Begins to bring what packing an event reads. Each step needs what the one before it asked for.
fn prefetch(step: usize, event: &Event, cell: &CellRef) {
    match step {
        0 => {
            event.kv.prefetch();
            event.prev.iter().for_each(KeyValue::prefetch);
            cell.prefetch();
        }
        1 => {
            event.kv.prefetch_end();
            event.prev.iter().for_each(KeyValue::prefetch_end);
            cell.prefetch_versions();
        }
        2 => cell.prefetch_ends(),
        _ => cell.prefetch_next(),
    }
}

/// Whether a transaction in the batch changed a key twice.
fn changes_twice(batch: &[Event]) -> bool {
    let mut seen = HashSet::new();
    batch.chunk_by(|a, b| a.kv.mod_revision() == b.kv.mod_revision()).any(|events| {
        seen.clear();
        events.len() > 1 && events.iter().any(|event| !seen.insert(event.kv.key()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::watch::{Cursor, Filter};
    use crate::core::{Fields, History, KeyRange, Read};

    const KEYS: i64 = 40;
    const ROUNDS: i64 = 50;

    fn value(key: i64, round: i64) -> Vec<u8> {
        let mut value = vec![b'x'; 400];
        value[10..30].copy_from_slice(format!("{key:020}").as_bytes());
        value[200..220].copy_from_slice(format!("{round:020}").as_bytes());
        value
    }

    fn key(n: i64) -> Vec<u8> {
        format!("/registry/leases/node-{n:04}").into_bytes()
    }

    /// The version of revision `2 + round * KEYS + n`.
    fn version(n: i64, round: i64) -> KeyValue {
        KeyValue::new(Fields {
            key: &key(n),
            create_revision: 2 + n,
            mod_revision: 2 + round * KEYS + n,
            version: round + 1,
            value: &value(n, round),
            lease: 0,
        })
    }

    fn renewed() -> Mvcc {
        let mut mvcc = Mvcc::new(1);
        mvcc.keep_whole(100);
        for round in 0..ROUNDS {
            for n in 0..KEYS {
                let revision = mvcc.revision() + 1;
                mvcc.put(revision, &key(n), &value(n, round), 0);
                mvcc.finish(revision);
            }
            mvcc.publish();
            mvcc.show();
            mvcc.collect(16);
        }
        while mvcc.collect(100) {}
        mvcc
    }

    fn watched(history: &History, from: i64) -> Vec<Event> {
        let range = KeyRange::From("/".into());
        let mut cursor = Cursor::new(range, Filter::default(), from);
        let mut found = Vec::new();
        loop {
            let next = cursor.next_revision();
            let Read::Events(batches, reach) = history.read(next, 1000, cursor.range()) else {
                panic!("compacted")
            };
            let picked = cursor.pick(batches.iter().flat_map(|batch| batch.iter()), reach);
            found.extend(picked.events.into_iter().cloned());
            if !picked.more && reach >= history.revision() {
                return found;
            }
        }
    }

    #[test]
    fn packed_history_is_small_and_tells_all() {
        let mvcc = renewed();
        let old = usize::try_from(KEYS * (ROUNDS - 1)).unwrap();
        let live: usize = (0..KEYS).map(|n| Cell::bytes_of_one(&version(n, ROUNDS - 1))).sum();
        // A hundred of the old ones are whole.
        let each = (mvcc.bytes() - live - 100 * 500) / old;
        assert!(each < 100, "{each} bytes for an old version");
        assert_eq!(mvcc.bytes(), mvcc.count_bytes());
        let events = watched(&mvcc.history(), 2);
        assert_eq!(events.len(), usize::try_from(KEYS * ROUNDS).unwrap());
        for (at, event) in (0..).zip(events) {
            let (round, n) = (at / KEYS, at % KEYS);
            assert_eq!(event.kv, version(n, round));
            assert_eq!(event.prev, (round > 0).then(|| version(n, round - 1)));
        }
    }

    #[test]
    fn a_compaction_leaves_what_can_be_reached() {
        let mut mvcc = renewed();
        let at = 2 + 30 * KEYS + 7;
        mvcc.compact(at).unwrap();
        assert!(mvcc.release());
        while mvcc.collect(64) {}
        assert_eq!(mvcc.bytes(), mvcc.count_bytes());
        for n in 0..KEYS {
            let round = if n <= 7 { 30 } else { 29 };
            assert_eq!(mvcc.get(&key(n), at), Some(version(n, round)));
        }
        let events = watched(&mvcc.history(), at);
        assert_eq!(events.len(), usize::try_from(KEYS * (ROUNDS - 30) - 7).unwrap());
        // All have their past, also the one at the compaction.
        assert_eq!(events[0].prev, Some(version(7, 29)));
        assert!(events.iter().all(|event| event.prev.is_some()));
        let last = mvcc.revision();
        for n in 0..KEYS {
            mvcc.delete(last + 1, &key(n));
        }
        mvcc.finish(last + 1);
        mvcc.publish();
        mvcc.show();
        mvcc.compact(last + 1).unwrap();
        assert!(mvcc.release());
        while mvcc.collect(64) {}
        assert_eq!((mvcc.bytes(), mvcc.count_bytes()), (0, 0));
    }

    #[test]
    fn what_was_forgotten_before_it_was_packed_goes_piece_by_piece() {
        let mut mvcc = Mvcc::new(1);
        for revision in 2..4 {
            for n in 0..5000 {
                mvcc.put(revision, &key(n), b"v", 0);
            }
            mvcc.finish(revision);
            mvcc.publish();
        }
        mvcc.show();
        mvcc.compact(3).unwrap();
        assert!(mvcc.release());
        let (mut slices, mut most) = (0, 0);
        while mvcc.collect(100) {
            slices += 1;
            most = most.max(mvcc.chores.left_cells.len());
        }
        assert!(slices > 40 && most == 1, "{slices}, {most}");
        assert!(mvcc.chores.dying.is_empty() && mvcc.chores.left_cells.is_empty());
        assert_eq!(watched(&mvcc.history(), 3).len(), 5000);
    }

    #[test]
    fn a_large_batch_is_dropped_piece_by_piece() {
        let mut mvcc = Mvcc::new(1);
        mvcc.keep_whole(0);
        for n in 0..5000 {
            mvcc.put(2, &key(n), b"v", 0);
        }
        mvcc.finish(2);
        mvcc.publish();
        mvcc.show();
        let mut slices = 0;
        while mvcc.collect(100) {
            slices += 1;
        }
        assert!(slices > 40, "{slices}");
        assert!(mvcc.chores.dying.is_empty() && mvcc.chores.left_cells.is_empty());
        assert_eq!(watched(&mvcc.history(), 2).len(), 5000);
    }
}
