//! The way by cells against the plain scan, over random histories: the same nodes, whatever came
//! before.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::core::ahead::Course;
use megacluster_scheduler::core::evaluate::{Evaluation, evaluate, survey as plain_survey};
use megacluster_scheduler::core::gather::{Decision, decide, merge};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::search::{look_ahead, search, survey};
use megacluster_scheduler::core::survey::Survey;
use megacluster_scheduler::core::table::NodeTable;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::build::{node, on, pod, uid};

const HISTORIES: u64 = 20;
const STEPS: usize = 150;

pub(crate) fn pick<'a>(random: &mut SmallRng, of: &[&'a str]) -> &'a str {
    of[random.random_range(0..of.len())]
}

fn some_node(random: &mut SmallRng, number: u32, odd: bool) -> Node {
    let name = format!("n{number}");
    let mut labels = json!({"disk": pick(random, &["ssd", "hdd"])});
    if random.random_range(0..10) > 0 {
        labels["zone"] = json!(pick(random, &["a", "b", "c"]));
    }
    if random.random_range(0..12) > 0 {
        labels["kubernetes.io/hostname"] = json!(name);
    }
    if odd && random.random_range(0..20) == 0 {
        labels["kubernetes.io/hostname"] = json!("shared");
    }
    let effect = pick(random, &["", "", "", "", "NoSchedule", "PreferNoSchedule"]);
    let taints =
        if effect.is_empty() { json!([]) } else { json!([{"key": "t", "effect": effect}]) };
    let huge = random.random_range(0..40) == 0;
    let cpu = if huge { "9000000000000" } else { pick(random, &["2", "4", "4", "8", "0"]) };
    json_node(
        &name,
        labels,
        json!({
            "spec": {"taints": taints, "unschedulable": random.random_range(0..15) == 0},
            "status": {"allocatable": {
                "cpu": cpu, "memory": pick(random, &["4Gi", "8Gi", "16Gi"]),
                "pods": pick(random, &["3", "20"]),
            }},
        }),
    )
}

fn json_node(name: &str, labels: Value, patch: Value) -> Node {
    let mut object = node(name, patch);
    object.metadata.labels = serde_json::from_value(labels).unwrap();
    object
}

fn requests(random: &mut SmallRng) -> Value {
    let mut requests = json!({});
    if random.random_range(0..6) > 0 {
        requests["cpu"] = json!(pick(random, &["1m", "50m", "100m", "250m", "700m", "1", "3"]));
    }
    if random.random_range(0..6) > 0 {
        requests["memory"] = json!(pick(random, &["1Ki", "64Mi", "100Mi", "300Mi", "1Gi", "3Gi"]));
    }
    json!([{"name": "c", "resources": {"requests": requests}}])
}

fn some_pod(random: &mut SmallRng, number: u32, rules: bool) -> Pod {
    let app = pick(random, &["x", "y", "z"]);
    let mut patch = json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": requests(random), "priority": random.random_range(0..3)},
    });
    let spec = &mut patch["spec"];
    match random.random_range(0..12) {
        0 => spec["nodeSelector"] = json!({"disk": "ssd"}),
        1 => spec["tolerations"] = json!([{"operator": "Exists"}]),
        2 => spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]),
        3 => {
            spec["affinity"]["nodeAffinity"] = json!({
                "preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 7,
                    "preference": {"matchExpressions":
                        [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
                }],
            });
        }
        4 => {
            spec["affinity"]["nodeAffinity"] = json!({
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions":
                        [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"]}]},
                ]},
            });
        }
        _ => {}
    }
    if rules {
        let key = pick(random, &["zone", "kubernetes.io/hostname"]);
        let selector = json!({"matchLabels": {"app": pick(random, &["x", "y", "z"])}});
        let term = json!({"topologyKey": key, "labelSelector": selector});
        match random.random_range(0..8) {
            0 | 1 => {
                let when = pick(random, &["DoNotSchedule", "ScheduleAnyway"]);
                let spread = |key: &str, skew: u32| {
                    json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when,
                        "labelSelector": selector})
                };
                spec["topologySpreadConstraints"] = if random.random_range(0..2) == 0 {
                    json!([spread(key, 1)])
                } else {
                    json!([spread("zone", 2), spread("kubernetes.io/hostname", 3)])
                };
            }
            2 => {
                spec["affinity"]["podAntiAffinity"] = json!({
                    "requiredDuringSchedulingIgnoredDuringExecution": [term],
                });
            }
            3 => {
                spec["affinity"]["podAffinity"] = json!({
                    "requiredDuringSchedulingIgnoredDuringExecution": [term],
                });
            }
            4 => {
                spec["affinity"]["podAffinity"] = json!({
                    "preferredDuringSchedulingIgnoredDuringExecution":
                        [{"weight": 5, "podAffinityTerm": term}],
                });
            }
            _ => {}
        }
    }
    pod(&format!("p{number}"), patch)
}

