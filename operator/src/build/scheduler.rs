//! The scheduler: shards that each keep a part of the nodes, relays that ask them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment, StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels;
use super::names::{Names, SHARD_PORT};
use super::network_policy::{self, From};
use super::pods::{self, ADMIN, Health, KEYS_DIGEST, Mount, Program};
use super::{budget, service, workload};
use crate::children::{Children, Lifetime, Stage};
use crate::pki::{COMPONENT_KUBECONFIG, Digests};
use crate::validate::ValidatedCluster;

const ACCOUNT: &str = "scheduler";
const SHARD: &str = "scheduler-shard";
const RELAY: &str = "scheduler-relay";

const ADMIN_PORT: u16 = 10259;
const GRPC: &str = "grpc";

const KUBECONFIG: &str = "/etc/megacluster-scheduler/kubeconfig";
const TLS: &str = "/etc/megacluster-scheduler/tls";

pub(super) fn add(cluster: &ValidatedCluster, digests: &Digests, children: &mut Children) {
    let names = Names::of(cluster);
    pods::add_service_account(cluster, ACCOUNT, children);
    network_policy::add(
        cluster,
        &names.scheduler_shard(),
        SHARD,
        &[(From::Component(RELAY), SHARD_PORT), (From::Anyone, ADMIN_PORT)],
        children,
    );
    network_policy::add(
        cluster,
        &names.scheduler_relay(),
        RELAY,
        &[(From::Anyone, ADMIN_PORT)],
        children,
    );
    let shard_labels = labels::component(&names, SHARD);
    let relay_labels = labels::component(&names, RELAY);
    let scheduler = &cluster.scheduler;
    budget::add(
        cluster,
        &names.scheduler_shard(),
        shard_labels.clone(),
        scheduler.shards,
        children,
    );
    budget::add(cluster, &names.scheduler_relay(), relay_labels, scheduler.relays, children);
    let service = service::headless(
        &names,
        &names.scheduler_shard(),
        shard_labels,
        vec![service::port(GRPC, SHARD_PORT), service::port(ADMIN, ADMIN_PORT)],
        true,
    );
    children.add(cluster, Stage::Foundation, Lifetime::Owned, service);
    children.add(cluster, Stage::Scheduler, Lifetime::Owned, shards(cluster, &names, digests));
    children.add(cluster, Stage::Scheduler, Lifetime::Owned, relays(cluster, &names, digests));
}

fn shards(cluster: &ValidatedCluster, names: &Names, digests: &Digests) -> StatefulSet {
    let name = names.scheduler_shard();
    let labels = labels::component(names, SHARD);
    let mut args = vec![
        "shard".to_owned(),
        format!("--kubeconfig={KUBECONFIG}/{COMPONENT_KUBECONFIG}"),
        "--name=$(POD_NAME)".to_owned(),
        format!("--listen-address=0.0.0.0:{SHARD_PORT}"),
        format!("--tls-cert-file={TLS}/tls.crt"),
        format!("--tls-private-key-file={TLS}/tls.key"),
        format!("--trusted-ca-file={TLS}/ca.crt"),
        format!("--admin-listen-address=0.0.0.0:{ADMIN_PORT}"),
    ];
    let shard_names: Vec<String> =
        ordinals(cluster).map(|ordinal| format!("{name}-{ordinal}")).collect();
    args.push(format!("--shard-names={}", shard_names.join(",")));
    let template = Program {
        env: vec![pods::pod_field("POD_NAME", "metadata.name")],
        ports: &[(GRPC, SHARD_PORT), (ADMIN, ADMIN_PORT)],
        ..program(cluster, names, SHARD, args, digests)
    }
    .template(cluster);
    StatefulSet {
        metadata: labels::labelled(names, &name, labels.clone()),
        spec: Some(StatefulSetSpec {
            replicas: Some(cluster.scheduler.shards),
            service_name: Some(name),
            pod_management_policy: Some("Parallel".to_owned()),
            revision_history_limit: Some(workload::REVISIONS),
            selector: labels::label_selector(&labels),
            template,
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: None,
            }),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn relays(cluster: &ValidatedCluster, names: &Names, digests: &Digests) -> Deployment {
    let labels = labels::component(names, RELAY);
    let set = names.scheduler_shard();
    let mut args = vec![
        "relay".to_owned(),
        format!("--kubeconfig={KUBECONFIG}/{COMPONENT_KUBECONFIG}"),
        format!("--fan-out={}", cluster.scheduler.fan_out),
        format!("--cert-file={TLS}/tls.crt"),
        format!("--key-file={TLS}/tls.key"),
        format!("--trusted-ca-file={TLS}/ca.crt"),
        format!("--admin-listen-address=0.0.0.0:{ADMIN_PORT}"),
    ];
    args.extend(ordinals(cluster).map(|ordinal| {
        format!("--shard={set}-{ordinal}=https://{}:{SHARD_PORT}", names.pod_dns(&set, ordinal))
    }));
    let template = program(cluster, names, RELAY, args, digests).template(cluster);
    workload::deployment(
        names,
        &names.scheduler_relay(),
        labels,
        cluster.scheduler.relays,
        IntOrString::Int(1),
        template,
    )
}

fn program<'a>(
    cluster: &'a ValidatedCluster,
    names: &Names,
    component: &'static str,
    args: Vec<String>,
    digests: &Digests,
) -> Program<'a> {
    Program {
        component,
        labels: labels::component(names, component),
        annotations: BTreeMap::from([(KEYS_DIGEST.to_owned(), digests.scheduler.clone())]),
        image: &cluster.images.scheduler,
        command: None,
        args,
        env: Vec::new(),
        ports: &[(ADMIN, ADMIN_PORT)],
        health: Health::admin(120),
        mounts: vec![
            Mount::Secret {
                volume: "kubeconfig",
                secret: names.child("scheduler-kubeconfig"),
                path: KUBECONFIG,
                entries: &[],
            },
            Mount::Secret {
                volume: "tls",
                secret: names.child(&format!("{component}-tls")),
                path: TLS,
                entries: &[],
            },
        ],
        resources: &cluster.scheduler.resources,
        capabilities: &[],
        grace: 30,
    }
}

fn ordinals(cluster: &ValidatedCluster) -> std::ops::Range<u32> {
    0..u32::try_from(cluster.scheduler.shards).unwrap_or_default()
}
