//! The wire: etcd's v3 messages and services, and gRPC's health check, generated from our own `.proto` files in `proto/`.
//!
//! `UPDATE_GENERATED=1 cargo test -p megacluster-store --test generated` writes the files in
//! `generated/`; without the variable the same test fails when they are not current.

#![allow(clippy::pedantic, missing_debug_implementations, unreachable_pub)]

#[rustfmt::skip]
#[path = "generated/authpb.rs"]
pub mod authpb;
#[rustfmt::skip]
#[path = "generated/etcdserverpb.rs"]
pub mod etcdserverpb;
#[rustfmt::skip]
#[path = "generated/grpc.health.v1.rs"]
pub mod health;
#[rustfmt::skip]
#[path = "generated/mvccpb.rs"]
pub mod mvccpb;
