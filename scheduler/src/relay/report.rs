//! What the scheduler tells the cluster beside the binding: events and the `PodScheduled`
//! condition, as kube-scheduler writes them (`pkg/scheduler/schedule_one.go`,
//! `handleSchedulingFailure` and `bindingCycle`; `client-go/tools/events`).
//!
//! Best effort: reports wait in a bounded queue; one that finds it full is dropped and counted. A
//! pod that still doesn't fit is reported again by a later attempt.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connections::Requests;
use crate::metrics::Metrics;
use crate::protocol::PodId;

/// Reports that wait; more are dropped.
const QUEUE: usize = 8192;
/// Reports written at once.
const WORKERS: usize = 8;
/// One request's time.
const REQUEST: Duration = Duration::from_secs(5);
/// The longest note of an event (`k8s.io/kubernetes/pkg/apis/core/validation`, `NoteLengthLimit`).
const NOTE_LIMIT: usize = 1024;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The pod was bound.
    Scheduled {
        /// The pod.
        pod: PodId,
        /// Its node.
        node: Arc<str>,
        /// Its profile.
        profile: Arc<str>,
    },
    /// The pod fits nowhere, or asks for something unsupported.
    Failed {
        /// The pod.
        pod: PodId,
        /// The pod's generation that was looked at.
        generation: i64,
        /// Why, in kube-scheduler's words.
        message: String,
        /// Whether the pod carries the condition already, so that only its text changes.
        was_false: bool,
        /// Whether the condition shall be written, or only the event.
        write_condition: bool,
        /// Whether the pod is promised no node any more, which is written with the condition.
        withdraw: bool,
        /// Its profile.
        profile: Arc<str>,
    },
    /// A pod was evicted to make room for another.
    Preempted {
        /// Who had to go.
        victim: PodId,
        /// For whom.
        preemptor: PodId,
        /// From where.
        node: Arc<str>,
        /// The preemptor's profile.
        profile: Arc<str>,
    },
}

/// Hands reports to the tasks that write them. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Reporter {
    queue: mpsc::Sender<Report>,
    metrics: Metrics,
}

impl Reporter {
    /// Queues a report, or drops it where the queue is full.
    pub fn report(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            self.metrics.reports_dropped.inc();
        }
    }
}

/// Who reports, and how fast.
#[derive(Clone, Debug)]
pub struct ReportConfig {
    /// The process, behind the profile's name in the `reportingInstance` of events.
    pub host: String,
    /// Events each second; more are dropped. Conditions are not bounded by it.
    pub events_per_second: u32,
}

/// Starts the tasks that write reports until `token` is cancelled, and what then waits is written.
/// The join set ends when they have.
#[must_use]
pub fn spawn(
    requests: Requests,
    config: ReportConfig,
    metrics: Metrics,
    token: &CancellationToken,
) -> (Reporter, JoinSet<()>) {
    let (queue, waiting) = mpsc::channel(QUEUE);
    let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
    let writer = Arc::new(Writer {
        requests,
        bucket: Mutex::new(Bucket::new(config.events_per_second)),
        config,
        metrics: metrics.clone(),
    });
    let mut tasks = JoinSet::new();
    for _ in 0..WORKERS {
        let (waiting, writer, token) = (waiting.clone(), writer.clone(), token.clone());
        tasks.spawn(async move {
            loop {
                let report = tokio::select! {
                    biased;
                    report = next(&waiting) => report,
                    () = token.cancelled() => return,
                };
                let Some(report) = report else { return };
                writer.write(report).await;
            }
        });
    }
    (Reporter { queue, metrics }, tasks)
}

async fn next(waiting: &tokio::sync::Mutex<mpsc::Receiver<Report>>) -> Option<Report> {
    waiting.lock().await.recv().await
}

struct Writer {
    requests: Requests,
    config: ReportConfig,
    metrics: Metrics,
    bucket: Mutex<Bucket>,
}

impl Writer {
    async fn write(&self, report: Report) {
        match report {
            Report::Scheduled { pod, node, profile } => {
                let note =
                    format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                let kind = ("Normal", "Scheduled", "Binding");
                self.event(&profile, &pod, None, kind, &note).await;
            }
            Report::Failed {
                pod,
                generation,
                message,
                was_false,
                write_condition,
                withdraw,
                profile,
            } => {
                let kind = ("Warning", "FailedScheduling", "Scheduling");
                self.event(&profile, &pod, None, kind, &message).await;
                if write_condition {
                    self.condition(&pod, generation, &message, was_false, withdraw).await;
                }
            }
            Report::Preempted { victim, preemptor, node, profile } => {
                let note = format!("Preempted by pod {} on node {node}", preemptor.uid);
                let kind = ("Normal", "Preempted", "Preempting");
                self.event(&profile, &victim, Some(&preemptor), kind, &note).await;
            }
        }
    }

