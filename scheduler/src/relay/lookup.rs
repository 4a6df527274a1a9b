//! The watches of what pods are looked up in: namespaces, Services and owners with selectors,
//! budgets, and what volumes hang on. Only what is read of them is kept.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pods::Intake;
use crate::core::directory::{Change, Key, Kind, Value};
use crate::core::labels::{Labels, Selector};
use crate::core::pod::OwnerKind;
use crate::core::preempt::Budget;
use crate::core::volumes::objects::{Capacity, Claim, Class, Driver, Limits, Volume};
use crate::core::volumes::storage::{self, Object};
use crate::metrics::{Metrics, labels};

/// Objects in one page of a list.
const PAGE: u32 = 1000;

/// What a watch shows of a kind of object.
#[derive(Clone, Debug)]
pub enum News<V> {
    /// All there are.
    All(Vec<(Key, V)>),
    /// One of them; `None`: it is gone, or of no use.
    One(Key, Option<V>),
}

/// Follows the watches into `sink` until `token` is cancelled. A full sink holds them back.
pub fn spawn(
    client: &Client,
    sink: &mpsc::Sender<Intake>,
    metrics: &Metrics,
    token: &CancellationToken,
) {
    let follower = || Follower {
        client: client.clone(),
        sink: sink.clone(),
        metrics: metrics.clone(),
        token: token.clone(),
    };
    tokio::spawn(follower().run(
        "namespaces",
        directory(Kind::Namespace),
        |namespace: &Namespace| Some(Value::Labels(Labels::of(namespace.metadata.labels.as_ref()))),
    ));
    tokio::spawn(follower().run("services", directory(Kind::Service), |service: &Service| {
        let selector = service.spec.as_ref()?.selector.as_ref()?;
        Some(Value::Labels(Labels::of(Some(selector))))
    }));
    let kind = Kind::Owner(OwnerKind::ReplicationController);
    tokio::spawn(follower().run(
        "replicationcontrollers",
        directory(kind),
        |rc: &ReplicationController| {
            Some(Value::Labels(Labels::of(rc.spec.as_ref()?.selector.as_ref())))
        },
    ));
    let kind = Kind::Owner(OwnerKind::ReplicaSet);
    tokio::spawn(follower().run("replicasets", directory(kind), |set: &ReplicaSet| {
        Some(Value::Selector(Selector::of(Some(&set.spec.as_ref()?.selector)).ok()?))
    }));
    let kind = Kind::Owner(OwnerKind::StatefulSet);
    tokio::spawn(follower().run("statefulsets", directory(kind), |set: &StatefulSet| {
        Some(Value::Selector(Selector::of(Some(&set.spec.as_ref()?.selector)).ok()?))
    }));
    tokio::spawn(follower().run("poddisruptionbudgets", Intake::Budgets, Budget::of));
    tokio::spawn(follower().run(
        "persistentvolumeclaims",
        stored(storage::Kind::Claim),
        |claim: &PersistentVolumeClaim| Some(Object::Claim(Claim::of(claim))),
    ));
    tokio::spawn(follower().run(
        "persistentvolumes",
        stored(storage::Kind::Volume),
        |volume: &PersistentVolume| Some(Object::Volume(Volume::of(volume))),
    ));
    tokio::spawn(follower().run(
        "storageclasses",
        stored(storage::Kind::Class),
        |class: &StorageClass| Some(Object::Class(Class::of(class))),
    ));
    tokio::spawn(follower().run(
        "csidrivers",
        stored(storage::Kind::Driver),
        |driver: &CSIDriver| Some(Object::Driver(Driver::of(driver))),
    ));
    tokio::spawn(follower().run(
        "csistoragecapacities",
        stored(storage::Kind::Capacity),
        |capacity: &CSIStorageCapacity| Capacity::of(capacity).map(Object::Capacity),
    ));
    tokio::spawn(follower().run("csinodes", stored(storage::Kind::Limits), |node: &CSINode| {
        Limits::of(node).map(Object::Limits)
    }));
}

fn directory(kind: Kind) -> impl Fn(News<Value>) -> Intake + Send + 'static {
    move |news| {
        Intake::Directory(match news {
            News::All(listed) => Change::Replace(kind, listed),
            News::One(key, value) => Change::One(kind, key, value),
        })
    }
}

fn stored(kind: storage::Kind) -> impl Fn(News<Object>) -> Intake + Send + 'static {
    move |news| {
        Intake::Storage(Box::new(match news {
            News::All(listed) => storage::Change::Replace(kind, listed),
            News::One(key, object) => storage::Change::One(kind, key, object),
        }))
    }
}

struct Follower {
    client: Client,
    sink: mpsc::Sender<Intake>,
    metrics: Metrics,
    token: CancellationToken,
}

impl Follower {
    async fn run<K, V: Send>(
        self,
        resource: &'static str,
        tell: impl Fn(News<V>) -> Intake,
        read: fn(&K) -> Option<V>,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let config = watcher::Config::default().page_size(PAGE);
        let events = watcher(Api::<K>::all(self.client), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut listed: Vec<(Key, V)> = Vec::new();
        loop {
            let event = tokio::select! {
                () = self.token.cancelled() => return,
                event = events.next() => event,
            };
            let news = match event {
                Some(Ok(Event::Init)) => {
                    listed.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    listed.extend(read(&object).map(|value| (key(&object), value)));
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    info!(resource, "list complete");
                    News::All(std::mem::take(&mut listed))
                }
                Some(Ok(Event::Apply(object))) => News::One(key(&object), read(&object)),
                Some(Ok(Event::Delete(object))) => News::One(key(&object), None),
                Some(Err(error)) => {
                    let labels = labels([("resource", resource)]);
                    self.metrics.watch_failures.get_or_create(&labels).inc();
                    warn!(resource, %error, "watch");
                    continue;
                }
                None => return,
            };
            if self.sink.send(tell(news)).await.is_err() {
                return;
            }
        }
    }
}

/// An object's namespace and name.
pub(crate) fn key<K: ResourceExt>(object: &K) -> Key {
    let namespace: Arc<str> = object.namespace().unwrap_or_default().into();
    (namespace, object.name_any().into())
}
