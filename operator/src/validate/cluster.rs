//! The validated cluster: plain data, no options where a default exists.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::SignedDuration;
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::OwnerReference, util::intstr::IntOrString,
    },
};
use semver::Version;

use crate::api::v1alpha1::{
    DeletionPolicy, DurabilityMode, DurabilityRule, EndpointType, GroupResource, PullPolicy,
};

/// Name of the pool that takes what no other pool matches.
pub const DEFAULT_POOL: &str = "default";

/// A MegaCluster whose every field is checked and filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Name of the MegaCluster: at most 32 characters, a DNS-1035 label.
    pub name: String,
    /// Namespace of the MegaCluster and of all its children.
    pub namespace: String,
    /// The reference that children carry to be collected with their MegaCluster.
    pub owner: OwnerReference,
    /// Kubernetes version of the stock components, without the leading `v`.
    pub version: Version,
    /// What becomes of volumes and PKI on deletion.
    pub deletion_policy: DeletionPolicy,
    /// Images, complete references.
    pub images: Images,
    /// Networks and the endpoint.
    pub networking: Networking,
    /// Lives of certificates.
    pub rotation: Rotation,
    /// The store.
    pub store: Store,
    /// The front door.
    pub watch_cache: WatchCache,
    /// The kube-apiservers.
    pub api_servers: ApiServers,
    /// The controller manager.
    pub controller_manager: ControllerManager,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// What was found in the management cluster.
    pub facts: Facts,
}

/// Complete image references, such as `registry.example/megacluster/megacluster-store:0.1.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// `megacluster-store`.
    pub store: String,
    /// `megacluster-watchcache`.
    pub watch_cache: String,
    /// `megacluster-scheduler`.
    pub scheduler: String,
    /// `kube-apiserver`.
    pub api_server: String,
    /// `kube-controller-manager`, or `megacluster-controller-manager` with a hot standby.
    pub controller_manager: String,
    /// When the kubelet pulls them.
    pub pull_policy: PullPolicy,
    /// Names of the Secrets that they are pulled with.
    pub pull_secrets: Vec<String>,
}

/// Networks and the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networking {
    /// One range of Service addresses, or one of each IP family; none overlaps a pod range.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges that the controller manager hands out to nodes; may be empty.
    pub pod_cidrs: Vec<IpNet>,
    /// DNS domain of the cluster's Services.
    pub dns_domain: String,
    /// The Service in front of the cluster.
    pub endpoint: Endpoint,
}

/// The Service in front of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Type of the Service.
    pub type_: EndpointType,
    /// The host that the user named.
    pub host: Option<String>,
    /// Port of the Service.
    pub port: u16,
    /// The port on every node that the user named.
    pub node_port: Option<u16>,
    /// More names and addresses for the front door's certificate.
    pub cert_sans: Vec<String>,
}

/// Lives of leaf certificates; `renew_before` is shorter than `leaf_validity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// How long a leaf certificate is valid.
    pub leaf_validity: SignedDuration,
    /// How long before its end it is renewed.
    pub renew_before: SignedDuration,
}

/// The store.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// How safe writes are.
    pub durability: Durability,
    /// Class of the volume, the management cluster's default if `None`.
    pub storage_class_name: Option<String>,
    /// Size of the volume.
    pub size: Quantity,
    /// Resources of the container.
    pub resources: ResourceRequirements,
}

/// How safe writes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durability {
    /// For keys that no rule names.
    pub default: DurabilityMode,
    /// By prefix, in the order the user gave.
    pub rules: Vec<DurabilityRule>,
}

/// The front door.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchCache {
    /// Replicas of each part, at least one.
    pub replicas: i32,
    /// Parts that the cached objects are divided into; one where nothing is cached.
    pub parts: i32,
    /// Resources that it answers from the store, as `--watch-cache-sizes` names them: `pods`,
    /// `leases.coordination.k8s.io`, also custom ones: `widgets.example.com`.
    pub cached: Vec<String>,
    /// Those of them that are Kubernetes' own.
    pub built_in: Vec<String>,
    /// Why nothing is cached although the user asked for that.
    pub uncached: Option<&'static str>,
    /// Resources of the container.
    pub resources: ResourceRequirements,
}

