//! The children of a cluster: a validated cluster in, objects out. No client, no clock, no
//! randomness: the same cluster gives the same objects in every version of the operator, as far as
//! the pods' programs stay the same, so that an upgrade of the operator restarts nothing.

pub mod apiserver;
mod audit;
mod budget;
pub mod controller_manager;
pub(crate) mod fingerprint;
#[cfg(test)]
pub(crate) mod fixtures;
mod flags;
mod go_runtime;
pub(crate) mod labels;
pub mod names;
mod network_policy;
mod pods;
mod scheduler;
mod service;
mod store;
#[cfg(test)]
mod tests;
pub(crate) mod watchcache;
mod workload;

use crate::children::Children;
use crate::pki::Digests;
use crate::validate::ValidatedCluster;

/// Why the children can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The front door's configuration couldn't be written.
    #[error("writing the front door's configuration: {0}")]
    RouterConfiguration(String),
}

/// All children of `cluster` but the Secrets, which [`crate::pki`] plans.
pub fn build(cluster: &ValidatedCluster, digests: &Digests) -> Result<Children, BuildError> {
    let mut children = Children::default();
    store::add(cluster, &mut children);
    apiserver::add(cluster, digests, &mut children);
    watchcache::add(cluster, &mut children)?;
    controller_manager::add(cluster, digests, &mut children);
    scheduler::add(cluster, digests, &mut children);
    Ok(children)
}
