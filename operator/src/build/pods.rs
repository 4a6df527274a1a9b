//! What all pods of a control plane have in common: one program that is not root, can write
//! nowhere but where it is told to, has no token of the management cluster, and keeps away from
//! its like.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector,
    PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, ServiceAccount,
    TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{self, Labels};
use super::names::Names;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

/// The user and group of every image.
const NONROOT: i64 = 65532;

/// Read by owner and group: the volume's group is the pod's, its owner is root.
const SECRET_MODE: i32 = 0o440;

/// Annotation of pod templates: what a process reads only when it starts.
pub(super) const KEYS_DIGEST: &str = "megacluster.io/keys-digest";

/// Name of the port with probes and metrics.
pub(super) const ADMIN: &str = "admin";

/// A file tree in the container.
#[derive(Debug, Clone)]
pub(super) enum Mount {
    /// All entries of a Secret, or those named.
    Secret {
        volume: &'static str,
        secret: String,
        path: &'static str,
        entries: &'static [&'static str],
    },
    /// All entries of a ConfigMap.
    Config { volume: &'static str, config_map: String, path: &'static str },
    /// Scratch space at `/tmp` that goes with the pod.
    Scratch,
    /// A volume that the workload claims for each pod.
    Claim { volume: &'static str, path: &'static str },
}

/// Where and how the kubelet asks a program for its health.
#[derive(Debug, Clone)]
pub(super) struct Health {
    pub(super) scheme: &'static str,
    pub(super) port: &'static str,
    pub(super) live: &'static str,
    pub(super) ready: &'static str,
    /// How long a start may take, in seconds.
    pub(super) start_within: i32,
}

impl Health {
    /// The admin port of MegaCluster's own programs.
    pub(super) fn admin(start_within: i32) -> Self {
        Self { scheme: "HTTP", port: ADMIN, live: "/livez", ready: "/readyz", start_within }
    }
}

/// The container of a pod that does its work.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// Component: the names of the container and of the ServiceAccount.
    pub(super) component: &'static str,
    pub(super) labels: Labels,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) image: &'a str,
    /// For images whose entry point is not the program.
    pub(super) command: Option<&'static str>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<EnvVar>,
    pub(super) ports: &'a [(&'static str, u16)],
    pub(super) health: Health,
    pub(super) mounts: Vec<Mount>,
    pub(super) resources: &'a ResourceRequirements,
    /// Linux capabilities to keep.
    pub(super) capabilities: &'static [&'static str],
    /// From the first signal to the kill, in seconds.
    pub(super) grace: i64,
}

impl Program<'_> {
    pub(super) fn template(self, cluster: &ValidatedCluster) -> PodTemplateSpec {
        let names = Names::of(cluster);
        let selector = labels::label_selector(&self.labels);
        let spec = PodSpec {
            affinity: Some(apart(&self.labels)),
            automount_service_account_token: Some(false),
            containers: vec![self.container(cluster)],
            // A variable for each Service of the namespace is of no use here.
            enable_service_links: Some(false),
            image_pull_secrets: pull_secrets(cluster),
            security_context: Some(PodSecurityContext {
                fs_group: Some(NONROOT),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                run_as_group: Some(NONROOT),
                run_as_non_root: Some(true),
                run_as_user: Some(NONROOT),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            service_account_name: Some(names.child(service_account(self.component))),
            termination_grace_period_seconds: Some(self.grace),
            topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                label_selector: Some(selector),
                max_skew: 1,
                topology_key: "topology.kubernetes.io/zone".to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                ..TopologySpreadConstraint::default()
            }]),
            volumes: Some(self.mounts.iter().filter_map(Mount::volume).collect()),
            ..PodSpec::default()
        };
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                annotations: (!self.annotations.is_empty()).then_some(self.annotations),
                labels: Some(self.labels),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
        }
    }

    fn container(&self, cluster: &ValidatedCluster) -> Container {
        let Health { start_within, live, ready, .. } = self.health;
        Container {
            name: self.component.to_owned(),
            image: Some(self.image.to_owned()),
            image_pull_policy: Some(cluster.images.pull_policy.as_str().to_owned()),
            command: self.command.map(|command| vec![command.to_owned()]),
            args: Some(self.args.clone()),
            env: (!self.env.is_empty()).then(|| self.env.clone()),
            ports: Some(
                self.ports.iter().map(|(name, port)| container_port(name, *port)).collect(),
            ),
            startup_probe: Some(self.health.probe(live, 1, start_within)),
            liveness_probe: Some(self.health.probe(live, 10, 6)),
            readiness_probe: Some(self.health.probe(ready, 2, 3)),
            resources: Some(self.resources.clone()),
            security_context: Some(confined(self.capabilities)),
            volume_mounts: Some(self.mounts.iter().map(Mount::mount).collect()),
            ..Container::default()
        }
    }
}

