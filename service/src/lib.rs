//! What every MegaCluster process shares, and no more: flags, logging, the rustls provider,
//! certificates that reload, the admin port, drain on a signal, closing without losing an answer, and
//! leadership by a Lease.

pub mod admin;
pub mod crypto;
pub mod flags;
#[cfg(feature = "leadership")]
pub mod leadership;
pub mod linger;
pub mod logging;
pub mod shutdown;
pub mod tls;
pub mod version;
