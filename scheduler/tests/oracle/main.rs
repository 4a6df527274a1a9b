//! Random cases against kube-scheduler's own framework: the same feasible nodes, the same
//! rejecting plugin and reasons, the same scores and the same message, however many shards divide
//! the nodes.
//!
//! `tests/oracle/run` builds the oracle and runs this; `ORACLE` names the program, `ORACLE_CASES`
//! the number of cases of each theme, `ORACLE_SEED` the first seed, `ORACLE_THEME` a single theme.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation so"
)]

mod cases;
mod limits;
mod others;
mod preemption;
mod program;
mod replayed;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cases::Theme;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use megacluster_scheduler::config::SchedulerConfig;
use megacluster_scheduler::core::diagnosis::Plugin;
use megacluster_scheduler::core::directory::{Change, Directory, Key, Kind, Value};
use megacluster_scheduler::core::evaluate::{Evaluation, Tuple, evaluate, survey};
use megacluster_scheduler::core::gather::{Decision, decide, merge, refuse, scores};
use megacluster_scheduler::core::labels::{Labels, Selector};
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::nominate::{Nominee, evaluate_beside};
use megacluster_scheduler::core::pod::{OwnerKind, PodRequest, PodUid};
use megacluster_scheduler::core::preempt::{Budget, Question, Trial, preempt};
use megacluster_scheduler::core::survey::Survey;
use megacluster_scheduler::core::table::NodeTable;
use program::Oracle;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    pod: Pod,
    #[serde(default)]
    preempt: bool,
    #[serde(default)]
    evict: bool,
    #[serde(default)]
    budgets: Vec<PodDisruptionBudget>,
    #[serde(default)]
    nominees: Vec<Pod>,
    #[serde(default)]
    configuration: Option<String>,
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default)]
    services: Vec<Service>,
    #[serde(default, rename = "replicationControllers")]
    controllers: Vec<ReplicationController>,
    #[serde(default, rename = "replicaSets")]
    replica_sets: Vec<ReplicaSet>,
    #[serde(default, rename = "statefulSets")]
    stateful_sets: Vec<StatefulSet>,
    #[serde(default)]
    claims: Vec<PersistentVolumeClaim>,
    #[serde(default)]
    volumes: Vec<PersistentVolume>,
    #[serde(default)]
    classes: Vec<StorageClass>,
    #[serde(default)]
    drivers: Vec<CSIDriver>,
    #[serde(default)]
    capacities: Vec<CSIStorageCapacity>,
    #[serde(default, rename = "csiNodes")]
    csi_nodes: Vec<CSINode>,
    #[serde(default)]
    attachments: Vec<VolumeAttachment>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    scores: BTreeMap<String, BTreeMap<String, i64>>,
    rejected: BTreeMap<String, Rejection>,
    message: String,
    plugins: Option<Vec<String>>,
    candidates: Option<BTreeMap<String, Victims>>,
    chosen: String,
    error: String,
}

#[derive(Debug, Deserialize)]
struct Victims {
    victims: Vec<String>,
    violations: u64,
}

#[derive(Debug, Deserialize)]
struct Rejection {
    plugin: String,
    reasons: Vec<String>,
    unresolvable: bool,
}

