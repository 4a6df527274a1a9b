//! The store: one replica with a volume for its log.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::labels;
use super::names::{Names, STORE_PORT};
use super::network_policy::{self, From};
use super::pods::{self, ADMIN, Health, Mount, Program};
use super::{service, workload};
use crate::api::v1alpha1::DeletionPolicy;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

pub(super) const COMPONENT: &str = "store";

const ADMIN_PORT: u16 = 2381;
const CLIENT: &str = "client";
const VOLUME: &str = "data";
const MOUNT_PATH: &str = "/var/lib/megacluster-store";
const TLS: &str = "/etc/megacluster-store/tls";

/// Reading back a large log takes minutes; nothing is gained by a kill in the middle of it.
const START_WITHIN_SECONDS: i32 = 1800;

pub(super) fn add(cluster: &ValidatedCluster, children: &mut Children) {
    let names = Names::of(cluster);
    let name = names.store();
    let labels = labels::component(&names, COMPONENT);
    pods::add_service_account(cluster, COMPONENT, children);
    let mut allowed = vec![
        (From::Component(super::apiserver::COMPONENT), STORE_PORT),
        (From::Anyone, ADMIN_PORT),
    ];
    if !cluster.watch_cache.cached.is_empty() {
        allowed.push((From::Component(super::watchcache::COMPONENT), STORE_PORT));
    }
    network_policy::add(cluster, &name, COMPONENT, &allowed, children);
    let ports = vec![service::port(CLIENT, STORE_PORT), service::port(ADMIN, ADMIN_PORT)];
    let service = service::headless(&names, &name, labels, ports, true);
    children.add(cluster, Stage::Foundation, Lifetime::Owned, service);
    children.add(cluster, Stage::Store, Lifetime::Owned, stateful_set(cluster, &names));
}

fn stateful_set(cluster: &ValidatedCluster, names: &Names) -> StatefulSet {
    let name = names.store();
    let labels = labels::component(names, COMPONENT);
    let template = Program {
        component: COMPONENT,
        labels: labels.clone(),
        annotations: BTreeMap::new(),
        image: &cluster.images.store,
        command: None,
        args: args(cluster, names),
        env: vec![pods::pod_field("POD_NAME", "metadata.name")],
        ports: &[(CLIENT, STORE_PORT), (ADMIN, ADMIN_PORT)],
        health: Health::admin(START_WITHIN_SECONDS),
        mounts: vec![
            Mount::Claim { volume: VOLUME, path: MOUNT_PATH },
            Mount::Secret {
                volume: "tls",
                secret: names.child("store-tls"),
                path: TLS,
                entries: &[],
            },
        ],
        resources: &cluster.store.resources,
        capabilities: &[],
        grace: 60,
    }
    .template(cluster);
    let when_deleted = match cluster.deletion_policy {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    StatefulSet {
        metadata: labels::labelled(names, &name, labels.clone()),
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(name),
            // Replicas of a store find each other, so that none may wait for another to be ready.
            pod_management_policy: Some("Parallel".to_owned()),
            // Carries out the deletion policy: claims that go with the cluster get an owner
            // reference from the StatefulSet's controller, others have none.
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(when_deleted.to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                },
            ),
            revision_history_limit: Some(workload::REVISIONS),
            selector: labels::label_selector(&labels),
            template,
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: None,
            }),
            volume_claim_templates: Some(vec![claim(cluster, labels::selector(&labels))]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn args(cluster: &ValidatedCluster, names: &Names) -> Vec<String> {
    let durability = &cluster.store.durability;
    let mut args = vec![
        "--name=$(POD_NAME)".to_owned(),
        // Beside what the volume's file system may keep in its root, such as lost+found.
        format!("--data-dir={MOUNT_PATH}/data"),
        format!("--listen-client-urls=https://0.0.0.0:{STORE_PORT}"),
        format!(
            "--advertise-client-urls=https://$(POD_NAME).{}:{STORE_PORT}",
            names.service_dns(&names.store())
        ),
        format!("--cert-file={TLS}/tls.crt"),
        format!("--key-file={TLS}/tls.key"),
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={TLS}/ca.crt"),
        format!("--listen-metrics-urls=http://0.0.0.0:{ADMIN_PORT}"),
        "--watch-progress-notify-interval=5s".to_owned(),
        format!("--durability={}", durability.default.as_flag()),
    ];
    args.extend(
        durability
            .rules
            .iter()
            .map(|rule| format!("--durability-rule={}={}", rule.prefix, rule.mode.as_flag())),
    );
    args
}

fn claim(cluster: &ValidatedCluster, labels: labels::Labels) -> PersistentVolumeClaim {
    let size = BTreeMap::from([("storage".to_owned(), cluster.store.size.clone())]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(size),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: cluster.store.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
