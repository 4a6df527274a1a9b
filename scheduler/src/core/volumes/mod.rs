//! Volumes: what a pod mounts, what that asks of nodes, and the objects by which the one becomes
//! the other (`plugins/volumerestrictions`, `volumebinding`, `volumezone`).
//!
//! [`Mounts`] are read from the pod. [`storage::Storage`] knows claims, volumes and storage classes
//! and works [`Rules`] out of them, once for each pod; the rules travel to the shards with the
//! pod's class, and a shard needs none of those objects.

pub mod binding;
pub(super) mod in_use;
pub mod late;
mod mounts;
pub mod objects;
mod rules;
pub mod storage;

pub use mounts::{ClaimName, Disk, Mounts};
pub use rules::{Bound, Refusal, Rules, Zone};