impl WatchCache {
    /// The parts.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let of = self.parts;
        (0..of).map(move |index| Part { index, of })
    }
}

/// A part of what the front doors cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub index: i32,
    /// How many there are.
    pub of: i32,
}

impl Part {
    /// How it is called in names and labels, such as `0-of-2`; `None` for what is not divided.
    #[must_use]
    pub fn label(self) -> Option<String> {
        (self.of > 1).then(|| format!("{}-of-{}", self.index, self.of))
    }
}

/// The kube-apiservers.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiServers {
    /// How many more may run during a rollout.
    pub max_surge: IntOrString,
    /// Arguments after the operator's own; none of them repeats one of those.
    pub extra_args: Vec<String>,
    /// The audit policy, a file's content.
    pub audit_policy: Option<String>,
    /// The default pool first (named [`DEFAULT_POOL`], no matches), then the user's in their
    /// order.
    pub pools: Vec<Pool>,
}

/// A pool of kube-apiservers.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Name of the pool, at most 20 characters.
    pub name: String,
    /// Replicas, at least one.
    pub replicas: i32,
    /// What it serves; empty for the default pool only.
    pub matches: Vec<GroupResource>,
    /// Resources of the container.
    pub resources: ResourceRequirements,
}

/// The controller manager.
#[derive(Clone, Debug, PartialEq)]
pub struct ControllerManager {
    /// Replicas, at least one.
    pub replicas: i32,
    /// Whether it is our own, whose standby is warm.
    pub hot_standby: bool,
    /// Arguments after the operator's own; none of them repeats one of those.
    pub extra_args: Vec<String>,
    /// Resources of the container.
    pub resources: ResourceRequirements,
}

/// The scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// Shards, at least one.
    pub shards: i32,
    /// Standbys of each shard: none or one.
    pub standby_per_shard: i32,
    /// Relays, at least one.
    pub relays: i32,
    /// How many shards a relay asks by itself.
    pub fan_out: i32,
    /// Resources of each shard's and relay's container.
    pub resources: ResourceRequirements,
}

/// What was found in the management cluster, and nothing that the operator could decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Address of the Service in front of the cluster, once it has one.
    pub endpoint_cluster_ip: Option<IpAddr>,
    /// Address or name that the load balancer gave, once it has.
    pub load_balancer: Option<String>,
    /// Port that the management cluster chose on every node, once it has.
    pub assigned_node_port: Option<u16>,
}

impl ValidatedCluster {
    /// Name of the Service in front of the cluster.
    #[must_use]
    pub fn endpoint_service(&self) -> String {
        format!("{}-api", self.name)
    }

    /// DNS name of the front door inside the management cluster.
    #[must_use]
    pub fn internal_host(&self) -> String {
        format!("{}.{}.svc", self.endpoint_service(), self.namespace)
    }

    /// The host that kubeconfigs outside the control plane use: what the user named, else the load
    /// balancer's, else the Service's DNS name.
    #[must_use]
    pub fn endpoint_host(&self) -> String {
        self.networking
            .endpoint
            .host
            .clone()
            .or_else(|| self.facts.load_balancer.clone())
            .unwrap_or_else(|| self.internal_host())
    }

    /// The port that goes with [`Self::endpoint_host`]: for `NodePort` the port on the nodes, else
    /// the Service's. `None` while the management cluster has still to choose it.
    #[must_use]
    pub fn endpoint_port(&self) -> Option<u16> {
        let endpoint = &self.networking.endpoint;
        match endpoint.type_ {
            EndpointType::NodePort => endpoint.node_port.or(self.facts.assigned_node_port),
            EndpointType::ClusterIP | EndpointType::LoadBalancer => Some(endpoint.port),
        }
    }

    /// URL of the cluster's API; `None` while a part of it is still to be chosen by the management
    /// cluster.
    #[must_use]
    pub fn endpoint_url(&self) -> Option<String> {
        let endpoint = &self.networking.endpoint;
        if endpoint.type_ == EndpointType::LoadBalancer
            && endpoint.host.is_none()
            && self.facts.load_balancer.is_none()
        {
            return None;
        }
        let host = self.endpoint_host();
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Some(format!("https://{host}:{}", self.endpoint_port()?))
    }
}
