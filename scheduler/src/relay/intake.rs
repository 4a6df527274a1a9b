//! The watch of pods that wait for this scheduler. Where shards are in the process, too, it is of all
//! pods and tells both: each bound pod then comes twice, as made and as bound, and not a third time
//! because it waits no more.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use megacluster_service::admin::Readiness;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pods::{Intake, Waiting, pod_id};
use crate::core::class::Classes;
use crate::core::maps::{HashMap, HashSet};
use crate::core::pod::{PodRequest, PodUid};
use crate::core::policy::{DEFAULT_PROFILE, Policy};
use crate::core::queue::PendingPod;
use crate::lean::LeanPod;
use crate::metrics::{Metrics, labels};
use crate::shard::watch::{self as shard, AT_ONCE, Shards, pod_event};

/// Objects in one page of a list.
const PAGE: u32 = 1000;

/// Who hears of pods.
#[derive(Debug)]
pub struct Hearers {
    /// The queue. When it is full it holds the watch back.
    pub sink: mpsc::Sender<Intake>,
    /// The shards of this process, if any.
    pub shards: Shards,
    /// `/readyz`, for the shards.
    pub readiness: Readiness,
}

/// Follows the watch until `token` is cancelled; begins with a new list when `list` says so.
pub async fn run(
    client: Client,
    profiles: Vec<Arc<Policy>>,
    hearers: Hearers,
    list: Arc<Notify>,
    metrics: Metrics,
    token: CancellationToken,
) {
    let config = config(&profiles, !hearers.shards.is_empty());
    let begin =
        || Box::pin(watcher(Api::<LeanPod>::all(client.clone()), config.clone()).default_backoff());
    let mut events = begin();
    let mut splitter = Splitter { compiler: Compiler::of_profiles(profiles), waiting: None };
    if !hearers.shards.is_empty() {
        splitter.waiting = Some(HashSet::default());
    }
    let mut listed = 0;
    loop {
        let event = tokio::select! {
            () = token.cancelled() => return,
            () = list.notified() => {
                info!("there is room for pods that were left out: they are listed again");
                events = begin();
                continue;
            }
            event = events.next() => event,
        };
        let event = match event {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                let labels = labels([("resource", "waiting pods")]);
                metrics.watch_failures.get_or_create(&labels).inc();
                warn!(resource = "waiting pods", %error, "watch");
                continue;
            }
            None => return,
        };
        for shard in hearers.shards.iter() {
            pod_event(&mut shard.lock(), &event);
        }
        let intake = splitter.intake(&event);
        match event {
            Event::InitApply(_) => {
                listed += 1;
                // All of a page is there at once.
                if listed == AT_ONCE {
                    listed = 0;
                    tokio::task::yield_now().await;
                }
            }
            Event::InitDone => {
                info!(resource = "waiting pods", "list complete");
                if !hearers.shards.is_empty() {
                    hearers.readiness.set("pods", true);
                }
            }
            _ => {}
        }
        if let Some(intake) = intake
            && hearers.sink.send(intake).await.is_err()
        {
            return;
        }
    }
}

/// Which pods are watched: those that wait for us, or all that may be of use to shards.
fn config(profiles: &[Arc<Policy>], shards: bool) -> watcher::Config {
    let mut fields = "status.phase!=Succeeded,status.phase!=Failed".to_owned();
    if shards {
        return watcher::Config::default().page_size(shard::PAGE).fields(&fields);
    }
    fields.push_str(",spec.nodeName=");
    // The API selects by one name at most.
    if let [only] = profiles {
        fields.push_str(",spec.schedulerName=");
        fields.push_str(&only.profile);
    }
    watcher::Config::default().page_size(PAGE).fields(&fields)
}

/// Tells what the queue has to know.
struct Splitter {
    compiler: Compiler,
    /// Where pods on nodes are shown as well: the pods that were shown to wait for us, so that the
    /// queue hears nothing of the others.
    waiting: Option<HashSet<PodUid>>,
}

impl Splitter {
    fn intake(&mut self, event: &Event<LeanPod>) -> Option<Intake> {
        match event {
            Event::Init => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.clear();
                }
                Some(Intake::Begin)
            }
            Event::InitDone => Some(Intake::End),
            Event::InitApply(LeanPod(pod)) | Event::Apply(LeanPod(pod)) => {
                if is_assigned(pod) {
                    return self.gone(pod);
                }
                let waiting = self.compiler.waiting_for_us(pod)?;
                if let Some(known) = &mut self.waiting {
                    known.insert(waiting.pending.uid);
                }
                Some(Intake::Applied(Box::new(waiting)))
            }
            Event::Delete(LeanPod(pod)) => self.gone(pod),
        }
    }

    fn gone(&mut self, pod: &Pod) -> Option<Intake> {
        let uid = PodUid::of(pod);
        let known = self.waiting.as_mut().is_none_or(|waiting| waiting.remove(&uid));
        known.then_some(Intake::Gone(uid))
    }
}

fn is_assigned(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| !node.is_empty())
}

/// Since Kubernetes 1.35 the versions of one resource are numbers that grow.
pub(super) fn version(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_ref()?.parse().ok()
}

/// Turns pods into what the queue takes; what pods have in common is kept once.
#[derive(Debug, Default)]
pub struct Compiler {
    /// The profile of pods that name none of `profiles`.
    policy: Arc<Policy>,
    profiles: HashMap<Arc<str>, Arc<Policy>>,
    classes: Classes,
    namespaces: HashSet<Arc<str>>,
}