/// All that the way by cells promises.
fn compare(scan: &Evaluation, cells: &Evaluation, class: &PodRequest) -> Result<(), String> {
    if scan.tuples.is_empty() || scan.wants_survey {
        return if scan == cells { Ok(()) } else { Err("nothing takes it".to_owned()) };
    }
    let best = |evaluation: &Evaluation| -> Vec<_> {
        let tuples = evaluation.tuples.iter();
        tuples
            .map(|t| {
                (
                    t.taints,
                    t.affinity,
                    t.preferences,
                    t.spread.clone(),
                    t.local,
                    t.node.clone(),
                    t.lot,
                )
            })
            .collect()
    };
    let rest =
        |e: &Evaluation| (e.nodes, e.lower_priority, e.domains.clone(), e.ignored, e.wants_survey);
    if best(scan) != best(cells) {
        return Err("other nodes".to_owned());
    }
    if rest(scan) != rest(cells) {
        return Err("other facts".to_owned());
    }
    let counted = !class.spread.soft.is_empty();
    if cells.feasible > scan.feasible || (counted && cells.feasible != scan.feasible) {
        return Err("another number of feasible nodes".to_owned());
    }
    Ok(())
}

struct History {
    random: SmallRng,
    table: NodeTable,
    nodes: u32,
    classes: Vec<Arc<PodRequest>>,
    reserved: Vec<PodUid>,
    odd: bool,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let rules = !seed.is_multiple_of(3);
        let classes = (0..25).map(|number| {
            Arc::new(PodRequest::compile(&some_pod(&mut random, 10_000 + number, rules)))
        });
        let classes = classes.collect();
        let nodes = if seed.is_multiple_of(5) { 400 } else { 40 };
        let odd = seed % 4 == 1;
        Self { random, table: NodeTable::new(), nodes, classes, reserved: Vec::new(), odd }
    }

    fn step(&mut self, number: u32) {
        let at = self.random.random_range(0..self.nodes);
        let rules = self.random.random_range(0..4) == 0;
        match self.random.random_range(0..10) {
            0..=1 => {
                let node = some_node(&mut self.random, at, self.odd);
                self.table.upsert_node(&node);
            }
            2 => drop(self.table.remove_node(&format!("n{at}"))),
            3..=5 => {
                let pod = on(some_pod(&mut self.random, number, rules), &format!("n{at}"));
                self.table.upsert_pod(&pod);
            }
            6 => {
                let gone = self.random.random_range(0..=number);
                self.table.remove_pod(uid(&pod(&format!("p{gone}"), json!({}))));
            }
            7 => {
                if let Some(uid) = self.reserved.pop() {
                    self.table.forget(uid);
                }
            }
            _ => {
                let class = self.classes[self.random.random_range(0..self.classes.len())].clone();
                let own = plain_survey(&self.table, &class, false);
                let scan = evaluate(&self.table, &class, 3, Some(&own));
                if let Decision::Place(placement) = decide(&scan, &class) {
                    let uid = PodUid::new(&format!("reserved-{number}"));
                    if self.table.assume_class(uid, &placement.node, &class).is_ok() {
                        self.reserved.push(uid);
                        self.check_count(&class, own, &scan, &placement.node);
                    }
                }
            }
        }
    }

    /// A survey that counts what has been placed is what a new one would be.
    fn check_count(&self, class: &PodRequest, mut own: Survey, scan: &Evaluation, node: &str) {
        let tuple = scan.tuples.iter().find(|tuple| *tuple.node == *node).unwrap();
        if own.place(class, &tuple.labels, tuple.spread.is_some()) {
            assert_eq!(own, plain_survey(&self.table, class, false));
        }
    }

    fn check(&mut self, seed: u64, step: usize) {
        for number in 0..self.classes.len() {
            if self.random.random_range(0..4) > 0 {
                continue;
            }
            let class = self.classes[number].clone();
            let what =
                |error: String| format!("history {seed}, step {step}, class {number}: {error}");
            let lots = if self.random.random_range(0..9) == 0 { 4 } else { 3 };
            let full = plain_survey(&self.table, &class, false).odd_hostnames;
            let sums = survey(&mut self.table, &class, full);
            assert_eq!(sums, plain_survey(&self.table, &class, full));
            for survey in [None, Some(&sums)] {
                let cells = search(&mut self.table, &class, lots, survey);
                let scan = evaluate(&self.table, &class, lots, survey);
                let same = compare(&scan, &cells, &class).map_err(what);
                assert!(same.is_ok(), "{same:?}\n{scan:?}\n{cells:?}");
            }
        }
    }
}

