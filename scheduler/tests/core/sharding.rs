//! However the nodes are divided and the answers gathered, the decision is the same.

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::core::evaluate::{Evaluation, evaluate, survey};
use megacluster_scheduler::core::gather::{Decision, decide, merge};
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::preempt::{Question, Trial, preempt};
use megacluster_scheduler::core::survey::Survey;
use megacluster_scheduler::core::table::NodeTable;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::build::{node, on, pod, table};

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let one = (0..3_usize, 0..4_usize, 0..3_usize, prop::bool::weighted(0.1), 1..9_u8);
    prop::collection::vec(one, 0..60).prop_map(|nodes| {
        let build = |(i, (zone, taints, disk, cordoned, cores))| {
            build_node(i, zone, taints, disk, cordoned, cores)
        };
        nodes.into_iter().enumerate().map(build).collect()
    })
}

fn build_node(
    i: usize,
    zone: usize,
    taints: usize,
    disk: usize,
    cordoned: bool,
    cores: u8,
) -> Node {
    let effects = ["PreferNoSchedule", "PreferNoSchedule", "NoSchedule"];
    let taint = |n: usize| json!({"key": format!("t{n}"), "effect": effects[n]});
    let taints: Vec<Value> = (0..taints).map(taint).collect();
    let labels = json!({"zone": format!("z{zone}"), "disk": format!("d{disk}")});
    node(
        &format!("node-{i}"),
        json!({
            "metadata": {"labels": labels},
            "spec": {"unschedulable": cordoned, "taints": taints},
            "status": {"allocatable": {"cpu": cores.to_string()}},
        }),
    )
}

fn incoming() -> impl Strategy<Value = Pod> {
    let selector = prop_oneof![
        2 => Just(json!({})),
        1 => (0..4_u8).prop_map(|zone| json!({"zone": format!("z{zone}")})),
        1 => (0..60_u8).prop_map(|n| json!({"kubernetes.io/hostname": format!("node-{n}")})),
    ];
    let preferred = prop::collection::vec((1..=100_i32, 0..3_u8), 0..4);
    let tolerated = prop::collection::vec(0..3_u8, 0..3);
    let pins =
        prop_oneof![3 => Just(None), 1 => prop::collection::vec(0..60_u8, 1..4).prop_map(Some)];
    (selector, preferred, tolerated, pins, 0..6_u8).prop_map(
        |(selector, preferred, tolerated, pins, cores)| {
            let preferred: Vec<Value> = preferred
                .iter()
                .map(|(weight, disk)| {
                    json!({"weight": weight, "preference": {"matchExpressions": [
                        {"key": "disk", "operator": "In", "values": [format!("d{disk}")]},
                    ]}})
                })
                .collect();
            let tolerations: Vec<Value> = tolerated
                .iter()
                .map(|n| json!({"key": format!("t{n}"), "operator": "Exists"}))
                .collect();
            let mut affinity =
                json!({"preferredDuringSchedulingIgnoredDuringExecution": preferred});
            if let Some(pins) = pins {
                let term = |n: &u8| {
                    let name = format!("node-{n}");
                    json!({"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": [name]},
                    ]})
                };
                let terms: Vec<Value> = pins.iter().map(term).collect();
                affinity["requiredDuringSchedulingIgnoredDuringExecution"] =
                    json!({"nodeSelectorTerms": terms});
            }
            let requests = json!({"requests": {"cpu": cores.to_string(), "memory": "1Gi"}});
            pod(
                "incoming",
                json!({"spec": {
                    "containers": [{"name": "c", "resources": requests}],
                    "nodeSelector": selector,
                    "tolerations": tolerations,
                    "affinity": {"nodeAffinity": affinity},
                }}),
            )
        },
    )
}

fn running() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..60_u8, 0..4_u8), 0..60)
}

fn populate(nodes: &[Node], running: &[(u8, u8)], mine: impl Fn(&str) -> bool) -> NodeTable {
    let name = |node: &Node| node.metadata.name.clone().unwrap();
    let mut table = table(nodes.iter().filter(|node| mine(&name(node))).cloned());
    for (number, (at, cores)) in running.iter().enumerate() {
        let at = format!("node-{at}");
        if mine(&at) {
            let requests = json!({"requests": {"cpu": cores.to_string(), "memory": "512Mi"}});
            let containers = json!([{"name": "c", "resources": requests}]);
            let priority = number % 4;
            let spec = json!({"containers": containers, "priority": priority});
            let there = pod(&format!("there-{number}"), json!({"spec": spec}));
            table.upsert_pod(&on(there, &at));
        }
    }
    table
}

