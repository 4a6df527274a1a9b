//! The controller manager: one leads, the others wait. With a hot standby it is our own build
//! (`controller-manager/`), whose replicas are ready once their caches are full; else the stock one.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::flags::{Flags, command_line};
use super::labels::Labels;
use super::names::{Names, STANDBY_PORT};
use super::network_policy::{self, From};
use super::pods::{self, Health, KEYS_DIGEST, Mount, Program};
use super::{budget, go_runtime, labels, workload};
use crate::children::{Children, Lifetime, Stage};
use crate::pki::{COMPONENT_KUBECONFIG, Digests};
use crate::validate::ValidatedCluster;

const COMPONENT: &str = "controller-manager";

/// Seconds that a new pod is ready before an old one goes: the leader has noted it as its standby
/// by then.
const SETTLED: i32 = 2;
const HTTPS: &str = "https";
const PORT: u16 = 10257;
const STANDBY: &str = "standby";

/// Flags that a user can't set: files, addresses and identities that other parts rely on.
pub const MANAGED_FLAGS: &[&str] = &[
    "allocate-node-cidrs",
    "authentication-kubeconfig",
    "authorization-kubeconfig",
    "bind-address",
    "cert-dir",
    "cluster-cidr",
    "cluster-signing-cert-file",
    "cluster-signing-key-file",
    "configure-cloud-routes",
    "enable-leader-migration",
    "kubeconfig",
    "leader-elect",
    "leader-elect-resource-name",
    "leader-elect-resource-namespace",
    "master",
    "root-ca-file",
    "secure-port",
    "service-account-private-key-file",
    "service-cluster-ip-range",
    "standby-listen-address",
    "use-service-account-credentials",
];

/// One address range for each node, of 256 addresses as stock, where that leaves at least 2^8
/// nodes; less in a smaller range.
const NODE_MASK_V4: u8 = 24;
/// kube-controller-manager refuses more than 2^16 IPv6 nodes
/// (`k8s.io/kubernetes/pkg/controller/nodeipam/ipam/cidrset`, `clusterSubnetMaxDiff`).
const NODE_MASK_V6: u8 = 64;

const KUBECONFIG: &str = "/etc/kubernetes/kubeconfig";
const CLUSTER_CA: &str = "/etc/kubernetes/pki/cluster-ca";
const SERVICE_ACCOUNT: &str = "/etc/kubernetes/pki/service-account";

pub(super) fn add(cluster: &ValidatedCluster, digests: &Digests, children: &mut Children) {
    let names = Names::of(cluster);
    let name = names.controller_manager();
    let labels = labels::component(&names, COMPONENT);
    pods::add_service_account(cluster, COMPONENT, children);
    let https = (From::Anyone, PORT);
    let standby = (From::Component(COMPONENT), STANDBY_PORT);
    let hot = cluster.controller_manager.hot_standby;
    let allowed = if hot { &[https, standby][..] } else { &[https][..] };
    network_policy::add(cluster, &name, COMPONENT, allowed, children);
    budget::add(cluster, &name, labels, cluster.controller_manager.replicas, children);
    let deployment = deployment(cluster, &names, digests);
    children.add(cluster, Stage::ControllerManager, Lifetime::Owned, deployment);
}

/// Labels that select the pods.
pub(crate) fn selector(cluster: &ValidatedCluster) -> Labels {
    labels::selector(&labels::component(&Names::of(cluster), COMPONENT))
}

fn deployment(cluster: &ValidatedCluster, names: &Names, digests: &Digests) -> Deployment {
    let labels = labels::component(names, COMPONENT);
    let settings = &cluster.controller_manager;
    let template = Program {
        component: COMPONENT,
        labels: labels.clone(),
        annotations: BTreeMap::from([(KEYS_DIGEST.to_owned(), digests.controller_manager.clone())]),
        image: &cluster.images.controller_manager,
        command: (!settings.hot_standby).then_some("kube-controller-manager"),
        args: command_line(managed(cluster), tunable(cluster), &[], &settings.extra_args),
        env: go_runtime::environment(&settings.resources),
        ports: if settings.hot_standby {
            &[(HTTPS, PORT), (STANDBY, STANDBY_PORT)]
        } else {
            &[(HTTPS, PORT)]
        },
        health: Health {
            scheme: "HTTPS",
            port: HTTPS,
            live: "/healthz",
            // Of our own: the caches are full, or it leads.
            ready: if settings.hot_standby { "/readyz" } else { "/healthz" },
            start_within: 120,
        },
        mounts: vec![
            Mount::Secret {
                volume: "kubeconfig",
                secret: names.child("controller-manager-kubeconfig"),
                path: KUBECONFIG,
                entries: &[],
            },
            Mount::Secret {
                volume: "cluster-ca",
                secret: names.child("cluster-ca"),
                path: CLUSTER_CA,
                entries: &[],
            },
            Mount::Secret {
                volume: "service-account",
                secret: names.service_account(),
                path: SERVICE_ACCOUNT,
                entries: &["sa.key"],
            },
            Mount::Scratch,
        ],
        resources: &settings.resources,
        capabilities: &[],
        grace: 30,
    }
    .template(cluster);
    let name = names.controller_manager();
    let one = IntOrString::Int(1);
    let mut deployment =
        workload::deployment(names, &name, labels, settings.replicas, one, template);
    if let Some(spec) = deployment.spec.as_mut().filter(|_| settings.hot_standby) {
        spec.min_ready_seconds = Some(SETTLED);
    }
    deployment
}

