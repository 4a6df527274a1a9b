//! Writes what gives a pod's claims their volumes: whom a volume is meant for, or the node that one
//! is to be made on. Who binds claims and who makes volumes does the rest.
//!
//! Each object is written only if it still is as it was when the pod was placed. A request that
//! isn't answered may have been carried out: then the next try finds it so.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::core::labels::Labels;
use crate::core::volumes::binding::Step;
use crate::core::volumes::objects::SELECTED_NODE;
use crate::protocol::PodId;

/// One request's time.
const REQUEST: Duration = Duration::from_secs(10);
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// What to write for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOrder {
    /// The pod.
    pub pod: PodId,
    /// Its node.
    pub node: Arc<str>,
    /// Of the reservation: an answer that comes late is not taken for that of a later try.
    pub token: u64,
    /// In this order.
    pub steps: Vec<Step>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountOutcome {
    /// All is written.
    Written {
        /// The node's.
        labels: Labels,
        /// The objects' versions since, one for each step.
        versions: Vec<Arc<str>>,
    },
    /// All claims are bound already.
    Ready,
    /// Some of it isn't written, or nobody knows.
    Failed(String),
}

/// All that is read of what the apiserver answers.
#[derive(Deserialize)]
struct Written {
    metadata: ObjectMeta,
}

/// Carries out an order. `may_act` is asked before each request.
pub async fn mount(
    client: &Client,
    order: &MountOrder,
    may_act: &impl Fn() -> bool,
) -> MountOutcome {
    match carry_out(client, order, may_act).await {
        Ok(outcome) => outcome,
        Err(message) => MountOutcome::Failed(message),
    }
}

async fn carry_out(
    client: &Client,
    order: &MountOrder,
    may_act: &impl Fn() -> bool,
) -> Result<MountOutcome, String> {
    let node: Node =
        send(client, Method::GET, &format!("/api/v1/nodes/{}", order.node), None).await?;
    let labels = Labels::of(node.metadata.labels.as_ref());
    let mut versions = Vec::new();
    for step in &order.steps {
        if !may_act() {
            return Err("not leading any more".to_owned());
        }
        let (path, change) = change(order, step);
        let written: Written = send(client, Method::PATCH, &path, Some(change)).await?;
        versions.push(written.metadata.resource_version.unwrap_or_default().into());
    }
    Ok(MountOutcome::Written { labels, versions })
}

/// Where, and what.
fn change(order: &MountOrder, step: &Step) -> (String, Value) {
    let namespace = &*order.pod.namespace;
    match step {
        Step::Bind { volume, version, claim, uid, claim_version, ours } => {
            let mut change = json!({
                "metadata": {"resourceVersion": &**version},
                "spec": {"claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": namespace, "name": &**claim, "uid": &**uid,
                    "resourceVersion": &**claim_version,
                }},
            });
            if *ours {
                change["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            (format!("/api/v1/persistentvolumes/{volume}"), change)
        }
        Step::Select { claim, version } => {
            let change = json!({"metadata": {
                "resourceVersion": &**version,
                "annotations": {SELECTED_NODE: &*order.node},
            }});
            (format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"), change)
        }
    }
}

async fn send<T: serde::de::DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<T, String> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
        .body(body.map(|body| body.to_string().into_bytes()).unwrap_or_default())
        .map_err(|error| error.to_string())?;
    match timeout(REQUEST, client.request::<T>(request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{path}: {error}")),
        Err(_) => Err(format!("{path}: no answer in time")),
    }
}
