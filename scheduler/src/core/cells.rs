//! Nodes that are alike, in a tree of bounds, so that the best of them is found without looking at
//! all of them.
//!
//! A cell holds the nodes with the same labels but for the hostname, the same taints and the same
//! allocatable resources: a pod's verdict on them differs by what is taken alone. Within a cell
//! nodes lie side by side, sorted now and then by what is taken; sixteen of them have a [`Bound`],
//! sixteen of those have one, and so on to the root. A bound says how good a node below it can be
//! at best, so a search goes down where the best may be and leaves out the rest. What is taken on a
//! node changes one bound on each level.
//!
//! Scores that need no normalisation are those of [`super::score`]; both give the same numbers.

use hashbrown::{HashMap, HashSet};

use super::columns::{Columns, Slot};
use super::score::Scorer;

/// Residents below the lowest bounds, and bounds below each of the others.
const FAN: usize = 16;
/// A cell is sorted anew when so many of its residents have changed, and half of them all.
const RESORT: usize = 64;

/// What is taken on a node, as far as a score or a filter that all nodes of a cell share reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) non_zero: (i64, i64),
    pub(super) used: (i64, i64),
    pub(super) storage: i64,
    pub(super) pods: i64,
}

impl Load {
    fn map(self, other: Self, f: fn(i64, i64) -> i64) -> Self {
        Self {
            non_zero: (f(self.non_zero.0, other.non_zero.0), f(self.non_zero.1, other.non_zero.1)),
            used: (f(self.used.0, other.used.0), f(self.used.1, other.used.1)),
            storage: f(self.storage, other.storage),
            pods: f(self.pods, other.pods),
        }
    }
}

/// What the nodes of a cell offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Offer {
    pub(super) cpu_memory: (i64, i64),
    pub(super) storage: i64,
    pub(super) pods: i64,
}

/// What nodes of a cell have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// [`Columns::kind_serial`]
    kind: u64,
    unschedulable: bool,
    offer: Offer,
}

/// One node.
#[derive(Clone, Copy, Debug)]
struct Resident {
    row: u32,
    lot: u64,
    load: Load,
}

/// What is known of some nodes together.
#[derive(Clone, Copy, Debug)]
struct Bound {
    least: Load,
    most: Load,
    /// The share of CPU in use less that of memory: the smallest and the largest. Infinite where a
    /// node has more in use than it has.
    tilt: (f64, f64),
    /// The highest lot.
    lot: u64,
}

impl Bound {
    fn of(resident: &Resident, offer: Offer) -> Self {
        let (used, all) = (resident.load.used, offer.cpu_memory);
        let tilt = if used.0 > all.0 || used.1 > all.1 || used.0 < 0 || used.1 < 0 {
            (f64::NEG_INFINITY, f64::INFINITY)
        } else {
            let tilt = tilt(used, all);
            (tilt, tilt)
        };
        Self { least: resident.load, most: resident.load, tilt, lot: resident.lot }
    }

    fn join(self, other: Self) -> Self {
        Self {
            least: self.least.map(other.least, i64::min),
            most: self.most.map(other.most, i64::max),
            tilt: (self.tilt.0.min(other.tilt.0), self.tilt.1.max(other.tilt.1)),
            lot: self.lot.max(other.lot),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "as the score does it")]
fn tilt(used: (i64, i64), all: (i64, i64)) -> f64 {
    if all.0 == 0 || all.1 == 0 {
        return 0.0;
    }
    used.0 as f64 / all.0 as f64 - used.1 as f64 / all.1 as f64
}

/// What a pod asks of a node of a cell.
pub(super) struct Wanted {
    pub(super) scorer: Scorer,
    pub(super) cpu_memory: (i64, i64),
    pub(super) storage: i64,
}

impl Wanted {
    fn fits(&self, load: &Load, offer: &Offer) -> bool {
        let room =
            |amount: i64, all: i64, used: i64| amount <= 0 || amount <= all.saturating_sub(used);
        load.pods < offer.pods
            && room(self.cpu_memory.0, offer.cpu_memory.0, load.used.0)
            && room(self.cpu_memory.1, offer.cpu_memory.1, load.used.1)
            && room(self.storage, offer.storage, load.storage)
    }

