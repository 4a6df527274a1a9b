//! Evictions against an apiserver that refuses, is busy, loses answers or knows better: what is
//! written, in which order, and what becomes of it.

#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]
#![allow(clippy::unnecessary_wraps, reason = "replies are made in one shape")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Reply, apiserver, status, uid};
use http::Method;
use megacluster_scheduler::core::pod::PodUid;
use megacluster_scheduler::protocol::PodId;
use megacluster_scheduler::relay::evict::{Ended, EvictLimits, EvictOutcome, Order, evict};
use parking_lot::Mutex;
use serde_json::{Value, json};

const LIMITS: EvictLimits = EvictLimits {
    request: Duration::from_millis(150),
    window: Duration::from_millis(600),
    pause: Duration::from_millis(5),
};

fn id(number: usize) -> PodId {
    let name = format!("p{number}").into();
    PodId { uid: uid(number).into(), namespace: "d".into(), name }
}

fn pod(number: usize, priority: i32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": uid(number)},
        "spec": {"containers": [], "priority": priority, "nodeName": "n1"},
    })
}

/// The pod that wants room, 0, without a node.
fn preemptor() -> Value {
    let mut pod = pod(0, 10);
    pod["spec"]["nodeName"] = Value::Null;
    pod["metadata"]["resourceVersion"] = json!("77");
    pod
}

fn order() -> Order {
    Order {
        preemptor: id(0),
        priority: 10,
        scheduler: "default-scheduler".to_owned(),
        node: "n1".into(),
        victims: vec![PodUid::new(&uid(1)), PodUid::new(&uid(2))],
        withdrawn: vec![id(5)],
    }
}

fn here(pods: &[Value]) -> Reply {
    Some((200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods})))
}

type Log = Arc<Mutex<Vec<String>>>;

/// Carries the order out while `changed` may answer otherwise than a healthy apiserver; returns
/// what was asked too, without queries.
async fn run(
    pods: Vec<Value>,
    may_act: impl Fn(usize) -> bool + Sync,
    changed: impl Fn(&str, &Value) -> Option<Reply> + Send + Sync + 'static,
) -> (EvictOutcome, Vec<String>) {
    let log = Log::default();
    let seen = log.clone();
    let client = apiserver(move |method, path, body| {
        let path = path.trim_start_matches("/api/v1/namespaces/d/pods/");
        let asked = format!("{method} {path}");
        seen.lock().push(asked.clone());
        if *method == Method::DELETE {
            let name = path.trim_start_matches('p');
            assert_eq!(body["preconditions"]["uid"], uid(name.parse().expect("a pod of ours")));
        }
        if *method == Method::PATCH && path != "p5/status" && path != "p0/status" {
            let condition = &body["status"]["conditions"][0];
            assert_eq!(condition["type"], "DisruptionTarget");
            assert_eq!(condition["reason"], "PreemptionByScheduler");
        }
        if let Some(reply) = changed(&asked, &body) {
            return reply;
        }
        match (method, path) {
            (&Method::GET, "/api/v1/pods") => here(&pods),
            (&Method::PATCH, "p0/status") => {
                assert_eq!(body["status"]["nominatedNodeName"], "n1");
                assert_eq!(body["metadata"]["uid"], uid(0));
                Some((200, preemptor()))
            }
            (&Method::PATCH, "p5/status") => {
                assert!(body["status"].get("nominatedNodeName").is_some_and(Value::is_null));
                Some((200, json!({})))
            }
            _ => Some((200, json!({}))),
        }
    })
    .await;
    let asked = AtomicUsize::new(0);
    let may_act = || may_act(asked.fetch_add(1, Ordering::SeqCst));
    let outcome = evict(&client, &order(), LIMITS, &may_act).await;
    let asked = log.lock().clone();
    (outcome, asked)
}

fn both() -> Vec<Value> {
    vec![pod(1, 1), pod(2, 2), pod(3, 1)]
}

fn sorted(mut asked: Vec<String>) -> Vec<String> {
    asked.sort();
    asked
}

fn deleted(asked: &[String]) -> usize {
    asked.iter().filter(|request| request.starts_with("DELETE")).count()
}

#[tokio::test]
async fn the_promise_first_then_the_mark_then_the_deletion_of_victims_alone() {
    let (outcome, asked) = run(both(), |_| true, |_, _| None).await;
    assert_eq!((outcome.ended, outcome.promised), (Ended::Done, Some(77)));
    assert_eq!((outcome.evicted.len(), outcome.leaving.len()), (2, 2));
    assert_eq!(asked[..3], ["PATCH p0/status", "PATCH p5/status", "GET /api/v1/pods"]);
    let place = |request: &str| asked.iter().position(|other| other == request);
    assert!(place("PATCH p1/status") < place("DELETE p1"));
    let expected = ["DELETE p1", "DELETE p2", "PATCH p1/status", "PATCH p2/status"];
    assert_eq!(sorted(asked[3..].to_vec()), expected);
}

