//! The hash maps and sets of this crate, named in one place so that all of them hash alike.
//!
//! Maps by the address of a request are as random as the allocator: what is read out of those in
//! turn has to be sorted.

/// A map.
pub type HashMap<K, V> = hashbrown::HashMap<K, V>;
/// A set.
pub type HashSet<T> = hashbrown::HashSet<T>;
