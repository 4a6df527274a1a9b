//! Notions of the Kubernetes API that the router and, later, the cache shards share.

mod query;
mod request_info;
mod status;

pub use query::first_value;
pub use request_info::{RequestInfo, decode_path};
pub use status::{Failure, Reason};
