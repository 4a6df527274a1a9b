//! An ordered set of keys that counts the live ones below any key: a B+ tree whose nodes know how
//! many live keys they hold, so that `count` of a range is O(log n).

use std::ops::ControlFlow;

use bytes::Bytes;

const LEAF_MAX: usize = 64;
const INNER_MAX: usize = 32;

/// A key's place in the slot table.
pub(super) type SlotId = u32;

#[derive(Debug)]
struct Entry {
    key: Bytes,
    slot: SlotId,
    /// False once the newest version is a tombstone.
    live: bool,
}

#[derive(Debug)]
struct Child {
    /// No key of this child, nor of those to its right, is below it.
    first: Bytes,
    live: usize,
    node: Box<Node>,
}

#[derive(Debug)]
enum Node {
    Leaf(Vec<Entry>),
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
        Self { root: Node::Leaf(Vec::new()), live: 0 }
    }
}

impl Tree {
    /// Live keys in the whole tree.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Adds a live key that is not in the tree.
    pub(super) fn insert(&mut self, key: Bytes, slot: SlotId) {
        self.live += 1;
        if let Some(right) = self.root.insert(key, slot) {
            let left = std::mem::replace(&mut self.root, Node::Inner(Vec::new()));
            self.root = Node::Inner(vec![left.into_child(Bytes::new()), right]);
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
                0 => self.root = Node::Leaf(Vec::new()),
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
                Node::Leaf(entries) => {
                    let at = entries.partition_point(|e| e.key.as_ref() < key);
                    return below + entries[..at].iter().filter(|e| e.live).count();
                }
                Node::Inner(children) => {
                    let at = route(children, key);
                    below += children[..at].iter().map(|c| c.live).sum::<usize>();
                    node = &children[at].node;
                }
            }
        }
    }

    /// Calls `visit` with each slot from `start` on and below `end`, in key order, until it breaks.
    pub(super) fn walk<B>(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        mut visit: impl FnMut(SlotId, bool) -> ControlFlow<B>,
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

impl Node {
    fn live(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.iter().filter(|e| e.live).count(),
            Self::Inner(children) => children.iter().map(|c| c.live).sum(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn into_child(self, first: Bytes) -> Child {
        Child { first, live: self.live(), node: Box::new(self) }
    }

    /// Inserts, and gives the right half if the node had to be split.
    fn insert(&mut self, key: Bytes, slot: SlotId) -> Option<Child> {
        match self {
            Self::Leaf(entries) => {
                let at = entries.partition_point(|e| e.key < key);
                entries.insert(at, Entry { key, slot, live: true });
                if entries.len() <= LEAF_MAX {
                    return None;
                }
                // Keys that arrive in order leave full leaves behind, not half-full ones.
                let cut = if at + 1 == entries.len() { at } else { entries.len() / 2 };
                let right = entries.split_off(cut);
                let first = right.first().map(|e| e.key.clone()).unwrap_or_default();
                Some(Self::Leaf(right).into_child(first))
            }
            Self::Inner(children) => {
                let at = route(children, &key);
                let split = children[at].node.insert(key, slot);
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
                let right = children.split_off(cut);
                let first = right.first().map(|c| c.first.clone()).unwrap_or_default();
                Some(Self::Inner(right).into_child(first))
            }
        }
    }

    /// True if the flag changed.
    fn set_live(&mut self, key: &[u8], live: bool) -> bool {
        match self {
            Self::Leaf(entries) => {
                let at = entries.partition_point(|e| e.key.as_ref() < key);
                match entries.get_mut(at) {
                    Some(entry) if entry.key.as_ref() == key && entry.live != live => {
                        entry.live = live;
                        true
                    }
                    _ => false,
                }
            }
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
            Self::Leaf(entries) => {
                let at = entries.partition_point(|e| e.key.as_ref() < key);
                let found = entries.get(at).is_some_and(|e| e.key.as_ref() == key);
                found.then(|| entries.remove(at).live)
            }
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
        visit: &mut impl FnMut(SlotId, bool) -> ControlFlow<B>,
    ) -> ControlFlow<Stop<B>> {
        match self {
            Self::Leaf(entries) => {
                let at = entries.partition_point(|e| e.key.as_ref() < start);
                for entry in &entries[at..] {
                    if end.is_some_and(|end| entry.key.as_ref() >= end) {
                        return ControlFlow::Break(Stop::End);
                    }
                    if let ControlFlow::Break(value) = visit(entry.slot, entry.live) {
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
        (Node::Leaf(a), Node::Leaf(b)) => a.extend(b),
        (Node::Inner(a), Node::Inner(b)) => a.extend(b),
        // All leaves are at one depth, so neighbours are of one kind.
        (_, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

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

    fn key(k: u16) -> Bytes {
        Bytes::copy_from_slice(&k.to_be_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_tree_is_an_ordered_map(
            grow in any::<bool>(), steps in prop::collection::vec(step(), 1..3000)
        ) {
            let mut tree = Tree::default();
            let mut model: BTreeMap<Bytes, (SlotId, bool)> = BTreeMap::new();
            if grow {
                for k in 0..2000u16 {
                    tree.insert(key(k), u32::from(k));
                    model.insert(key(k), (u32::from(k), true));
                }
            }
            for step in &steps {
                match *step {
                    Step::Insert(k) => {
                        model.entry(key(k)).or_insert_with(|| {
                            tree.insert(key(k), u32::from(k));
                            (u32::from(k), true)
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
            tree.walk::<()>(b"", None, |slot, live| { found.push((slot, live)); ControlFlow::Continue(()) });
            prop_assert_eq!(found, model.values().copied().collect::<Vec<_>>());
            for k in (0..2000u16).step_by(37) {
                let below = model.range(..key(k)).filter(|(_, v)| v.1).count();
                prop_assert_eq!(tree.rank(&key(k)), below);
            }
            prop_assert_eq!(tree.live(), model.values().filter(|v| v.1).count());
        }
    }
}
