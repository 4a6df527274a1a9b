//! The objects that a MegaCluster consists of: what `build` returns and `apply` takes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    api::{FIELD_MANAGER, LABEL_NAME, v1alpha1::DeletionPolicy},
    validate::ValidatedCluster,
};

/// When a child is applied: in this order, and in an upgrade a workload waits until those of the
/// earlier stages are rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Keys and certificates, one after the other: a leaf must never exist without what signed it.
    Secrets,
    /// Configuration, Services, policies, budgets: what needs no rollout.
    Foundation,
    /// The store.
    Store,
    /// The kube-apiservers.
    ApiServers,
    /// The front door.
    FrontDoor,
    /// The controller manager.
    ControllerManager,
    /// Standbys of the scheduler's shards.
    SchedulerStandbys,
    /// The scheduler's shards.
    SchedulerShards,
    /// The scheduler's relays.
    SchedulerRelays,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 9] = [
        Self::Secrets,
        Self::Foundation,
        Self::Store,
        Self::ApiServers,
        Self::FrontDoor,
        Self::ControllerManager,
        Self::SchedulerStandbys,
        Self::SchedulerShards,
        Self::SchedulerRelays,
    ];
}

/// What becomes of a child when its MegaCluster is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It goes with its MegaCluster: it carries an owner reference.
    Owned,
    /// `deletionPolicy` decides: with `Delete` it carries an owner reference, with `Retain` none.
    ByDeletionPolicy,
}

/// A child of any kind that a MegaCluster has.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Secret.
    Secret(Secret),
    /// A ConfigMap.
    ConfigMap(ConfigMap),
    /// A ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// A Service.
    Service(Box<Service>),
    /// A NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// A PodDisruptionBudget.
    PodDisruptionBudget(PodDisruptionBudget),
    /// A StatefulSet.
    StatefulSet(Box<StatefulSet>),
    /// A Deployment.
    Deployment(Box<Deployment>),
}

macro_rules! object_from {
    ($($variant:ident($type:ty) $boxed:ident),+ $(,)?) => {$(
        impl From<$type> for Object {
            fn from(object: $type) -> Self {
                object_from!(@wrap $variant object $boxed)
            }
        }
    )+};
    (@wrap $variant:ident $object:ident plain) => { Self::$variant($object) };
    (@wrap $variant:ident $object:ident boxed) => { Self::$variant(Box::new($object)) };
}

object_from! {
    Secret(Secret) plain,
    ConfigMap(ConfigMap) plain,
    ServiceAccount(ServiceAccount) plain,
    Service(Service) boxed,
    NetworkPolicy(NetworkPolicy) plain,
    PodDisruptionBudget(PodDisruptionBudget) plain,
    StatefulSet(StatefulSet) boxed,
    Deployment(Deployment) boxed,
}

impl Object {
    /// The object's metadata.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Secret(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::NetworkPolicy(object) => &object.metadata,
            Self::PodDisruptionBudget(object) => &object.metadata,
            Self::StatefulSet(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Secret(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::ServiceAccount(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::NetworkPolicy(object) => &mut object.metadata,
            Self::PodDisruptionBudget(object) => &mut object.metadata,
            Self::StatefulSet(object) => &mut object.metadata,
            Self::Deployment(object) => &mut object.metadata,
        }
    }

    /// The object's kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Secret(_) => "Secret",
            Self::ConfigMap(_) => "ConfigMap",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::NetworkPolicy(_) => "NetworkPolicy",
            Self::PodDisruptionBudget(_) => "PodDisruptionBudget",
            Self::StatefulSet(_) => "StatefulSet",
            Self::Deployment(_) => "Deployment",
        }
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }
}

/// A child and how it is handled.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// When it is applied.
    pub stage: Stage,
    /// What becomes of it in the end.
    pub lifetime: Lifetime,
    /// It must not exist yet, and is not overwritten if it does after all: a new authority.
    pub create_only: bool,
    /// The object.
    pub object: Object,
}

/// All children of a MegaCluster, ordered by stage and, within one, as they were added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Children {
    list: Vec<Child>,
}

impl Children {
    /// Adds a child. Its namespace, the labels that every child has and, if it is
    /// [`Lifetime::Owned`], its owner reference are set here; of the metadata the caller gives the
    /// name and what else is particular to it.
    pub fn add(
        &mut self,
        cluster: &ValidatedCluster,
        stage: Stage,
        lifetime: Lifetime,
        object: impl Into<Object>,
    ) {
        self.insert(cluster, stage, lifetime, object.into(), false);
    }

    /// Adds a Secret of keys; `create_only` if it must not replace another.
    pub fn add_keys(
        &mut self,
        cluster: &ValidatedCluster,
        lifetime: Lifetime,
        secret: Secret,
        create_only: bool,
    ) {
        self.insert(cluster, Stage::Secrets, lifetime, secret.into(), create_only);
    }

    fn insert(
        &mut self,
        cluster: &ValidatedCluster,
        stage: Stage,
        lifetime: Lifetime,
        mut object: Object,
        create_only: bool,
    ) {
        let metadata = object.metadata_mut();
        metadata.namespace = Some(cluster.namespace.clone());
        metadata.labels.get_or_insert_default().extend(common_labels(&cluster.name));
        let owned = match lifetime {
            Lifetime::Owned => true,
            Lifetime::ByDeletionPolicy => cluster.deletion_policy == DeletionPolicy::Delete,
        };
        metadata.owner_references = owned.then(|| vec![cluster.owner.clone()]);
        let at = self.list.partition_point(|child| child.stage <= stage);
        self.list.insert(at, Child { stage, lifetime, create_only, object });
    }

    /// The children in the order they are applied in.
    pub fn iter(&self) -> impl Iterator<Item = &Child> {
        self.list.iter()
    }

    /// The child of a kind and name.
    #[must_use]
    pub fn get(&self, kind: &str, name: &str) -> Option<&Object> {
        self.iter()
            .map(|child| &child.object)
            .find(|object| object.kind() == kind && object.name() == name)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// The labels that every child of a MegaCluster has, and that no object of anyone else has.
#[must_use]
pub fn common_labels(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
        (LABEL_NAME.to_owned(), cluster.to_owned()),
    ])
}