fn managed(cluster: &ValidatedCluster) -> Flags {
    let kubeconfig = format!("{KUBECONFIG}/{COMPONENT_KUBECONFIG}");
    let mut flags = Flags::default();
    flags
        .set("kubeconfig", kubeconfig.clone())
        .set("authentication-kubeconfig", kubeconfig.clone())
        .set("authorization-kubeconfig", kubeconfig)
        .set("bind-address", "0.0.0.0")
        .set("secure-port", PORT.to_string())
        .set("leader-elect", "true")
        .set("use-service-account-credentials", "true")
        .set("service-account-private-key-file", format!("{SERVICE_ACCOUNT}/sa.key"))
        .set("root-ca-file", format!("{CLUSTER_CA}/tls.crt"))
        .set("cluster-signing-cert-file", format!("{CLUSTER_CA}/tls.crt"))
        .set("cluster-signing-key-file", format!("{CLUSTER_CA}/tls.key"))
        .set("configure-cloud-routes", "false");
    if cluster.controller_manager.hot_standby {
        flags.set("standby-listen-address", format!("0.0.0.0:{STANDBY_PORT}"));
    }
    allocate(cluster, &mut flags);
    flags
}

/// Ranges for nodes, where the user gave some to divide.
fn allocate(cluster: &ValidatedCluster, flags: &mut Flags) {
    let pods = &cluster.networking.pod_cidrs;
    let join =
        |ranges: &[IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    flags.set("allocate-node-cidrs", (!pods.is_empty()).to_string());
    if !pods.is_empty() {
        flags
            .set("cluster-cidr", join(pods))
            .set("service-cluster-ip-range", join(&cluster.networking.service_cidrs));
    }
}

/// Sizes of nodes' ranges; the flags differ between one and two IP families.
fn node_masks(cluster: &ValidatedCluster, flags: &mut Flags) {
    let pods = &cluster.networking.pod_cidrs;
    for range in pods {
        let name = match range {
            _ if pods.len() == 1 => "node-cidr-mask-size",
            IpNet::V4(_) => "node-cidr-mask-size-ipv4",
            IpNet::V6(_) => "node-cidr-mask-size-ipv6",
        };
        flags.set(name, node_mask(range).to_string());
    }
}

fn node_mask(range: &IpNet) -> u8 {
    let prefix = range.prefix_len();
    match range {
        // A node of fewer than 16 addresses runs hardly a pod.
        IpNet::V4(_) if prefix + 8 > NODE_MASK_V4 => (prefix + 8).min(28).max(prefix),
        IpNet::V4(_) => NODE_MASK_V4,
        IpNet::V6(_) => NODE_MASK_V6.min(prefix.saturating_add(16)).max(prefix),
    }
}

fn tunable(cluster: &ValidatedCluster) -> Flags {
    let mut flags = Flags::default();
    node_masks(cluster, &mut flags);
    flags
        .set("controllers", "*,bootstrap-signer-controller,token-cleaner-controller")
        // Priority and fairness of the apiservers bounds it, not this.
        .set("kube-api-qps", "1000")
        .set("kube-api-burst", "2000")
        .set("concurrent-cron-job-syncs", "20")
        .set("concurrent-daemonset-syncs", "10")
        .set("concurrent-deployment-syncs", "50")
        .set("concurrent-endpoint-syncs", "20")
        .set("concurrent-gc-syncs", "50")
        .set("concurrent-job-syncs", "50")
        .set("concurrent-namespace-syncs", "50")
        .set("concurrent-replicaset-syncs", "50")
        .set("concurrent-resource-quota-syncs", "20")
        .set("concurrent-service-endpoint-syncs", "20")
        .set("concurrent-serviceaccount-token-syncs", "20")
        .set("concurrent-statefulset-syncs", "50")
        .set("concurrent-ttl-after-finished-syncs", "20");
    flags
}

/// Flags that are set for good but that validation doesn't refuse.
#[cfg(test)]
pub(super) fn unlisted_flags(cluster: &ValidatedCluster) -> Vec<&'static str> {
    let flags = managed(cluster).names();
    flags.into_iter().filter(|name| !MANAGED_FLAGS.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::node_mask;

    #[test]
    fn node_ranges_fit_the_cluster_range() {
        for (range, mask) in [
            ("10.0.0.0/8", 24),
            ("10.244.0.0/16", 24),
            ("10.244.0.0/18", 26),
            ("10.244.0.0/24", 28),
            ("10.244.0.0/30", 30),
            ("fd00::/48", 64),
            ("fd00::/32", 48),
            ("fd00::/56", 64),
            ("fd00::/108", 108),
        ] {
            assert_eq!(node_mask(&range.parse().unwrap()), mask, "{range}");
        }
    }
}
