//! The last so many pods that ended.

use std::collections::VecDeque;

use super::maps::HashSet;
use super::pod::PodUid;

/// A set that forgets its oldest member when it is full. A UID is never given out twice, so a
/// tombstone can only be missing, never wrong.
#[derive(Debug)]
pub(super) struct Tombstones {
    capacity: usize,
    order: VecDeque<PodUid>,
    members: HashSet<PodUid>,
}

impl Tombstones {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, order: VecDeque::new(), members: HashSet::default() }
    }

    pub(super) fn contains(&self, uid: PodUid) -> bool {
        self.members.contains(&uid)
    }

    pub(super) fn insert(&mut self, uid: PodUid) {
        if !self.members.insert(uid) {
            return;
        }
        self.order.push_back(uid);
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.members.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest() {
        let uid = |i: u32| PodUid::new(&format!("{i:032x}"));
        let mut stones = Tombstones::new(2);
        (0..3).for_each(|i| stones.insert(uid(i)));
        stones.insert(uid(2));
        assert!(!stones.contains(uid(0)));
        assert!(stones.contains(uid(1)) && stones.contains(uid(2)));
    }
}
