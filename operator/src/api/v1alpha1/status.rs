//! What the operator reports. Facts that change all the time (revisions, lag) are metrics of the components instead: here they would rewrite the object without end.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last saw.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MegaClusterStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The Kubernetes version that every component runs; during an upgrade the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// The URL of the cluster's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// The kubeconfig of a cluster administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<SecretKeyRef>,

    /// Label selector of the default pool's pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// The keys and certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pki: Option<PkiStatus>,

    /// The store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<ReplicaStatus>,

    /// The front door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_cache: Option<ReplicaStatus>,

    /// The kube-apiservers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_servers: Option<ApiServersStatus>,

    /// The controller manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_manager: Option<ControllerManagerStatus>,

    /// The scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerStatus>,

    /// `Ready` is true when every component is available and the endpoint has answered. `Stalled`
    /// and `Reconciling` are there only while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One key of a Secret in the MegaCluster's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    pub name: String,
    /// The key in its data.
    pub key: String,
}

/// The keys and certificates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PkiStatus {
    /// When the next certificate is renewed, if that is within a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<Time>,
}

/// Wanted and ready pods of a component.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// How many are wanted.
    pub replicas: i32,
    /// How many of them are ready.
    pub ready: i32,
}

/// The kube-apiservers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ApiServersStatus {
    /// How many pods of the default pool there are.
    pub replicas: i32,
    /// How many of them are ready.
    pub ready: i32,
    /// How many of them are of the latest template.
    pub updated: i32,
    /// The other pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pools: Vec<PoolStatus>,
}

/// One pool of kube-apiservers beside the default one.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The pool's name.
    pub name: String,
    /// How many are wanted.
    pub desired: i32,
    /// How many are ready.
    pub ready: i32,
    /// How many are of the latest template.
    pub updated: i32,
}

/// Who leads, by the Lease inside the cluster when it was last read.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LeaderStatus {
    /// The pod that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The leadership's epoch: it grows with each takeover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// Whether a warm replica would follow at once. Not there while nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby_synced: Option<bool>,
}

/// The controller manager.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ControllerManagerStatus {
    /// How many are wanted.
    pub replicas: i32,
    /// How many are ready.
    pub ready: i32,
    /// Who leads.
    #[serde(flatten)]
    pub leadership: LeaderStatus,
}

/// The scheduler.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerStatus {
    /// How many shards are wanted.
    pub shards: i32,
    /// How many shards are ready.
    pub shards_ready: i32,
    /// How many standbys of shards are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standbys_ready: Option<i32>,
    /// How many relays are wanted.
    pub relays: i32,
    /// How many relays are ready.
    pub relays_ready: i32,
    /// Which relay leads.
    #[serde(flatten)]
    pub leadership: LeaderStatus,
}

/// A condition as Kubernetes writes them (metav1.Condition).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The generation of the spec that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, for a person.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It doesn't.
    False,
    /// The operator can't tell.
    Unknown,
}
