//! The process's edge: listeners and HTTP.

mod http;
mod listen;
mod runtimes;

pub use http::{EtcdHealth, health_pages};
pub use listen::{Listeners, Security, ServeConfig, ServeError};
