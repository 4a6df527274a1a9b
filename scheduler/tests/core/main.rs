//! The scheduler's core as its edge uses it: placement, accounting, gathering and the queue.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod accounting;
mod build;
mod cells;
mod placement;
mod pools;
mod preemption;
mod queueing;
mod requests;
mod sharding;
mod speed;
mod volumes;
