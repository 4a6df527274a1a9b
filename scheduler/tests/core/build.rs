//! Pods and nodes in few words.

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::core::evaluate::evaluate;
use megacluster_scheduler::core::gather::{Decision, decide, merge};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::table::NodeTable;
use serde_json::{Value, json};

/// A node of 4 cores, 8 GiB and 110 pods, with `patch` merged over it.
pub(crate) fn node(name: &str, patch: Value) -> Node {
    let mut object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    overlay(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

/// A pod of one container that asks for nothing, with `patch` merged over it. Its UID is a hash
/// of its name.
pub(crate) fn pod(name: &str, patch: Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c"}]},
    });
    overlay(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

/// A pod whose one container requests these amounts.
pub(crate) fn asking(name: &str, cpu: &str, memory: &str) -> Pod {
    let requests = json!({"requests": {"cpu": cpu, "memory": memory}});
    pod(name, json!({"spec": {"containers": [{"name": "c", "resources": requests}]}}))
}

/// The same pod on a node.
pub(crate) fn on(mut pod: Pod, node: &str) -> Pod {
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    pod
}

pub(crate) fn uid(pod: &Pod) -> PodUid {
    PodUid::of(pod)
}

pub(crate) fn table(nodes: impl IntoIterator<Item = Node>) -> NodeTable {
    let mut table = NodeTable::new();
    for node in nodes {
        table.upsert_node(&node);
    }
    table
}

/// The decision of a single shard.
pub(crate) fn place(table: &NodeTable, pod: &Pod) -> Decision {
    let request = PodRequest::compile(pod);
    decide(&merge([evaluate(table, &request, 1, None)]), &request)
}

/// The node chosen.
pub(crate) fn chosen(table: &NodeTable, pod: &Pod) -> String {
    match place(table, pod) {
        Decision::Place(placement) => placement.node.to_string(),
        other => panic!("not placed: {other:?}"),
    }
}

/// The message of a pod that fits nowhere.
pub(crate) fn refused(table: &NodeTable, pod: &Pod) -> String {
    match place(table, pod) {
        Decision::Unschedulable(diagnosis) => diagnosis.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Merges objects by key; anything else replaces.
fn overlay(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, patch) => *base = patch,
    }
}
