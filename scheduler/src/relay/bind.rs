//! Binding one pod: a POST to its `binding` subresource with the pod's UID, and the truth looked up
//! where the answer is lost.
//!
//! An unanswered POST may still be carried out later, so "the pod is not bound" seen by a GET
//! proves nothing about it. The same node is therefore asked again until the apiserver answers for
//! certain, and where it doesn't within [`BindLimits::window`], the outcome says so: the
//! reservation must then be left to its expiry.
//!
//! Answers of the binding subresource: `pkg/registry/core/pod/storage/storage.go`,
//! `setPodNodeAndMetadata`: each refusal is a 409, whatever its cause.

use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::connections::Requests;
use crate::protocol::PodId;

/// How long a bind may take.
#[derive(Clone, Copy, Debug)]
pub struct BindLimits {
    /// One request.
    pub request: Duration,
    /// All requests for one pod together. Must be well below the reservations' time to live.
    pub window: Duration,
    /// The first pause between requests; doubled each time up to two seconds.
    pub pause: Duration,
}

impl Default for BindLimits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            window: Duration::from_secs(30),
            pause: Duration::from_millis(50),
        }
    }
}

/// What became of a bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindOutcome {
    /// The pod is on our node.
    Bound,
    /// The pod is on another node: someone else bound it.
    Elsewhere(String),
    /// The pod is no more, or is being deleted, or the name belongs to another pod now.
    Gone,
    /// The apiserver refuses for certain, and no earlier request is unanswered.
    Refused(String),
    /// Nobody knows: a request went unanswered and may still be carried out.
    Unknown(String),
}

enum Reply {
    Done,
    NotFound,
    Conflict,
    Busy,
    Refused(String),
    Lost(String),
}

enum Seen {
    Ours,
    Elsewhere(String),
    Gone,
    Unbound { gated: bool },
    Lost,
}

/// Binds `pod` to `node`.
pub async fn bind(requests: &Requests, pod: &PodId, node: &str, limits: BindLimits) -> BindOutcome {
    let end = Instant::now() + limits.window;
    let mut pause = limits.pause;
    let mut unanswered: Option<String> = None;
    loop {
        let deadline = end.min(Instant::now() + limits.request);
        let reply = post(requests, pod, node, deadline).await;
        let mut last = String::from("out of time");
        match reply {
            Reply::Done => return BindOutcome::Bound,
            Reply::NotFound => return BindOutcome::Gone,
            Reply::Refused(message) => {
                return match unanswered {
                    None => BindOutcome::Refused(message),
                    Some(_) => BindOutcome::Unknown(message),
                };
            }
            Reply::Busy => "too many requests".clone_into(&mut last),
            Reply::Conflict => {
                match look(requests.client(), pod, node, Instant::now() + limits.request).await {
                    Seen::Ours => return BindOutcome::Bound,
                    Seen::Elsewhere(other) => return BindOutcome::Elsewhere(other),
                    Seen::Gone => return BindOutcome::Gone,
                    Seen::Unbound { gated: true } if unanswered.is_none() => {
                        return BindOutcome::Refused("the pod has scheduling gates".to_owned());
                    }
                    Seen::Unbound { .. } | Seen::Lost => "conflict".clone_into(&mut last),
                }
            }
            Reply::Lost(message) => {
                debug!(pod = %pod, node, %message, "bind unanswered");
                unanswered = Some(message.clone());
                last = message;
                match look(requests.client(), pod, node, Instant::now() + limits.request).await {
                    Seen::Ours => return BindOutcome::Bound,
                    Seen::Elsewhere(other) => return BindOutcome::Elsewhere(other),
                    Seen::Gone => return BindOutcome::Gone,
                    Seen::Unbound { .. } | Seen::Lost => {}
                }
            }
        }
        if Instant::now() + pause >= end {
            return match unanswered {
                Some(message) => BindOutcome::Unknown(message),
                None => BindOutcome::Refused(last),
            };
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Whether `pod` is bound to `node`, for a reservation whose time is up. `None`: can't tell.
pub async fn is_bound(client: &Client, pod: &PodId, node: &str, deadline: Instant) -> Option<bool> {
    match look(client, pod, node, deadline).await {
        Seen::Ours => Some(true),
        Seen::Elsewhere(_) | Seen::Gone | Seen::Unbound { .. } => Some(false),
        Seen::Lost => None,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Binding<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Meta<'a>,
    target: Target<'a>,
}

#[derive(Serialize)]
struct Meta<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

#[derive(Serialize)]
struct Target<'a> {
    kind: &'a str,
    name: &'a str,
}

async fn post(requests: &Requests, pod: &PodId, node: &str, deadline: Instant) -> Reply {
    let body = Binding {
        api_version: "v1",
        kind: "Binding",
        metadata: Meta { name: &pod.name, namespace: &pod.namespace, uid: &pod.uid },
        target: Target { kind: "Node", name: node },
    };
    let body = match serde_json::to_vec(&body) {
        Ok(body) => body,
        Err(error) => return Reply::Refused(error.to_string()),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/api/v1/namespaces/{}/pods/{}/binding", pod.namespace, pod.name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body);
    let request = match request {
        Ok(request) => request,
        Err(error) => return Reply::Refused(error.to_string()),
    };
    match timeout_at(deadline, requests.send(request)).await {
        Ok(Ok(_)) => Reply::Done,
        Ok(Err(kube::Error::Api(status))) => match status.code {
            404 => Reply::NotFound,
            409 => Reply::Conflict,
            429 => Reply::Busy,
            400..500 => Reply::Refused(status.message),
            _ => Reply::Lost(status.message),
        },
        Ok(Err(error)) => Reply::Lost(error.to_string()),
        Err(_) => Reply::Lost("no answer in time".to_owned()),
    }
}

/// Boxed, since a bind is a task, this its largest part, and seldom.
fn look<'a>(
    client: &'a Client,
    pod: &'a PodId,
    node: &'a str,
    deadline: Instant,
) -> BoxFuture<'a, Seen> {
    Box::pin(seen(client, pod, node, deadline))
}

async fn seen(client: &Client, pod: &PodId, node: &str, deadline: Instant) -> Seen {
    let request = Request::get(format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name))
        .body(Vec::new());
    let Ok(request) = request else { return Seen::Lost };
    match timeout_at(deadline, client.request::<Pod>(request)).await {
        Ok(Ok(found)) => {
            if found.metadata.uid.as_deref() != Some(&*pod.uid) {
                return Seen::Gone;
            }
            let spec = found.spec.unwrap_or_default();
            match spec.node_name {
                Some(name) if name == node => Seen::Ours,
                Some(name) if !name.is_empty() => Seen::Elsewhere(name),
                _ if found.metadata.deletion_timestamp.is_some() => Seen::Gone,
                _ => Seen::Unbound { gated: !spec.scheduling_gates.unwrap_or_default().is_empty() },
            }
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Seen::Gone,
        Ok(Err(_)) | Err(_) => Seen::Lost,
    }
}
