//! A relay: takes in waiting pods, scatters each over the shards, gathers the best node, has it
//! reserved, and binds.

pub mod asking;
pub mod bind;
pub mod connections;
pub mod coordinator;
pub mod copies;
pub mod driver;
pub mod evict;
pub mod explain;
pub mod fanout;
pub mod http1;
pub mod intake;
pub mod lookup;
pub mod mount;
pub mod nominations;
pub mod pods;
pub mod report;
pub mod shards;
pub mod tree;
