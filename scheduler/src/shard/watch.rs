//! Feeds a shard from the apiserver: nodes, pods on nodes, what these pods' volumes hang on, and the
//! truth about reservations whose time is up.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use megacluster_service::admin::Readiness;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::local::LocalShard;
use super::machine::ShardMachine;
use crate::core::directory::Key;
use crate::core::volumes::objects::{Attachment, Claim, Class, Limits, Volume};
use crate::core::volumes::storage::{Change, Kind, Object};
use crate::lean::LeanPod;
use crate::metrics::{Metrics, labels};
use crate::relay::bind::is_bound;
use crate::relay::lookup::key;

/// Objects in one page of a list. A page is read in one turn, in which the shard answers nobody.
pub(crate) const PAGE: u32 = 250;
/// Objects of a list that are taken over in one turn.
pub(crate) const AT_ONCE: u32 = 64;
/// How often reservations are looked through, and gauges set.
const TICK: Duration = Duration::from_secs(1);
/// Reservations asked about at once.
const CHECKS: usize = 16;
/// One question's time.
const CHECK: Duration = Duration::from_secs(5);

/// The shards of a process.
pub type Shards = Arc<[Arc<LocalShard>]>;

/// Starts the tasks that feed the shards until `token` is cancelled. One watch of a process feeds
/// all its shards. Where a relay is in the process, too, it has a watch of pods for both.
pub fn spawn(
    client: &Client,
    shards: &Shards,
    watches_pods: bool,
    readiness: &Readiness,
    metrics: &Metrics,
    token: &CancellationToken,
) {
    for resource in ["nodes", "pods"] {
        readiness.set(resource, false);
    }
    let nodes = watcher(Api::<Node>::all(client.clone()), config(""));
    let feed = Feed {
        shards: shards.clone(),
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        token: token.clone(),
    };
    tokio::spawn(feed.clone().run("nodes", nodes, to_each(node_event)));
    if watches_pods {
        // What has ended takes nothing, and shows up as deleted here when it ends.
        let assigned = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
        let pods = watcher(Api::<LeanPod>::all(client.clone()), config(assigned));
        tokio::spawn(feed.clone().run("pods", pods, to_each(pod_event)));
    }
    feed.volumes(client, "persistentvolumeclaims", Kind::Claim, |claim: &PersistentVolumeClaim| {
        Some(Object::Claim(Claim::of(claim)))
    });
    feed.volumes(client, "persistentvolumes", Kind::Volume, |volume: &PersistentVolume| {
        Some(Object::Volume(Volume::of(volume)))
    });
    feed.volumes(client, "storageclasses", Kind::Class, |class: &StorageClass| {
        Some(Object::Class(Class::of(class)))
    });
    feed.volumes(client, "csinodes", Kind::Limits, |node: &CSINode| {
        Limits::of(node).map(Object::Limits)
    });
    feed.volumes(client, "volumeattachments", Kind::Attachment, |one: &VolumeAttachment| {
        Attachment::of(one).map(Object::Attachment)
    });
    for shard in shards.iter() {
        tokio::spawn(expire(shard.clone(), client.clone(), metrics.clone(), token.clone()));
    }
}

fn config(fields: &str) -> watcher::Config {
    let config = watcher::Config::default().page_size(PAGE);
    if fields.is_empty() { config } else { config.fields(fields) }
}

#[derive(Clone)]
struct Feed {
    shards: Shards,
    readiness: Readiness,
    metrics: Metrics,
    token: CancellationToken,
}

impl Feed {
    /// Follows what volumes hang on.
    fn volumes<K>(
        &self,
        client: &Client,
        resource: &'static str,
        kind: Kind,
        read: fn(&K) -> Option<Object>,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        self.readiness.set(resource, false);
        let events = watcher(Api::<K>::all(client.clone()), config(""));
        tokio::spawn(self.clone().run(resource, events, volume_changes(kind, read)));
    }

