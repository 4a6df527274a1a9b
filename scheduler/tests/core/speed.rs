//! How long a decision takes: `cargo test --release --test core -- --ignored --nocapture speed`.

use std::hint::black_box;
use std::time::Instant;

use megacluster_scheduler::core::evaluate::evaluate;
use megacluster_scheduler::core::gather::{Decision, decide};
use megacluster_scheduler::core::pod::PodRequest;
use megacluster_scheduler::core::table::NodeTable;
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
