//! Makes room on a node for one pod: promises it the node, then has others leave (`PreemptPod` in
//! `framework/preemption/executor.go`).
//!
//! The promise is written first, so that whoever leads next knows of it whatever happens: without
//! evictions it costs nothing, while evictions without it would be repeated elsewhere. Each victim
//! is deleted with its UID as a precondition and may be deleted twice without harm. Before each
//! request the caller is asked whether it may still act.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::intake::version;
use super::pods::pod_id;
use crate::core::maps::HashSet;
use crate::core::pod::PodUid;
use crate::protocol::PodId;

const MERGE: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";
/// Victims that are told to leave at once.
const AT_ONCE: usize = 8;
/// The longest pause between two tries of one request.
const LONGEST: Duration = Duration::from_secs(2);

/// Who has to leave which node, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The pod that gets the room.
    pub preemptor: PodId,
    /// Its priority: nobody of that or a higher one is touched.
    pub priority: i32,
    /// The scheduler's name, for the victims' condition.
    pub scheduler: String,
    /// The node.
    pub node: Arc<str>,
    /// Who has to leave it.
    pub victims: Vec<PodUid>,
    /// Less important pods that were promised the node and are so no more.
    pub withdrawn: Vec<PodId>,
}

/// How long evictions may take.
#[derive(Clone, Copy, Debug)]
pub struct EvictLimits {
    /// One request.
    pub request: Duration,
    /// All of one order together.
    pub window: Duration,
    /// The first pause between two tries of one request; doubled each time.
    pub pause: Duration,
}

impl Default for EvictLimits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            window: Duration::from_secs(30),
            pause: Duration::from_millis(50),
        }
    }
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictOutcome {
    /// How it ended.
    pub ended: Ended,
    /// The version of the preemptor in which its promise is written, once that is known.
    pub promised: Option<u64>,
    /// The pods that this order deleted.
    pub evicted: Vec<PodId>,
    /// These and the victims that were being deleted already.
    pub leaving: Vec<PodUid>,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every victim leaves or is gone.
    Done,
    /// The preemptor is gone, or has a node.
    Gone,
    /// The caller may not act any more.
    Fenced,
    /// Some victims could not be told, or nobody knows.
    Failed(String),
}

impl Ended {
    /// A label for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Done => "evicted",
            Self::Gone => "gone",
            Self::Fenced => "fenced",
            Self::Failed(_) => "failed",
        }
    }
}

/// Carries an order out.
pub async fn evict(
    client: &Client,
    order: &Order,
    limits: EvictLimits,
    may_act: &(impl Fn() -> bool + Sync),
) -> EvictOutcome {
    let end = Instant::now() + limits.window;
    let api = Api { client, limits, end, may_act, stopped: AtomicBool::new(false) };
    let progress = Mutex::new(Progress::default());
    let ended = match api.carry_out(order, &progress).await {
        Ok(()) => Ended::Done,
        Err(Trouble::Gone) => Ended::Gone,
        Err(Trouble::Fenced) => Ended::Fenced,
        Err(Trouble::Failed(message)) => Ended::Failed(message),
    };
    let Progress { promised, evicted, leaving } = progress.into_inner();
    EvictOutcome { ended, promised, evicted, leaving }
}

#[derive(Default)]
struct Progress {
    promised: Option<u64>,
    evicted: Vec<PodId>,
    leaving: Vec<PodUid>,
}

enum Trouble {
    /// The pod that the request is about is gone, or the name belongs to another one.
    Gone,
    Fenced,
    Failed(String),
}

struct Api<'a, F> {
    client: &'a Client,
    limits: EvictLimits,
    end: Instant,
    may_act: &'a F,
    stopped: AtomicBool,
}