fn table(case: &Case, nodes: &[Node], pods: &[Pod]) -> NodeTable {
    let mut table = NodeTable::new();
    let owned: BTreeSet<&str> = nodes.iter().map(name).collect();
    for change in volumes::changes(case) {
        table.apply_volumes(&change, |node| owned.contains(node));
    }
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

fn key(meta: &ObjectMeta) -> Key {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    (text(&meta.namespace), text(&meta.name))
}

/// The pod's request with all that hangs on other objects.
fn request(case: &Case) -> Arc<PodRequest> {
    requested(case, &case.pod)
}

fn requested(case: &Case, pod: &Pod) -> Arc<PodRequest> {
    let configuration = case.configuration.as_deref().map(SchedulerConfig::parse);
    let configuration = configuration.map(Result::unwrap).unwrap_or_default();
    let mut directory = Directory::default();
    let selector =
        |selector: &LabelSelector| Value::Selector(Selector::of(Some(selector)).unwrap());
    let mut tell = |kind, meta: &ObjectMeta, value| {
        directory.apply(Change::One(kind, key(meta), value));
    };
    for namespace in &case.namespaces {
        let labels = Labels::of(namespace.metadata.labels.as_ref());
        tell(Kind::Namespace, &namespace.metadata, Some(Value::Labels(labels)));
    }
    for service in &case.services {
        let selector = service.spec.as_ref().unwrap().selector.as_ref();
        let value = selector.map(|selector| Value::Labels(Labels::of(Some(selector))));
        tell(Kind::Service, &service.metadata, value);
    }
    for owner in &case.controllers {
        let labels = Labels::of(owner.spec.as_ref().unwrap().selector.as_ref());
        let kind = Kind::Owner(OwnerKind::ReplicationController);
        tell(kind, &owner.metadata, Some(Value::Labels(labels)));
    }
    for owner in &case.replica_sets {
        let selector = selector(&owner.spec.as_ref().unwrap().selector);
        tell(Kind::Owner(OwnerKind::ReplicaSet), &owner.metadata, Some(selector));
    }
    for owner in &case.stateful_sets {
        let selector = selector(&owner.spec.as_ref().unwrap().selector);
        tell(Kind::Owner(OwnerKind::StatefulSet), &owner.metadata, Some(selector));
    }
    let request = PodRequest::compile(pod).under(&configuration.policies(None)[0]);
    volumes::storage(case).resolve(&directory.resolve(&Arc::new(request)))
}

fn sum(tables: &[NodeTable], request: &PodRequest, full: bool) -> Survey {
    let mut surveys = tables.iter().map(|table| survey(table, request, full));
    let mut sum = surveys.next().unwrap_or_default();
    surveys.for_each(|survey| sum.absorb(survey));
    sum
}

/// What shards that divide the nodes say together.
fn gathered(tables: &[NodeTable], request: &PodRequest) -> (Survey, Evaluation) {
    let mut survey = sum(tables, request, false);
    if survey.odd_hostnames {
        survey = sum(tables, request, true);
    }
    let evaluation = merge(tables.iter().map(|table| evaluate(table, request, 7, Some(&survey))));
    (survey, evaluation)
}

/// The nodes divided among shards.
fn divided(case: &Case, shards: usize) -> Vec<NodeTable> {
    let membership = Membership::new(0, (0..shards).map(|shard| format!("shard-{shard}")));
    let owned = |shard: &Arc<str>| {
        let nodes: Vec<Node> =
            case.nodes.iter().filter(|node| membership.owns(shard, name(node))).cloned().collect();
        let on = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap();
        let pods: Vec<Pod> =
            case.pods.iter().filter(|pod| membership.owns(shard, &on(pod))).cloned().collect();
        table(case, &nodes, &pods)
    };
    membership.names().map(owned).collect()
}

/// The raw scores of one node and the sum of its local ones.
fn alone(case: &Case, node: &Node, request: &PodRequest, survey: &Survey) -> Tuple {
    let here = |pod: &&Pod| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name(node))
    };
    let pods: Vec<Pod> = case.pods.iter().filter(here).cloned().collect();
    let table = table(case, std::slice::from_ref(node), &pods);
    evaluate(&table, request, 1, Some(survey)).tuples.into_iter().next().unwrap()
}

/// What shards that divide the nodes say of preemption.
fn tried(case: &Case, tables: &mut [NodeTable], nominees: &[Nominee]) -> Trial {
    let request = request(case);
    let survey = sum(tables, &request, true);
    let budgets: Vec<Budget> = case.budgets.iter().filter_map(Budget::of).collect();
    let nominated = case.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
    let question = Question {
        request: &request,
        uid: PodUid::of(&case.pod),
        nominated,
        evicted: &[],
        survey: &survey,
        nominees,
        budgets: &budgets,
        seed: 9,
    };
    let mut trial = Trial::default();
    for table in tables {
        trial.absorb(preempt(table, &question));
    }
    trial
}