    async fn run<K: Send + 'static>(
        self,
        resource: &'static str,
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
        mut take: impl FnMut(&[Arc<LocalShard>], Event<K>) + Send,
    ) {
        // The reflector's own back-off: 0.8 s doubled up to 30 s, with jitter.
        let mut events = std::pin::pin!(events.default_backoff());
        let mut taken = 0;
        loop {
            let event = tokio::select! {
                () = self.token.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    let done = matches!(event, Event::InitDone);
                    taken += u32::from(matches!(event, Event::InitApply(_)));
                    take(&self.shards, event);
                    // All of a page is there at once.
                    if taken == AT_ONCE {
                        taken = 0;
                        tokio::task::yield_now().await;
                    }
                    if done {
                        info!(resource, "list complete");
                        self.readiness.set(resource, true);
                    }
                }
                Some(Err(error)) => {
                    self.metrics
                        .watch_failures
                        .get_or_create(&labels([("resource", resource)]))
                        .inc();
                    warn!(resource, %error, "watch");
                }
                None => return,
            }
        }
    }
}

/// Tells each shard.
fn to_each<K>(take: fn(&mut ShardMachine, &Event<K>)) -> impl Fn(&[Arc<LocalShard>], Event<K>) {
    move |shards, event| {
        for shard in shards {
            take(&mut shard.lock(), &event);
        }
    }
}

/// Tells the shards of what volumes hang on; lists as a whole.
fn volume_changes<K: ResourceExt>(
    kind: Kind,
    read: fn(&K) -> Option<Object>,
) -> impl FnMut(&[Arc<LocalShard>], Event<K>) {
    let mut listed: Vec<(Key, Object)> = Vec::new();
    move |shards, event| {
        let change = match event {
            Event::Init => return listed.clear(),
            Event::InitApply(object) => {
                return listed.extend(read(&object).map(|read| (key(&object), read)));
            }
            Event::InitDone => Change::Replace(kind, std::mem::take(&mut listed)),
            Event::Apply(object) => Change::One(kind, key(&object), read(&object)),
            Event::Delete(object) => Change::One(kind, key(&object), None),
        };
        for shard in shards {
            shard.lock().volumes_changed(&change);
        }
    }
}

fn node_event(shard: &mut ShardMachine, event: &Event<Node>) {
    match event {
        Event::Init => shard.node_list_begins(),
        Event::InitApply(node) | Event::Apply(node) => shard.node_applied(node),
        Event::Delete(node) => {
            shard.node_deleted(node.metadata.name.as_deref().unwrap_or_default());
        }
        Event::InitDone => shard.node_list_ends(),
    }
}

/// Tells a shard of pods on nodes.
pub(crate) fn pod_event(shard: &mut ShardMachine, event: &Event<LeanPod>) {
    match event {
        Event::Init => shard.pod_list_begins(),
        Event::InitApply(LeanPod(pod)) | Event::Apply(LeanPod(pod)) => shard.pod_applied(pod),
        Event::Delete(LeanPod(pod)) => shard.pod_deleted(pod),
        Event::InitDone => shard.pod_list_ends(),
    }
}

/// Asks about reservations whose time is up.
async fn expire(
    shard: Arc<LocalShard>,
    client: Client,
    metrics: Metrics,
    token: CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        shard.observe();
        let due = shard.lock().due(shard.now());
        let (client, shard, metrics) = (&client, &shard, &metrics);
        futures::stream::iter(due)
            .for_each_concurrent(CHECKS, async |expiring| {
                let deadline = Instant::now() + CHECK;
                let bound = is_bound(client, &expiring.pod, &expiring.node, deadline).await;
                let result = match bound {
                    Some(true) => "bound",
                    Some(false) => "dropped",
                    None => "unknown",
                };
                info!(pod = %expiring.pod, node = %expiring.node, result, "reservation expired");
                let labels = labels([("shard", shard.name()), ("result", result)]);
                metrics.expired.get_or_create(&labels).inc();
                shard.lock().checked(shard.now(), &expiring, bound);
            })
            .await;
    }
}
