//! Pools of stock kube-apiservers behind the front door.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;

use super::flags::{Flags, command_line};
use super::names::{APISERVER_PORT, Names, STORE_PORT};
use super::network_policy::{self, From};
use super::pods::{self, Health, KEYS_DIGEST, Mount, Program};
use super::{audit, budget, go_runtime, labels, service, workload};
use crate::children::{Children, Lifetime, Stage};
use crate::pki::{Digests, FRONT_PROXY_CLIENT};
use crate::validate::{Pool, ValidatedCluster};

pub(super) const COMPONENT: &str = "apiserver";

const HTTPS: &str = "https";

/// How long a server that is told to stop goes on as if nothing were, while clients learn of it.
const DRAIN_SECONDS: i64 = 10;
/// How long watches may take to move elsewhere after that.
const WATCH_DRAIN_SECONDS: i64 = 10;
/// The longest that any other request takes (`--request-timeout`), at the same time.
const REQUEST_SECONDS: i64 = 60;

/// Flags that a user can't set: addresses, files and identities that other parts rely on.
pub const MANAGED_FLAGS: &[&str] = &[
    "advertise-address",
    "allow-privileged",
    "api-audiences",
    "authorization-mode",
    "bind-address",
    "cert-dir",
    "client-ca-file",
    "enable-bootstrap-token-auth",
    "endpoint-reconciler-type",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-prefix",
    "etcd-servers",
    "etcd-servers-overrides",
    "goaway-chance",
    "kubelet-client-certificate",
    "kubelet-client-key",
    "peer-ca-file",
    "proxy-client-cert-file",
    "proxy-client-key-file",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-uid-headers",
    "requestheader-username-headers",
    "secure-port",
    "service-account-issuer",
    "service-account-key-file",
    "service-account-signing-key-file",
    "service-cluster-ip-range",
    "shutdown-delay-duration",
    "shutdown-send-retry-after",
    "shutdown-watch-termination-grace-period",
    "storage-backend",
    "tls-cert-file",
    "tls-private-key-file",
    "watch-cache-sizes",
];

/// Gates for many watchers: decode events of a watch concurrently, and don't compare the whole
/// watch cache with the store every five minutes
/// (`k8s.io/apiserver/pkg/features/kube_features.go`; both are in 1.36).
const FEATURE_GATES: &[&str] =
    &["ConcurrentWatchObjectDecode=true", "DetectCacheInconsistency=false"];

const SERVING: &str = "/etc/kubernetes/pki/serving";
const STORE_CLIENT: &str = "/etc/kubernetes/pki/store-client";
const KUBELET_CLIENT: &str = "/etc/kubernetes/pki/kubelet-client";
const FRONT_PROXY: &str = "/etc/kubernetes/pki/front-proxy";
const SERVICE_ACCOUNT: &str = "/etc/kubernetes/pki/service-account";

pub(super) fn add(cluster: &ValidatedCluster, digests: &Digests, children: &mut Children) {
    let names = Names::of(cluster);
    pods::add_service_account(cluster, COMPONENT, children);
    audit::add(cluster, children);
    network_policy::add(
        cluster,
        &names.child(COMPONENT),
        COMPONENT,
        &[(From::Component(super::watchcache::COMPONENT), APISERVER_PORT)],
        children,
    );
    for pool in &cluster.api_servers.pools {
        let name = names.apiserver(&pool.name);
        let labels = labels::pool(&names, &pool.name);
        budget::add(cluster, &name, labels.clone(), pool.replicas, children);
        let ports = vec![service::port(HTTPS, APISERVER_PORT)];
        // The front door asks each server for its health by itself. A server that DNS forgets
        // while it restarts would be away for as long as resolvers remember that.
        let service = service::headless(&names, &name, labels, ports, true);
        children.add(cluster, Stage::Foundation, Lifetime::Owned, service);
        let deployment = deployment(cluster, &names, pool, digests);
        children.add(cluster, Stage::ApiServers, Lifetime::Owned, deployment);
    }
}

fn deployment(
    cluster: &ValidatedCluster,
    names: &Names,
    pool: &Pool,
    digests: &Digests,
) -> Deployment {
    let labels = labels::pool(names, &pool.name);
    let mut env = vec![pods::pod_field("POD_IP", "status.podIP")];
    env.extend(go_runtime::environment(&pool.resources));
    let template = Program {
        component: COMPONENT,
        labels: labels.clone(),
        annotations: BTreeMap::from([(KEYS_DIGEST.to_owned(), digests.apiserver.clone())]),
        image: &cluster.images.api_server,
        command: Some("kube-apiserver"),
        args: args(cluster, names),
        env,
        ports: &[(HTTPS, APISERVER_PORT)],
        health: Health {
            scheme: "HTTPS",
            port: HTTPS,
            // Without the store no server is better than this one: a restart would help nobody.
            live: "/livez?exclude=etcd",
            ready: "/readyz",
            // It exits by itself while there is no store.
            start_within: 300,
        },
        mounts: mounts(names).into_iter().chain(audit::mount(cluster, names)).collect(),
        resources: &pool.resources,
        // The stock binary has this capability in its file, and doesn't start where it can't have
        // it (k8s.io/kubernetes/build/server-image/kube-apiserver).
        capabilities: &["NET_BIND_SERVICE"],
        // Used up only when the store has gone before: a server that can't sign off there waits.
        grace: DRAIN_SECONDS + REQUEST_SECONDS + 5,
    }
    .template(cluster);
    workload::deployment(
        names,
        &names.apiserver(&pool.name),
        labels,
        pool.replicas,
        cluster.api_servers.max_surge.clone(),
        template,
    )
}

