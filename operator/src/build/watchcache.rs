//! The front door: the Service that clients know, and the routers behind it. Where what they cache
//! is divided into parts, each part has a Deployment of its own, and a Service by which the front
//! doors of the other parts find it. The Service that clients know is one, and so are the budget,
//! the policy and the configuration: whichever front door is asked, it answers.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ResourceRequirements, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::fingerprint::fingerprint;
use super::labels::Labels;
use super::names::{APISERVER_PORT, Names, STORE_PORT, WATCHCACHE_PORT};
use super::network_policy::{self, From};
use super::pods::{self, ADMIN, Health, Mount, Program};
use super::{BuildError, audit, budget, flags, labels, service, workload};
use crate::api::v1alpha1::EndpointType;
use crate::children::{Children, Lifetime, Object, Stage};
use crate::pki::FRONT_PROXY_CLIENT;
use crate::validate::{Part, Pool, ValidatedCluster};

pub(super) const COMPONENT: &str = "watchcache";

const ADMIN_PORT: u16 = 9443;
const HTTPS: &str = "https";

/// How long a router that is told to stop goes on serving.
const DRAIN_SECONDS: i64 = 5;

/// Name of the socket by which the guard of the port knows that its front door lives. It belongs to
/// the pod's network.
const GUARD_SOCKET: &str = "megacluster-watchcache";

/// The one gate of the kube-apiservers that the cache has to know.
const SHARDED: &str = "ShardedListAndWatch";

const CONFIG_FILE: &str = "config.yaml";

const TLS: &str = "/etc/megacluster-watchcache/tls";
const FRONT_PROXY: &str = "/etc/megacluster-watchcache/front-proxy";
const STORE_CLIENT: &str = "/etc/megacluster-watchcache/store-client";
const CONFIG: &str = "/etc/megacluster-watchcache/config";

pub(super) fn add(cluster: &ValidatedCluster, children: &mut Children) -> Result<(), BuildError> {
    let names = Names::of(cluster);
    let name = names.watchcache();
    let labels = labels::component(&names, COMPONENT);
    let watch_cache = &cluster.watch_cache;
    let configuration = configuration(cluster, &names)?;
    pods::add_service_account(cluster, COMPONENT, children);
    network_policy::add(
        cluster,
        &name,
        COMPONENT,
        &[(From::Anyone, WATCHCACHE_PORT), (From::Anyone, ADMIN_PORT)],
        children,
    );
    // One for all parts: a pod may match one budget only, and while the number of parts is changed
    // the old front doors are there beside the new ones.
    let replicas = watch_cache.replicas * watch_cache.parts;
    budget::add(cluster, &name, labels.clone(), replicas, children);
    children.add(cluster, Stage::Foundation, Lifetime::Owned, endpoint(cluster, &names));
    // By which a front door's guard finds the other front doors: those that are ready.
    let ports = vec![service::port(HTTPS, WATCHCACHE_PORT)];
    let peers = service::headless(&names, &name, labels, ports.clone(), false);
    children.add(cluster, Stage::Foundation, Lifetime::Owned, peers);
    for part in watch_cache.parts().filter(|part| part.of > 1) {
        // Found also while they start, as kube-apiservers are: they are asked for their health.
        let name = names.watchcache_part(part);
        let labels = part_labels(&names, part);
        let replicas = service::headless(&names, &name, labels, ports.clone(), true);
        children.add(cluster, Stage::Foundation, Lifetime::Owned, replicas);
    }
    // Named by its content: routers go on with the old pools until they are replaced, which is
    // after new pools are ready and before old ones are removed.
    let config_name = format!("{name}-{}", fingerprint(&[configuration.as_bytes()]));
    let config_map = ConfigMap {
        metadata: labels::metadata(&names, &config_name, COMPONENT),
        immutable: Some(true),
        data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), configuration)])),
        ..ConfigMap::default()
    };
    children.add(cluster, Stage::Foundation, Lifetime::Owned, config_map);
    for part in watch_cache.parts() {
        let deployment = deployment(cluster, &names, part, &config_name);
        children.add(cluster, Stage::FrontDoor, Lifetime::Owned, deployment);
    }
    Ok(())
}

