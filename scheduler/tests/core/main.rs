//! The scheduler's core as its edge uses it: placement, accounting, gathering and the queue.

mod accounting;
mod build;
mod placement;
mod queueing;
mod requests;
mod sharding;
mod speed;