#[test]
fn cells_lead_to_the_nodes_that_a_scan_finds() {
    for seed in 0..HISTORIES {
        let mut history = History::new(seed);
        for number in 0..history.nodes / 2 {
            let node = some_node(&mut history.random, number, history.odd);
            history.table.upsert_node(&node);
        }
        for step in 0..STEPS {
            history.step(u32::try_from(step).unwrap());
            if step % 3 == 0 {
                history.check(seed, step);
            }
        }
    }
}

/// Tables of equal halves of the nodes, with some pods on them, and one of all nodes.
pub(crate) fn divided(
    random: &mut SmallRng,
    halves: usize,
    rules: bool,
) -> (Vec<NodeTable>, NodeTable) {
    let mut parts: Vec<NodeTable> = (0..halves).map(|_| NodeTable::new()).collect();
    let mut whole = NodeTable::new();
    for number in 0..120_u32 {
        let zone = pick(random, &["a", "b", "c"]);
        let mut labels = json!({"zone": zone, "disk": pick(random, &["ssd", "hdd"])});
        if random.random_range(0..15) > 0 {
            labels["kubernetes.io/hostname"] = json!(format!("n{number}"));
        }
        let allocatable = json!({"cpu": pick(random, &["2", "4", "8"]), "memory": "16Gi",
            "pods": pick(random, &["2", "20"])});
        let node = json_node(
            &format!("n{number}"),
            labels,
            json!({"status": {"allocatable": allocatable}}),
        );
        let pod = on(some_pod(random, number, rules), &format!("n{number}"));
        for table in [&mut parts[number as usize % halves], &mut whole] {
            table.upsert_node(&node);
            if number.is_multiple_of(4) {
                table.upsert_pod(&pod);
            }
        }
    }
    (parts, whole)
}

pub(crate) fn surveyed(tables: &mut [NodeTable], class: &Arc<PodRequest>) -> Survey {
    let surveys = tables.iter_mut().map(|table| survey(table, class, false));
    let sum = surveys.reduce(|mut sum, other| {
        sum.absorb(other);
        sum
    });
    sum.unwrap()
}

#[test]
fn looking_ahead_is_reserving_one_by_one() {
    let (mut ahead_of_one, mut barred) = (0, 0);
    for seed in 0..60 {
        let mut random = SmallRng::seed_from_u64(seed);
        let halves = random.random_range(1..=3);
        let (mut parts, mut whole) = divided(&mut random, halves, true);
        for number in 0..12_u32 {
            let mut class = some_pod(&mut random, 1000 + number, !number.is_multiple_of(4));
            if number % 4 == 1 {
                let spread = json!([{"maxSkew": random.random_range(1..=3), "topologyKey": "zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app": pick(&mut random, &["x", "y", "z"])}}}]);
                let spec = class.spec.as_mut().unwrap();
                spec.topology_spread_constraints = serde_json::from_value(spread).unwrap();
            }
            let class = Arc::new(PodRequest::compile(&class));
            let sums = surveyed(&mut parts, &class);
            let count = random.random_range(2..30);
            let answers: Vec<Evaluation> = parts
                .iter_mut()
                .map(|table| look_ahead(table, &class, 9, Some(&sums), count, &[]))
                .collect();
            barred += usize::from(class.spread.hard.len() == 1 && answers[0].ahead);
            let mut course = Course::new(merge(answers), &class, Some(&sums));
            for pod in 0..60 {
                let Some(seen) = course.decide() else { break };
                let sums = plain_survey(&whole, &class, false);
                let now = decide(&evaluate(&whole, &class, 9, Some(&sums)), &class);
                let what = format!("seed {seed}, class {number}, pod {pod}");
                match (&seen, &now) {
                    (Decision::Place(seen), Decision::Place(now)) => {
                        assert_eq!((&seen.node, seen.score), (&now.node, now.score), "{what}");
                    }
                    _ => assert_eq!(seen, now, "{what}"),
                }
                let Decision::Place(placement) = now else { break };
                let uid = PodUid::new(&format!("{number}-{pod}"));
                let owner = parts.iter_mut().find(|table| table.usage(&placement.node).is_some());
                for table in [owner.unwrap(), &mut whole] {
                    table.assume_class(uid, &placement.node, &class).expect(&what);
                }
                ahead_of_one += usize::from(pod > 0);
            }
        }
    }
    assert!(ahead_of_one > 2000, "{ahead_of_one} pods decided ahead");
    assert!(barred > 30, "{barred} classes with a hard constraint");
}
