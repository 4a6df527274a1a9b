//! Hash maps and sets whose order follows from what is done to them and from one seed.
//!
//! The maps of `std` and `hashbrown` draw a seed of their own each time one is made. What is read
//! out of such a map comes in another order in each run, and so a core that uses one can't be
//! replayed from a seed. All maps of this crate are these instead.
//!
//! The seed is the process's, not a map's. Users choose the keys of many maps (names, labels,
//! images), so in a server it must be one that they can't know, or they could choose keys that all
//! meet in one place: [`seed`] takes over what `main` has drawn, before any map is made. Where
//! nobody calls it, as in tests and in the simulator, it is a fixed one.
//!
//! Maps by the address of a request are as random as the allocator, whatever the seed: what is read
//! out of those in turn has to be sorted.

use std::hash::BuildHasher;
use std::sync::OnceLock;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// A map with a hasher of [`Seeded`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, Seeded>;
/// A set with a hasher of [`Seeded`].
pub type HashSet<T> = hashbrown::HashSet<T, Seeded>;

/// The seed where none is handed in: digits of pi.
const FIXED: u64 = 0x2435_f6a8_885a_308d;

static SEEDS: OnceLock<Seeds> = OnceLock::new();

#[derive(Debug)]
struct Seeds {
    start: u64,
    shared: SharedSeed,
}

impl Seeds {
    fn of(seed: u64) -> Self {
        Self { start: super::hash::mix(seed), shared: SharedSeed::from_u64(seed) }
    }
}

/// Hands in the process's seed. False where maps have been made before: theirs stays.
#[must_use]
pub fn seed(seed: u64) -> bool {
    SEEDS.set(Seeds::of(seed)).is_ok()
}

/// Builds hashers from the process's seed, which is looked up when a map is made and not each time
/// that it is used.
#[derive(Clone, Copy, Debug)]
pub struct Seeded(&'static Seeds);

impl Default for Seeded {
    fn default() -> Self {
        Self(SEEDS.get_or_init(|| Seeds::of(FIXED)))
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    #[inline]
    fn build_hasher(&self) -> Self::Hasher {
        FoldHasher::with_seed(self.0.start, &self.0.shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_maps_have_one_order() {
        let made = || (0..1000).map(|key| (format!("key-{key}"), key)).collect::<HashMap<_, _>>();
        assert!(made().keys().eq(made().keys()));
    }

    #[test]
    fn a_seed_that_comes_late_is_refused() {
        let mut set: HashSet<u32> = HashSet::default();
        set.insert(1);
        assert!(!seed(1));
        assert!(set.contains(&1));
    }

    #[test]
    fn another_seed_gives_other_hashes() {
        let hashes = |seeds: Seeds| {
            let mut hasher = FoldHasher::with_seed(seeds.start, &seeds.shared);
            std::hash::Hash::hash("key", &mut hasher);
            std::hash::Hasher::finish(&hasher)
        };
        assert_ne!(hashes(Seeds::of(1)), hashes(Seeds::of(2)));
        assert_eq!(hashes(Seeds::of(1)), hashes(Seeds::of(1)));
    }
}
