//! Names of a cluster's children and the DNS names of their Services.
//!
//! Every name is made from the MegaCluster's own, so that a reconcile finds the same children
//! again without keeping a list of them.

use std::fmt;

use crate::validate::{Part, ValidatedCluster};

/// Where the store serves etcd's API.
pub const STORE_PORT: u16 = 2379;
/// Where each kube-apiserver serves.
pub const APISERVER_PORT: u16 = 6443;
/// Where the front door listens in its pod.
pub const WATCHCACHE_PORT: u16 = 6443;
/// Where the scheduler's shards and relays serve relays.
pub const SCHEDULER_PORT: u16 = 7443;
/// Where replicas that stand by connect to the one that leads.
pub const STANDBY_PORT: u16 = 7444;

/// Names the children of one MegaCluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Names {
    cluster: String,
    namespace: String,
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.cluster)
    }
}

impl Names {
    /// Names for the MegaCluster `cluster` in `namespace`.
    #[must_use]
    pub fn new(cluster: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), namespace: namespace.into() }
    }

    /// Names for the children of `cluster`.
    #[must_use]
    pub fn of(cluster: &ValidatedCluster) -> Self {
        Self::new(cluster.name.clone(), cluster.namespace.clone())
    }

    /// The MegaCluster's own name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The namespace of the MegaCluster and all its children.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A child's name: the cluster's name and `suffix`.
    #[must_use]
    pub fn child(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.cluster)
    }

    /// The store's StatefulSet and headless Service.
    #[must_use]
    pub fn store(&self) -> String {
        self.child("store")
    }

    /// A pool's Deployment and headless Service.
    #[must_use]
    pub fn apiserver(&self, pool: &str) -> String {
        self.child(&format!("apiserver-{pool}"))
    }

    /// The front door's Deployment where it has one part, and the headless Service by which all
    /// front doors find each other.
    #[must_use]
    pub fn watchcache(&self) -> String {
        self.child("watchcache")
    }

    /// The Deployment of the front doors that hold `part`, and the headless Service by which the
    /// others find them. Its name says how many parts there are, too: where that changes, new front
    /// doors come up beside the old ones, and no front door asks one that divides in another way.
    #[must_use]
    pub fn watchcache_part(&self, part: Part) -> String {
        match part.label() {
            None => self.watchcache(),
            Some(label) => self.child(&format!("watchcache-{label}")),
        }
    }

    /// The Service that clients of the cluster connect to.
    #[must_use]
    pub fn api(&self) -> String {
        self.child("api")
    }

    /// The controller manager's Deployment.
    #[must_use]
    pub fn controller_manager(&self) -> String {
        self.child("controller-manager")
    }

    /// The scheduler shards' StatefulSet and headless Service.
    #[must_use]
    pub fn scheduler_shard(&self) -> String {
        self.child("scheduler-shard")
    }

    /// The StatefulSet and headless Service of the scheduler shards' standbys.
    #[must_use]
    pub fn scheduler_standby(&self) -> String {
        self.child("scheduler-standby")
    }

    /// The scheduler relays' StatefulSet and headless Service.
    #[must_use]
    pub fn scheduler_relay(&self) -> String {
        self.child("scheduler-relay")
    }

    /// The Secret with the token-signing keys.
    #[must_use]
    pub fn service_account(&self) -> String {
        self.child("service-account")
    }

    /// The Secret with an administrator's kubeconfig under the key `value`.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> String {
        self.child("admin-kubeconfig")
    }

    /// A Service's DNS name, short of the management cluster's domain: pods find the rest by their
    /// search path.
    #[must_use]
    pub fn service_dns(&self, service: &str) -> String {
        format!("{service}.{}.svc", self.namespace)
    }

    /// The DNS name of pod `ordinal` of the StatefulSet `set` behind a headless Service of the
    /// same name.
    #[must_use]
    pub fn pod_dns(&self, set: &str, ordinal: u32) -> String {
        format!("{set}-{ordinal}.{}", self.service_dns(set))
    }

    /// The endpoint as the cluster's own components reach it.
    #[must_use]
    pub fn internal_endpoint(&self, port: u16) -> String {
        format!("https://{}:{port}", self.service_dns(&self.api()))
    }
}
