//! The front door, the kube-apiservers, the controller manager and the scheduler.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Resources, schema};

const fn two() -> i32 {
    2
}

const fn one() -> i32 {
    1
}

/// The front door: what clients connect to.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.parts) || self.parts == 1 || has(self.cached) && size(self.cached) > 0").message("parts divide what is cached, and cached is empty"))]
pub struct WatchCacheSpec {
    /// How many replicas of the front door run; of each part, where there are several.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 256))]
    pub replicas: i32,

    /// Into how many parts the objects of the cached resources are divided: pods by the name of
    /// their node, all else by a hash of the key. Each part has `replicas` front doors of its own,
    /// which hold its objects and no others; every front door answers everything, with the help of
    /// the others. While the number is changed, the old front doors run beside the new ones. 1 if
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub parts: Option<i32>,

    /// Resources whose GET, LIST and WATCH the front door answers itself, from what
    /// the store holds: Kubernetes' own, and custom resources. The kube-apiservers keep none of
    /// Kubernetes' own in their watch caches then. All reads go on to the kube-apiservers where
    /// `apiServers.extraArgs` sets `--audit-policy-file`, or `--audit-webhook-config-file` beside
    /// `apiServers.auditPolicy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["group", "resource"]))]
    pub cached: Vec<GroupResource>,

    /// Compute resources of each replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for WatchCacheSpec {
    fn default() -> Self {
        Self { replicas: two(), parts: None, cached: Vec::new(), resources: None }
    }
}

/// The kube-apiservers: a default pool, and pools for resources that deserve their own.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiServersSpec {
    /// How many kube-apiservers the default pool runs. This is what `kubectl scale` sets.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 256))]
    pub replicas: i32,

    /// How many more than `replicas` may run during a rollout, as a number from 1 or a
    /// percentage from 1%. 100% if not given: all new ones start before the old ones stop, so that no server gets
    /// everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::int_or_percent")]
    pub max_surge: Option<IntOrString>,

    /// More arguments for every kube-apiserver, each `--flag=value`. Flags that the operator sets
    /// for its own purposes are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::extra_args")]
    pub extra_args: Vec<String>,

    /// Which requests are recorded: an audit policy (`audit.k8s.io/v1`) as YAML. The kube-apiservers
    /// record what they answer, and the front door what it answers from its cache, each on the
    /// standard output of its pods. `extraArgs` may set the kube-apiservers' other `--audit-` flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub audit_policy: Option<String>,

    /// Compute resources of each kube-apiserver, where its pool doesn't say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Pools of kube-apiservers that serve chosen resources; the default pool serves the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(p, p.match.all(m, self.all(q, q.name == p.name || q.match.all(n, n.resource != m.resource || n.group != m.group))))").message("no two pools may match one resource"))]
    pub pools: Vec<ApiServerPool>,
}

impl Default for ApiServersSpec {
    fn default() -> Self {
        Self {
            replicas: two(),
            max_surge: None,
            extra_args: Vec::new(),
            audit_policy: None,
            resources: None,
            pools: Vec::new(),
        }
    }
}

/// A pool of kube-apiservers for chosen resources.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiServerPool {
    /// The pool's name, a DNS label other than `default`.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self != 'default'").message("the name default belongs to the pool that spec.apiServers itself describes"))]
    pub name: String,

    /// How many kube-apiservers the pool runs.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 256))]
    pub replicas: i32,

    /// The resources whose requests go to this pool.
    #[serde(rename = "match")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["group", "resource"]))]
    pub matches: Vec<GroupResource>,

    /// Compute resources of each kube-apiserver of the pool. `spec.apiServers.resources` if not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// A resource of the Kubernetes API.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupResource {
    /// The API group, such as `coordination.k8s.io`; empty for the core group.
    #[serde(default)]
    #[schemars(length(max = 63), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub group: String,
    /// The resource's plural name, such as `leases`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub resource: String,
}

/// The controller manager, one of whose replicas leads.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControllerManagerSpec {
    /// How many replicas run.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 8))]
    pub replicas: i32,

    /// Whether the replicas that don't lead keep their caches full, to take over within a second:
    /// MegaCluster's own build of the controller manager, of the operator's Kubernetes version.
    /// False runs the stock one, whose failover takes up to 15 seconds and a cold start. True if
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_standby: Option<bool>,

    /// More arguments, each `--flag=value`. Flags that the operator sets for its own purposes are
    /// refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::extra_args")]
    pub extra_args: Vec<String>,

    /// Compute resources of each replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for ControllerManagerSpec {
    fn default() -> Self {
        Self { replicas: two(), hot_standby: None, extra_args: Vec::new(), resources: None }
    }
}

/// The scheduler: shards that each own a part of the nodes, and relays that ask them and choose.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SchedulerSpec {
    /// How many shards the nodes are divided among.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub shards: i32,

    /// How many standbys each shard has: processes that keep the same tables full, one of which takes
    /// over at once when the shard dies. 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub standby_per_shard: Option<i32>,

    /// The relays in front of the shards.
    #[serde(default)]
    pub relays: RelaysSpec,

    /// Compute resources of each shard and each relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for SchedulerSpec {
    fn default() -> Self {
        Self {
            shards: one(),
            standby_per_shard: None,
            relays: RelaysSpec::default(),
            resources: None,
        }
    }
}

/// The relays in front of the scheduler's shards, one of which leads.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelaysSpec {
    /// How many relays run.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 8))]
    pub replicas: i32,

    /// How many shards a relay asks by itself; above that it asks through a tree. 10 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 256))]
    pub fan_out: Option<i32>,
}

impl Default for RelaysSpec {
    fn default() -> Self {
        Self { replicas: two(), fan_out: None }
    }
}
