//! The scheduler: shards that each keep a part of the nodes, relays that ask them, in a tree where
//! there are more shards than one relay may ask. Each of both sorts is a StatefulSet: the nodes are
//! divided by the shards' names, and a relay is asked by its own address. Standbys of the shards are
//! a third one: its pod of the same number runs under the shard's name, and relays know both.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::labels;
use super::names::{Names, SCHEDULER_PORT, STANDBY_PORT};
use super::network_policy::{self, From};
use super::pods::{self, ADMIN, Health, KEYS_DIGEST, Mount, Program};
use super::{budget, service, workload};
use crate::children::{Children, Lifetime, Stage};
use crate::pki::{COMPONENT_KUBECONFIG, Digests};
use crate::validate::{Scheduler, ValidatedCluster};

const ACCOUNT: &str = "scheduler";
const SHARD: &str = "scheduler-shard";
const STANDBY_SHARD: &str = "scheduler-standby";
const RELAY: &str = "scheduler-relay";

/// Label that the StatefulSet controller gives each pod: its number.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A rollout goes on this many seconds after a pod is ready: by then the leading relay has greeted a
/// shard's copy, and the Lease names a relay as the standby.
const SETTLED: i32 = 2;

const ADMIN_PORT: u16 = 10259;
const GRPC: &str = "grpc";
const STANDBY: &str = "standby";

const KUBECONFIG: &str = "/etc/megacluster-scheduler/kubeconfig";
const TLS: &str = "/etc/megacluster-scheduler/tls";

pub(super) fn add(cluster: &ValidatedCluster, digests: &Digests, children: &mut Children) {
    let names = Names::of(cluster);
    pods::add_service_account(cluster, ACCOUNT, children);
    let Scheduler { shards, standby_per_shard, relays, .. } = cluster.scheduler;
    let standbys = shards * standby_per_shard;
    let shard_args = shard_args(cluster, &names);
    let relay_args = relay_args(cluster, &names);
    let grpc = (From::Component(RELAY), SCHEDULER_PORT);
    let admin = (From::Anyone, ADMIN_PORT);
    let standby = (From::Component(RELAY), STANDBY_PORT);
    for (component, stage, replicas, args, allowed) in [
        (SHARD, Stage::SchedulerShards, shards, shard_args.clone(), &[grpc, admin][..]),
        (STANDBY_SHARD, Stage::SchedulerStandbys, standbys, shard_args, &[grpc, admin][..]),
        (RELAY, Stage::SchedulerRelays, relays, relay_args, &[grpc, admin, standby][..]),
    ] {
        if replicas == 0 {
            continue;
        }
        let name = names.child(component);
        let labels = labels::component(&names, component);
        // Relays ask shards, and a leading relay asks others to ask for it.
        network_policy::add(cluster, &name, component, allowed, children);
        budget::add(cluster, &name, labels.clone(), replicas, children);
        let ports = vec![service::port(GRPC, SCHEDULER_PORT), service::port(ADMIN, ADMIN_PORT)];
        let service = service::headless(&names, &name, labels.clone(), ports, true);
        children.add(cluster, Stage::Foundation, Lifetime::Owned, service);
        for ordinal in ordinals(replicas) {
            let ports = vec![service::port(GRPC, SCHEDULER_PORT)];
            let service = service::of_pod(&names, &name, ordinal, labels.clone(), ports);
            children.add(cluster, Stage::Foundation, Lifetime::Owned, service);
        }
        let template = template(cluster, &names, component, args, digests);
        let set = StatefulSet {
            metadata: labels::labelled(&names, &name, labels.clone()),
            spec: Some(StatefulSetSpec {
                replicas: Some(replicas),
                service_name: Some(name),
                pod_management_policy: Some("Parallel".to_owned()),
                min_ready_seconds: Some(SETTLED),
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
        };
        children.add(cluster, stage, Lifetime::Owned, set);
    }
}

fn shard_args(cluster: &ValidatedCluster, names: &Names) -> Vec<String> {
    let set = names.scheduler_shard();
    let shards: Vec<String> =
        ordinals(cluster.scheduler.shards).map(|ordinal| format!("{set}-{ordinal}")).collect();
    vec![
        "shard".to_owned(),
        format!("--tls-cert-file={TLS}/tls.crt"),
        format!("--tls-private-key-file={TLS}/tls.key"),
        format!("--shard-names={}", shards.join(",")),
    ]
}

fn relay_args(cluster: &ValidatedCluster, names: &Names) -> Vec<String> {
    let Scheduler { shards, standby_per_shard, relays, fan_out, .. } = cluster.scheduler;
    // Who is asked by the name of another set's pod of the same number stands by for it.
    let peers = |flag: &'static str, named: String, set: String, count: i32| {
        ordinals(count).map(move |ordinal| {
            let address = names.service_dns(&format!("{set}-{ordinal}"));
            format!("--{flag}={named}-{ordinal}=https://{address}:{SCHEDULER_PORT}")
        })
    };
    let (shard, standby) = (names.scheduler_shard(), names.scheduler_standby());
    let relay = names.scheduler_relay();
    let mut args = vec![
        "relay".to_owned(),
        format!("--cert-file={TLS}/tls.crt"),
        format!("--key-file={TLS}/tls.key"),
        format!("--fan-out={fan_out}"),
        format!("--standby-listen-address=0.0.0.0:{STANDBY_PORT}"),
    ];
    args.extend(peers("shard", shard.clone(), shard.clone(), shards));
    args.extend(peers("shard", shard, standby, shards * standby_per_shard));
    // Relays need to know each other only where they make a tree; elsewhere scaling them would
    // restart them all for nothing.
    if shards > fan_out {
        args.extend(peers("relay", relay.clone(), relay, relays));
    }
    args
}

fn ordinals(count: i32) -> std::ops::Range<u32> {
    0..u32::try_from(count).unwrap_or_default()
}

fn template(
    cluster: &ValidatedCluster,
    names: &Names,
    component: &'static str,
    mut args: Vec<String>,
    digests: &Digests,
) -> PodTemplateSpec {
    let mut env = vec![pods::pod_field("POD_NAME", "metadata.name")];
    let mut name = "$(POD_NAME)".to_owned();
    if component == STANDBY_SHARD {
        env.push(pods::pod_field("POD_INDEX", &format!("metadata.labels['{POD_INDEX}']")));
        name = format!("{}-$(POD_INDEX)", names.scheduler_shard());
    }
    args.extend([
        format!("--kubeconfig={KUBECONFIG}/{COMPONENT_KUBECONFIG}"),
        format!("--name={name}"),
        format!("--listen-address=0.0.0.0:{SCHEDULER_PORT}"),
        format!("--trusted-ca-file={TLS}/ca.crt"),
        format!("--admin-listen-address=0.0.0.0:{ADMIN_PORT}"),
    ]);
    let mut template = Program {
        component,
        labels: labels::component(names, component),
        annotations: BTreeMap::from([(KEYS_DIGEST.to_owned(), digests.scheduler.clone())]),
        image: &cluster.images.scheduler,
        command: None,
        args,
        env,
        ports: if component == RELAY {
            &[(GRPC, SCHEDULER_PORT), (ADMIN, ADMIN_PORT), (STANDBY, STANDBY_PORT)]
        } else {
            &[(GRPC, SCHEDULER_PORT), (ADMIN, ADMIN_PORT)]
        },
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
    .template(cluster);
    if component == STANDBY_SHARD {
        let shard = labels::label_selector(&labels::component(names, SHARD));
        pods::keep_away(&mut template, shard, POD_INDEX);
    }
    template
}
