//! Every authority and certificate of a cluster, and what each is for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::authority::common_name;
use super::kubeconfig::{KubeconfigSpec, Style};
use crate::build::names::Names;
use crate::children::Lifetime;
use crate::validate::ValidatedCluster;

/// Common name of the client certificate whose identity headers the apiservers trust.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// The group that RBAC never refuses.
const ADMINISTRATORS: &str = "system:masters";

/// The entry of a component's kubeconfig Secret.
pub const COMPONENT_KUBECONFIG: &str = "kubeconfig";
/// The entry of the administrator's kubeconfig Secret.
pub const ADMIN_KUBECONFIG: &str = "value";

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Authority {
    /// Servers and clients of the Kubernetes API.
    Cluster,
    /// Proxies whose identity headers are trusted: this authority must sign nothing else.
    FrontProxy,
    /// The store and its clients.
    Store,
    /// The scheduler's relays and shards.
    Scheduler,
}

impl Authority {
    /// All of them, in the order in which they are made.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::FrontProxy, Self::Store, Self::Scheduler];

    /// What its Secret is called after the cluster's name.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Cluster => "cluster-ca",
            Self::FrontProxy => "front-proxy-ca",
            Self::Store => "store-ca",
            Self::Scheduler => "scheduler-ca",
        }
    }
}

/// One certificate that should exist.
#[derive(Debug, Clone)]
pub(crate) struct LeafSpec {
    pub(crate) secret: String,
    /// Value of the component label.
    pub(crate) component: &'static str,
    pub(crate) authority: Authority,
    /// The user, for a client certificate.
    pub(crate) common_name: String,
    /// The group, for a client certificate.
    pub(crate) organization: Option<&'static str>,
    /// DNS names and addresses in the form in which a certificate is read back.
    pub(crate) names: BTreeSet<String>,
    pub(crate) server: bool,
    pub(crate) client: bool,
    pub(crate) kubeconfig: Option<KubeconfigSpec>,
    pub(crate) lifetime: Lifetime,
}

/// All leaves of a cluster. The administrator's is missing as long as nobody knows the endpoint.
pub(crate) fn leaves(cluster: &ValidatedCluster) -> Vec<LeafSpec> {
    let names = &Names::of(cluster);
    let internal = names.internal_endpoint(cluster.networking.endpoint.port);
    let mut leaves = vec![
        server(names, "store", Authority::Store, headless_names(names, &names.store())),
        client(names, "apiserver-store-client", "apiserver", Authority::Store),
        server(names, "apiserver", Authority::Cluster, apiserver_names(cluster, names)),
        LeafSpec {
            common_name: "kube-apiserver-kubelet-client".to_owned(),
            organization: Some(ADMINISTRATORS),
            ..client(names, "apiserver-kubelet-client", "apiserver", Authority::Cluster)
        },
        LeafSpec {
            common_name: FRONT_PROXY_CLIENT.to_owned(),
            ..client(names, FRONT_PROXY_CLIENT, "watchcache", Authority::FrontProxy)
        },
        server(names, "watchcache", Authority::Cluster, watchcache_names(cluster, names)),
        server(
            names,
            "scheduler-shard",
            Authority::Scheduler,
            asked_names(names, &names.scheduler_shard()),
        ),
        LeafSpec {
            // A relay asks shards and other relays.
            client: true,
            ..server(
                names,
                "scheduler-relay",
                Authority::Scheduler,
                asked_names(names, &names.scheduler_relay()),
            )
        },
        component(names, "controller-manager", "system:kube-controller-manager", &internal),
        component(names, "scheduler", "system:kube-scheduler", &internal),
    ];
    if cluster.scheduler.standby_per_shard > 0 {
        let alternatives = asked_names(names, &names.scheduler_standby());
        leaves.push(server(names, "scheduler-standby", Authority::Scheduler, alternatives));
    }
    if !cluster.watch_cache.cached.is_empty() {
        leaves.push(client(names, "watchcache-store-client", "watchcache", Authority::Store));
    }
    leaves.extend(cluster.endpoint_url().map(|url| administrator(names, url)));
    leaves
}

fn server(
    names: &Names,
    component: &'static str,
    authority: Authority,
    alternatives: BTreeSet<String>,
) -> LeafSpec {
    LeafSpec {
        secret: names.child(&format!("{component}-tls")),
        component,
        authority,
        common_name: common_name(&names.child(component)),
        organization: None,
        names: alternatives,
        server: true,
        client: false,
        kubeconfig: None,
        lifetime: Lifetime::Owned,
    }
}

