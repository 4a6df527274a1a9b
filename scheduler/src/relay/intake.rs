//! The watch of pods that wait for this scheduler.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
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

/// Objects in one page of a list.
const PAGE: u32 = 1000;

/// Follows the watch into `sink` until `token` is cancelled; begins with a new list when `list` says
/// so. A full sink holds the watch back.
pub async fn run(
    client: Client,
    profiles: Vec<Arc<Policy>>,
    sink: mpsc::Sender<Intake>,
    list: Arc<Notify>,
    metrics: Metrics,
    token: CancellationToken,
) {
    let mut fields = "spec.nodeName=,status.phase!=Succeeded,status.phase!=Failed".to_owned();
    // The API selects by one name at most.
    if let [only] = profiles.as_slice() {
        fields.push_str(",spec.schedulerName=");
        fields.push_str(&only.profile);
    }
    let config = watcher::Config::default().page_size(PAGE).fields(&fields);
    let begin =
        || Box::pin(watcher(Api::<LeanPod>::all(client.clone()), config.clone()).default_backoff());
    let mut events = begin();
    let mut compiler = Compiler::of_profiles(profiles);
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
        let intake = match event {
            Some(Ok(Event::Init)) => Intake::Begin,
            Some(Ok(Event::InitDone)) => {
                info!(resource = "waiting pods", "list complete");
                Intake::End
            }
            Some(Ok(Event::InitApply(LeanPod(pod)) | Event::Apply(LeanPod(pod)))) => {
                let Some(waiting) = compiler.waiting_for_us(&pod) else { continue };
                Intake::Applied(Box::new(waiting))
            }
            Some(Ok(Event::Delete(LeanPod(pod)))) => Intake::Gone(PodUid::of(&pod)),
            Some(Err(error)) => {
                let labels = labels([("resource", "waiting pods")]);
                metrics.watch_failures.get_or_create(&labels).inc();
                warn!(resource = "waiting pods", %error, "watch");
                continue;
            }
            None => return,
        };
        if sink.send(intake).await.is_err() {
            return;
        }
    }
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
