//! Filters, scores and messages on small clusters.

use std::collections::BTreeSet;
use std::sync::Arc;

use megacluster_scheduler::core::evaluate::{Evaluation, evaluate};
use megacluster_scheduler::core::gather::{Decision, decide, merge, refuse};
use megacluster_scheduler::core::pod::PodRequest;
use megacluster_scheduler::core::policy::Policy;
use megacluster_scheduler::core::search::search;
use megacluster_scheduler::core::table::NodeTable;
use serde_json::{Value, json};

use crate::build::{asking, chosen, node, on, place, pod, refused, table};

fn plain(name: &str) -> k8s_openapi::api::core::v1::Node {
    node(name, json!({}))
}

#[test]
fn no_nodes() {
    assert_eq!(refused(&table([]), &pod("p", json!({}))), "no nodes available to schedule pods");
}

#[test]
fn each_filter_gives_its_own_reason() {
    let cases: [(Value, Value, &str); 8] = [
        (json!({"spec": {"unschedulable": true}}), json!({}), "1 node(s) were unschedulable"),
        (
            json!({}),
            json!({"spec": {"nodeName": "other"}}),
            "1 node(s) didn't match the requested node name",
        ),
        (
            json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}),
            json!({}),
            "1 node(s) had untolerated taint(s)",
        ),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"zone": "a"}}}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (json!({"status": {"allocatable": {"pods": "0"}}}), json!({}), "1 Too many pods"),
        (
            json!({"status": {"allocatable": {"cpu": "0", "memory": "1"}}}),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {
                "cpu": "1", "memory": "2", "ephemeral-storage": "3", "example.com/gpu": "4",
            }}}]}}),
            "1 Insufficient cpu, 1 Insufficient ephemeral-storage, 1 Insufficient \
             example.com/gpu, 1 Insufficient memory",
        ),
        // The first plugin that objects settles it.
        (
            json!({"spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoExecute"}]}}),
            json!({"spec": {"nodeSelector": {"zone": "a"}}}),
            "1 node(s) were unschedulable",
        ),
        // A cordon may be tolerated, and so may its taint.
        (
            json!({"spec": {
                "unschedulable": true,
                "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}],
            }}),
            json!({"spec": {
                "nodeSelector": {"zone": "a"},
                "tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}],
            }}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
    ];
    for (node_patch, pod_patch, reason) in cases {
        let message = refused(&table([node("n", node_patch)]), &pod("p", pod_patch));
        let expected = format!("0/1 nodes are available: {reason}. preemption: ");
        assert!(message.starts_with(&expected), "{message}\nnot {expected}");
    }
}

#[test]
fn host_ports_collide() {
    let ports = |address: &str, port: u16| {
        json!({"spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 1, "hostPort": port, "hostIP": address},
        ]}]}})
    };
    let mut table = table([plain("n")]);
    table.upsert_pod(&on(pod("there", ports("10.0.0.1", 80)), "n"));
    assert_eq!(
        refused(&table, &pod("p", ports("", 80))),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    assert_eq!(chosen(&table, &pod("p", ports("", 81))), "n");
    assert_eq!(chosen(&table, &pod("p", ports("10.0.0.2", 80))), "n");
}

#[test]
fn preemption_is_told_truthfully() {
    let mut table =
        table([plain("a"), plain("b"), node("c", json!({"spec": {"unschedulable": true}}))]);
    let low = asking("low", "3", "1Gi");
    table.upsert_pod(&on(low, "a"));
    let with = |priority: i32, policy: &str| {
        let mut pod = asking("p", "4500m", "1Gi");
        let spec = pod.spec.as_mut().unwrap();
        spec.priority = Some(priority);
        spec.preemption_policy = Some(policy.into());
        pod
    };
    let head = "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. ";
    assert_eq!(
        refused(&table, &with(10, "PreemptLowerPriority")),
        // More than a node has: no eviction helps.
        format!(
            "{head}preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        )
    );
    assert_eq!(
        refused(&table, &with(10, "Never")),
        format!("{head}preemption: not eligible due to preemptionPolicy=Never.")
    );
    table.upsert_pod(&on(asking("other", "3", "1Gi"), "b"));
    let mut pod = asking("p", "2", "1Gi");
    assert_eq!(
        refused(&table, &pod),
        format!(
            "{head}preemption: 0/3 nodes are available: 1 Preemption is not helpful for \
             scheduling, 2 No preemption victims found for incoming pod."
        )
    );
    pod.spec.as_mut().unwrap().priority = Some(1);
    assert_eq!(refused(&table, &pod), format!("{head}preemption: not tried."));
}

fn pinned(names: &[&str]) -> Value {
    let terms: Vec<_> = names
        .iter()
        .map(|name| {
            json!({"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [name]},
            ]})
        })
        .collect();
    json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
    }}}})
}

