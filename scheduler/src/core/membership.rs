//! Which shard owns which node: rendezvous hashing, so that a change of the shards moves no node
//! but those of the shards that came or went.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hash::{hash, mix};

/// The shards at one moment. The epoch orders such moments: a message of another epoch is refused,
/// so that no two shards ever both believe they own a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    epoch: u64,
    shards: Vec<(Arc<str>, u64)>,
}

impl Membership {
    /// The shards by name, in any order; doubles count once.
    #[must_use]
    pub fn new(epoch: u64, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut shards: Vec<_> = names
            .into_iter()
            .map(|name| (Arc::from(name.as_ref()), hash(name.as_ref().as_bytes())))
            .collect();
        shards.sort();
        shards.dedup();
        Self { epoch, shards }
    }

    /// Orders memberships.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The shards' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.shards.iter().map(|(name, _)| name)
    }

    /// How many shards there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there is no shard.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// A number that differs between any two sets of shards but for a chance of 2^-64: two
    /// processes that agree on it divide the nodes alike.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.shards.iter().fold(0, |sum, (_, hash)| mix(sum ^ hash))
    }

    /// The shard that owns a node; none without shards.
    #[must_use]
    pub fn owner(&self, node: &str) -> Option<&Arc<str>> {
        let node = hash(node.as_bytes());
        let best = self.shards.iter().max_by_key(|(name, shard)| (mix(node ^ shard), name));
        best.map(|(name, _)| name)
    }

    /// Whether this shard owns the node.
    #[must_use]
    pub fn owns(&self, shard: &str, node: &str) -> bool {
        self.owner(node).is_some_and(|owner| **owner == *shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("shard-{i}")).collect()
    }

    #[test]
    fn every_node_has_one_owner_whatever_the_order() {
        let forward = Membership::new(1, names(7));
        let backward = Membership::new(1, names(7).into_iter().rev().chain(names(2)));
        assert_eq!(forward, backward);
        assert_eq!(forward.fingerprint(), backward.fingerprint());
        for i in 0..1000 {
            let node = format!("node-{i}");
            let owners = forward.names().filter(|shard| forward.owns(shard, &node)).count();
            assert_eq!(owners, 1);
        }
        assert_eq!(Membership::new(0, names(0)).owner("n"), None);
    }

    #[test]
    fn balanced_and_stable() {
        let before = Membership::new(1, names(8));
        let after = Membership::new(2, names(9));
        let mut counts = [0_u32; 9];
        let mut moved = 0_u32;
        let nodes = 20_000_u32;
        for i in 0..nodes {
            let node = format!("ip-10-0-{}-{}.internal", i / 256, i % 256);
            let (old, new) = (before.owner(&node).unwrap(), after.owner(&node).unwrap());
            let index: usize = new.strip_prefix("shard-").unwrap().parse().unwrap();
            counts[index] += 1;
            if old != new {
                assert_eq!(&**new, "shard-8", "a node moved between shards that stayed");
                moved += 1;
            }
        }
        let share = nodes / 9;
        assert!(counts.iter().all(|c| c.abs_diff(share) < share / 10), "{counts:?}");
        assert!(moved.abs_diff(share) < share / 10, "{moved}");
    }
}
