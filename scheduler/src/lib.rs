//! A scheduler for Kubernetes whose nodes are divided among shards: a relay scatters each pod to
//! the shards, gathers the best node, has its owner reserve it, and binds.
//!
//! [`core`] decides, [`shard`] and [`relay`] are the two sides of [`protocol`], and [`run`] puts a
//! process together. What can be simulated has no I/O: [`shard::machine`], [`relay::coordinator`],
//! [`relay::tree`].

pub mod cli;
pub mod config;
pub mod core;
pub mod lean;
pub mod metrics;
pub mod pace;
pub mod protocol;
pub mod relay;
pub mod run;
pub mod shard;
pub mod simulate;
