//! The store without I/O: no sockets, no files, no clock. Time comes in as a number, requests as
//! messages, and what must be logged comes out as events.

pub mod check;
mod engine;
mod error;
mod history;
mod kv;
pub mod lease;
mod mvcc;
mod prefetch;
mod range;
mod read;
mod txn;
pub mod watch;

pub use engine::{Command, Engine, EngineConfig, Reply, Status, Watching};
pub use error::Error;
pub use history::{Batch, Event, History, Read};
pub use kv::{Fields, KeyValue};
pub use mvcc::{Found, Mvcc, Page, Pin, Want};
pub use range::{KeyRange, prefix_end};
pub use read::{arrange, needs_all, range};
pub use txn::{State, has_put, is_read_only};
