//! etcd's database file: what `etcdctl snapshot save` gets, and `etcdutl snapshot restore` takes.
//!
//! [`Database`] writes a bbolt file in one pass over sorted keys, [`Snapshot`] fills it with etcd's
//! buckets.

mod etcd;
mod writer;

pub use etcd::{BuildError, Member, Snapshot};
pub use writer::{Bucket, Database};
