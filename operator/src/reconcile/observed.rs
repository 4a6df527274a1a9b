//! The children as they are in the management cluster, and how far their rollouts are.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    build::names::Names,
    children::Object,
    validate::{Facts, Part, ValidatedCluster},
};

/// Kind and name of a child; its namespace is its MegaCluster's.
pub type ObjectKey = (&'static str, String);

/// The children of one MegaCluster as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    objects: BTreeMap<ObjectKey, Object>,
}

impl FromIterator<Object> for Observed {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Self {
        let keyed = objects.into_iter().map(|object| (key(&object), object));
        Self { objects: keyed.collect() }
    }
}

/// The key of an object.
#[must_use]
pub fn key(object: &Object) -> ObjectKey {
    (object.kind(), object.name().to_owned())
}

impl Observed {
    /// The child of this kind and name.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// All of them, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Object)> {
        self.objects.iter()
    }

    /// Takes note of an object as the API has just returned it.
    pub fn insert(&mut self, object: Object) {
        self.objects.insert(key(&object), object);
    }

    /// Takes note that an object is gone.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }

    /// The Secrets, by name.
    #[must_use]
    pub fn secrets(&self) -> BTreeMap<String, Secret> {
        self.objects
            .values()
            .filter_map(|object| match object {
                Object::Secret(secret) => Some((object.name().to_owned(), secret.clone())),
                _ => None,
            })
            .collect()
    }

    /// The Service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        match self.objects.get(&("Service", name.to_owned()))? {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    /// What the management cluster decided about the Service `name` in front of a cluster.
    #[must_use]
    pub fn facts(&self, name: &str) -> Facts {
        let Some(service) = self.service(name) else { return Facts::default() };
        let spec = service.spec.as_ref();
        let address = spec.and_then(|spec| spec.cluster_ip.as_deref());
        let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let ingress = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref()?.first());
        Facts {
            endpoint_cluster_ip: address.and_then(|address| address.parse().ok()),
            load_balancer: ingress.and_then(|i| i.hostname.clone().or_else(|| i.ip.clone())),
            assigned_node_port: ports
                .first()
                .and_then(|port| port.node_port)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0),
        }
    }

    /// How far the rollout of a workload is; `None` if there is no such workload.
    #[must_use]
    pub fn rollout(&self, kind: &'static str, name: &str) -> Option<Rollout> {
        match self.objects.get(&(kind, name.to_owned()))? {
            Object::Deployment(deployment) => Some(Rollout::of_deployment(deployment)),
            Object::StatefulSet(set) => Some(Rollout::of_stateful_set(set)),
            _ => None,
        }
    }

    /// The rollouts of the workloads of `cluster`, by component.
    #[must_use]
    pub fn rollouts(&self, cluster: &ValidatedCluster) -> Rollouts {
        let name = &cluster.name;
        let set = |suffix: &str| self.rollout("StatefulSet", &format!("{name}-{suffix}"));
        let deployment = |suffix: &str| self.rollout("Deployment", &format!("{name}-{suffix}"));
        Rollouts {
            store: set("store"),
            pools: cluster
                .api_servers
                .pools
                .iter()
                .map(|pool| (pool.name.clone(), deployment(&format!("apiserver-{}", pool.name))))
                .collect(),
            front_doors: cluster
                .watch_cache
                .parts()
                .map(|part| {
                    let name = Names::of(cluster).watchcache_part(part);
                    (part, self.rollout("Deployment", &name))
                })
                .collect(),
            controller_manager: deployment("controller-manager"),
            shards: set("scheduler-shard"),
            shard_standbys: set("scheduler-standby"),
            relays: set("scheduler-relay"),
        }
    }
}

/// The rollouts of a cluster's workloads; `None` where there is no such workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollouts {
    /// The store.
    pub store: Option<Rollout>,
    /// The apiserver pools by name, the default pool first.
    pub pools: Vec<(String, Option<Rollout>)>,
    /// The front doors of each part, the only one if they are not divided.
    pub front_doors: Vec<(Part, Option<Rollout>)>,
    /// The controller manager.
    pub controller_manager: Option<Rollout>,
    /// The scheduler's shards.
    pub shards: Option<Rollout>,
    /// The standbys of the scheduler's shards.
    pub shard_standbys: Option<Rollout>,
    /// The scheduler's relays.
    pub relays: Option<Rollout>,
}

impl Rollouts {
    /// Whether a front door is there that answers: whichever it is, it answers everything.
    #[must_use]
    pub fn front_door_answers(&self) -> bool {
        self.front_doors.iter().any(|(_, door)| door.is_some_and(|door| door.ready > 0))
    }

    /// Whether all front doors are as they should be.
    #[must_use]
    pub fn front_door_is_done(&self) -> bool {
        self.front_doors.iter().all(|(_, door)| door.is_some_and(|door| door.is_done()))
    }
}

/// How far the rollout of one workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods that its spec asks for.
    pub desired: i32,
    /// Pods that there are, of any template.
    pub existing: i32,
    /// Pods that are ready, of any template.
    pub ready: i32,
    /// Pods of the latest template.
    pub updated: i32,
    /// Whether its controller has seen the latest spec, and it is not being deleted.
    pub observed: bool,
}

fn seen(metadata: &ObjectMeta, generation: Option<i64>) -> bool {
    generation >= metadata.generation && metadata.deletion_timestamp.is_none()
}

impl Rollout {
    fn of_deployment(deployment: &Deployment) -> Self {
        let status = deployment.status.as_ref();
        let count = |read: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| {
            status.and_then(read).unwrap_or(0)
        };
        Self {
            desired: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            existing: count(|s| s.replicas),
            ready: count(|s| s.ready_replicas),
            updated: count(|s| s.updated_replicas),
            observed: seen(&deployment.metadata, status.and_then(|s| s.observed_generation)),
        }
    }

    fn of_stateful_set(set: &StatefulSet) -> Self {
        let status = set.status.as_ref();
        let current = status.and_then(|s| s.current_revision.as_deref());
        let update = status.and_then(|s| s.update_revision.as_deref());
        let existing = status.map_or(0, |s| s.replicas);
        let updated = status.and_then(|s| s.updated_replicas).unwrap_or(0);
        Self {
            desired: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            existing,
            ready: status.and_then(|s| s.ready_replicas).unwrap_or(0),
            // The controller clears updatedReplicas once a rollout is over (KEP-961 and
            // pkg/controller/statefulset/stateful_set_control.go, completeRollingUpdate).
            updated: if current == update { existing } else { updated },
            observed: seen(&set.metadata, status.and_then(|s| s.observed_generation)),
        }
    }

    /// Every wanted pod is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready >= self.desired
    }

    /// Every wanted pod is of the latest template and ready, and no older one is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.observed
            && self.updated >= self.desired
            && self.existing <= self.desired
            && self.ready >= self.desired
    }
}
