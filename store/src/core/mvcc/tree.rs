//! An ordered set of keys that counts the live ones below any key: a B+ tree whose nodes know how
//! many live keys they hold, so that `count` of a range is O(log n). A leaf holds the keys' cells,
//! not the keys.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::cell::CellRef;

/// As many as a leaf has bits for.
const LEAF_MAX: usize = 64;
const INNER_MAX: usize = 32;

/// Cells in key order.
#[derive(Debug, Default)]
struct Leaf {
    cells: Vec<CellRef>,
    /// Bit `n` is set while cell `n`'s newest version is not a tombstone.
    live: u64,
}

#[derive(Debug)]
struct Child {
    /// No key of this child, nor of those to its right, is below it.
    first: Box<[u8]>,
    live: usize,
    node: Box<Node>,
}

#[derive(Debug)]
enum Node {
    Leaf(Leaf),
    Inner(Vec<Child>),
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
    live: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Node::Leaf(Leaf::default()), live: 0 }
    }
}

impl Tree {
    /// Live keys in the whole tree.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Adds a live key that is not in the tree.
    pub(super) fn insert(&mut self, key: &[u8], cell: CellRef) {
        self.live += 1;
        if let Some(right) = self.root.insert(key, cell) {
            let left = std::mem::replace(&mut self.root, Node::Inner(Vec::new()));
            let mut children = Vec::with_capacity(INNER_MAX + 1);
            children.push(left.into_child(Box::default()));
            children.push(right);
            self.root = Node::Inner(children);
        }
    }

    /// Says whether a key of the tree is live.
    pub(super) fn set_live(&mut self, key: &[u8], live: bool) {
        if self.root.set_live(key, live) {
            self.live = if live { self.live + 1 } else { self.live - 1 };
        }
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(was_live) = self.root.remove(key) {
            self.live -= usize::from(was_live);
        }
        while let Node::Inner(children) = &mut self.root {
            match children.len() {
                0 => self.root = Node::Leaf(Leaf::default()),
                1 => {
                    if let Some(child) = children.pop() {
                        self.root = *child.node;
                    }
                }
                _ => break,
            }
        }
    }

    /// Live keys below `key`.
    pub(super) fn rank(&self, key: &[u8]) -> usize {
        let mut below = 0;
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return below + leaf.live_before(leaf.place(key)),
                Node::Inner(children) => {
                    let at = route(children, key);
                    below += children[..at].iter().map(|c| c.live).sum::<usize>();
                    node = &children[at].node;
                }
            }
        }
    }

    /// Calls `visit` with each cell from `start` on and below `end`, in key order, until it breaks.
    pub(super) fn walk<B>(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        mut visit: impl FnMut(&CellRef, bool) -> ControlFlow<B>,
    ) -> Option<B> {
        match self.root.walk(start, end, &mut visit) {
            ControlFlow::Break(Stop::Visitor(value)) => Some(value),
            ControlFlow::Break(Stop::End) | ControlFlow::Continue(()) => None,
        }
    }
}

enum Stop<B> {
    End,
    Visitor(B),
}

/// The child that holds `key` if any does.
fn route(children: &[Child], key: &[u8]) -> usize {
    children.partition_point(|c| c.first.as_ref() <= key).saturating_sub(1)
}

/// The lowest `n` bits.
fn low(n: usize) -> u64 {
    if n >= LEAF_MAX { u64::MAX } else { (1 << n) - 1 }
}

impl Leaf {
    /// Where `key` is or would be.
    fn place(&self, key: &[u8]) -> usize {
        self.cells.partition_point(|cell| cell.key(|k| k < key))
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        self.cells.binary_search_by(|cell| cell.key(|k| k.cmp(key))).ok()
    }

    fn is_live(&self, at: usize) -> bool {
        self.live >> at & 1 == 1
    }

    fn live_before(&self, at: usize) -> usize {
        (self.live & low(at)).count_ones() as usize
    }

    /// Adds a live cell; there is room.
    fn insert(&mut self, at: usize, cell: CellRef) {
        if self.cells.capacity() == 0 {
            self.cells.reserve_exact(LEAF_MAX);
        }
        self.cells.insert(at, cell);
        self.live = self.live & low(at) | 1 << at | (self.live & !low(at)) << 1;
    }

