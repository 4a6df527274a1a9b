//! `megacluster-store`: the etcd v3 API in memory, with a log and durability by prefix.
//!
//! A request enters at [`edge`] (listeners), becomes a command in [`api`] (etcd's services), is
//! applied by the [`sequencer`] to the state of [`core`](mod@core), made durable by the [`log`], and
//! its reply goes back the way it came; events go from the sequencer to the watch streams.

pub mod api;
pub mod bolt;
pub mod core;
pub mod dump;
pub mod edge;
pub mod flags;
pub mod heap;
pub mod log;
pub mod metrics;
pub mod migrate;
pub mod pb;
pub mod sequencer;
pub mod server;