/// Where preemption makes room, and at whose cost.
fn check_preemption(case: &Case, answer: &Answer, shards: usize) {
    assert_eq!(answer.error, "");
    let request = request(case);
    if let Some(diagnosis) = refuse(case.nodes.len() as u64, &request) {
        assert!(answer.scores.is_empty());
        assert_eq!(diagnosis.to_string(), answer.message);
        return;
    }
    let nominee = |pod: &Pod| Nominee {
        uid: PodUid::of(pod),
        node: pod.status.as_ref().unwrap().nominated_node_name.as_deref().unwrap().into(),
        class: requested(case, pod),
    };
    let nominees: Vec<Nominee> = case.nominees.iter().map(nominee).collect();
    let mut whole = [table(case, &case.nodes, &case.pods)];
    let mut parts = divided(case, shards);
    let mut evaluations = Vec::new();
    for tables in [&mut whole[..], &mut parts[..]] {
        let survey = sum(tables, &request, true);
        let evaluation = tables
            .iter_mut()
            .map(|table| evaluate_beside(table, &request, 7, Some(&survey), &nominees));
        evaluations.push(merge(evaluation));
    }
    assert_eq!(evaluations[0], evaluations[1], "{shards} shards");
    let evaluation = &evaluations[0];
    assert_eq!(evaluation.feasible, answer.scores.len() as u64);
    let Decision::Unschedulable(mut diagnosis) = decide(evaluation, &request) else {
        assert!(!answer.scores.is_empty());
        return;
    };
    let before: Vec<_> = case.nodes.iter().map(|node| whole[0].usage(name(node))).collect();
    let trial = tried(case, &mut whole, &nominees);
    let after: Vec<_> = case.nodes.iter().map(|node| whole[0].usage(name(node))).collect();
    assert_eq!(before, after, "a trial that leaves something behind");
    assert_eq!(trial, tried(case, &mut parts, &nominees), "{shards} shards");
    assert_eq!(trial.feasible, 0);
    let candidates = answer.candidates.as_ref();
    let allowed = request.may_preempt && !trial.waiting;
    match trial.best.as_ref().filter(|_| allowed) {
        Some(best) => {
            let theirs = &candidates.expect("no candidate")[&*best.node];
            let victims: Vec<PodUid> = theirs.victims.iter().map(|uid| PodUid::new(uid)).collect();
            if best.victims != victims {
                // Equal ones are in any order: theirs sorts by pods that have not started as by now.
                let ranks = |victims: &[PodUid]| preemption::ranks(case, victims);
                assert_eq!(ranks(&best.victims), ranks(&victims), "{}", best.node);
                let both = victims.iter().all(|uid| best.victims.contains(uid));
                assert!(both, "{}: {:?}, not {victims:?}", best.node, best.victims);
            }
            assert_eq!(best.violations, theirs.violations);
            if *best.node != *answer.chosen {
                // As good as theirs: ties are drawn by lot.
                let mut other = [table(case, &case.nodes, &case.pods)];
                let only = case.nodes.iter().map(name).filter(|node| *node != answer.chosen);
                for node in only {
                    other[0].remove_node(node);
                }
                let survey = sum(&[table(case, &case.nodes, &case.pods)], &request, true);
                let budgets: Vec<Budget> = case.budgets.iter().filter_map(Budget::of).collect();
                let question = Question {
                    request: &request,
                    uid: PodUid::of(&case.pod),
                    nominated: None,
                    evicted: &[],
                    survey: &survey,
                    nominees: &nominees,
                    budgets: &budgets,
                    seed: 9,
                };
                let theirs = preempt(&mut other[0], &question).best.unwrap();
                assert_eq!(best.price(), theirs.price(), "{} against {}", best.node, theirs.node);
            }
        }
        None => assert!(candidates.is_none(), "a candidate that isn't seen: {candidates:?}"),
    }
    if candidates.is_some() || diagnosis.preemption.is_none() {
        diagnosis.preemption = None;
    } else if request.may_preempt {
        diagnosis.preemption = Some(trial.refusal());
    }
    assert_eq!(diagnosis.to_string(), answer.message);
}

