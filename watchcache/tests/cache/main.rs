//! The cache beside a real kube-apiserver, both on one store of ours: the same requests, the same
//! bytes. `KUBE_APISERVER` names the program; `tests/conformance/watchcache` runs this.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests state what they expect by unwrapping"
)]

mod access;
mod audit;
mod busy;
#[path = "../front_door/certificates.rs"]
#[allow(dead_code, reason = "shared with the front door's tests, which use more of it")]
mod certificates;
#[path = "../front_door/client.rs"]
#[allow(dead_code, reason = "shared with the front door's tests, which use more of it")]
mod client;
mod clients;
mod cluster;
mod compressed;
mod custom;
mod differential;
mod faults;
mod figures;
mod forms;
mod frames;
mod history;
mod matrix;
mod mess;
mod objects;
mod parts;
#[path = "../../src/testing.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use more of it")]
mod pki;
mod resources;
mod sharded;
mod slow;
mod states;
mod tables;