/// Merges by pairs, as a tree of relays does.
fn merge_tree(mut parts: Vec<Evaluation>) -> Evaluation {
    while parts.len() > 1 {
        parts = parts.chunks(2).map(|pair| merge(pair.iter().cloned())).collect();
    }
    merge(parts)
}

/// Where evictions make room, however the nodes are divided and the answers gathered.
fn tried(mut tables: Vec<NodeTable>, request: &PodRequest, seed: u64, reverse: bool) -> Trial {
    let mut sum = Survey::default();
    for (place, table) in tables.iter().enumerate() {
        let part = survey(table, request, true);
        if place == 0 { sum = part } else { sum.absorb(part) }
    }
    let question = Question {
        request,
        uid: PodUid::new("incoming"),
        nominated: None,
        evicted: &[],
        survey: &sum,
        nominees: &[],
        budgets: &[],
        seed,
    };
    if reverse {
        tables.reverse();
    }
    let mut trial = Trial::default();
    for table in &mut tables {
        trial.absorb(preempt(table, &question));
    }
    trial
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn whom_to_evict_does_not_depend_on_the_shards(
        nodes in nodes(),
        running in running(),
        incoming in incoming(),
        seed in any::<u64>(),
    ) {
        let mut incoming = incoming;
        incoming.spec.as_mut().unwrap().priority = Some(2);
        let request = PodRequest::compile(&incoming);
        let whole = tried(vec![populate(&nodes, &running, |_| true)], &request, seed, false);
        for shards in [1, 2, 7, 32] {
            let membership = Membership::new(1, (0..shards).map(|shard| format!("shard-{shard}")));
            for reverse in [false, true] {
                let part = |shard| populate(&nodes, &running, |node| membership.owns(shard, node));
                let tables = membership.names().map(|shard| part(shard)).collect();
                prop_assert_eq!(&tried(tables, &request, seed, reverse), &whole);
            }
        }
        if let Some(best) = whole.best {
            // Without the victims the node takes the pod, and with any of them it does not.
            let mut table = populate(&nodes, &running, |_| true);
            for victim in &best.victims {
                prop_assert_eq!(&**table.placement(*victim).unwrap().0, &*best.node);
                if whole.feasible == 0 {
                    prop_assert!(table.assume(crate::build::uid(&incoming), &best.node, &request).is_err());
                }
                table.remove_pod(*victim);
            }
            prop_assert!(table.assume(crate::build::uid(&incoming), &best.node, &request).is_ok());
        }
    }

    #[test]
    fn the_decision_does_not_depend_on_the_shards(
        nodes in nodes(),
        running in running(),
        incoming in incoming(),
        seed in any::<u64>(),
    ) {
        let request = PodRequest::compile(&incoming);
        let whole = evaluate(&populate(&nodes, &running, |_| true), &request, seed, None);
        let expected = decide(&merge([whole.clone()]), &request);
        for shards in [1, 2, 7, 32] {
            let names = (0..shards).map(|shard| format!("shard-{shard}"));
            let membership = Membership::new(1, names);
            let mut parts: Vec<Evaluation> = membership
                .names()
                .map(|shard| populate(&nodes, &running, |node| membership.owns(shard, node)))
                .map(|table| evaluate(&table, &request, seed, None))
                .collect();
            prop_assert_eq!(&merge(parts.clone()), &whole);
            parts.reverse();
            prop_assert_eq!(&merge_tree(parts.clone()), &whole);
            prop_assert_eq!(&decide(&merge_tree(parts), &request), &expected);
        }
        if let Decision::Place(placement) = expected {
            // The chosen node takes the pod, and reserving it says so too.
            let mut table = populate(&nodes, &running, |_| true);
            prop_assert!(table.assume(crate::build::uid(&incoming), &placement.node, &request).is_ok());
        } else {
            let mut table = populate(&nodes, &running, |_| true);
            for node in &nodes {
                let name = node.metadata.name.as_deref().unwrap();
                prop_assert!(table.assume(crate::build::uid(&incoming), name, &request).is_err());
            }
        }
    }
}
