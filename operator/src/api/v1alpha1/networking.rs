//! The cluster's networks and the endpoint of its API.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The cluster's networks and the endpoint of its API. The ranges and the domain are fixed when
/// the cluster is made: its Services and certificates depend on them.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkingSpec {
    /// Ranges of Service addresses: one, or one of each IP family. Immutable.
    #[serde(rename = "serviceCIDRs", default = "default_service_cidrs")]
    #[schemars(length(min = 1, max = 2), inner(length(min = 1, max = 43)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("serviceCIDRs is immutable"))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("each of serviceCIDRs must be a CIDR such as 10.96.0.0/12"))]
    pub service_cidrs: Vec<String>,

    /// Ranges that the controller manager hands out to nodes: one, or one of each IP family. With
    /// none it hands out no ranges, and the network add-on does. Immutable.
    #[serde(rename = "podCIDRs", default)]
    #[schemars(length(max = 2), inner(length(min = 1, max = 43)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("podCIDRs is immutable"))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("each of podCIDRs must be a CIDR such as 10.0.0.0/8"))]
    pub pod_cidrs: Vec<String>,

    /// DNS domain of the cluster's Services. Immutable.
    #[serde(default = "default_dns_domain")]
    #[schemars(
        length(min = 1, max = 190),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("dnsDomain is immutable"))]
    pub dns_domain: String,

    /// How clients reach the cluster's API.
    #[serde(default)]
    pub endpoint: EndpointSpec,
}

fn default_service_cidrs() -> Vec<String> {
    vec!["10.96.0.0/12".to_owned()]
}

fn default_dns_domain() -> String {
    "cluster.local".to_owned()
}

impl Default for NetworkingSpec {
    fn default() -> Self {
        Self {
            service_cidrs: default_service_cidrs(),
            pod_cidrs: Vec::new(),
            dns_domain: default_dns_domain(),
            endpoint: EndpointSpec::default(),
        }
    }
}

/// How clients reach the cluster's API.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.nodePort) || self.type != 'ClusterIP'").message("nodePort needs an endpoint of type NodePort or LoadBalancer"))]
#[x_kube(validation = Rule::new("self.type != 'NodePort' || has(self.host)").message("an endpoint of type NodePort needs host: the name or address of a node, which the kubeconfig and the certificate name"))]
pub struct EndpointSpec {
    /// The type of the Service in front of the cluster.
    #[serde(default, rename = "type")]
    pub type_: EndpointType,

    /// The name or IP address that kubeconfigs use. If not given: the load balancer's address, or
    /// the Service's DNS name in the management cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-zA-Z0-9]([a-zA-Z0-9.:-]*[a-zA-Z0-9])?$")
    )]
    pub host: Option<String>,

    /// The Service's port. 6443 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,

    /// The port on every node. Chosen by the management cluster if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,

    /// More names and IP addresses for the front door's certificate.
    #[serde(default, rename = "certSANs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 253), regex(pattern = r"^(\*\.)?[a-zA-Z0-9:]([a-zA-Z0-9.:-]*[a-zA-Z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub cert_sans: Vec<String>,
}

/// The type of the Service in front of the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointType {
    /// Reachable inside the management cluster only.
    #[default]
    ClusterIP,
    /// A port on every node of the management cluster.
    NodePort,
    /// An address of a load balancer that the management cluster provides.
    LoadBalancer,
}

impl EndpointType {
    /// The value of a Service's `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}
