//! `megacluster.io/v1alpha1`: the types as users write and read them.
//!
//! Shapes only. Defaults that can never change for a running cluster (its networks, its names)
//! are in the schema, so that the stored object shows them; all others are in
//! [`crate::validate`], where a later version may change them without a change of the CRD.
#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function body"
)]

mod components;
mod images;
mod networking;
mod pki;
mod resources;
mod schema;
mod status;
mod store;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use components::{
    ApiServerPool, ApiServersSpec, ControllerManagerSpec, GroupResource, RelaysSpec, SchedulerSpec,
    WatchCacheSpec,
};
pub use images::{ImagesSpec, PullPolicy, PullSecret};
pub use networking::{EndpointSpec, EndpointType, NetworkingSpec};
pub use pki::{PkiSpec, RotationSpec};
pub use resources::{ResourceAmounts, Resources};
pub use status::{
    ApiServersStatus, Condition, ConditionStatus, ControllerManagerStatus, LeaderStatus,
    MegaClusterStatus, PkiStatus, PoolStatus, ReplicaStatus, SchedulerStatus, SecretKeyRef,
};
pub use store::{DurabilityMode, DurabilityRule, DurabilitySpec, StoreSpec, WalSpec};

/// A whole Kubernetes control plane, described by its user and run by the operator.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "megacluster.io",
    version = "v1alpha1",
    kind = "MegaCluster",
    namespaced,
    status = "MegaClusterStatus",
    shortname = "mc",
    category = "all",
    category = "megacluster",
    derive = "PartialEq",
    doc = "A whole Kubernetes control plane: apply one, and read the Secret that its status names to reach it.",
    scale(
        spec_replicas_path = ".spec.apiServers.replicas",
        status_replicas_path = ".status.apiServers.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        description = "The Kubernetes version that every component runs"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the endpoint answers and every component is available"
    ),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".status.endpoint",
        description = "Where the cluster's API is served"
    ),
    printcolumn(
        name = "API servers",
        type_ = "integer",
        json_path = ".status.apiServers.ready",
        description = "Ready kube-apiservers of the default pool"
    ),
    printcolumn(
        name = "Scheduler shards",
        type_ = "integer",
        json_path = ".status.scheduler.shardsReady",
        description = "Ready scheduler shards"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why the cluster is or isn't Ready",
        priority = 1
    ),
    printcolumn(
        name = "Desired",
        type_ = "string",
        json_path = ".spec.version",
        description = "The version asked for",
        priority = 1
    ),
    printcolumn(
        name = "Store",
        type_ = "integer",
        json_path = ".status.store.ready",
        description = "Ready store replicas",
        priority = 1
    ),
    printcolumn(
        name = "Front door",
        type_ = "integer",
        json_path = ".status.watchCache.ready",
        description = "Ready replicas of the front door",
        priority = 1
    ),
    printcolumn(
        name = "Controller manager",
        type_ = "integer",
        json_path = ".status.controllerManager.ready",
        description = "Ready replicas of the controller manager",
        priority = 1
    ),
    printcolumn(
        name = "Paused",
        type_ = "boolean",
        json_path = ".spec.paused",
        description = "Whether the operator leaves the children alone",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.size() <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 32 characters that begins with a letter: the names of Services are made from it")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MegaClusterSpec {
    /// The Kubernetes version of the stock components, such as `v1.36.3`. It never goes down, and
    /// goes up by at most one minor version at a time.
    #[schemars(length(min = 5, max = 16), regex(pattern = r"^v1\.[0-9]{1,3}\.[0-9]{1,3}$"))]
    #[x_kube(validation = Rule::new("int(self.split('.')[1]) > int(oldSelf.split('.')[1]) || (int(self.split('.')[1]) == int(oldSelf.split('.')[1]) && int(self.split('.')[2]) >= int(oldSelf.split('.')[2]))")
        .message("version can't go down: stored objects may already be in the newer form"))]
    #[x_kube(validation = Rule::new("int(self.split('.')[1]) - int(oldSelf.split('.')[1]) <= 1")
        .message("version can go up by one minor version at a time"))]
    pub version: String,

    /// While true the operator goes on to report status, but applies and deletes nothing.
    #[serde(default)]
    pub paused: bool,

    /// What becomes of volumes and PKI when the MegaCluster is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Where the container images come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImagesSpec>,

    /// The cluster's networks and the endpoint of its API.
    #[serde(default)]
    pub networking: NetworkingSpec,

    /// Keys and certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pki: Option<PkiSpec>,

    /// The store that keeps every object of the cluster.
    #[serde(default)]
    pub store: StoreSpec,

    /// The front door: what clients connect to.
    #[serde(default)]
    pub watch_cache: WatchCacheSpec,

    /// The kube-apiservers behind the front door.
    #[serde(default)]
    pub api_servers: ApiServersSpec,

    /// The controller manager.
    #[serde(default)]
    pub controller_manager: ControllerManagerSpec,

    /// The scheduler's shards and relays.
    #[serde(default)]
    pub scheduler: SchedulerSpec,
}

/// What becomes of volumes and PKI when the MegaCluster is deleted.
#[derive(
    Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum DeletionPolicy {
    /// Volumes and the Secrets of the certificate authorities, the
    /// service-account keys and the admin kubeconfig stay. A MegaCluster of the same name takes
    /// them up again.
    #[default]
    Retain,
    /// Nothing stays.
    Delete,
}