impl Compiler {
    /// For pods of a profile.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self { policy, ..Self::default() }
    }

    /// For pods of several profiles.
    #[must_use]
    pub fn of_profiles(profiles: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let by_name = |policy: Arc<Policy>| (policy.profile.clone(), policy);
        Self { profiles: profiles.into_iter().map(by_name).collect(), ..Self::default() }
    }

    /// Reads a pod, if it names one of the profiles.
    pub fn waiting_for_us(&mut self, pod: &Pod) -> Option<Waiting> {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        self.profiles.contains_key(name.unwrap_or(DEFAULT_PROFILE)).then(|| self.waiting(pod))
    }

    /// Reads a pod.
    pub fn waiting(&mut self, pod: &Pod) -> Waiting {
        let meta = &pod.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = self.namespace(meta.namespace.as_deref().unwrap_or_default());
        let id = pod_id(meta.uid.as_deref().unwrap_or_default(), namespace.clone(), name);
        let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let policy = self.profiles.get(scheduler.unwrap_or(DEFAULT_PROFILE));
        let policy = policy.unwrap_or(&self.policy);
        let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let condition = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Waiting {
            pending: PendingPod {
                uid: PodUid::of(pod),
                namespace,
                name: id.name.clone(),
                gates: gates.into_iter().flatten().map(|gate| gate.name.clone()).collect(),
                request: self.classes.intern(PodRequest::compile(pod).under(policy)),
            },
            id,
            generation: meta.generation.unwrap_or_default(),
            condition: condition.map(|found| (text(&found.reason), text(&found.message))),
            deleting: meta.deletion_timestamp.is_some(),
            nominated: nominated.filter(|node| !node.is_empty()).map(Arc::from),
            version: version(pod).unwrap_or_default(),
        }
    }

    fn namespace(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(name) {
            return known.clone();
        }
        // Namespaces come and go; the set starts anew before it is large.
        if self.namespaces.len() >= 65_536 {
            self.namespaces.clear();
        }
        let fresh: Arc<str> = name.into();
        self.namespaces.insert(fresh.clone());
        fresh
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(number: u8, node: Option<&str>, scheduler: &str) -> LeanPod {
        let uid = format!("00000000-0000-0000-0000-0000000000{number:02}");
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": uid},
            "spec": {"nodeName": node, "schedulerName": scheduler, "containers": []},
        });
        LeanPod(Box::new(serde_json::from_value(pod).unwrap_or_default()))
    }

    fn splitter(shards: bool) -> Splitter {
        Splitter {
            compiler: Compiler::of_profiles([Arc::new(Policy::default())]),
            waiting: shards.then(HashSet::default),
        }
    }

    fn told(splitter: &mut Splitter, event: &Event<LeanPod>) -> &'static str {
        match splitter.intake(event) {
            Some(Intake::Begin) => "begin",
            Some(Intake::Applied(_)) => "waits",
            Some(Intake::Gone(_)) => "gone",
            Some(Intake::End) => "end",
            Some(_) => "something else",
            None => "nothing",
        }
    }

    #[test]
    fn of_all_pods_the_queue_hears_of_those_that_wait_for_it() {
        let mut splitter = splitter(true);
        let mut tells = |event| told(&mut splitter, &event);
        let ours = |node| pod(1, node, DEFAULT_PROFILE);
        assert_eq!(tells(Event::Apply(ours(None))), "waits");
        assert_eq!(tells(Event::Apply(ours(None))), "waits");
        assert_eq!(tells(Event::Apply(ours(Some("a")))), "gone");
        assert_eq!(tells(Event::Apply(ours(Some("a")))), "nothing");
        assert_eq!(tells(Event::Delete(ours(Some("a")))), "nothing");
        assert_eq!(tells(Event::Apply(ours(None))), "waits");
        assert_eq!(tells(Event::Delete(ours(None))), "gone");
        let theirs = |node| pod(2, node, "theirs");
        assert_eq!(tells(Event::Apply(theirs(None))), "nothing");
        assert_eq!(tells(Event::Apply(theirs(Some("a")))), "nothing");
        assert_eq!(tells(Event::Delete(theirs(Some("a")))), "nothing");
    }

    #[test]
    fn a_list_says_what_waits_anew() {
        let mut splitter = splitter(true);
        let mut tells = |event| told(&mut splitter, &event);
        assert_eq!(tells(Event::Apply(pod(1, None, DEFAULT_PROFILE))), "waits");
        assert_eq!(tells(Event::Init), "begin");
        // The end of the list says to the queue that it waits no more.
        assert_eq!(tells(Event::InitApply(pod(1, Some("a"), DEFAULT_PROFILE))), "nothing");
        assert_eq!(tells(Event::InitApply(pod(2, None, DEFAULT_PROFILE))), "waits");
        assert_eq!(tells(Event::InitDone), "end");
        assert_eq!(tells(Event::Apply(pod(2, Some("a"), DEFAULT_PROFILE))), "gone");
    }

    #[test]
    fn where_only_waiting_pods_are_watched_each_that_leaves_is_gone() {
        let mut splitter = splitter(false);
        assert_eq!(told(&mut splitter, &Event::Delete(pod(1, Some("a"), ""))), "gone");
        assert_eq!(told(&mut splitter, &Event::Delete(pod(2, None, ""))), "gone");
    }

    #[test]
    fn shards_need_all_pods_and_a_relay_those_that_wait() {
        let ours = [Arc::new(Policy::default())];
        let fields = |shards| config(&ours, shards).field_selector.unwrap_or_default();
        assert_eq!(fields(true), "status.phase!=Succeeded,status.phase!=Failed");
        assert!(fields(false).ends_with(",spec.nodeName=,spec.schedulerName=default-scheduler"));
    }
}
