//! From what the user wrote to what the rest of the operator relies on: every default filled in,
//! every reference resolved, everything checked that the schema's rules can't check.

mod cluster;

pub use cluster::{
    ApiServers, ControllerManager, DEFAULT_POOL, Durability, Endpoint, Facts, Images, Networking,
    Pool, Rotation, Scheduler, Store, ValidatedCluster, WatchCache,
};
