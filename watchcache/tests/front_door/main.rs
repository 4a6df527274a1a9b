//! The front door before backends in this process, over loopback and real TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests state what they expect by unwrapping"
)]

mod backend;
mod certificates;
mod client;
mod cluster;
mod identity;
mod lifecycle;
#[path = "../../src/testing.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use more of it")]
mod pki;
mod requests;
mod retries;
