//! A bind whose answer is lost, late or a refusal: what becomes of it.

#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]
#![allow(clippy::unnecessary_wraps, reason = "replies are made in one shape")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Reply, requests, status, uid};
use http::Method;
use megacluster_scheduler::protocol::PodId;
use megacluster_scheduler::relay::bind::{BindLimits, BindOutcome, bind};
use serde_json::json;

const LIMITS: BindLimits = BindLimits {
    request: Duration::from_millis(150),
    window: Duration::from_millis(600),
    pause: Duration::from_millis(5),
};

fn id() -> PodId {
    PodId { uid: uid(7).into(), namespace: "d".into(), name: "p7".into() }
}

/// What a GET of the pod gives.
fn seen(node: &str) -> Reply {
    let spec = if node.is_empty() {
        json!({"containers": []})
    } else {
        json!({"containers": [], "nodeName": node})
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p7", "namespace": "d", "uid": uid(7)}, "spec": spec,
    });
    Some((200, pod))
}

fn namesake() -> Reply {
    let mut reply = seen("");
    if let Some((_, pod)) = &mut reply {
        pod["metadata"]["uid"] = "another".into();
    }
    reply
}

/// Runs a bind against POSTs and GETs answered in order; the last answer of each goes on.
async fn outcome(posts: Vec<Reply>, gets: Vec<Reply>) -> BindOutcome {
    let (posted, got) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let requests = requests(move |method, path, body| {
        let pick = |replies: &[Reply], count: &AtomicUsize| {
            let index = count.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1);
            replies[index].clone()
        };
        if *method == Method::POST {
            assert_eq!(path, "/api/v1/namespaces/d/pods/p7/binding");
            assert_eq!(body["metadata"]["uid"], uid(7));
            assert_eq!(body["target"]["name"], "n1");
            pick(&posts, &posted)
        } else {
            assert_eq!(path, "/api/v1/namespaces/d/pods/p7");
            pick(&gets, &got)
        }
    })
    .await;
    bind(&requests, &id(), "n1", LIMITS).await
}

fn error(code: u16) -> Reply {
    Some(status(code, "no"))
}

#[tokio::test]
async fn a_plain_bind() {
    let done = outcome(vec![Some(status(201, ""))], vec![error(500)]).await;
    assert_eq!(done, BindOutcome::Bound);
}

#[tokio::test]
async fn a_conflict_is_looked_into() {
    let conflict = || vec![error(409)];
    assert_eq!(outcome(conflict(), vec![seen("n1")]).await, BindOutcome::Bound);
    let elsewhere = BindOutcome::Elsewhere("n2".to_owned());
    assert_eq!(outcome(conflict(), vec![seen("n2")]).await, elsewhere);
    assert_eq!(outcome(conflict(), vec![error(404)]).await, BindOutcome::Gone);
    assert_eq!(outcome(conflict(), vec![namesake()]).await, BindOutcome::Gone);
    // A conflict over something else goes away.
    let posts = vec![error(409), Some(status(201, ""))];
    assert_eq!(outcome(posts, vec![seen("")]).await, BindOutcome::Bound);
}

#[tokio::test]
async fn a_pod_that_is_gone() {
    assert_eq!(outcome(vec![error(404)], vec![error(500)]).await, BindOutcome::Gone);
}

#[tokio::test]
async fn no_answer_means_look_before_anything_else() {
    assert_eq!(outcome(vec![None], vec![seen("n1")]).await, BindOutcome::Bound);
    assert_eq!(outcome(vec![error(500)], vec![seen("n1")]).await, BindOutcome::Bound);
    let elsewhere = BindOutcome::Elsewhere("n2".to_owned());
    assert_eq!(outcome(vec![error(503)], vec![seen("n2")]).await, elsewhere);
    // Not bound yet proves nothing: the same node is asked again.
    let posts = vec![None, Some(status(201, ""))];
    assert_eq!(outcome(posts, vec![seen("")]).await, BindOutcome::Bound);
}

#[tokio::test]
async fn what_was_never_answered_stays_unknown() {
    let unknown = |outcome: &BindOutcome| matches!(outcome, BindOutcome::Unknown(_));
    assert!(unknown(&outcome(vec![error(500)], vec![seen("")]).await));
    assert!(unknown(&outcome(vec![error(500)], vec![error(500)]).await));
    // A later refusal says nothing about the request that went unanswered.
    assert!(unknown(&outcome(vec![error(500), error(403)], vec![seen("")]).await));
}

#[tokio::test]
async fn a_refusal_is_certain_and_a_full_server_is_not() {
    let refused = |outcome: &BindOutcome| matches!(outcome, BindOutcome::Refused(_));
    assert!(refused(&outcome(vec![error(403)], vec![error(500)]).await));
    let posts = vec![error(429), error(429), Some(status(201, ""))];
    assert_eq!(outcome(posts, vec![error(500)]).await, BindOutcome::Bound);
    assert!(refused(&outcome(vec![error(429)], vec![error(500)]).await));
}
