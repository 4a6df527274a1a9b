//! Crowded nodes: pods of lower priority that could go, budgets that protect some of them, and pods
//! that are promised a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use megacluster_scheduler::core::pod::PodUid;
use serde_json::{Value, json};

use crate::cases::Dice;
use crate::{Case, others};

/// What victims are sorted by: priority and start.
pub(crate) fn ranks(case: &Case, victims: &[PodUid]) -> Vec<(i32, Option<Time>)> {
    let rank = |uid: &PodUid| {
        let pod = case.pods.iter().find(|pod| PodUid::of(pod) == *uid).expect("a pod of the case");
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        (priority, pod.status.as_ref().and_then(|status| status.start_time.clone()))
    };
    victims.iter().map(rank).collect()
}

/// Makes the incoming pod large and important, and the nodes full.
pub(crate) fn crowd(dice: &mut Dice, case: &mut Value) {
    let cpu = dice.pick(&["500m", "1", "2", "3"]);
    let mut spec = case["pod"]["spec"].take();
    spec["containers"] = json!([{
        "name": "c0", "image": "i",
        "resources": {"requests": {"cpu": cpu}},
        "ports": if dice.percent(15) { json!([{"containerPort": 80, "hostPort": 80}]) } else { json!([]) },
    }]);
    spec["priority"] = json!(dice.pick(&["100", "1000", "2"]).parse::<i32>().unwrap());
    spec.as_object_mut().unwrap().remove("nodeName");
    case["pod"]["spec"] = spec;
    for node in case["nodes"].as_array_mut().into_iter().flatten() {
        node["status"]["allocatable"]["cpu"] = json!(dice.pick(&["2", "3", "4"]));
        node["status"]["allocatable"]["memory"] = json!("16Gi");
    }
    let mut start = 0;
    for pod in case["pods"].as_array_mut().into_iter().flatten() {
        crowded(dice, pod);
        start += 1;
        // Each another time, so that no choice is left to chance.
        let seconds = (start * 7 + dice.below(7)) % 60;
        let minutes = start % 60;
        if dice.percent(95) {
            pod["status"]["startTime"] =
                json!(format!("2026-01-01T{:02}:{minutes:02}:{seconds:02}Z", dice.below(20)));
        }
        if dice.percent(10) {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            if dice.percent(70) {
                pod["status"]["conditions"] = json!([{
                    "type": "DisruptionTarget", "status": "True",
                    "reason": dice.pick(&["PreemptionByScheduler", "EvictionByEvictionAPI"]),
                }]);
            }
        }
    }
    let nodes = case["nodes"].as_array().map_or(0, Vec::len);
    let nominees = if dice.percent(40) && nodes > 0 { 1 + dice.below(3) } else { 0 };
    let nominees: Vec<Value> = (0..nominees).map(|number| nominee(dice, number, nodes)).collect();
    case["nominees"] = json!(nominees);
    if dice.percent(25) && nodes > 0 {
        let node = format!("node-{}", dice.below(nodes));
        case["pod"]["status"] = json!({"nominatedNodeName": node});
    }
    case["budgets"] = json!(dice.list(4, |dice, number| {
        let selector = match dice.below(5) {
            0 => json!({}),
            1 => Value::Null,
            2 => json!({"matchLabels": {"tier": "x"}}),
            _ => json!({"matchLabels": {"app": dice.pick(&["a", "b"])}}),
        };
        let mut disrupted = json!({});
        if dice.percent(30) {
            disrupted[format!("there-{}-{}", dice.below(12), dice.below(4))] =
                json!("2026-01-01T00:00:00Z");
        }
        json!({
            "metadata": {"name": format!("budget-{number}"), "namespace": "default"},
            "spec": {"selector": selector},
            "status": {
                "disruptionsAllowed": dice.below(3), "disruptedPods": disrupted,
                "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
            },
        })
    }));
}

fn crowded(dice: &mut Dice, pod: &mut Value) {
    // A host port is held once on a node: kube-scheduler's own count forgets a second holder.
    let first = pod["metadata"]["name"].as_str().unwrap().ends_with("-0");
    pod["spec"]["containers"] = json!([{
        "name": "c0", "image": "i",
        "resources": {"requests": {"cpu": dice.pick(&["500m", "1", "1500m"])}},
        "ports": if first && dice.percent(30) { json!([{"containerPort": 80, "hostPort": 80}]) } else { json!([]) },
    }]);
    pod["spec"].as_object_mut().unwrap().remove("initContainers");
    pod["spec"].as_object_mut().unwrap().remove("resources");
    pod["status"] = json!({"phase": "Running"});
    pod["spec"]["priority"] =
        json!(dice.pick(&["0", "1", "2", "50", "-10", "5000"]).parse::<i32>().unwrap());
}

fn nominee(dice: &mut Dice, number: usize, nodes: usize) -> Value {
    let name = format!("nominee-{number}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {}, "status": {},
    });
    others::identify(dice, crate::cases::Theme::Preemption, &mut pod);
    pod["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    crowded(dice, &mut pod);
    pod["status"] = json!({"nominatedNodeName": format!("node-{}", dice.below(nodes))});
    pod["spec"]["priority"] = json!(dice.pick(&["1", "100", "2000"]).parse::<i32>().unwrap());
    pod
}
