//! The nodes of a cell, sorted so that those that score alike lie side by side, in a B-tree each of
//! whose entries knows the bounds of what is below it. A node on which something is placed moves to
//! where it belongs now, so bounds stay tight however much has changed.

use super::bound::{Bound, Exceptions, Found, Offer, Resident, Top, Wanted};

/// Residents of a leaf, and entries of an inner node, at most.
const FAN: usize = 16;
/// Two neighbours with no more than this between them become one.
const FEW: usize = 10;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Leaf {
    parent: u32,
    residents: Vec<Resident>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    child: u32,
    /// Residents below.
    count: u32,
    /// None of them comes before this.
    first: (u64, u64),
    bound: Bound,
}

#[derive(Debug)]
struct Inner {
    parent: u32,
    entries: Vec<Entry>,
}

/// Which node: its level, 0 for a leaf, and its number.
pub(super) type Node = (u32, u32);

/// The tree.
#[derive(Debug, Default)]
pub(super) struct Tree {
    leaves: Vec<Leaf>,
    inners: Vec<Inner>,
    free_leaves: Vec<u32>,
    free_inners: Vec<u32>,
    root: Option<Node>,
    /// Of all.
    bound: Option<Bound>,
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

impl Tree {
    /// A tree of all these. Says in which leaf each row is.
    pub(super) fn build(
        mut residents: Vec<Resident>,
        offer: Offer,
        mut placed: impl FnMut(u32, u32),
    ) -> Self {
        residents.sort_unstable_by_key(Resident::order);
        let mut tree = Self::default();
        for chunk in residents.chunks(FAN) {
            let leaf = number(tree.leaves.len());
            for resident in chunk {
                placed(resident.row, leaf);
            }
            tree.leaves.push(Leaf { parent: NONE, residents: chunk.to_vec() });
        }
        let mut level = 0;
        let mut nodes: Vec<u32> = (0..number(tree.leaves.len())).collect();
        while nodes.len() > 1 {
            let mut above = Vec::with_capacity(nodes.len().div_ceil(FAN));
            for children in nodes.chunks(FAN) {
                let inner = number(tree.inners.len());
                let entry = |child: &u32| tree.entry((level, *child), offer);
                let entries: Vec<Entry> = children.iter().filter_map(entry).collect();
                for child in children {
                    tree.set_parent((level, *child), inner);
                }
                tree.inners.push(Inner { parent: NONE, entries });
                above.push(inner);
            }
            nodes = above;
            level += 1;
        }
        tree.root = nodes.first().map(|root| (level, *root));
        tree.rebound(offer);
        tree
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.leaves.iter().flat_map(|leaf| leaf.residents.iter().map(|resident| resident.row))
    }

    /// The bounds of all.
    pub(super) fn bound(&self) -> Option<&Bound> {
        self.bound.as_ref()
    }

    fn rebound(&mut self, offer: Offer) {
        let entry = self.root.and_then(|root| self.entry(root, offer));
        self.bound = entry.map(|entry| entry.bound);
    }

    fn inner(&self, id: u32) -> &Inner {
        &self.inners[id as usize]
    }

    fn leaf(&self, id: u32) -> &Leaf {
        &self.leaves[id as usize]
    }

    fn set_parent(&mut self, (level, id): Node, parent: u32) {
        if level == 0 {
            self.leaves[id as usize].parent = parent;
        } else {
            self.inners[id as usize].parent = parent;
        }
    }

    /// What is known of all below a node; `None` where it is empty.
    fn entry(&self, (level, id): Node, offer: Offer) -> Option<Entry> {
        if level == 0 {
            let residents = &self.leaf(id).residents;
            let bounds = residents.iter().map(|resident| Bound::of(resident, offer));
            return Some(Entry {
                child: id,
                count: number(residents.len()),
                first: residents.first()?.order(),
                bound: bounds.reduce(Bound::join)?,
            });
        }
        let entries = &self.inner(id).entries;
        Some(Entry {
            child: id,
            count: entries.iter().map(|entry| entry.count).sum(),
            first: entries.first()?.first,
            bound: entries.iter().map(|entry| entry.bound).reduce(Bound::join)?,
        })
    }

    fn new_leaf(&mut self, leaf: Leaf) -> u32 {
        if let Some(id) = self.free_leaves.pop() {
            self.leaves[id as usize] = leaf;
            return id;
        }
        self.leaves.push(leaf);
        number(self.leaves.len() - 1)
    }

    fn new_inner(&mut self, inner: Inner) -> u32 {
        if let Some(id) = self.free_inners.pop() {
            self.inners[id as usize] = inner;
            return id;
        }
        self.inners.push(inner);
        number(self.inners.len() - 1)
    }