#[test]
fn affinity_by_name_looks_at_those_nodes_alone() {
    let table =
        table([plain("a"), plain("b"), node("c", json!({"spec": {"unschedulable": true}}))]);
    assert_eq!(chosen(&table, &pod("p", pinned(&["b", "none"]))), "b");
    assert_eq!(
        refused(&table, &pod("p", pinned(&["c"]))),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't satisfy \
         plugin(s) [NodeAffinity]. preemption: 0/3 nodes are available: 3 Preemption is not \
         helpful for scheduling."
    );
    let conflict = json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["a"]},
            {"key": "metadata.name", "operator": "In", "values": ["b"]},
        ]}]},
    }}}});
    assert_eq!(
        refused(&self::table([]), &pod("p", conflict.clone())),
        "no nodes available to schedule pods"
    );
    assert_eq!(
        refused(&table, &pod("p", conflict)),
        "0/3 nodes are available: pod affinity terms conflict. preemption: 0/3 nodes are \
         available: 3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn the_hostname_label_selects_one_node() {
    let table = table([plain("a"), plain("b"), plain("c")]);
    let by_hostname = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}});
    assert_eq!(chosen(&table, &pod("p", by_hostname)), "b");
}

fn score(
    table: &megacluster_scheduler::core::table::NodeTable,
    p: &k8s_openapi::api::core::v1::Pod,
) -> i64 {
    match place(table, p) {
        Decision::Place(placement) => placement.score,
        other => panic!("{other:?}"),
    }
}

#[test]
fn scores_truncate_at_each_step() {
    // An empty node without preferred affinity: 300 for taints, the rest by hand.
    let table = table([plain("n")]);
    // Nothing asked: 100m of 4000m and 200Mi of 8192Mi by default, 97.5 and 97.56 truncated;
    // balance is left out for a pod that asks for nothing.
    assert_eq!(score(&table, &pod("p", json!({}))), 300 + 97);
    // 25 % and 50 %: least-allocated (75 + 50) / 2 = 62; shares deviate by 12.5 %, so the balance
    // goes from 100 to 87: 50 + (50 - 13) / 2 = 68.
    assert_eq!(score(&table, &asking("p", "1", "4Gi")), 300 + 62 + 68);
}

#[test]
fn the_emptier_node_wins() {
    let mut table = table([plain("a"), plain("b")]);
    table.upsert_pod(&on(asking("there", "2", "4Gi"), "a"));
    assert_eq!(chosen(&table, &asking("p", "1", "2Gi")), "b");
}

#[test]
fn preferences_are_normalised_over_all_feasible_nodes() {
    let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let table = table([zone("a", "x"), zone("b", "y"), plain("c")]);
    let prefer = |weights: &[(&str, i32)]| {
        let terms: Vec<_> = weights
            .iter()
            .map(|(zone, weight)| {
                json!({"weight": weight, "preference": {"matchExpressions": [
                    {"key": "zone", "operator": "In", "values": [zone]},
                ]}})
            })
            .collect();
        json!({"spec": {"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": terms,
        }}}})
    };
    assert_eq!(chosen(&table, &pod("p", prefer(&[("x", 1), ("y", 2)]))), "b");
    assert_eq!(score(&table, &pod("p", prefer(&[("x", 1), ("y", 2)]))), 300 + 200 + 97);
    let tainted = node(
        "d",
        json!({
            "metadata": {"labels": {"zone": "z"}},
            "spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]},
        }),
    );
    let mut table = table;
    table.upsert_node(&tainted);
    // 200 for the affinity don't make up for 300 lost to the taint.
    let choice = chosen(&table, &pod("p", prefer(&[("z", 100)])));
    assert_ne!(choice, "d");
}

