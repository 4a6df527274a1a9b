//! From etcd to this store and back: `megacluster-store import` and `megacluster-store export`.
//!
//! An import reads everything at one pinned revision, then follows the source by watch until it has
//! caught up, and writes a data directory that holds every key with its own create and mod
//! revision, version and lease, and every lease with its id. So no resourceVersion changes, and the
//! revision goes on from the source's. It may be killed at any time and run again; it goes on where
//! it was.
//!
//! An export writes to a running etcd through its API, where revisions can't be chosen. It first
//! raises the target's revision to the source's, so that whatever it writes gets a higher one than
//! it ever had. It keeps no state: a run compares both sides and writes what differs, so one that
//! was killed is run again. Where revisions must stay as they are, take a snapshot
//! (`etcdctl snapshot save`) and restore it with `etcdutl snapshot restore`.

mod digest;
mod error;
mod export;
mod import;
mod peer;
mod progress;
mod staging;

pub use digest::{Digest, Scope, Sum};
pub use error::MigrateError;
pub use export::{ExportFlags, Exported, export};
pub use import::{ImportFlags, Imported, import};
pub use peer::PeerFlags;
pub use progress::{check_served, mark_served};
