//! The process's edge: listeners and HTTP.

mod calls;
mod connection;
mod gather;
mod grpc;
mod http;
mod io;
mod keepalive;
mod listen;
mod runtimes;
mod stream;

pub use http::{EtcdHealth, health_pages};
pub use listen::{Listeners, Security, ServeConfig, ServeError};