    /// Takes a cell out, and says whether it was live.
    fn remove(&mut self, at: usize) -> bool {
        let was_live = self.is_live(at);
        self.cells.remove(at);
        self.live = self.live & low(at) | self.live >> 1 & !low(at);
        was_live
    }

    /// Keeps the first `at`, and gives the rest.
    fn split_off(&mut self, at: usize) -> Self {
        let mut cells = Vec::with_capacity(LEAF_MAX);
        cells.extend(self.cells.drain(at..));
        let live = if at < LEAF_MAX { self.live >> at } else { 0 };
        self.live &= low(at);
        Self { cells, live }
    }

    fn append(&mut self, mut other: Self) {
        let len = self.cells.len();
        self.live |= if len < LEAF_MAX { other.live << len } else { 0 };
        self.cells.append(&mut other.cells);
    }

    fn into_child(self) -> Child {
        let first =
            self.cells.first().map(|cell| cell.key(|key| Box::from(key))).unwrap_or_default();
        Node::Leaf(self).into_child(first)
    }
}

impl Node {
    fn live(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.live.count_ones() as usize,
            Self::Inner(children) => children.iter().map(|c| c.live).sum(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.cells.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn into_child(self, first: Box<[u8]>) -> Child {
        Child { first, live: self.live(), node: Box::new(self) }
    }

    /// Inserts, and gives the right half if the node had to be split.
    fn insert(&mut self, key: &[u8], cell: CellRef) -> Option<Child> {
        match self {
            Self::Leaf(leaf) => {
                let at = leaf.place(key);
                if leaf.cells.len() < LEAF_MAX {
                    leaf.insert(at, cell);
                    return None;
                }
                // Keys that arrive in order leave full leaves behind, not half-full ones.
                let cut = if at == LEAF_MAX { LEAF_MAX } else { LEAF_MAX / 2 };
                let mut right = leaf.split_off(cut);
                if at < cut || at == cut && cut < LEAF_MAX {
                    leaf.insert(at, cell);
                } else {
                    right.insert(at - cut, cell);
                }
                Some(right.into_child())
            }
            Self::Inner(children) => {
                let at = route(children, key);
                let split = children[at].node.insert(key, cell);
                children[at].live += 1;
                if let Some(right) = split {
                    children[at].live -= right.live;
                    children.insert(at + 1, right);
                }
                if children.len() <= INNER_MAX {
                    return None;
                }
                let cut =
                    if at + 2 == children.len() { children.len() - 1 } else { children.len() / 2 };
                let mut right = Vec::with_capacity(INNER_MAX + 1);
                right.extend(children.drain(cut..));
                let first = right.first().map(|c: &Child| c.first.clone()).unwrap_or_default();
                Some(Self::Inner(right).into_child(first))
            }
        }
    }

    /// True if the flag changed.
    fn set_live(&mut self, key: &[u8], live: bool) -> bool {
        match self {
            Self::Leaf(leaf) => match leaf.find(key) {
                Some(at) if leaf.is_live(at) != live => {
                    leaf.live ^= 1 << at;
                    true
                }
                _ => false,
            },
            Self::Inner(children) => {
                let at = route(children, key);
                let child = &mut children[at];
                let changed = child.node.set_live(key, live);
                if changed {
                    child.live = if live { child.live + 1 } else { child.live - 1 };
                }
                changed
            }
        }
    }

    /// Removes, and says whether the key was live; `None` if it was not there.
    fn remove(&mut self, key: &[u8]) -> Option<bool> {
        match self {
            Self::Leaf(leaf) => leaf.find(key).map(|at| leaf.remove(at)),
            Self::Inner(children) => {
                let at = route(children, key);
                let was_live = children[at].node.remove(key)?;
                children[at].live -= usize::from(was_live);
                if children[at].node.len() == 0 {
                    children.remove(at);
                } else {
                    merge_around(children, at);
                }
                Some(was_live)
            }
        }
    }

    fn walk<B>(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut impl FnMut(&CellRef, bool) -> ControlFlow<B>,
    ) -> ControlFlow<Stop<B>> {
        match self {
            Self::Leaf(leaf) => {
                let from = leaf.place(start);
                let ends = |cell: &CellRef| {
                    end.is_some_and(|end| cell.key(|k| k.cmp(end)) != Ordering::Less)
                };
                // If the last one is in the range, all are.
                let check = leaf.cells.last().is_some_and(&ends);
                for (at, cell) in leaf.cells.iter().enumerate().skip(from) {
                    if check && ends(cell) {
                        return ControlFlow::Break(Stop::End);
                    }
                    if let ControlFlow::Break(value) = visit(cell, leaf.is_live(at)) {
                        return ControlFlow::Break(Stop::Visitor(value));
                    }
                }
            }
            Self::Inner(children) => {
                for child in &children[route(children, start)..] {
                    child.node.walk(start, end, visit)?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Joins the child at `at` with a neighbour if both fit into half a node.
fn merge_around(children: &mut Vec<Child>, at: usize) {
    let left = if at + 1 < children.len() { at } else { at.saturating_sub(1) };
    if left + 1 >= children.len() {
        return;
    }
    let limit = match &*children[left].node {
        Node::Leaf(_) => LEAF_MAX / 2,
        Node::Inner(_) => INNER_MAX / 2,
    };
    if children[left].node.len() + children[left + 1].node.len() > limit {
        return;
    }
    let right = children.remove(left + 1);
    let target = &mut children[left];
    target.live += right.live;
    match (&mut *target.node, *right.node) {
        (Node::Leaf(a), Node::Leaf(b)) => a.append(b),
        (Node::Inner(a), Node::Inner(b)) => a.extend(b),
        // All leaves are at one depth, so neighbours are of one kind.
        (_, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::cell::Cell;
    use super::*;
    use crate::core::KeyValue;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16),
        Remove(u16),
        Live(u16, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2000u16).prop_map(Step::Insert),
            3 => (0..2000u16).prop_map(Step::Remove),
            2 => (0..2000u16, any::<bool>()).prop_map(|(k, l)| Step::Live(k, l)),
        ]
    }

    fn key(k: u16) -> [u8; 2] {
        k.to_be_bytes()
    }

    fn cell(k: u16) -> CellRef {
        Cell::new(KeyValue::tombstone(&key(k), 1))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_tree_is_an_ordered_map(
            grow in any::<bool>(), steps in prop::collection::vec(step(), 1..3000)
        ) {
            let mut tree = Tree::default();
            let mut model: BTreeMap<[u8; 2], ([u8; 2], bool)> = BTreeMap::new();
            if grow {
                for k in 0..2000u16 {
                    tree.insert(&key(k), cell(k));
                    model.insert(key(k), (key(k), true));
                }
            }
            for step in &steps {
                match *step {
                    Step::Insert(k) => {
                        model.entry(key(k)).or_insert_with(|| {
                            tree.insert(&key(k), cell(k));
                            (key(k), true)
                        });
                    }
                    Step::Remove(k) => {
                        tree.remove(&key(k));
                        model.remove(&key(k));
                    }
                    Step::Live(k, live) => {
                        tree.set_live(&key(k), live);
                        if let Some(entry) = model.get_mut(&key(k)) {
                            entry.1 = live;
                        }
                    }
                }
            }
            let mut found = Vec::new();
            tree.walk::<()>(b"", None, |cell, live| {
                found.push((cell.key(|k| [k[0], k[1]]), live));
                ControlFlow::Continue(())
            });
            let some = tree.walk(&key(300), Some(&key(1000)), |cell, _| {
                let inside = cell.key(|k| k >= key(300).as_slice() && k < key(1000).as_slice());
                if inside { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            prop_assert_eq!(some, None);
            prop_assert_eq!(found, model.values().copied().collect::<Vec<_>>());
            for k in (0..2000u16).step_by(37) {
                let below = model.range(..key(k)).filter(|(_, v)| v.1).count();
                prop_assert_eq!(tree.rank(&key(k)), below);
            }
            prop_assert_eq!(tree.live(), model.values().filter(|v| v.1).count());
        }
    }
}
