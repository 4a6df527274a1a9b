//! etcd's database file: what `etcdctl snapshot save` gets, and `etcdutl snapshot restore` takes.
//!
//! [`Database`] writes a bbolt file in one pass over sorted keys, [`Snapshot`] fills it with etcd's
//! buckets.

mod entries;
mod etcd;
mod writer;

pub use entries::{Compacted, Entries, each_version};
pub use etcd::{BuildError, Member, Snapshot};
pub use writer::{Bucket, Database};