impl Health {
    fn probe(&self, path: &str, period: i32, failures: i32) -> Probe {
        Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String(self.port.to_owned()),
                scheme: Some(self.scheme.to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period),
            timeout_seconds: Some(15),
            failure_threshold: Some(failures),
            ..Probe::default()
        }
    }
}

impl Mount {
    fn name(&self) -> &'static str {
        match self {
            Self::Secret { volume, .. }
            | Self::Config { volume, .. }
            | Self::Claim { volume, .. } => volume,
            Self::Scratch => "tmp",
        }
    }

    fn mount(&self) -> VolumeMount {
        let (path, read_only) = match self {
            Self::Secret { path, .. } | Self::Config { path, .. } => (*path, true),
            Self::Claim { path, .. } => (*path, false),
            Self::Scratch => ("/tmp", false),
        };
        VolumeMount {
            name: self.name().to_owned(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        }
    }

    fn volume(&self) -> Option<Volume> {
        let volume = Volume { name: self.name().to_owned(), ..Volume::default() };
        Some(match self {
            Self::Secret { secret, entries, .. } => Volume {
                secret: Some(SecretVolumeSource {
                    secret_name: Some(secret.clone()),
                    default_mode: Some(SECRET_MODE),
                    items: (!entries.is_empty())
                        .then(|| entries.iter().map(|entry| same_path(entry)).collect()),
                    optional: None,
                }),
                ..volume
            },
            Self::Config { config_map, .. } => Volume {
                config_map: Some(ConfigMapVolumeSource {
                    name: config_map.clone(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..volume
            },
            Self::Scratch => Volume {
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(Quantity("64Mi".to_owned())),
                    ..EmptyDirVolumeSource::default()
                }),
                ..volume
            },
            Self::Claim { .. } => return None,
        })
    }
}

fn same_path(entry: &str) -> KeyToPath {
    KeyToPath { key: entry.to_owned(), path: entry.to_owned(), mode: None }
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// What a container may: write nowhere, and no more than these Linux capabilities.
pub(super) fn confined(capabilities: &[&str]) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: (!capabilities.is_empty())
                .then(|| capabilities.iter().map(|name| (*name).to_owned()).collect()),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Prefers nodes that run none of the same pods.
fn apart(labels: &Labels) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        label_selector: Some(labels::label_selector(labels)),
                        topology_key: "kubernetes.io/hostname".to_owned(),
                        ..PodAffinityTerm::default()
                    },
                },
            ]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// Prefers nodes without a pod of `selector` that has the same value of the label `key`.
pub(super) fn keep_away(template: &mut PodTemplateSpec, selector: LabelSelector, key: &str) {
    let term = PodAffinityTerm {
        label_selector: Some(selector),
        match_label_keys: Some(vec![key.to_owned()]),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    template
        .spec
        .get_or_insert_default()
        .affinity
        .get_or_insert_default()
        .pod_anti_affinity
        .get_or_insert_default()
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .push(WeightedPodAffinityTerm { weight: 100, pod_affinity_term: term });
}

fn pull_secrets(cluster: &ValidatedCluster) -> Option<Vec<LocalObjectReference>> {
    let secrets = &cluster.images.pull_secrets;
    (!secrets.is_empty())
        .then(|| secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect())
}

/// An environment variable from a field of the pod.
pub(super) fn pod_field(name: &str, field: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: field.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// The ServiceAccount of a component; shards and relays share the scheduler's.
fn service_account(component: &str) -> &str {
    if component.starts_with("scheduler-") { "scheduler" } else { component }
}

/// Adds the ServiceAccount of a component. It has no token: nothing here talks to the management
/// cluster.
pub(super) fn add_service_account(
    cluster: &ValidatedCluster,
    component: &str,
    children: &mut Children,
) {
    let names = Names::of(cluster);
    let account = ServiceAccount {
        metadata: labels::metadata(&names, &names.child(component), component),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    children.add(cluster, Stage::Foundation, Lifetime::Owned, account);
}
