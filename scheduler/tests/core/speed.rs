//! How long a decision takes, and a turn in which a list is taken over:
//! `cargo test --release --test core -- --ignored --nocapture speed`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use megacluster_scheduler::core::evaluate::evaluate;
use megacluster_scheduler::core::gather::{Decision, decide};
use megacluster_scheduler::core::pod::PodRequest;
use megacluster_scheduler::core::table::NodeTable;
use megacluster_scheduler::lean::LeanPod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::{asking, node, pod, uid};

const ROUNDS: u32 = 200;

fn big_table(nodes: u32) -> NodeTable {
    let mut table = NodeTable::new();
    for i in 0..nodes {
        let taint = json!({"key": "spot", "effect": "PreferNoSchedule"});
        let taints = if i % 10 == 0 { vec![taint] } else { vec![] };
        table.upsert_node(&node(
            &format!("node-{i}"),
            json!({
                "metadata": {"labels": {"zone": format!("z{}", i % 3), "disk": format!("d{}", i % 2)}},
                "spec": {"taints": taints},
            }),
        ));
    }
    table
}

fn incoming() -> Vec<(&'static str, k8s_openapi::api::core::v1::Pod)> {
    let affinity = |required: Value| {
        json!({"spec": {
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}],
            "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchExpressions": [required]}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 10,
                    "preference": {"matchExpressions": [
                        {"key": "disk", "operator": "In", "values": ["d0"]},
                    ]},
                }],
            }},
        }})
    };
    let zones = json!({"key": "zone", "operator": "In", "values": ["z0", "z1"]});
    let hosts = json!({"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node-1"]});
    vec![
        ("plain", asking("plain", "100m", "128Mi")),
        ("affinity by zone", pod("zone", affinity(zones))),
        ("affinity by hostname", pod("host", affinity(hosts))),
        ("fits nowhere", asking("huge", "1000", "128Mi")),
    ]
}

#[test]
#[ignore = "says how fast, not whether right"]
fn speed() {
    for nodes in [5_000, 100_000] {
        let mut table = big_table(nodes);
        for (what, pod) in incoming() {
            let request = PodRequest::compile(&pod);
            let start = Instant::now();
            for seed in 0..u64::from(ROUNDS) {
                black_box(evaluate(&table, &request, seed, None));
            }
            println!("{nodes} nodes, {what}: {:?} for each evaluation", start.elapsed() / ROUNDS);
        }
        let start = Instant::now();
        for i in 0..ROUNDS {
            let pod = asking(&format!("p{i}"), "100m", "128Mi");
            let request = PodRequest::compile(&pod);
            let Decision::Place(placement) =
                decide(&evaluate(&table, &request, i.into(), None), &request)
            else {
                panic!("it fits")
            };
            table.assume(uid(&pod), &placement.node, &request).unwrap();
        }
        println!("{nodes} nodes, compile to reserve: {:?} for each pod", start.elapsed() / ROUNDS);
    }
}

/// Objects in a page of a list, and of those that are taken over in one turn.
const PAGE: usize = 250;
const AT_ONCE: usize = 64;

/// The longest of some turns.
#[derive(Default)]
struct Turns(Duration, Duration);

impl Turns {
    fn take<T>(&mut self, turn: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = turn();
        let took = begun.elapsed();
        (self.0, self.1) = (self.0.max(took), self.1 + took);
        done
    }
}

impl std::fmt::Display for Turns {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} at most, {:?} together", self.0, self.1)
    }
}

/// As an apiserver sends them, with what nobody reads.
fn text_of(mut object: Value, page: &mut String) {
    object["metadata"]["managedFields"] = json!([{
        "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "subresource": "status", "fieldsV1": {"f:status": {
            "f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:lastHeartbeatTime": {}, "f:type": {}}},
            "f:allocatable": {"f:cpu": {}, "f:memory": {}, "f:pods": {}, "f:ephemeral-storage": {}},
        }},
    }]);
    if !page.is_empty() {
        page.push(',');
    }
    page.push_str(&object.to_string());
}

fn read<K: DeserializeOwned>(page: &str, kind: &str, turns: &mut Turns) -> Vec<K> {
    #[derive(serde::Deserialize)]
    struct Page<K> {
        items: Vec<K>,
    }
    let text = format!(r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{}},"items":[{page}]}}"#);
    turns.take(|| serde_json::from_str::<Page<K>>(&text)).unwrap().items
}

#[test]
#[ignore = "says how fast, not whether right"]
fn speed_of_a_list() {
    const COUNT: usize = 100_000;
    let amounts =
        json!({"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"});
    let images: Vec<_> = (0..20)
        .map(|i| json!({"names": [format!("registry/image-{i}:1"), format!("registry/image-{i}@sha256:{i:064}")], "sizeBytes": 1 << 28}))
        .collect();
    let node = |i: usize| {
        json!({
            "metadata": {"name": format!("node-{i}"), "uid": uid_text(i), "resourceVersion": "7", "labels": {
                "kubernetes.io/hostname": format!("node-{i}"), "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", i % 10),
            }},
            "status": {
                "allocatable": amounts, "capacity": amounts, "images": images,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        })
    };
    let pod = |i: usize| {
        json!({
            "metadata": {"name": format!("pod-{i}"), "namespace": "d", "uid": uid_text(i), "resourceVersion": "7",
                "labels": {"app": format!("app-{}", i % 100)}},
            "spec": {"nodeName": format!("node-{}", i * 7 % COUNT), "containers": [{"name": "c", "image": "image",
                "env": [{"name": "A", "value": "b"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "resources": {"requests": {"cpu": format!("{}m", 100 + i % 10), "memory": "128Mi"}}}]},
            "status": {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]},
        })
    };
    let mut table = NodeTable::new();
    for round in ["first list", "second list"] {
        let (mut reading, mut taking, mut ending) =
            (Turns::default(), Turns::default(), Turns::default());
        table.begin_node_list();
        for from in (0..COUNT).step_by(PAGE) {
            let mut page = String::new();
            for i in from..from + PAGE {
                text_of(node(i), &mut page);
            }
            let nodes: Vec<Node> = read(&page, "NodeList", &mut reading);
            for some in nodes.chunks(AT_ONCE) {
                taking.take(|| {
                    for node in some {
                        black_box(table.upsert_node(node));
                    }
                });
            }
        }
        ending.take(|| table.end_node_list());
        ending.take(|| table.prepare());
        println!("nodes, {round}: a page read in {reading}; taken over {taking}; the end {ending}");
        let (mut reading, mut taking, mut ending) =
            (Turns::default(), Turns::default(), Turns::default());
        table.begin_pod_list();
        for from in (0..COUNT).step_by(PAGE) {
            let mut page = String::new();
            for i in from..from + PAGE {
                text_of(pod(i), &mut page);
            }
            let pods: Vec<LeanPod> = read(&page, "PodList", &mut reading);
            for some in pods.chunks(AT_ONCE) {
                taking.take(|| {
                    for pod in some {
                        black_box(table.upsert_pod(&pod.0));
                    }
                });
            }
        }
        ending.take(|| table.end_pod_list());
        ending.take(|| table.prepare());
        println!("pods, {round}: a page read in {reading}; taken over {taking}; the end {ending}");
    }
}

fn uid_text(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012x}")
}