#[test]
fn ties_are_broken_evenly_by_the_seed() {
    let table = table((0..4).map(|i| plain(&format!("n{i}"))));
    let request = PodRequest::compile(&pod("p", json!({})));
    let mut counts = [0_u32; 4];
    for seed in 0..4000 {
        let Decision::Place(placement) = decide(&evaluate(&table, &request, seed, None), &request)
        else {
            panic!("fits everywhere")
        };
        assert_eq!(placement.ties, 4);
        counts[placement.node[1..].parse::<usize>().unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
}

#[test]
fn a_partial_answer_never_refuses() {
    let request = PodRequest::compile(&asking("p", "100", "1Gi"));
    let answer = evaluate(&table([plain("n")]), &request, 1, None);
    let silent = Evaluation { missing: 1, ..Evaluation::default() };
    let merged = merge([answer.clone(), silent.clone()]);
    assert_eq!(decide(&merged, &request), Decision::Incomplete { missing: 1 });
    assert!(matches!(decide(&answer, &request), Decision::Unschedulable(_)));

    let request = PodRequest::compile(&asking("p", "1", "1Gi"));
    let merged = merge([silent, evaluate(&table([plain("n")]), &request, 1, None)]);
    let Decision::Place(placement) = decide(&merged, &request) else { panic!("it fits") };
    assert!(!placement.exact);
}

#[test]
fn the_unsupported_is_refused_by_name() {
    let request = PodRequest::compile(&pod(
        "p",
        json!({"spec": {"volumes": [
            {"name": "data", "awsElasticBlockStore": {"volumeID": "aws://zone/data"}},
        ]}}),
    ));
    assert_eq!(
        refuse(3, &request).unwrap().to_string(),
        "0/3 nodes are available: pod asks for what this scheduler doesn't support yet: volume \
         data that can't be translated."
    );
    assert_eq!(refuse(3, &PodRequest::default()), None);
}

#[test]
fn a_sample_stops_early_and_goes_on_where_it_stopped() {
    let mut table = NodeTable::new();
    for number in 0..1000 {
        table.upsert_node(&node(&format!("n{number:03}"), json!({})));
    }
    let port = json!([{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}]);
    let compile = |sample: Option<u8>| {
        let policy = Arc::new(Policy { sample, ..Policy::default() });
        let pod = pod("p", json!({"spec": {"containers": port}}));
        Arc::new(PodRequest::compile(&pod).under(&policy))
    };
    let class = compile(Some(20));
    assert_eq!(search(&mut table, &compile(None), 1, None).feasible, 1000);
    assert_eq!(search(&mut table, &compile(Some(1)), 1, None).feasible, 100, "never fewer");
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let evaluation = search(&mut table, &class, 1, None);
        assert_eq!((evaluation.feasible, evaluation.nodes), (200, 1000));
        seen.extend(evaluation.tuples.into_iter().map(|tuple| tuple.node));
    }
    assert_eq!(seen.len(), 5, "each sample is of other nodes");
    // Where few take the pod all are looked at, and it is never said that none does.
    for number in (0..1000).filter(|number| *number != 77) {
        table.upsert_pod(&on(
            pod(&format!("t{number}"), json!({"spec": {"containers": port}})),
            &format!("n{number:03}"),
        ));
    }
    for _ in 0..3 {
        let evaluation = search(&mut table, &class, 1, None);
        assert_eq!(&*evaluation.tuples[0].node, "n077");
        assert_eq!(evaluation.feasible, 1);
    }
}

#[test]
fn nonsense_nodes_take_nothing_and_break_nothing() {
    let mut table = table([
        node("none", json!({"status": {"allocatable": null}})),
        node("negative", json!({"status": {"allocatable": {"cpu": "-4", "pods": "-1"}}})),
        node("garbage", json!({"status": {"allocatable": {"cpu": "many", "memory": "1Qi"}}})),
        node(
            "huge",
            json!({"status": {"allocatable": {"cpu": "9E", "memory": "9E", "pods": "1"}}}),
        ),
    ]);
    assert_eq!(chosen(&table, &asking("p", "1", "1Gi")), "huge");
    table.upsert_pod(&on(asking("there", "9E", "9E"), "huge"));
    assert!(refused(&table, &asking("p", "1", "1Gi")).contains("3 Too many pods"));
}