/// Whether an object is the Deployment of front doors, of whichever part.
pub(crate) fn is_front_door(object: &Object) -> bool {
    matches!(object, Object::Deployment(_)) && labels::is_of(object.metadata(), COMPONENT)
}

/// Labels of what belongs to one part; those of every front door where there are no parts.
fn part_labels(names: &Names, part: Part) -> Labels {
    match part.label() {
        None => labels::component(names, COMPONENT),
        Some(label) => labels::part(names, &label),
    }
}

fn endpoint(cluster: &ValidatedCluster, names: &Names) -> Service {
    let endpoint = &cluster.networking.endpoint;
    let node_port = match endpoint.type_ {
        EndpointType::ClusterIP => None,
        EndpointType::NodePort | EndpointType::LoadBalancer => endpoint.node_port.map(i32::from),
    };
    Service {
        metadata: labels::metadata(names, &names.api(), COMPONENT),
        spec: Some(ServiceSpec {
            type_: Some(endpoint.type_.as_str().to_owned()),
            ports: Some(vec![ServicePort { node_port, ..service::port(HTTPS, endpoint.port) }]),
            selector: Some(labels::selector(&labels::component(names, COMPONENT))),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn deployment(
    cluster: &ValidatedCluster,
    names: &Names,
    part: Part,
    config_name: &str,
) -> Deployment {
    let labels = part_labels(names, part);
    let mut template = Program {
        component: COMPONENT,
        labels: labels.clone(),
        // CA and certificates are read again when they change.
        annotations: BTreeMap::new(),
        image: &cluster.images.watch_cache,
        command: None,
        args: [
            format!("--listen-address=0.0.0.0:{WATCHCACHE_PORT}"),
            format!("--tls-cert-file={TLS}/tls.crt"),
            format!("--tls-private-key-file={TLS}/tls.key"),
            format!("--client-ca-file={TLS}/ca.crt"),
            format!("--config={CONFIG}/{CONFIG_FILE}"),
            format!("--admin-listen-address=0.0.0.0:{ADMIN_PORT}"),
            format!("--guard-socket={GUARD_SOCKET}"),
            // kube-proxy needs a moment to send new connections elsewhere.
            format!("--shutdown-delay-duration={DRAIN_SECONDS}s"),
        ]
        .into_iter()
        .chain(cache_args(cluster, names))
        .chain(part_args(cluster, names, part))
        .collect(),
        env: Vec::new(),
        ports: &[(HTTPS, WATCHCACHE_PORT), (ADMIN, ADMIN_PORT)],
        health: Health::admin(60),
        mounts: [
            Mount::Secret {
                volume: "tls",
                secret: names.child("watchcache-tls"),
                path: TLS,
                entries: &[],
            },
            Mount::Secret {
                volume: "front-proxy",
                secret: names.child("front-proxy-client-tls"),
                path: FRONT_PROXY,
                entries: &[],
            },
            Mount::Config { volume: "config", config_map: config_name.to_owned(), path: CONFIG },
        ]
        .into_iter()
        .chain((!cluster.watch_cache.cached.is_empty()).then(|| Mount::Secret {
            volume: "store-client",
            secret: names.child("watchcache-store-client-tls"),
            path: STORE_CLIENT,
            entries: &[],
        }))
        .chain(audit::mount(cluster, names).filter(|_| !cluster.watch_cache.cached.is_empty()))
        .collect(),
        resources: &cluster.watch_cache.resources,
        capabilities: &[],
        // The delay, and more than the 20 s that it gives requests to end.
        grace: DRAIN_SECONDS + 30,
    }
    .template(cluster);
    template.spec.get_or_insert_default().containers.push(guard(cluster, names));
    workload::deployment(
        names,
        &names.watchcache_part(part),
        labels,
        cluster.watch_cache.replicas,
        IntOrString::Int(1),
        template,
    )
}

/// The guard of the front door's port: it passes clients on to other front doors while the one
/// beside it is gone, until the kubelet has started it again or the Service knows.
fn guard(cluster: &ValidatedCluster, names: &Names) -> Container {
    let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    Container {
        name: "guard".to_owned(),
        image: Some(cluster.images.watch_cache.clone()),
        image_pull_policy: Some(cluster.images.pull_policy.as_str().to_owned()),
        args: Some(vec![
            "guard".to_owned(),
            format!("--listen-address=0.0.0.0:{WATCHCACHE_PORT}"),
            format!("--guard-socket={GUARD_SOCKET}"),
            format!("--peers={}:{WATCHCACHE_PORT}", names.service_dns(&names.watchcache())),
        ]),
        env: Some(vec![pods::pod_field("POD_IP", "status.podIP")]),
        // Next to nothing, but while it passes connections on.
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([quantity("cpu", "10m"), quantity("memory", "16Mi")])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(pods::confined(&[])),
        ..Container::default()
    }
}

/// What the cache needs, where there is one.
fn cache_args(cluster: &ValidatedCluster, names: &Names) -> Vec<String> {
    let cached = &cluster.watch_cache.cached;
    if cached.is_empty() {
        return Vec::new();
    }
    let mut args = vec![
        format!("--cache-resource={}", cached.join(",")),
        // It asks as someone whom every kube-apiserver lets ask: nothing has to be bound in the
        // MegaCluster first. The front-proxy certificate can name anyone anyway.
        "--cache-review-group=system:masters".to_owned(),
        format!("--etcd-servers=https://{}:{STORE_PORT}", names.pod_dns(&names.store(), 0)),
        format!("--etcd-cafile={STORE_CLIENT}/ca.crt"),
        format!("--etcd-certfile={STORE_CLIENT}/tls.crt"),
        format!("--etcd-keyfile={STORE_CLIENT}/tls.key"),
    ];
    // Without it the kube-apiservers don't look at `shardSelector`, and the cache must not either.
    if flags::opens(&cluster.api_servers.extra_args, SHARDED) {
        args.push(format!("--feature-gates={SHARDED}=true"));
    }
    if let Some(file) = audit::policy_file(cluster) {
        args.extend([format!("--audit-policy-file={file}"), "--audit-log-path=-".to_owned()]);
    }
    args
}

/// Which part of the cached objects a front door holds, and where all parts are. Front doors know
/// each other as the kube-apiservers know them: by the front-proxy certificate. They share a serving
/// certificate, which names the Service of all.
fn part_args(cluster: &ValidatedCluster, names: &Names, part: Part) -> Vec<String> {
    if part.of == 1 {
        return Vec::new();
    }
    let peers = cluster.watch_cache.parts().map(|peer| {
        let host = names.service_dns(&names.watchcache_part(peer));
        format!("--cache-peer={}={host}:{WATCHCACHE_PORT}", peer.index)
    });
    [
        format!("--cache-parts={}", part.of),
        format!("--cache-part={}", part.index),
        format!("--cache-peer-server-name={}", names.service_dns(&names.api())),
        format!("--requestheader-client-ca-file={FRONT_PROXY}/ca.crt"),
        format!("--requestheader-allowed-names={FRONT_PROXY_CLIENT}"),
    ]
    .into_iter()
    .chain(peers)
    .collect()
}

/// The front door's file, `RouterConfiguration` of `watchcache.megacluster.io/v1alpha1`.
fn configuration(cluster: &ValidatedCluster, names: &Names) -> Result<String, BuildError> {
    let pool = |pool: &Pool| {
        let resources: Vec<Value> = pool
            .matches
            .iter()
            .map(|matched| json!({"group": matched.group, "resource": matched.resource}))
            .collect();
        json!({
            "name": pool.name,
            "host": names.service_dns(&names.apiserver(&pool.name)),
            "port": APISERVER_PORT,
            "match": resources,
        })
    };
    serde_saphyr::to_string(&json!({
        "apiVersion": "watchcache.megacluster.io/v1alpha1",
        "kind": "RouterConfiguration",
        "backendTLS": {
            "caFile": format!("{TLS}/ca.crt"),
            "proxyClientCertFile": format!("{FRONT_PROXY}/tls.crt"),
            "proxyClientKeyFile": format!("{FRONT_PROXY}/tls.key"),
        },
        "limits": {"maxInFlight": 4_000, "maxWatches": 200_000, "maxRequestBytes": 3 * 1024 * 1024},
        "pools": cluster.api_servers.pools.iter().map(pool).collect::<Vec<_>>(),
    }))
    .map_err(|error| BuildError::RouterConfiguration(error.to_string()))
}
