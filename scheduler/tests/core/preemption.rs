//! Preemption on one table: who has to go, and what is left behind.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use megacluster_scheduler::core::evaluate::survey;
use megacluster_scheduler::core::nominate::{Nominee, evaluate_beside};
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::preempt::{Budget, Question, Trial, preempt};
use megacluster_scheduler::core::table::NodeTable;
use serde_json::{Value, json};

fn pod(name: &str, cpu: &str, priority: i32, node: Option<&str>) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node, "priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}],
        },
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    })
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn table(pods: &[Value]) -> NodeTable {
    let mut table = NodeTable::new();
    table.upsert_node(&read(json!({
        "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    })));
    for pod in pods {
        table.upsert_pod(&read(pod.clone()));
    }
    table
}

fn ask(table: &mut NodeTable, wants: &Value, nominees: &[Nominee], budgets: &[Budget]) -> Trial {
    let request = PodRequest::compile(&read(wants.clone()));
    let survey = survey(table, &request, true);
    let question = Question {
        request: &request,
        uid: PodUid::new("wants"),
        nominated: Some("n"),
        evicted: &[],
        survey: &survey,
        nominees,
        budgets,
        seed: 1,
    };
    preempt(table, &question)
}

#[test]
fn the_fewest_and_least_important_go_and_nothing_is_left_behind() {
    let pods = [
        pod("low", "2", 1, Some("n")),
        pod("high", "1", 5, Some("n")),
        pod("higher", "1", 20, Some("n")),
    ];
    let mut table = table(&pods);
    let before = table.usage("n");
    let best = ask(&mut table, &pod("wants", "2", 10, None), &[], &[]).best.unwrap();
    assert_eq!(best.victims, [PodUid::new("low")]);
    assert_eq!((best.violations, best.highest), (0, 1));
    assert_eq!(table.usage("n"), before);
    // The most important comes back first, unless a budget protects another one.
    let budget = |allowed: i32| {
        let budget: PodDisruptionBudget = read(json!({
            "metadata": {"name": "b", "namespace": "d"},
            "spec": {"selector": {"matchLabels": {"app": "low"}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 0, "desiredHealthy": 0,
                "expectedPods": 0},
        }));
        Budget::of(&budget).unwrap()
    };
    let one = pod("wants", "1", 10, None);
    let best = ask(&mut table, &one, &[], &[budget(0)]).best.unwrap();
    assert_eq!((best.victims, best.violations), (vec![PodUid::new("high")], 0));
    let best = ask(&mut table, &one, &[], &[budget(1)]).best.unwrap();
    assert_eq!((best.victims, best.violations), (vec![PodUid::new("low")], 0));
    // Room for more than all of lower priority have.
    let trial = ask(&mut table, &pod("wants", "4", 10, None), &[], &[]);
    assert_eq!((trial.best, trial.rejections.values().sum::<u64>()), (None, 1));
    // Nobody is below.
    let trial = ask(&mut table, &pod("wants", "2", 1, None), &[], &[]);
    assert_eq!((trial.best, trial.no_victims), (None, 1));
}

#[test]
fn promised_room_is_kept_for_who_is_at_least_as_important() {
    let mut table = table(&[pod("there", "1", 0, Some("n"))]);
    let nominee = Nominee {
        uid: PodUid::new("promised"),
        node: "n".into(),
        class: PodRequest::compile(&read(pod("promised", "3", 5, None))).into(),
    };
    let mut feasible = |priority: i32| {
        let request = PodRequest::compile(&read(pod("wants", "1", priority, None)));
        evaluate_beside(&mut table, &request, 1, None, std::slice::from_ref(&nominee)).feasible
    };
    assert_eq!(feasible(4), 0);
    assert_eq!(feasible(5), 0);
    assert_eq!(feasible(6), 1);
}

#[test]
fn victims_on_their_way_out_are_waited_for() {
    let mut there = pod("there", "4", 0, Some("n"));
    let wants = pod("wants", "1", 10, None);
    assert!(!ask(&mut table(&[there.clone()]), &wants, &[], &[]).waiting);
    there["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    there["status"]["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    assert!(ask(&mut table(&[there]), &wants, &[], &[]).waiting);
}
