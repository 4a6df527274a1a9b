//! Nodes that are alike, so that the best of them is found without looking at all of them.
//!
//! A cell holds the nodes with the same labels but for the hostname, the same taints and the same
//! allocatable resources: a pod's verdict on them differs by what is taken alone. Within a cell
//! nodes are in a [`Tree`]: a search opens first what may be best and leaves out the rest, and
//! what is taken on a node moves it within the tree.

use super::bound::{Exceptions, Load, Offer, Resident, Top, Wanted};
use super::columns::{Columns, Slot};
use super::maps::HashMap;
use super::tree::{Node, Tree};

/// What nodes of a cell have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// [`Columns::kind_serial`]
    kind: u64,
    unschedulable: bool,
    offer: Offer,
}

/// Nodes that are alike.
#[derive(Debug)]
pub(super) struct Cell {
    key: Key,
    tree: Tree,
}

impl Cell {
    /// Whether a node of the cell on which so much is taken has room for the pod.
    pub(super) fn has_room(&self, wanted: &Wanted, load: &Load) -> bool {
        wanted.fits(load, &self.key.offer)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.tree.rows()
    }

    /// How good a node of the cell can be at best, the highest lot, and where a search begins; `None`
    /// where none fits.
    pub(super) fn root(&self, wanted: &Wanted) -> Option<(i64, u64, Node)> {
        let offer = &self.key.offer;
        let bound = self.tree.bound()?;
        let root = self.tree.root()?;
        wanted.fits(&bound.least, offer).then(|| (wanted.at_best(bound, offer), bound.lot, root))
    }

    /// As [`Tree::open`].
    pub(super) fn open(
        &self,
        node: Node,
        at_most: i64,
        (wanted, exceptions): (&Wanted, Option<&Exceptions>),
        top: &mut Top,
        promising: impl FnMut(i64, u64, Node),
    ) {
        let asked = (wanted, &self.key.offer, exceptions);
        self.tree.open(node, at_most, asked, top, promising);
    }

    /// How many nodes have room for the pod.
    pub(super) fn count(&self, wanted: &Wanted) -> u64 {
        self.tree.count(wanted, &self.key.offer)
    }
}

/// Which cell, and which leaf of its tree.
type Place = (u32, u32);
const NOWHERE: Place = (u32::MAX, 0);

/// The nodes of a table by cell.
#[derive(Debug, Default)]
pub(super) struct Cells {
    seed: u64,
    /// Nodes with amounts beyond reason, for which no bound holds.
    wild: Exceptions,
    all: Vec<Option<Cell>>,
    by_key: HashMap<Key, u32>,
    free: Vec<u32>,
    /// By row.
    places: Vec<Place>,
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
        // A list of nodes at the start is sorted once, at its end.
        let many = dirty.len() > 1000 && dirty.len() * 4 > columns.len();
        if many || self.seed != seed {
            self.rebuild(columns, seed);
        } else {
            if self.places.len() < columns.len() {
                self.places.resize(columns.len(), NOWHERE);
            }
            for row in &dirty {
                self.take(columns, *row);
            }
        }
        columns.give_back(dirty);
    }

    fn rebuild(&mut self, columns: &Columns, seed: u64) {
        *self = Self { seed, version: self.version + 1, ..Self::default() };
        self.places = vec![NOWHERE; columns.len()];
        let mut residents: Vec<Vec<Resident>> = Vec::new();
        for index in 0..columns.len() {
            let row = Slot::of(index).row();
            let Some(key) = self.key(columns, row) else { continue };
            let id = self.by_key.get(&key).copied().unwrap_or_else(|| self.open(key));
            if residents.len() <= id as usize {
                residents.resize_with(id as usize + 1, Vec::new);
            }
            let lot = columns.lot(seed, index);
            let resident = Resident::new(row, lot, columns.load(index), key.offer);
            residents[id as usize].push(resident);
        }
        for (cell, residents) in self.all.iter_mut().zip(residents) {
            let Some(Cell { key, tree }) = cell else { continue };
            let Some(id) = self.by_key.get(key) else { continue };
            let places = &mut self.places;
            let moved = |row: u32, leaf| places[row as usize] = (*id, leaf);
            *tree = Tree::build(residents, key.offer, moved);
        }
    }

    /// The key of a row's cell; `None` for one that is in none.
    fn key(&mut self, columns: &Columns, row: u32) -> Option<Key> {
        let index = row as usize;
        let kind = columns.kind_serial(Slot::of(index));
        if kind.is_some() && columns.is_wild(index) {
            self.wild.insert(row);
            return None;
        }
        self.wild.remove(&row);
        let (unschedulable, offer) = (columns.unschedulable[index], columns.offer(index));
        kind.map(|kind| Key { kind, unschedulable, offer })
    }

    fn take(&mut self, columns: &Columns, row: u32) {
        let index = row as usize;
        let key = self.key(columns, row);
        let (before, leaf) = self.places[index];
        if let Some(Some(cell)) = self.all.get_mut(before as usize) {
            let places = &mut self.places;
            let moved = |row: u32, leaf| places[row as usize] = (before, leaf);
            cell.tree.remove(leaf, row, cell.key.offer, moved);
            if cell.tree.is_empty() && Some(cell.key) != key {
                self.by_key.remove(&cell.key);
                self.all[before as usize] = None;
                self.free.push(before);
                self.version += 1;
            }
        }
        self.places[index] = NOWHERE;
        let Some(key) = key else { return };
        let id = self.by_key.get(&key).copied().unwrap_or_else(|| self.open(key));
        let Some(Some(cell)) = self.all.get_mut(id as usize) else { return };
        let lot = columns.lot(self.seed, index);
        let places = &mut self.places;
        let moved = |row: u32, leaf| places[row as usize] = (id, leaf);
        let resident = Resident::new(row, lot, columns.load(index), key.offer);
        cell.tree.insert(resident, key.offer, moved);
    }

    /// A new cell.
    fn open(&mut self, key: Key) -> u32 {
        self.version += 1;
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).unwrap_or(NOWHERE.0)
        });
        self.all[id as usize] = Some(Cell { key, tree: Tree::default() });
        self.by_key.insert(key, id);
        id
    }
}