    fn free(&mut self, (level, id): Node) {
        if level == 0 {
            self.leaves[id as usize].residents = Vec::new();
            self.free_leaves.push(id);
        } else {
            self.inners[id as usize].entries = Vec::new();
            self.free_inners.push(id);
        }
    }

    /// Puts a resident where it belongs. Says in which leaf it is, and those that moved with it.
    pub(super) fn insert(
        &mut self,
        resident: Resident,
        offer: Offer,
        mut placed: impl FnMut(u32, u32),
    ) {
        let Some(root) = self.root else {
            let id = self.new_leaf(Leaf { parent: NONE, residents: vec![resident] });
            placed(resident.row, id);
            self.root = Some((0, id));
            self.bound = Some(Bound::of(&resident, offer));
            return;
        };
        self.bound = self.bound.map(|bound| bound.join(Bound::of(&resident, offer)));
        let split = self.insert_below(root, &resident, offer, &mut placed);
        let Some(second) = split else { return };
        let level = root.0;
        let entries = [root.1, second].into_iter();
        let entries: Vec<Entry> = entries.filter_map(|id| self.entry((level, id), offer)).collect();
        let id = self.new_inner(Inner { parent: NONE, entries });
        self.set_parent(root, id);
        self.set_parent((level, second), id);
        self.root = Some((level + 1, id));
    }

    /// Returns the new neighbour where the node had to be divided.
    fn insert_below(
        &mut self,
        (level, id): Node,
        resident: &Resident,
        offer: Offer,
        placed: &mut impl FnMut(u32, u32),
    ) -> Option<u32> {
        if level == 0 {
            return self.insert_in_leaf(id, resident, placed);
        }
        let order = resident.order();
        let entries = &mut self.inners[id as usize].entries;
        let place = entries.partition_point(|entry| entry.first <= order).saturating_sub(1);
        let child = entries[place].child;
        let split = self.insert_below((level - 1, child), resident, offer, placed);
        let Some(second) = split else {
            let entry = &mut self.inners[id as usize].entries[place];
            entry.bound = entry.bound.join(Bound::of(resident, offer));
            entry.first = entry.first.min(order);
            entry.count += 1;
            return None;
        };
        self.set_parent((level - 1, second), id);
        let (lower, upper) =
            (self.entry((level - 1, child), offer)?, self.entry((level - 1, second), offer)?);
        let entries = &mut self.inners[id as usize].entries;
        entries[place] = lower;
        entries.insert(place + 1, upper);
        if entries.len() <= FAN {
            return None;
        }
        let entries = entries.split_off(entries.len() / 2);
        let children: Vec<u32> = entries.iter().map(|entry| entry.child).collect();
        let neighbour = self.new_inner(Inner { parent: NONE, entries });
        for child in children {
            self.set_parent((level - 1, child), neighbour);
        }
        Some(neighbour)
    }

    fn insert_in_leaf(
        &mut self,
        id: u32,
        resident: &Resident,
        placed: &mut impl FnMut(u32, u32),
    ) -> Option<u32> {
        let residents = &mut self.leaves[id as usize].residents;
        let place = residents.partition_point(|other| other.order() <= resident.order());
        if residents.len() < FAN {
            residents.insert(place, *resident);
            placed(resident.row, id);
            return None;
        }
        // What is added in order leaves full leaves behind.
        let half = if place == FAN { FAN } else { FAN / 2 };
        let mut upper = residents.split_off(half);
        if place > half || half == FAN {
            upper.insert(place - half, *resident);
        } else {
            residents.insert(place, *resident);
            placed(resident.row, id);
        }
        let rows: Vec<u32> = upper.iter().map(|resident| resident.row).collect();
        let neighbour = self.new_leaf(Leaf { parent: NONE, residents: upper });
        for row in rows {
            placed(row, neighbour);
        }
        Some(neighbour)
    }

    /// Takes a row out of its leaf. Says in which leaf those are that moved for it.
    pub(super) fn remove(
        &mut self,
        leaf: u32,
        row: u32,
        offer: Offer,
        mut placed: impl FnMut(u32, u32),
    ) {
        let Some(Leaf { residents, .. }) = self.leaves.get_mut(leaf as usize) else { return };
        let Some(place) = residents.iter().position(|resident| resident.row == row) else { return };
        residents.remove(place);
        let mut node = (0, leaf);
        loop {
            let (level, id) = node;
            let parent = if level == 0 { self.leaf(id).parent } else { self.inner(id).parent };
            if parent == NONE {
                break;
            }
            let entry = self.entry(node, offer);
            let entries = &mut self.inners[parent as usize].entries;
            if let Some(place) = entries.iter().position(|entry| entry.child == id) {
                if let Some(entry) = entry {
                    entries[place] = entry;
                    self.unite(level, parent, place, offer, &mut placed);
                } else {
                    entries.remove(place);
                    self.free(node);
                }
            }
            node = (level + 1, parent);
        }
        self.shrink();
        self.rebound(offer);
    }

