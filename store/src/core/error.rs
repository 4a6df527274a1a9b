//! Errors of the core, in etcd's own words.

/// Why a request was refused. The texts are those of etcd's `api/v3rpc/rpctypes/error.go`, on which
/// clients match; the gRPC codes are in `api::status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A request without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` without a key to keep them from, or an empty operation.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A value beside `ignore_value`.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A lease beside `ignore_lease`.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More operations than `--max-txn-ops`.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction that puts a key twice, or puts and deletes it.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// An unknown sort order or target.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A revision below the compacted one.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// A revision that was not given out yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The quota or the disk is exhausted; only reads and deletes pass.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A lease with this id lives.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A time to live above etcd's limit.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// A request over `--max-request-bytes`.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// The request queue is full.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// The process is stopping.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The log could not be written: whether the request took place is not known.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// The log is broken: nothing more is written until the process is started anew.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
}
