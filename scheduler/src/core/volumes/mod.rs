//! Volumes: what a pod mounts, what that asks of nodes, and the objects by which the one becomes
//! the other (`plugins/volumerestrictions`, `nodevolumelimits`, `volumebinding`, `volumezone`).
//!
//! [`Mounts`] are read from the pod. [`storage::Storage`] knows claims, volumes and storage classes
//! and works [`Rules`] out of them, once for each pod; the rules travel to the shards with the
//! pod's class. For the limits of drivers shards hear of some of those objects too
//! ([`attached::Attached`]).

mod attach;
pub(super) mod attached;
pub mod binding;
pub(super) mod in_use;
pub mod late;
mod mounts;
pub mod objects;
mod rules;
pub mod storage;

pub use attach::Attachable;
pub(super) use mounts::is_untold;
pub use mounts::{ClaimName, Disk, Mounts};
pub use rules::{Bound, Refusal, Rules, Zone};