    /// No node below scores more.
    fn at_best(&self, bound: &Bound, offer: &Offer) -> i64 {
        let (least, most) = (&bound.least, &bound.most);
        if least == most {
            return self.scorer.of(least.non_zero, least.used, offer.cpu_memory);
        }
        self.scorer.at_best(least.non_zero, bound.tilt, offer.cpu_memory)
    }
}

/// The best node so far: the highest score, and among equals the highest lot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) local: i64,
    pub(super) lot: u64,
    pub(super) row: u32,
}

fn beats(local: i64, lot: u64, found: Option<&Found>) -> bool {
    found.is_none_or(|found| (local, lot) > (found.local, found.lot))
}

/// Nodes of which something else holds than of the others of their cell.
pub(super) type Exceptions = HashSet<u32>;

/// Nodes that are alike.
#[derive(Debug)]
pub(super) struct Cell {
    key: Key,
    residents: Vec<Resident>,
    /// Those of residents first, a single one last.
    levels: Vec<Vec<Bound>>,
    changed: usize,
}

impl Cell {
    fn new(key: Key) -> Self {
        Self { key, residents: Vec::new(), levels: Vec::new(), changed: 0 }
    }

    /// Whether a node of the cell on which so much is taken has room for the pod.
    pub(super) fn has_room(&self, wanted: &Wanted, load: &Load) -> bool {
        wanted.fits(load, &self.key.offer)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.residents.iter().map(|resident| resident.row)
    }

    /// How good a node of the cell can be at best, and the highest lot; `None` where none fits.
    pub(super) fn root(&self, wanted: &Wanted) -> Option<(i64, u64)> {
        let root = self.levels.last()?.first()?;
        let offer = &self.key.offer;
        wanted.fits(&root.least, offer).then(|| (wanted.at_best(root, offer), root.lot))
    }

    /// Looks for a node that beats the best so far.
    pub(super) fn search(
        &self,
        wanted: &Wanted,
        exceptions: Option<&Exceptions>,
        best: &mut Option<Found>,
    ) {
        if let Some(top) = self.levels.len().checked_sub(1) {
            self.descend((top, 0), wanted, exceptions, best);
        }
    }

    fn descend(
        &self,
        (level, index): (usize, usize),
        wanted: &Wanted,
        exceptions: Option<&Exceptions>,
        best: &mut Option<Found>,
    ) {
        let offer = &self.key.offer;
        let start = index * FAN;
        if level == 0 {
            for resident in self.residents.iter().skip(start).take(FAN) {
                let load = &resident.load;
                if !wanted.fits(load, offer) {
                    continue;
                }
                let local = wanted.scorer.of(load.non_zero, load.used, offer.cpu_memory);
                if beats(local, resident.lot, best.as_ref())
                    && exceptions.is_none_or(|rows| !rows.contains(&resident.row))
                {
                    *best = Some(Found { local, lot: resident.lot, row: resident.row });
                }
            }
            return;
        }
        let mut order = [(i64::MIN, 0_u64, 0_usize); FAN];
        let mut promising = 0;
        let below = self.levels[level - 1].iter().enumerate().skip(start).take(FAN);
        for (child, bound) in below {
            if !wanted.fits(&bound.least, offer) {
                continue;
            }
            let local = wanted.at_best(bound, offer);
            if beats(local, bound.lot, best.as_ref()) {
                order[promising] = (local, bound.lot, child);
                promising += 1;
            }
        }
        let order = &mut order[..promising];
        order.sort_unstable_by(|a, b| b.cmp(a));
        for (local, lot, child) in order {
            if !beats(*local, *lot, best.as_ref()) {
                return;
            }
            self.descend((level - 1, *child), wanted, exceptions, best);
        }
    }

    /// How many nodes have room for the pod.
    pub(super) fn count(&self, wanted: &Wanted) -> u64 {
        let Some(top) = self.levels.len().checked_sub(1) else { return 0 };
        self.count_below((top, 0), wanted)
    }

