//! The scheduler without its surroundings: no sockets, clocks, files or randomness but what is
//! handed in.
//!
//! A pod becomes a [`pod::PodRequest`], waits in a [`queue::Queue`], is weighed against the nodes
//! of each shard's [`table::NodeTable`] by [`evaluate::evaluate`], the answers are gathered by
//! [`gather::merge`] and [`gather::decide`], and the shard that owns the chosen node reserves the
//! place by [`table::NodeTable::assume`]. Answers equal those of kube-scheduler 1.36.3 with
//! `percentageOfNodesToScore: 100` for the plugins that [`diagnosis::Plugin`] names.

pub mod affinity;
pub mod ahead;
mod bound;
mod cells;
pub mod class;
mod columns;
mod courses;
pub mod diagnosis;
pub mod directory;
pub mod draw;
pub mod evaluate;
pub mod event;
mod facts;
mod filter;
pub mod gather;
mod hash;
mod images;
mod intern;
pub mod labels;
pub mod maps;
pub mod membership;
pub mod nominate;
mod others;
pub mod pod;
pub mod policy;
pub mod pool;
mod population;
pub mod ports;
pub mod preempt;
pub mod quantity;
pub mod queue;
pub mod resources;
mod score;
pub mod search;
pub mod selector;
pub mod spread;
pub mod survey;
pub mod table;
pub mod taint;
mod tombstones;
mod tree;
mod validation;
mod views;
pub mod volumes;

pub use columns::NodeUsage;