#[tokio::test]
async fn who_is_gone_or_leaving_is_not_told_again() {
    let mut leaving = pod(1, 1);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let (outcome, asked) = run(vec![leaving], |_| true, |_, _| None).await;
    assert_eq!(outcome.ended, Ended::Done);
    assert_eq!((outcome.evicted, outcome.leaving), (vec![], vec![PodUid::new(&uid(1))]));
    assert_eq!(asked.len(), 3);
    // Marked before, by a try that was cut short.
    let mut marked = pod(1, 1);
    marked["status"] = json!({"conditions":
        [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]});
    let (_, asked) = run(vec![marked], |_| true, |_, _| None).await;
    assert_eq!(asked[3..], ["DELETE p1"]);
    // Gone between the list and the deletion, or another pod has the name.
    let gone = |asked: &str, _: &Value| asked.ends_with(" p1").then(|| Some(status(404, "gone")));
    let (outcome, _) = run(both(), |_| true, gone).await;
    assert_eq!((outcome.ended, outcome.evicted), (Ended::Done, vec![id(2)]));
    let namesake = |asked: &str, _: &Value| match asked {
        "DELETE p1" => Some(Some(status(409, "uid"))),
        "GET p1" => Some(Some((200, pod(9, 1)))),
        _ => None,
    };
    let (outcome, _) = run(both(), |_| true, namesake).await;
    assert_eq!((outcome.ended, outcome.evicted), (Ended::Done, vec![id(2)]));
}

#[tokio::test]
async fn a_preemptor_that_needs_no_room_any_more_evicts_nobody() {
    let gone = |asked: &str, _: &Value| (asked == "PATCH p0/status").then(|| Some(status(404, "")));
    let (outcome, asked) = run(both(), |_| true, gone).await;
    assert_eq!((outcome.ended, deleted(&asked)), (Ended::Gone, 0));
    let placed =
        |asked: &str, _: &Value| (asked == "PATCH p0/status").then(|| Some((200, pod(0, 10))));
    let (outcome, asked) = run(both(), |_| true, placed).await;
    assert_eq!((outcome.ended, deleted(&asked)), (Ended::Gone, 0));
}

#[tokio::test]
async fn nobody_of_the_same_priority_is_touched() {
    let (outcome, asked) = run(vec![pod(1, 10)], |_| true, |_, _| None).await;
    assert!(matches!(outcome.ended, Ended::Failed(_)));
    assert_eq!(deleted(&asked), 0);
}

#[tokio::test]
async fn the_right_to_act_is_asked_for_before_each_request() {
    for allowed in 0..7 {
        let (outcome, asked) = run(both(), move |count| count < allowed, |_, _| None).await;
        assert_eq!((outcome.ended, asked.len()), (Ended::Fenced, allowed));
        assert_eq!(outcome.promised.is_some(), allowed > 0);
        assert_eq!(outcome.leaving.len(), deleted(&asked));
    }
}

#[tokio::test]
async fn busy_lost_and_refused() {
    // A busy server and a lost answer are asked again, whichever request it is.
    for request in ["PATCH p0/status", "GET /api/v1/pods", "PATCH p1/status", "DELETE p1"] {
        for reply in [Some(status(429, "busy")), Some(status(500, "")), Some(status(409, "")), None]
        {
            let count = AtomicUsize::new(0);
            let once = move |asked: &str, _: &Value| {
                let first = asked == request && count.fetch_add(1, Ordering::SeqCst) == 0;
                if first {
                    return Some(reply.clone());
                }
                // What a conflict is looked into by.
                let number = asked.strip_prefix("GET p")?.parse().ok()?;
                Some(Some((200, pod(number, 1))))
            };
            let (outcome, _) = run(both(), |_| true, once).await;
            assert_eq!((outcome.ended, outcome.evicted.len()), (Ended::Done, 2), "{request}");
        }
    }
    let refused = |asked: &str, _: &Value| (asked == "DELETE p1").then(|| Some(status(403, "no")));
    let (outcome, _) = run(both(), |_| true, refused).await;
    assert_eq!(outcome.ended, Ended::Failed("no".to_owned()));
    assert!(outcome.leaving.len() <= 1);
    let down = |asked: &str, _: &Value| asked.starts_with("GET").then(|| Some(status(500, "down")));
    let (outcome, asked) = run(both(), |_| true, down).await;
    assert_eq!((outcome.ended, deleted(&asked)), (Ended::Failed("down".to_owned()), 0));
}