    fn count_below(&self, (level, index): (usize, usize), wanted: &Wanted) -> u64 {
        let offer = &self.key.offer;
        let Some(bound) = self.levels[level].get(index) else { return 0 };
        if !wanted.fits(&bound.least, offer) {
            return 0;
        }
        let each = FAN.pow(u32::try_from(level + 1).unwrap_or(u32::MAX));
        let start = index * each;
        if wanted.fits(&bound.most, offer) {
            return (self.residents.len() - start).min(each) as u64;
        }
        if level == 0 {
            let residents = self.residents.iter().skip(start).take(FAN);
            return residents.filter(|resident| wanted.fits(&resident.load, offer)).count() as u64;
        }
        let children = index * FAN..((index + 1) * FAN).min(self.levels[level - 1].len());
        children.map(|child| self.count_below((level - 1, child), wanted)).sum()
    }

    /// Works the bounds above a resident out anew.
    fn refresh(&mut self, place: usize) {
        let offer = self.key.offer;
        let mut index = place / FAN;
        let residents = self.residents.iter().skip(index * FAN).take(FAN);
        let bound = residents.map(|resident| Bound::of(resident, offer)).reduce(Bound::join);
        let mut level = 0;
        set(&mut self.levels, level, index, bound);
        while self.levels.get(level).is_some_and(|bounds| bounds.len() > 1) {
            index /= FAN;
            let below = self.levels[level].iter().skip(index * FAN).take(FAN).copied();
            let bound = below.reduce(Bound::join);
            level += 1;
            set(&mut self.levels, level, index, bound);
        }
        self.levels.truncate(level + 1);
        if self.residents.is_empty() {
            self.levels.clear();
        }
    }

    fn rebuild(&mut self) {
        let offer = self.key.offer;
        self.levels.clear();
        let of = |residents: &[Resident]| {
            residents.iter().map(|r| Bound::of(r, offer)).reduce(Bound::join)
        };
        let mut level: Vec<Bound> = self.residents.chunks(FAN).filter_map(of).collect();
        while level.len() > 1 {
            let joined =
                level.chunks(FAN).filter_map(|c| c.iter().copied().reduce(Bound::join)).collect();
            self.levels.push(std::mem::replace(&mut level, joined));
        }
        if !level.is_empty() {
            self.levels.push(level);
        }
        self.changed = 0;
    }

    /// Brings nodes together on which as much is taken.
    fn sort(&mut self) {
        let all = self.key.offer.cpu_memory;
        self.residents.sort_unstable_by_key(|resident| {
            let load = &resident.load;
            let share = |used: i64, all: i64| {
                // A thousandth is fine enough.
                i64::try_from(i128::from(used) * 1000 / i128::from(all.max(1))).unwrap_or(i64::MAX)
            };
            let (cpu, memory) = (share(load.non_zero.0, all.0), share(load.non_zero.1, all.1));
            (cpu.saturating_add(memory) / 16, cpu.saturating_sub(memory), load.used, resident.row)
        });
        self.rebuild();
    }

    fn is_stale(&self) -> bool {
        self.changed >= RESORT && self.changed * 2 >= self.residents.len()
    }
}

fn set(levels: &mut Vec<Vec<Bound>>, level: usize, index: usize, bound: Option<Bound>) {
    if levels.len() <= level {
        levels.push(Vec::new());
    }
    let bounds = &mut levels[level];
    match bound {
        None => bounds.truncate(index),
        Some(bound) if index < bounds.len() => bounds[index] = bound,
        Some(bound) => bounds.push(bound),
    }
}

const NOWHERE: (u32, u32) = (u32::MAX, 0);

/// The nodes of a table by cell.
#[derive(Debug, Default)]
pub(super) struct Cells {
    seed: u64,
    /// Nodes with amounts beyond reason, for which no bound holds.
    wild: Exceptions,
    all: Vec<Option<Cell>>,
    by_key: HashMap<Key, u32>,
    free: Vec<u32>,
    /// By row: which cell, and where in it.
    places: Vec<(u32, u32)>,
    version: u64,
}

