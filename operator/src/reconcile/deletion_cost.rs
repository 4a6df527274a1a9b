//! In which order a Deployment's pods go: the one that leads goes last, so that a rollout hands
//! leadership over once, to a new pod, when no other is starting any more.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::apply::Writer;
use super::error::{CallError, bounded};
use crate::{api::FIELD_MANAGER, build::controller_manager, validate::ValidatedCluster};

/// Of two pods of a `ReplicaSet` that are ready, the one with the lower cost goes first; none is 0
/// (KEP-2255, `k8s.io/kubernetes/pkg/controller/controller_utils.go`, `ActivePodsWithRanks`).
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const LEADER: &str = "1";

/// Gives the controller manager's pod `leader` a cost, and none to its others.
pub(super) async fn keep_for_last(
    writer: Writer<'_>,
    cluster: &ValidatedCluster,
    leader: &str,
) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(writer.client.clone(), &cluster.namespace);
    let labels = controller_manager::selector(cluster);
    let selector: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let params = ListParams::default().labels(&selector.join(","));
    for pod in bounded(api.list_metadata(&params)).await? {
        let name = pod.name_any();
        let wanted = (name == leader).then_some(LEADER);
        if pod.annotations().get(COST).map(String::as_str) == wanted {
            continue;
        }
        writer.claim()?;
        let patch = json!({"metadata": {"uid": pod.uid(), "annotations": {COST: wanted}}});
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        bounded(api.patch_metadata(&name, &params, &Patch::Merge(&patch))).await?;
    }
    Ok(())
}
