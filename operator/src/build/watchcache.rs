//! The front door: the Service that clients know, and the routers behind it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::fingerprint::fingerprint;
use super::names::{APISERVER_PORT, Names, WATCHCACHE_PORT};
use super::network_policy::{self, From};
use super::pods::{self, ADMIN, Health, Mount, Program};
use super::{BuildError, budget, labels, service};
use crate::api::v1alpha1::EndpointType;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

pub(super) const COMPONENT: &str = "watchcache";

const ADMIN_PORT: u16 = 9443;
const HTTPS: &str = "https";

/// How long a router that is told to stop goes on serving.
const DRAIN_SECONDS: i64 = 5;

const CONFIG_FILE: &str = "config.yaml";

const TLS: &str = "/etc/megacluster-watchcache/tls";
const FRONT_PROXY: &str = "/etc/megacluster-watchcache/front-proxy";
const CONFIG: &str = "/etc/megacluster-watchcache/config";

pub(super) fn add(cluster: &ValidatedCluster, children: &mut Children) -> Result<(), BuildError> {
    let names = Names::of(cluster);
    let name = names.watchcache();
    let labels = labels::component(&names, COMPONENT);
    let configuration = configuration(cluster, &names)?;
    pods::add_service_account(cluster, COMPONENT, children);
    network_policy::add(
        cluster,
        &name,
        COMPONENT,
        &[(From::Anyone, WATCHCACHE_PORT), (From::Anyone, ADMIN_PORT)],
        children,
    );
    budget::add(cluster, &name, labels, cluster.watch_cache.replicas, children);
    children.add(cluster, Stage::Foundation, Lifetime::Owned, endpoint(cluster, &names));
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
    let deployment = deployment(cluster, &names, &config_name);
    children.add(cluster, Stage::FrontDoor, Lifetime::Owned, deployment);
    Ok(())
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

fn deployment(cluster: &ValidatedCluster, names: &Names, config_name: &str) -> Deployment {
    let labels = labels::component(names, COMPONENT);
    let template = Program {
        component: COMPONENT,
        labels: labels.clone(),
        // CA and certificates are read again when they change.
        annotations: BTreeMap::new(),
        image: &cluster.images.watch_cache,
        command: None,
        args: vec![
            format!("--listen-address=0.0.0.0:{WATCHCACHE_PORT}"),
            format!("--tls-cert-file={TLS}/tls.crt"),
            format!("--tls-private-key-file={TLS}/tls.key"),
            format!("--client-ca-file={TLS}/ca.crt"),
            format!("--config={CONFIG}/{CONFIG_FILE}"),
            format!("--admin-listen-address=0.0.0.0:{ADMIN_PORT}"),
            // kube-proxy needs a moment to send new connections elsewhere.
            format!("--shutdown-delay-duration={DRAIN_SECONDS}s"),
        ],
        env: Vec::new(),
        ports: &[(HTTPS, WATCHCACHE_PORT), (ADMIN, ADMIN_PORT)],
        health: Health::admin(60),
        mounts: vec![
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
        ],
        resources: &cluster.watch_cache.resources,
        capabilities: &[],
        // The delay, and more than the 20 s that it gives requests to end.
        grace: DRAIN_SECONDS + 30,
    }
    .template(cluster);
    Deployment {
        metadata: labels::labelled(names, &names.watchcache(), labels.clone()),
        spec: Some(DeploymentSpec {
            replicas: Some(cluster.watch_cache.replicas),
            revision_history_limit: Some(2),
            selector: labels::label_selector(&labels),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// The front door's file, `RouterConfiguration` of `watchcache.megacluster.io/v1alpha1`.
fn configuration(cluster: &ValidatedCluster, names: &Names) -> Result<String, BuildError> {
    let pools = cluster.api_servers.pools.iter().map(|pool| RouterPool {
        name: &pool.name,
        host: names.service_dns(&names.apiserver(&pool.name)),
        port: APISERVER_PORT,
        matches: pool
            .matches
            .iter()
            .map(|resource| RouterMatch { group: &resource.group, resource: &resource.resource })
            .collect(),
    });
    serde_saphyr::to_string(&RouterConfiguration {
        api_version: "watchcache.megacluster.io/v1alpha1",
        kind: "RouterConfiguration",
        backend_tls: BackendTls {
            ca_file: format!("{TLS}/ca.crt"),
            proxy_client_cert_file: format!("{FRONT_PROXY}/tls.crt"),
            proxy_client_key_file: format!("{FRONT_PROXY}/tls.key"),
        },
        limits: Limits {
            max_in_flight: 4_000,
            max_watches: 200_000,
            max_request_bytes: 3 * 1024 * 1024,
        },
        pools: pools.collect(),
    })
    .map_err(|error| BuildError::RouterConfiguration(error.to_string()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouterConfiguration<'a> {
    api_version: &'a str,
    kind: &'a str,
    #[serde(rename = "backendTLS")]
    backend_tls: BackendTls,
    limits: Limits,
    pools: Vec<RouterPool<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendTls {
    ca_file: String,
    proxy_client_cert_file: String,
    proxy_client_key_file: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Limits {
    max_in_flight: u32,
    max_watches: u32,
    max_request_bytes: u32,
}

#[derive(Serialize)]
struct RouterPool<'a> {
    name: &'a str,
    host: String,
    port: u16,
    #[serde(rename = "match")]
    matches: Vec<RouterMatch<'a>>,
}

#[derive(Serialize)]
struct RouterMatch<'a> {
    group: &'a str,
    resource: &'a str,
}
