//! Who may connect to whom. Egress stays open: the apiservers reach kubelets and webhooks that
//! nothing here knows, and every pod needs DNS. Ports with probes and metrics are open to all.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels;
use super::names::Names;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

/// Who may connect to some ports.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Anyone,
    /// The pods of one component of the same cluster.
    Component(&'static str),
}

/// Adds the policy `name` for all pods of `component`.
pub(super) fn add(
    cluster: &ValidatedCluster,
    name: &str,
    component: &'static str,
    allowed: &[(From, u16)],
    children: &mut Children,
) {
    let names = Names::of(cluster);
    let policy = NetworkPolicy {
        metadata: labels::metadata(&names, name, component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods(&names, component)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(allowed.iter().map(|(from, port)| rule(&names, *from, *port)).collect()),
            egress: None,
        }),
    };
    children.add(cluster, Stage::Foundation, Lifetime::Owned, policy);
}

fn rule(names: &Names, from: From, port: u16) -> NetworkPolicyIngressRule {
    let peer = |component| NetworkPolicyPeer {
        pod_selector: Some(pods(names, component)),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicyIngressRule {
        from: match from {
            From::Anyone => None,
            From::Component(component) => Some(vec![peer(component)]),
        },
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(i32::from(port))),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    }
}

fn pods(names: &Names, component: &str) -> LabelSelector {
    labels::label_selector(&labels::component(names, component))
}
