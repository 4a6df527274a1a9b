//! The store that keeps every object of the cluster.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Resources, schema};

/// The store that keeps every object of the cluster. It runs as one replica.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreSpec {
    /// How safe a write is before it is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<DurabilitySpec>,

    /// The volume of the write-ahead log.
    #[serde(default)]
    pub wal: WalSpec,

    /// Compute resources of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// How safe a write is before it is acknowledged, by the prefix of its key.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DurabilitySpec {
    /// How safe a write of a key that no rule names is before it is acknowledged: `None` keeps it in
    /// memory only, `Buffered` hands it to the operating system, `Fsync` waits for the disk.
    /// `Buffered` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::durability_mode")]
    pub default: Option<DurabilityMode>,

    /// By prefix; the longest prefix that fits a key counts. If the list is not given, leases and
    /// events have the mode `None`; an empty list gives every key the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["prefix"]))]
    pub rules: Option<Vec<DurabilityRule>>,
}

/// The durability of the keys under one prefix.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DurabilityRule {
    /// The beginning of the keys as the apiserver writes them, from `/registry/` to a `/`, such as
    /// `/registry/leases/`.
    #[schemars(length(min = 11, max = 253), regex(pattern = r"^/registry/[A-Za-z0-9._/-]*/$"))]
    pub prefix: String,
    /// How safe a write under the prefix is before it is acknowledged.
    pub mode: DurabilityMode,
}

/// How safe a write is before it is acknowledged.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DurabilityMode {
    /// In memory only: a restart of the store loses the latest writes.
    None,
    /// Handed to the operating system: survives the death of the process, not of the machine.
    #[default]
    Buffered,
    /// On the disk: survives a loss of power, as etcd's writes do.
    Fsync,
}

impl DurabilityMode {
    /// The value as the store's flags take it.
    #[must_use]
    pub fn as_flag(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Buffered => "buffered",
            Self::Fsync => "fsync",
        }
    }
}

/// The volume of the write-ahead log.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)").message("storageClassName is immutable: a volume can't change its class"))]
pub struct WalSpec {
    /// Class of the volume. The management cluster's default class if not given. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// Size of the volume, such as `200Gi`. It may grow where the storage class allows that, never
    /// shrink.
    #[serde(default = "default_wal_size")]
    #[schemars(
        with = "String",
        length(min = 1, max = 24),
        regex(pattern = r"^[0-9]+([KMGTPE]i?)?$")
    )]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("size can't shrink"))]
    #[x_kube(validation = Rule::new("quantity(self).compareTo(quantity('64Mi')) >= 0").message("size must be at least 64Mi"))]
    pub size: Quantity,
}

fn default_wal_size() -> Quantity {
    Quantity("20Gi".to_owned())
}

impl Default for WalSpec {
    fn default() -> Self {
        Self { storage_class_name: None, size: default_wal_size() }
    }
}