impl<F: Fn() -> bool + Sync> Api<'_, F> {
    async fn carry_out(&self, order: &Order, progress: &Mutex<Progress>) -> Result<(), Trouble> {
        let preemptor: Pod = self.nominate(&order.preemptor, Some(&order.node)).await?;
        progress.lock().promised = version(&preemptor);
        let placed = preemptor.spec.and_then(|spec| spec.node_name).is_some_and(|n| !n.is_empty());
        if placed || preemptor.metadata.deletion_timestamp.is_some() {
            return Err(Trouble::Gone);
        }
        for pod in &order.withdrawn {
            // Less than vital: the pod only waits for longer than it must.
            if let Err(Trouble::Fenced) = self.nominate::<serde::de::IgnoredAny>(pod, None).await {
                return Err(Trouble::Fenced);
            }
        }
        let here = self.pods_on(&order.node).await?;
        let wanted: HashSet<PodUid> = order.victims.iter().copied().collect();
        let mut victims = Vec::new();
        for pod in &here {
            if wanted.contains(&PodUid::of(pod)) && !ended(pod) {
                victims.push(self.tell_to_leave(order, pod, progress));
            }
        }
        let mut told = futures::stream::iter(victims).buffer_unordered(AT_ONCE);
        let mut first = Ok(());
        // After a failure nothing more is begun, but what has been sent is waited for.
        while let Some(outcome) = told.next().await {
            if outcome.is_err() && first.is_ok() {
                first = outcome;
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
        first
    }

    async fn tell_to_leave(
        &self,
        order: &Order,
        victim: &Pod,
        progress: &Mutex<Progress>,
    ) -> Result<(), Trouble> {
        let uid = PodUid::of(victim);
        if victim.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default() >= order.priority
        {
            return Err(Trouble::Failed("a victim is no less important".to_owned()));
        }
        if victim.metadata.deletion_timestamp.is_some() {
            progress.lock().leaving.push(uid);
            return Ok(());
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let meta = &victim.metadata;
        let namespace = text(&meta.namespace).into();
        let id = pod_id(&text(&meta.uid), namespace, &text(&meta.name));
        let told = async {
            if !is_marked(victim) {
                let body = mark(order, &id, meta.generation.unwrap_or_default());
                let uri = format!("{}/status", path(&id));
                self.send::<serde::de::IgnoredAny>(Method::PATCH, &uri, MERGE, &body, Some(&id))
                    .await?;
            }
            let body = json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": &*id.uid},
            });
            self.send::<serde::de::IgnoredAny>(Method::DELETE, &path(&id), JSON, &body, Some(&id))
                .await
        };
        match told.await {
            Ok(_) => {
                let mut progress = progress.lock();
                progress.leaving.push(uid);
                progress.evicted.push(id);
                Ok(())
            }
            Err(Trouble::Gone) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Writes which node a pod is promised.
    async fn nominate<T: serde::de::DeserializeOwned>(
        &self,
        pod: &PodId,
        node: Option<&str>,
    ) -> Result<T, Trouble> {
        // The UID is a precondition: a namesake made meanwhile is left alone.
        let body = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": node}});
        self.send(Method::PATCH, &format!("{}/status", path(pod)), MERGE, &body, Some(pod)).await
    }

    async fn pods_on(&self, node: &str) -> Result<Vec<Pod>, Trouble> {
        let uri = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        let body = serde_json::Value::Null;
        let list: List<Pod> = self.send(Method::GET, &uri, JSON, &body, None).await?;
        Ok(list.items)
    }

    /// Sends a request until it is answered for certain. All of them may be carried out twice.
    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        content: &str,
        body: &serde_json::Value,
        about: Option<&PodId>,
    ) -> Result<T, Trouble> {
        let mut pause = self.limits.pause;
        loop {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(Trouble::Failed("another victim could not be told".to_owned()));
            }
            if !(self.may_act)() {
                return Err(Trouble::Fenced);
            }
            let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
            let request = Request::builder()
                .method(method.clone())
                .uri(uri)
                .header(http::header::CONTENT_TYPE, content)
                .body(body)
                .map_err(|error| Trouble::Failed(error.to_string()))?;
            let deadline = self.end.min(Instant::now() + self.limits.request);
            let last = match timeout_at(deadline, self.client.request::<T>(request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(kube::Error::Api(status))) => match status.code {
                    404 => return Err(Trouble::Gone),
                    // Another pod of that name, or a conflict that goes away.
                    409 if self.is_gone(about, deadline).await => return Err(Trouble::Gone),
                    409 | 429 | 500.. => status.message,
                    _ => return Err(Trouble::Failed(status.message)),
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if Instant::now() + pause >= self.end {
                return Err(Trouble::Failed(last));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    async fn is_gone(&self, pod: Option<&PodId>, deadline: Instant) -> bool {
        let Some(pod) = pod else { return false };
        let Ok(request) = Request::get(path(pod)).body(Vec::new()) else { return false };
        match timeout_at(deadline, self.client.request::<Pod>(request)).await {
            Ok(Ok(found)) => found.metadata.uid.as_deref() != Some(&*pod.uid),
            Ok(Err(kube::Error::Api(status))) => status.code == 404,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

fn path(pod: &PodId) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

/// A pod that has ended takes nothing of its node.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_marked(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "DisruptionTarget"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("PreemptionByScheduler")
    })
}

fn mark(order: &Order, victim: &PodId, generation: i64) -> serde_json::Value {
    json!({
        "metadata": {"uid": &*victim.uid},
        "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!(
                "{}: preempting to accommodate a higher priority pod", order.scheduler
            ),
            "observedGeneration": generation,
            "lastTransitionTime": format!("{:.0}", Timestamp::now()),
        }]},
    })
}