    /// Moves the children of a thin node to its neighbour.
    fn unite(
        &mut self,
        level: u32,
        parent: u32,
        place: usize,
        offer: Offer,
        placed: &mut impl FnMut(u32, u32),
    ) {
        let below = |node: Node| {
            if level == 0 {
                self.leaf(node.1).residents.len()
            } else {
                self.inner(node.1).entries.len()
            }
        };
        let entries = &self.inner(parent).entries;
        let left = if place + 1 < entries.len() { place } else { place.saturating_sub(1) };
        let (Some(lower), Some(upper)) = (entries.get(left), entries.get(left + 1)) else { return };
        let (lower, upper) = (lower.child, upper.child);
        if below((level, lower)) + below((level, upper)) > FEW {
            return;
        }
        if level == 0 {
            let moved = std::mem::take(&mut self.leaves[upper as usize].residents);
            for resident in &moved {
                placed(resident.row, lower);
            }
            self.leaves[lower as usize].residents.extend(moved);
        } else {
            let moved = std::mem::take(&mut self.inners[upper as usize].entries);
            for entry in &moved {
                self.set_parent((level - 1, entry.child), lower);
            }
            self.inners[lower as usize].entries.extend(moved);
        }
        self.free((level, upper));
        let entry = self.entry((level, lower), offer);
        let entries = &mut self.inners[parent as usize].entries;
        entries.remove(left + 1);
        if let Some(entry) = entry {
            entries[left] = entry;
        }
    }

    /// A root with one child is none.
    fn shrink(&mut self) {
        while let Some((level, id)) = self.root {
            let children: &[Entry] = if level == 0 {
                if self.leaf(id).residents.is_empty() {
                    *self = Self::default();
                }
                return;
            } else {
                &self.inner(id).entries
            };
            match *children {
                [] => *self = Self::default(),
                [only] => {
                    self.free((level, id));
                    self.set_parent((level - 1, only.child), NONE);
                    self.root = Some((level - 1, only.child));
                }
                _ => return,
            }
        }
    }

    /// Where a search begins; `None` where nothing is.
    pub(super) fn root(&self) -> Option<Node> {
        self.root
    }

    /// Looks at what is directly below a node, where nothing scores more than `at_most`: residents
    /// are offered, and `promising` is told of nodes with what they can be at best. What can't be
    /// among the best by its lot isn't weighed.
    pub(super) fn open(
        &self,
        (level, id): Node,
        at_most: i64,
        (wanted, offer, exceptions): (&Wanted, &Offer, Option<&Exceptions>),
        top: &mut Top,
        mut promising: impl FnMut(i64, u64, Node),
    ) {
        if level == 0 {
            let mut last = None;
            for resident in &self.leaf(id).residents {
                let (load, lot) = (&resident.load, resident.lot);
                if !top.takes(at_most, lot) {
                    continue;
                }
                // Equal ones lie side by side.
                let local = match last {
                    Some((known, local)) if known == load => local,
                    _ => wanted.fits(load, offer).then(|| wanted.score(load, offer)),
                };
                last = Some((load, local));
                if let Some(local) = local
                    && top.takes(local, lot)
                    && exceptions.is_none_or(|rows| !rows.contains(&resident.row))
                {
                    top.offer(Found { local, lot, row: resident.row });
                }
            }
            return;
        }
        for Entry { child, bound, .. } in &self.inner(id).entries {
            if !top.takes(at_most, bound.lot) || !wanted.fits(&bound.least, offer) {
                continue;
            }
            let local = wanted.at_best(bound, offer).min(at_most);
            if top.takes(local, bound.lot) {
                promising(local, bound.lot, (level - 1, *child));
            }
        }
    }

    /// How many nodes have room for the pod.
    pub(super) fn count(&self, wanted: &Wanted, offer: &Offer) -> u64 {
        self.root.map_or(0, |root| self.count_below(root, wanted, offer))
    }

    fn count_below(&self, (level, id): Node, wanted: &Wanted, offer: &Offer) -> u64 {
        if level == 0 {
            let residents = self.leaf(id).residents.iter();
            return residents.filter(|resident| wanted.fits(&resident.load, offer)).count() as u64;
        }
        let below = |entry: &Entry| {
            if !wanted.fits(&entry.bound.least, offer) {
                0
            } else if wanted.fits(&entry.bound.most, offer) {
                u64::from(entry.count)
            } else {
                self.count_below((level - 1, entry.child), wanted, offer)
            }
        };
        self.inner(id).entries.iter().map(below).sum()
    }
}
