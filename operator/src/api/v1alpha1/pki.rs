//! Keys and certificates.

use kube::{KubeSchema, core::Duration};
use serde::{Deserialize, Serialize};

/// Keys and certificates: the operator keeps its own authorities in Secrets beside the cluster.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PkiSpec {
    /// How long leaf certificates live and when they are renewed.
    #[serde(default)]
    pub rotation: RotationSpec,
}

/// How long leaf certificates live and when they are renewed.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(has(self.renewBefore) ? self.renewBefore : '720h') < duration(has(self.leafValidity) ? self.leafValidity : '2160h')").message("renewBefore (720h if not given) must be shorter than leafValidity (2160h if not given)"))]
pub struct RotationSpec {
    /// How long a leaf certificate is valid, such as `2160h`: at least an hour, at most ten years.
    /// 2160h (90 days) if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 2, max = 24),
        regex(pattern = r"^([0-9]{1,8}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$")
    )]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('87600h')").message("leafValidity must be from 1h to 87600h"))]
    pub leaf_validity: Option<Duration>,

    /// How long before its end a leaf certificate is renewed. 720h (30 days) if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 2, max = 24),
        regex(pattern = r"^([0-9]{1,8}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$")
    )]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')").message("renewBefore must be at least 1m"))]
    pub renew_before: Option<Duration>,
}
