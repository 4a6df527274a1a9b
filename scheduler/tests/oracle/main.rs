//! Random cases against kube-scheduler's own framework: the same feasible nodes, the same
//! rejecting plugin and reasons, the same scores and the same message.
//!
//! `tests/oracle/run` builds the oracle and runs this; `ORACLE` names the program, `ORACLE_CASES`
//! the number of cases, `ORACLE_SEED` the first seed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation so"
)]

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::core::evaluate::{Tuple, evaluate};
use megacluster_scheduler::core::gather::{Decision, decide, merge};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::table::{NodeTable, Unfit};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    pod: Pod,
    preempt: bool,
}

#[derive(Debug, Deserialize)]
struct Answer {
    scores: BTreeMap<String, BTreeMap<String, i64>>,
    rejected: BTreeMap<String, Rejection>,
    message: String,
    plugins: Option<Vec<String>>,
    error: String,
}

#[derive(Debug, Deserialize)]
struct Rejection {
    plugin: String,
    reasons: Vec<String>,
    unresolvable: bool,
}

fn table(nodes: &[Node], pods: &[Pod]) -> NodeTable {
    let mut table = NodeTable::new();
    for node in nodes {
        table.upsert_node(node);
    }
    for pod in pods {
        table.upsert_pod(pod);
    }
    table
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap()
}

/// The raw scores of one node and the sum of its local ones.
fn alone(case: &Case, node: &Node, request: &PodRequest) -> Option<Tuple> {
    let table = table(std::slice::from_ref(node), &case.pods);
    evaluate(&table, request, 1).tuples.into_iter().next()
}

fn check(case: &Case, answer: &Answer) {
    assert_eq!(answer.error, "");
    let request = PodRequest::compile(&case.pod);
    assert!(request.unsupported.is_empty(), "{:?}", request.unsupported);
    let mut table = table(&case.nodes, &case.pods);
    let evaluation = merge([evaluate(&table, &request, 7)]);
    assert_eq!(evaluation.nodes, case.nodes.len() as u64);
    assert_eq!(evaluation.feasible, answer.scores.len() as u64);
    if request.pinned.is_none() {
        let unresolvable = answer.rejected.values().filter(|r| r.unresolvable).count();
        assert_eq!(evaluation.unresolvable, unresolvable as u64);
    }
    check_filters(case, answer, &request, &mut table);
    check_scores(case, answer, &request);
    match decide(&evaluation, &request) {
        Decision::Place(placement) => {
            let total = |node: &str| answer.scores[node].values().sum::<i64>();
            let best = answer.scores.keys().map(|node| total(node)).max().unwrap();
            let ties = answer.scores.keys().filter(|node| total(node) == best).count();
            assert_eq!(total(&placement.node), best, "a node that isn't among the best");
            assert_eq!(placement.ties, ties as u64);
            assert_eq!(placement.score, best);
        }
        Decision::Unschedulable(diagnosis) => {
            assert!(answer.scores.is_empty());
            let message = diagnosis.to_string();
            let short = message.split(" preemption: ").next().unwrap();
            assert_eq!(if case.preempt { &message } else { short }, answer.message);
            let plugins: BTreeSet<_> =
                diagnosis.plugins.iter().map(|p| p.name().to_owned()).collect();
            assert_eq!(plugins, answer.plugins.clone().unwrap_or_default().into_iter().collect());
        }
        other @ Decision::Incomplete { .. } => panic!("{other:?}"),
    }
}

