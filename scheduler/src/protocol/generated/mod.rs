//! Generated from `scheduler.proto` by `cargo test -p megacluster-scheduler --test generated` with
//! `UPDATE_GENERATED=1`.
#![allow(missing_debug_implementations, unreachable_pub, clippy::pedantic)]
include!("megacluster.scheduler.v1.rs");