    /// `kind`: type, reason and action.
    async fn event(
        &self,
        profile: &str,
        pod: &PodId,
        related: Option<&PodId>,
        (kind, reason, action): (&str, &str, &str),
        note: &str,
    ) {
        if !self.bucket.lock().take(Instant::now()) {
            self.metrics.reports_dropped.inc();
            return;
        }
        let now = Timestamp::now();
        let body = Event {
            api_version: "events.k8s.io/v1",
            kind: "Event",
            metadata: EventMeta {
                name: format!("{}.{:x}", pod.name, now.as_nanosecond()),
                namespace: &pod.namespace,
            },
            time: format!("{now:.6}"),
            reporting_controller: profile,
            reporting_instance: format!("{profile}-{}", self.config.host),
            action,
            reason,
            regarding: Reference::to(pod),
            related: related.map(Reference::to),
            note: truncated(note),
            type_: kind,
        };
        let uri = format!("/apis/events.k8s.io/v1/namespaces/{}/events", pod.namespace);
        self.send(Method::POST, uri, "application/json", &body).await;
    }

    async fn condition(
        &self,
        pod: &PodId,
        generation: i64,
        message: &str,
        was_false: bool,
        withdraw: bool,
    ) {
        let mut condition = serde_json::json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "observedGeneration": generation,
        });
        if !was_false {
            condition["lastTransitionTime"] = format!("{:.0}", Timestamp::now()).into();
        }
        // The UID is a precondition: a namesake made meanwhile is left alone.
        let mut body = serde_json::json!({
            "metadata": {"uid": &*pod.uid},
            "status": {"conditions": [condition]},
        });
        if withdraw {
            body["status"]["nominatedNodeName"] = serde_json::Value::Null;
        }
        let uri = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
        self.send(Method::PATCH, uri, "application/strategic-merge-patch+json", &body).await;
    }

    async fn send(&self, method: Method, uri: String, content: &str, body: &impl Serialize) {
        let Ok(body) = serde_json::to_vec(body) else { return };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(http::header::CONTENT_TYPE, content)
            .body(body);
        let Ok(request) = request else { return };
        let sent = self.requests.send(request);
        match tokio::time::timeout(REQUEST, sent).await {
            Ok(Ok(_)) => {
                self.metrics.reports_written.inc();
            }
            Ok(Err(error)) => {
                self.metrics.reports_failed.inc();
                debug!(%error, "report");
            }
            Err(_) => {
                self.metrics.reports_failed.inc();
            }
        }
    }
}

/// An event of `events.k8s.io/v1`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: EventMeta<'a>,
    #[serde(rename = "eventTime")]
    time: String,
    reporting_controller: &'a str,
    reporting_instance: String,
    action: &'a str,
    reason: &'a str,
    regarding: Reference<'a>,
    related: Option<Reference<'a>>,
    note: Cow<'a, str>,
    #[serde(rename = "type")]
    type_: &'a str,
}

#[derive(Serialize)]
struct EventMeta<'a> {
    name: String,
    namespace: &'a str,
}

/// A pod as an event names it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference<'a> {
    api_version: &'a str,
    kind: &'a str,
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

impl<'a> Reference<'a> {
    fn to(pod: &'a PodId) -> Self {
        Self {
            api_version: "v1",
            kind: "Pod",
            name: &pod.name,
            namespace: &pod.namespace,
            uid: &pod.uid,
        }
    }
}

/// As kube-scheduler shortens a note.
fn truncated(note: &str) -> Cow<'_, str> {
    const SUFFIX: &str = " ...";
    if note.len() <= NOTE_LIMIT {
        return note.into();
    }
    let mut end = NOTE_LIMIT - SUFFIX.len();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &note[..end]).into()
}

/// A token bucket that holds at most one second's worth.
struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, tokens: per_second, at: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.per_second);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        assert_eq!(truncated("short"), "short");
        let long = "é".repeat(600);
        let cut = truncated(&long);
        assert!(cut.len() <= NOTE_LIMIT);
        assert!(cut.ends_with(" ..."));
    }

    #[test]
    fn the_bucket_refills_with_time() {
        let mut bucket = Bucket::new(2);
        let start = Instant::now();
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        assert!(!bucket.take(start + Duration::from_millis(100)));
        assert!(bucket.take(start + Duration::from_millis(700)));
        assert!(!bucket.take(start + Duration::from_millis(700)));
    }
}