/// Each node's own verdict, by reserving a place on it.
fn check_filters(case: &Case, answer: &Answer, request: &PodRequest, table: &mut NodeTable) {
    let uid = PodUid::of(&case.pod);
    for node in case.nodes.iter().map(name) {
        // A pinned pod isn't looked at elsewhere, and the oracle says nothing of such nodes.
        let elsewhere =
            request.pinned.as_ref().is_some_and(|names| !names.iter().any(|n| **n == *node));
        match table.assume(uid, node, request) {
            Ok(()) => {
                assert!(answer.scores.contains_key(node), "{node} isn't feasible");
                table.forget(uid);
            }
            Err(Unfit::Rejected(_)) if elsewhere => {
                assert!(!answer.rejected.contains_key(node) && !answer.scores.contains_key(node));
            }
            Err(Unfit::Rejected(rejections)) => {
                let expected = &answer.rejected[node];
                let reasons: BTreeSet<String> =
                    rejections.keys().map(ToString::to_string).collect();
                assert_eq!(reasons, expected.reasons.iter().cloned().collect(), "{node}");
                let plugins: BTreeSet<_> = rejections.keys().map(|r| r.plugin().name()).collect();
                assert_eq!(plugins, BTreeSet::from([expected.plugin.as_str()]), "{node}");
            }
            Err(unfit) => panic!("{node}: {unfit}"),
        }
    }
}

/// Each feasible node's scores, plugin by plugin where they can be told apart.
fn check_scores(case: &Case, answer: &Answer, request: &PodRequest) {
    let feasible = case.nodes.iter().filter(|node| answer.scores.contains_key(name(node)));
    let tuples: Vec<(&str, Tuple)> =
        feasible.map(|node| (name(node), alone(case, node, request).unwrap())).collect();
    let most_taints = tuples.iter().map(|(_, tuple)| tuple.taints).max().unwrap_or_default();
    let most_affinity = tuples.iter().map(|(_, tuple)| tuple.affinity).max().unwrap_or_default();
    for (node, tuple) in &tuples {
        let score = |plugin: &str| answer.scores[*node].get(plugin).copied().unwrap_or_default();
        let share = |raw: i64, most: i64| if most == 0 { 0 } else { 100 * raw / most };
        let taints = 3 * (100 - share(tuple.taints, most_taints));
        assert_eq!(taints, score("TaintToleration"), "{node}");
        let affinity = 2 * share(tuple.affinity, most_affinity);
        assert_eq!(affinity, score("NodeAffinity"), "{node}");
        let local = score("NodeResourcesFit") + score("NodeResourcesBalancedAllocation");
        assert_eq!(tuple.local, local, "{node}: {:?}", answer.scores[*node]);
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
#[ignore = "needs kube-scheduler's framework: tests/oracle/run builds it"]
fn answers_equal_those_of_kube_scheduler() {
    let program = std::env::var("ORACLE").expect("ORACLE names the oracle program");
    let first = number("ORACLE_SEED", 1);
    let seeds = first..first + number("ORACLE_CASES", 2000);
    let mut oracle =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = oracle.stdin.take().unwrap();
    let mut answers = BufReader::new(oracle.stdout.take().unwrap()).lines();
    let mut placed = 0;
    for seed in seeds.clone() {
        let case = cases::case(seed);
        writeln!(stdin, "{case}").unwrap();
        let line = answers.next().expect("the oracle ended early").unwrap();
        let answer: Answer = serde_json::from_str(&line).unwrap();
        placed += u64::from(!answer.scores.is_empty());
        let _report = Report { seed, case: &case, answer: &line };
        check(&serde_json::from_value(case.clone()).unwrap(), &answer);
    }
    drop(stdin);
    assert!(oracle.wait().unwrap().success());
    let count = seeds.end - seeds.start;
    println!(
        "{count} cases from seed {first}: {placed} placed, the rest refused, all as kube-scheduler"
    );
    // Both outcomes must be common, or the cases say little.
    assert!(placed > count / 4 && placed < count * 9 / 10, "{placed} of {count} placed");
}

/// Tells which case failed, when a check panics.
struct Report<'a> {
    seed: u64,
    case: &'a Value,
    answer: &'a str,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}\ncase {}\nanswer {}", self.seed, self.case, self.answer);
        }
    }
}
