//! As much of an HTTP/2 client as gRPC load needs (RFC 9113, RFC 7541, gRPC over HTTP/2).
//!
//! The generator shares a machine with the server, so what it spends is taken from what it
//! measures: one thread, no task for each request, requests written straight into the socket's
//! buffer, answers read where they lie. Headers of answers are not decoded: a unary call has
//! succeeded if and only if its message came, since both grpc-go and tonic answer a failed call with
//! trailers alone.

mod connection;
mod frame;
mod hpack;

pub(crate) use connection::{Connection, Event};
pub(crate) use hpack::Method;
