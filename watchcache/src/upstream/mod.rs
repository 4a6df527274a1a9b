//! The kube-apiservers behind the front door: pools of backends, found by name, watched by
//! health checks, reached over connections that are kept.

mod backend;
mod balance;
mod body;
mod connection;
mod connector;
mod health;
mod pool;
mod probe;
mod resolve;
mod together;

pub use backend::{Backend, Lease, SendError};
pub use balance::{Candidate, Usability, choose};
pub use body::{BodyError, RequestBody, RequestSource};
pub use connection::Lane;
pub use connector::{ConnectError, Connector};
pub use health::{Health, Observation};
pub use pool::{Load, Pool};
pub use together::Together;