impl Cells {
    /// What lots are drawn by.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Grows when a cell comes or goes: what was worked out for each cell is void then.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, cell: u32) -> Option<&Cell> {
        self.all.get(cell as usize)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Cell)> {
        let cells = self.all.iter().enumerate();
        cells.filter_map(|(id, cell)| Some((u32::try_from(id).ok()?, cell.as_ref()?)))
    }

    /// Nodes that are in no cell and have to be looked at one by one.
    pub(super) fn wild(&self) -> &Exceptions {
        &self.wild
    }

    /// The cell of a row.
    pub(super) fn cell_of(&self, row: u32) -> Option<u32> {
        let place = self.places.get(row as usize)?;
        Some(place.0).filter(|cell| *cell != NOWHERE.0)
    }

    /// Takes over the rows that have changed. Lots are drawn by this seed.
    pub(super) fn update(&mut self, columns: &mut Columns, seed: u64) {
        let dirty = columns.take_dirty();
        if self.seed != seed {
            self.redraw(columns, seed);
        }
        if self.places.len() < columns.len() {
            self.places.resize(columns.len(), NOWHERE);
        }
        // A list of nodes at the start: sorted once at its end.
        let many = dirty.len() > 1000 && dirty.len() * 4 > columns.len();
        for row in &dirty {
            self.take(columns, *row, many);
        }
        if many {
            (0..self.all.len()).for_each(|cell| self.sort(cell));
        }
        columns.give_back(dirty);
    }

    fn redraw(&mut self, columns: &Columns, seed: u64) {
        self.seed = seed;
        for cell in self.all.iter_mut().flatten() {
            for resident in &mut cell.residents {
                resident.lot = columns.lot(seed, resident.row as usize);
            }
            cell.rebuild();
        }
    }

    fn take(&mut self, columns: &Columns, row: u32, many: bool) {
        let index = row as usize;
        let kind = columns.kind_serial(Slot::of(index));
        let wild = kind.is_some() && columns.is_wild(index);
        if wild {
            self.wild.insert(row);
        } else {
            self.wild.remove(&row);
        }
        let key = kind.filter(|_| !wild).map(|kind| Key {
            kind,
            unschedulable: columns.unschedulable[index],
            offer: columns.offer(index),
        });
        let (cell, place) = self.places[index];
        let resident =
            Resident { row, lot: columns.lot(self.seed, index), load: columns.load(index) };
        if let Some(Some(known)) = self.all.get_mut(cell as usize) {
            if Some(known.key) == key {
                known.residents[place as usize] = resident;
                known.changed += 1;
                if many {
                    return;
                }
                known.refresh(place as usize);
                if known.is_stale() {
                    self.sort(cell as usize);
                }
                return;
            }
            self.remove(cell, place, many);
            self.places[index] = NOWHERE;
        }
        if let Some(key) = key {
            self.insert(key, resident, many);
        }
    }

    fn remove(&mut self, id: u32, place: u32, many: bool) {
        let Some(slot) = self.all.get_mut(id as usize) else { return };
        let Some(cell) = slot else { return };
        cell.residents.swap_remove(place as usize);
        if let Some(moved) = cell.residents.get(place as usize) {
            self.places[moved.row as usize] = (id, place);
        }
        if cell.residents.is_empty() {
            self.by_key.remove(&cell.key);
            *slot = None;
            self.free.push(id);
            self.version += 1;
            return;
        }
        cell.changed += 1;
        if !many {
            // The last one moved.
            let last = cell.residents.len();
            cell.refresh(last);
            cell.refresh((place as usize).min(last - 1));
        }
    }

    /// A new cell.
    fn open(&mut self, key: Key) -> u32 {
        self.version += 1;
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).unwrap_or(NOWHERE.0)
        });
        self.all[id as usize] = Some(Cell::new(key));
        self.by_key.insert(key, id);
        id
    }

    fn insert(&mut self, key: Key, resident: Resident, many: bool) {
        let id = self.by_key.get(&key).copied().unwrap_or_else(|| self.open(key));
        let Some(Some(cell)) = self.all.get_mut(id as usize) else { return };
        cell.residents.push(resident);
        let place = cell.residents.len() - 1;
        self.places[resident.row as usize] = (id, u32::try_from(place).unwrap_or(u32::MAX));
        cell.changed += 1;
        if !many {
            cell.refresh(place);
            if cell.is_stale() {
                self.sort(id as usize);
            }
        }
    }

    fn sort(&mut self, id: usize) {
        let Some(Some(cell)) = self.all.get_mut(id) else { return };
        cell.sort();
        let number = u32::try_from(id).unwrap_or(NOWHERE.0);
        for (place, resident) in cell.residents.iter().enumerate() {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            self.places[resident.row as usize] = (number, place);
        }
    }
}