fn mounts(names: &Names) -> Vec<Mount> {
    let secret = |volume, suffix: &str, path, entries| Mount::Secret {
        volume,
        secret: names.child(suffix),
        path,
        entries,
    };
    vec![
        secret("serving", "apiserver-tls", SERVING, &[]),
        secret("store-client", "apiserver-store-client-tls", STORE_CLIENT, &[]),
        secret("kubelet-client", "apiserver-kubelet-client-tls", KUBELET_CLIENT, &[]),
        secret("front-proxy", "front-proxy-client-tls", FRONT_PROXY, &[]),
        secret("service-account", "service-account", SERVICE_ACCOUNT, &[]),
        Mount::Scratch,
    ]
}

fn args(cluster: &ValidatedCluster, names: &Names) -> Vec<String> {
    command_line(
        managed(cluster, names),
        tunable(cluster),
        FEATURE_GATES,
        &cluster.api_servers.extra_args,
    )
}

fn managed(cluster: &ValidatedCluster, names: &Names) -> Flags {
    let ranges: Vec<String> =
        cluster.networking.service_cidrs.iter().map(ToString::to_string).collect();
    let store = names.store();
    let mut flags = Flags::default();
    flags
        .set("advertise-address", "$(POD_IP)")
        .set("secure-port", APISERVER_PORT.to_string())
        .set("etcd-servers", format!("https://{}:{STORE_PORT}", names.pod_dns(&store, 0)))
        .set("etcd-cafile", format!("{STORE_CLIENT}/ca.crt"))
        .set("etcd-certfile", format!("{STORE_CLIENT}/tls.crt"))
        .set("etcd-keyfile", format!("{STORE_CLIENT}/tls.key"))
        .set("tls-cert-file", format!("{SERVING}/tls.crt"))
        .set("tls-private-key-file", format!("{SERVING}/tls.key"))
        .set("client-ca-file", format!("{SERVING}/ca.crt"))
        .set("requestheader-client-ca-file", format!("{FRONT_PROXY}/ca.crt"))
        .set("requestheader-allowed-names", FRONT_PROXY_CLIENT)
        .set("requestheader-username-headers", "X-Remote-User")
        .set("requestheader-uid-headers", "X-Remote-Uid")
        .set("requestheader-group-headers", "X-Remote-Group")
        .set("requestheader-extra-headers-prefix", "X-Remote-Extra-")
        .set("proxy-client-cert-file", format!("{FRONT_PROXY}/tls.crt"))
        .set("proxy-client-key-file", format!("{FRONT_PROXY}/tls.key"))
        .set("kubelet-client-certificate", format!("{KUBELET_CLIENT}/tls.crt"))
        .set("kubelet-client-key", format!("{KUBELET_CLIENT}/tls.key"))
        .set(
            "service-account-issuer",
            format!("https://kubernetes.default.svc.{}", cluster.networking.dns_domain),
        )
        .set("service-account-key-file", format!("{SERVICE_ACCOUNT}/sa.pub"))
        .set("service-account-signing-key-file", format!("{SERVICE_ACCOUNT}/sa.key"))
        .set("service-cluster-ip-range", ranges.join(","))
        .set("authorization-mode", "Node,RBAC")
        .set("enable-bootstrap-token-auth", "true")
        .set("allow-privileged", "true")
        // The front door spreads its connections; a server need not break them for that.
        .set("goaway-chance", "0")
        .set("shutdown-delay-duration", format!("{DRAIN_SECONDS}s"))
        .set("shutdown-send-retry-after", "true")
        .set("shutdown-watch-termination-grace-period", format!("{WATCH_DRAIN_SECONDS}s"));
    // The front door answers them; a second copy here would only cost. Of custom resources
    // kube-apiserver keeps one whatever it is told (`NewCRDRESTOptionsGetter`).
    let unused: Vec<_> =
        cluster.watch_cache.built_in.iter().map(|name| format!("{name}#0")).collect();
    if !unused.is_empty() {
        flags.set("watch-cache-sizes", unused.join(","));
    }
    flags
}

fn tunable(cluster: &ValidatedCluster) -> Flags {
    let mut flags = Flags::default();
    flags
        .set("enable-admission-plugins", "NodeRestriction")
        .set("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname")
        // Their sum is what priority and fairness divides.
        .set("max-requests-inflight", "3000")
        .set("max-mutating-requests-inflight", "1000")
        // The front door puts many clients on one connection; the default allows 100 streams.
        .set("http2-max-streams-per-connection", "1000")
        // A watch that ends is a watch to begin again.
        .set("min-request-timeout", "3600")
        .set("event-ttl", "15m");
    if let Some(file) = audit::policy_file(cluster) {
        flags.set("audit-policy-file", file).set("audit-log-path", "-");
    }
    flags
}

/// Flags that are set for good but that validation doesn't refuse.
#[cfg(test)]
pub(super) fn unlisted_flags(cluster: &ValidatedCluster) -> Vec<&'static str> {
    let flags = managed(cluster, &Names::of(cluster)).names();
    flags.into_iter().filter(|name| !MANAGED_FLAGS.contains(name)).collect()
}