fn client(names: &Names, name: &str, component: &'static str, authority: Authority) -> LeafSpec {
    LeafSpec {
        secret: names.child(&format!("{name}-tls")),
        component,
        authority,
        common_name: common_name(&names.child(name)),
        organization: None,
        names: BTreeSet::new(),
        server: false,
        client: true,
        kubeconfig: None,
        lifetime: Lifetime::Owned,
    }
}

fn component(names: &Names, component: &'static str, user: &str, server: &str) -> LeafSpec {
    LeafSpec {
        secret: names.child(&format!("{component}-kubeconfig")),
        common_name: user.to_owned(),
        kubeconfig: Some(KubeconfigSpec {
            entry: COMPONENT_KUBECONFIG,
            server: server.to_owned(),
            cluster: names.cluster().to_owned(),
            user: user.to_owned(),
            style: Style::Files,
        }),
        ..client(names, component, component, Authority::Cluster)
    }
}

fn administrator(names: &Names, server: String) -> LeafSpec {
    let user = "kubernetes-admin";
    LeafSpec {
        secret: names.admin_kubeconfig(),
        common_name: user.to_owned(),
        organization: Some(ADMINISTRATORS),
        kubeconfig: Some(KubeconfigSpec {
            entry: ADMIN_KUBECONFIG,
            server,
            cluster: names.cluster().to_owned(),
            user: user.to_owned(),
            style: Style::Embedded,
        }),
        lifetime: Lifetime::ByDeletionPolicy,
        ..client(names, "admin", "admin", Authority::Cluster)
    }
}

/// A Service's names as pods of the management cluster may write them. Its full name is left out:
/// nothing here knows the management cluster's domain, and no component uses it.
fn service_names(names: &Names, service: &str) -> [String; 3] {
    [service.to_owned(), format!("{service}.{}", names.namespace()), names.service_dns(service)]
}

/// The Service's own names and those of every pod behind it.
fn headless_names(names: &Names, service: &str) -> BTreeSet<String> {
    let pods = format!("*.{}", names.service_dns(service));
    local_names().into_iter().chain(service_names(names, service)).chain([pods]).collect()
}

/// Those, and the Service that each pod has for itself. How many pods there are changes: a name for
/// each would replace the certificate, and with it all pods, when shards are added. The authority
/// signs for the parts of one scheduler only, so that no other Service is meant by the pattern.
fn asked_names(names: &Names, service: &str) -> BTreeSet<String> {
    let mut all = headless_names(names, service);
    all.insert(names.service_dns("*"));
    all
}

fn local_names() -> [String; 3] {
    ["localhost", "127.0.0.1", "::1"].map(str::to_owned)
}

/// What pods inside the cluster call its API: the Service `kubernetes` and its address, which is
/// the first of each Service range (`k8s.io/kubernetes/pkg/controlplane/apiserver`).
fn kubernetes_names(cluster: &ValidatedCluster) -> impl Iterator<Item = String> {
    let domain = &cluster.networking.dns_domain;
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("kubernetes.default.svc.{domain}")])
        .chain(cluster.networking.service_cidrs.iter().map(first_address))
}

/// The address after the network's own.
fn first_address(range: &IpNet) -> String {
    match range.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits().saturating_add(1)).to_string(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().saturating_add(1)).to_string(),
    }
}

fn public_names(cluster: &ValidatedCluster) -> impl Iterator<Item = String> {
    [cluster.endpoint_host()]
        .into_iter()
        .chain(cluster.networking.endpoint.cert_sans.iter().cloned())
        .map(|name| normal(&name))
        .chain(cluster.facts.endpoint_cluster_ip.as_ref().map(IpAddr::to_string))
}

fn apiserver_names(cluster: &ValidatedCluster, names: &Names) -> BTreeSet<String> {
    let pools = &cluster.api_servers.pools;
    local_names()
        .into_iter()
        .chain(kubernetes_names(cluster))
        .chain(pools.iter().flat_map(|pool| service_names(names, &names.apiserver(&pool.name))))
        .chain(public_names(cluster))
        .collect()
}

fn watchcache_names(cluster: &ValidatedCluster, names: &Names) -> BTreeSet<String> {
    local_names()
        .into_iter()
        .chain(kubernetes_names(cluster))
        .chain(service_names(names, &names.api()))
        .chain(public_names(cluster))
        .collect()
}

/// A name as a certificate gives it back: an address in its shortest form, a DNS name in lower
/// case.
fn normal(name: &str) -> String {
    name.parse::<IpAddr>().map_or_else(|_| name.to_ascii_lowercase(), |address| address.to_string())
}