fn check(case: &Case, answer: &Answer, shards: usize) {
    if case.evict {
        return check_preemption(case, answer, shards);
    }
    let request = request(case);
    if answer.error.ends_with("(pod is not owner)") {
        // Without `VolumeBinding`, which refuses such a pod, kube-scheduler fails; here it waits.
        assert!(!request.policy.filters.contains(Plugin::VolumeBinding));
        assert!(refuse(case.nodes.len() as u64, &request).is_some());
        return;
    }
    assert_eq!(answer.error, "");
    assert!(request.unsupported.is_empty(), "{:?}", request.unsupported);
    let mut table = table(case, &case.nodes, &case.pods);
    let (survey, evaluation) = gathered(std::slice::from_ref(&table), &request);
    if !survey.full {
        // Listing domains of one node changes nothing.
        let full = sum(std::slice::from_ref(&table), &request, true);
        assert_eq!(merge([evaluate(&table, &request, 7, Some(&full))]), evaluation);
    }
    let (_, parts) = gathered(&divided(case, shards), &request);
    assert_eq!(parts, evaluation, "{shards} shards");
    let unsurveyed = merge([evaluate(&table, &request, 7, None)]);
    if !unsurveyed.wants_survey {
        assert_eq!(unsurveyed, evaluation, "a survey that wasn't needed tells more");
    }
    assert_eq!(evaluation.nodes, case.nodes.len() as u64);
    let refused = refuse(evaluation.nodes, &request).is_some();
    assert!(refused || evaluation.feasible == answer.scores.len() as u64);
    if request.pinned.is_none() && !refused {
        let unresolvable = answer.rejected.values().filter(|r| r.unresolvable).count();
        assert_eq!(evaluation.unresolvable, unresolvable as u64);
    }
    if !refused {
        check_filters(case, answer, &request, &mut table, &survey);
        check_scores(case, answer, &request, &survey, &evaluation);
    }
    let decision = match refuse(evaluation.nodes, &request) {
        Some(diagnosis) => Decision::Unschedulable(diagnosis),
        None => decide(&evaluation, &request),
    };
    match decision {
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

/// Each node's own verdict.
fn check_filters(
    case: &Case,
    answer: &Answer,
    request: &PodRequest,
    table: &mut NodeTable,
    survey: &Survey,
) {
    let uid = PodUid::of(&case.pod);
    for node in case.nodes.iter().map(name) {
        // A pinned pod isn't looked at elsewhere, and the oracle says nothing of such nodes.
        let elsewhere =
            request.pinned.as_ref().is_some_and(|names| !names.iter().any(|n| **n == *node));
        let rejections = table.reject(node, request, Some(survey)).unwrap();
        if elsewhere {
            assert!(!answer.rejected.contains_key(node) && !answer.scores.contains_key(node));
        } else if rejections.is_empty() {
            assert!(answer.scores.contains_key(node), "{node} isn't feasible");
            table.assume(uid, node, request).unwrap();
            table.forget(uid);
        } else {
            let expected = &answer.rejected[node];
            let reasons: BTreeSet<String> = rejections.keys().map(ToString::to_string).collect();
            assert_eq!(reasons, expected.reasons.iter().cloned().collect(), "{node}");
            let plugins: BTreeSet<_> = rejections.keys().map(|r| r.plugin().name()).collect();
            assert_eq!(plugins, BTreeSet::from([expected.plugin.as_str()]), "{node}");
        }
    }
}

/// Each feasible node's scores, plugin by plugin where they can be told apart.
fn check_scores(
    case: &Case,
    answer: &Answer,
    request: &PodRequest,
    survey: &Survey,
    evaluation: &Evaluation,
) {
    let feasible: Vec<&Node> =
        case.nodes.iter().filter(|node| answer.scores.contains_key(name(node))).collect();
    let tuples = feasible.iter().map(|node| alone(case, node, request, survey)).collect();
    let each = Evaluation { tuples, ..evaluation.clone() };
    for (node, ours) in feasible.into_iter().map(name).zip(scores(&each, request)) {
        let theirs = &answer.scores[node];
        let score = |plugin: &str| theirs.get(plugin).copied().unwrap_or_default();
        assert_eq!(ours.taints, score("TaintToleration"), "{node}");
        assert_eq!(ours.affinity, score("NodeAffinity"), "{node}");
        assert_eq!(ours.spread, score("PodTopologySpread"), "{node}: {theirs:?}");
        assert_eq!(ours.preferences, score("InterPodAffinity"), "{node}: {theirs:?}");
        let local = ["NodeResourcesFit", "NodeResourcesBalancedAllocation", "ImageLocality"];
        let local: i64 = local.into_iter().map(score).sum();
        assert_eq!(ours.local, local, "{node}: {theirs:?}");
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
#[ignore = "needs kube-scheduler's framework: tests/oracle/run builds it"]
fn answers_equal_those_of_kube_scheduler() {
    let first = number("ORACLE_SEED", 1);
    let seeds = first..first + number("ORACLE_CASES", 2000);
    let mut oracle = Oracle::start();
    let only = std::env::var("ORACLE_THEME").ok();
    let wanted = |theme: &Theme| only.as_ref().is_none_or(|name| *name == format!("{theme:?}"));
    for theme in Theme::EACH.into_iter().filter(wanted) {
        let (mut placed, mut limited) = (0, 0);
        for seed in seeds.clone() {
            let case = cases::case(theme, seed);
            let (line, answer) = oracle.ask(&case);
            placed += u64::from(!answer.scores.is_empty());
            let mut rejected = answer.rejected.values();
            limited += u64::from(rejected.any(|one| one.plugin == "NodeVolumeLimits"));
            let _report = Report { theme, seed, case: &case, answer: &line };
            let shards = [1, 2, 7, 32][usize::try_from(seed % 4).unwrap()];
            check(&serde_json::from_value(case.clone()).unwrap(), &answer, shards);
        }
        let count = seeds.end - seeds.start;
        println!("{theme:?}: {count} cases from seed {first}, {placed} placed, the rest refused");
        // Both outcomes must be common, or the cases say little.
        assert!(placed > count / 4 && placed < count * 99 / 100, "{placed} of {count} placed");
        assert!(theme != Theme::Limits || limited > count / 5, "{limited} of {count} limited");
    }
    oracle.end();
}

/// Tells which case failed, when a check panics.
struct Report<'a> {
    theme: Theme,
    seed: u64,
    case: &'a serde_json::Value,
    answer: &'a str,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} {}\ncase {}\nanswer {}", self.theme, self.seed, self.case, self.answer);
        }
    }
}
