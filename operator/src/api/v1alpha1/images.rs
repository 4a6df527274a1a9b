//! Where container images come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Where container images come from. The operator's own flags give the defaults.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagesSpec {
    /// Registry and path in front of MegaCluster's own images, such as
    /// `registry.example/megacluster` for `registry.example/megacluster/megacluster-store:<tag>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-zA-Z0-9._:/-]*[a-z0-9])?$")
    )]
    pub registry: Option<String>,

    /// Tag of MegaCluster's own images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]*$"))]
    pub tag: Option<String>,

    /// Registry and path in front of the stock images (`kube-apiserver`, and without a hot standby
    /// `kube-controller-manager`), whose tag is the cluster's version. `registry.k8s.io` if
    /// nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-zA-Z0-9._:/-]*[a-z0-9])?$")
    )]
    pub kubernetes_registry: Option<String>,

    /// Secrets of type `kubernetes.io/dockerconfigjson` in the MegaCluster's namespace that the
    /// images are pulled with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pull_secrets: Vec<PullSecret>,

    /// When the kubelet pulls an image. `IfNotPresent` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pull_policy")]
    pub pull_policy: Option<PullPolicy>,
}

/// A reference to a Secret in the MegaCluster's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// When the kubelet pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start of a container.
    Always,
    /// Only when the node doesn't have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl PullPolicy {
    /// The value of a container's `imagePullPolicy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
