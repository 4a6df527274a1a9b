use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::core::evaluate::{Evaluation, Next, Tuple};
use crate::core::event::EventSet;
use crate::core::nominate::Nominee;
use crate::core::pod::PodUid;
use crate::core::preempt::{Budget, Candidate, Trial};
use crate::core::survey::Spreading;
use crate::protocol::{Answer, Operation, PodId, Preempt, Refusal, Request, Reservation};
use crate::protocol::{Response, ShardReport, Target};

fn survey() -> Survey {
    let domains = [("a".into(), 3), ("b".into(), 0)];
    let state = Spreading { domains: domains.clone().into(), nodes: 4, fewest: Some(1) };
    Survey {
        full: true,
        nodes: 9,
        image_nodes: vec![2],
        hard: vec![state],
        soft: vec![domains.clone().into()],
        affinity_met: true,
        kept_free: [("zone".into(), domains.into())].into(),
        ..Survey::default()
    }
}

fn trial() -> Trial {
    Trial {
        nodes: 9,
        feasible: 1,
        unresolvable: 2,
        no_victims: 3,
        rejections: [(Reason::cpu(), 3)].into(),
        waiting: true,
        best: Some(Candidate {
            node: "n".into(),
            victims: vec![PodUid::new("v"), PodUid::new("w")],
            violations: 1,
            highest: -7,
            sum: 1 << 40,
            start: i64::MAX,
            lot: u64::MAX,
        }),
    }
}

fn request() -> Request {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {
            "nodeSelector": {"zone": "a"},
            "priority": -5,
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "x", "operator": "Gt", "values": ["3"]}]},
                    {"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": ["n"]}]},
                ]},
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 5, "preference": {"matchExpressions": [
                        {"key": "y", "operator": "NotIn", "values": ["1", "2"]}]}}],
            }},
            "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}],
                "resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}}}],
        },
    }))
    .expect("pod");
    let class = Arc::new(PodRequest::compile(&pod));
    let id = PodId { uid: "u".into(), namespace: "d".into(), name: "p".into() };
    let reservation =
        Reservation { pod: id, node: "n".into(), class: class.clone(), token: u64::MAX };
    let nominee = |uid: &str, class: &Arc<PodRequest>| Nominee {
        uid: PodUid::new(uid),
        node: "m".into(),
        class: class.clone(),
    };
    let other = Arc::new(PodRequest::compile(&Pod::default()));
    let nominees: Arc<[Nominee]> =
        [nominee("x", &other), nominee("y", &class), nominee("z", &other)].into();
    let budget = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "b", "namespace": "d"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}},
        "status": {"disruptionsAllowed": 1, "disruptedPods": {"v": "2026-01-01T00:00:00Z"},
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    }));
    let budget = Budget::of(&budget.expect("budget")).expect("one that means pods");
    Request {
        term: 3,
        membership: u64::MAX,
        targets: vec![Target { shard: "s".into(), incarnation: 7, changes: 9 }],
        relays: vec!["r".into()],
        deadline: Duration::from_millis(1500),
        operations: vec![
            Operation::Release(reservation.settlement()),
            Operation::Confirm(reservation.settlement()),
            Operation::Restore(reservation.clone()),
            Operation::Reserve(reservation),
            Operation::Survey { class: class.clone(), full: true },
            Operation::Evaluate {
                class: class.clone(),
                seed: 4,
                count: 8,
                survey: Some(Arc::new(survey())),
                nominees: nominees.clone(),
            },
            Operation::Preempt(Preempt {
                class,
                uid: PodUid::new("u"),
                nominated: Some("n".into()),
                evicted: [PodUid::new("v"), PodUid::new("w")].into(),
                survey: Arc::new(survey()),
                nominees,
                budgets: [budget].into(),
                seed: 6,
            }),
        ],
    }
}

#[test]
fn requests_come_back_as_they_went() {
    let classes = ClassCache::default();
    let wire = encode_request(&request(), Dialect::First).expect("encode");
    let back = decode_request(wire.clone(), &classes).expect("decode");
    assert_eq!(format!("{back:?}"), format!("{:?}", request()));
    // Equal classes are one.
    let (Operation::Reserve(a), Operation::Evaluate { class: b, .. }) =
        (&back.operations[3], &back.operations[5])
    else {
        panic!("the operations' order")
    };
    assert!(Arc::ptr_eq(&a.class, b));
    let again = encode_request(&back, Dialect::First).expect("encode");
    assert_eq!(again, wire);
}

#[test]
fn a_class_that_carries_over_is_sent_once() {
    use pb::operation::Kind;
    let classes = ClassCache::default();
    let mut sent = request();
    let Operation::Reserve(reservation) = &sent.operations[3] else { panic!("the order") };
    let mut other = reservation.clone();
    other.class = Arc::new(PodRequest::default());
    let (same, other) = (reservation.clone(), Operation::Reserve(other));
    sent.operations.extend([other.clone(), other, Operation::Reserve(same)]);
    let wire = encode_request(&sent, Dialect::CarryOver).expect("encode");
    let has_class = |operation: &pb::Operation| match &operation.kind {
        Some(Kind::Restore(wire) | Kind::Reserve(wire)) => Some(wire.class.is_some()),
        _ => None,
    };
    let written: Vec<bool> = wire.operations.iter().filter_map(has_class).collect();
    assert_eq!(written, [true, false, true, false, true]);
    let back = decode_request(wire.clone(), &classes).expect("decode");
    assert_eq!(format!("{back:?}"), format!("{sent:?}"));
    // There is nothing before the first.
    let mut first = wire;
    first.operations.drain(..3);
    assert!(decode_request(first, &classes).is_err());
}

#[test]
fn equal_reservations_travel_in_runs() {
    let classes = ClassCache::default();
    let mut sent = request();
    let Operation::Reserve(first) = sent.operations[3].clone() else { panic!("the order") };
    let mut like = first.clone();
    (like.pod.uid, like.pod.name, like.node) = ("é".into(), "".into(), "another".into());
    let mut elsewhere = like.clone();
    elsewhere.pod.namespace = "other".into();
    let mut later = elsewhere.clone();
    later.token -= 1;
    let mut other = later.clone();
    other.class = Arc::new(PodRequest::default());
    let runs = [&first, &like, &elsewhere, &later, &other, &first, &like];
    let confirms = [&first, &like, &later].map(|r| Operation::Confirm(r.settlement()));
    sent.operations.extend(runs.map(|r| Operation::Reserve(r.clone())));
    sent.operations.extend(confirms);
    sent.operations.push(Operation::Release(first.settlement()));
    let wire = encode_request(&sent, Dialect::Runs).expect("encode");
    let back = decode_request(wire.clone(), &classes).expect("decode");
    assert_eq!(format!("{back:?}"), format!("{sent:?}"));
    let length = |operation: &pb::Operation| match &operation.kind {
        Some(pb::operation::Kind::Reserves(run)) => Some(run.lengths.len() / 3),
        Some(pb::operation::Kind::Confirms(run)) => Some(run.lengths.len() / 2),
        _ => None,
    };
    let lengths: Vec<usize> = wire.operations.iter().filter_map(length).collect();
    assert_eq!(lengths, [1, 1, 2, 1, 1, 1, 2, 2, 1]);
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    let classes = ClassCache::default();
    let decode = |change: &dyn Fn(&mut pb::Run)| {
        let mut wire = encode_request(&request(), Dialect::Runs).expect("encode");
        for operation in &mut wire.operations {
            if let Some(pb::operation::Kind::Reserves(run)) = &mut operation.kind {
                change(run);
            }
        }
        decode_request(wire, &classes)
    };
    assert!(decode(&|_| {}).is_ok());
    assert!(decode(&|run| run.lengths.clear()).is_err());
    assert!(decode(&|run| run.lengths.push(0)).is_err());
    assert!(decode(&|run| run.lengths.swap(0, 2)).is_ok());
    assert!(decode(&|run| run.lengths = vec![0, 2, 1]).is_err(), "without a UID");
    assert!(decode(&|run| run.lengths = vec![u32::MAX, 4, 0]).is_err());
    assert!(decode(&|run| run.text = Bytes::from_static(b"\xff\xff\xff")).is_err());
    assert!(
        decode(&|run| {
            (run.text, run.lengths) = (Bytes::from_static("éa".as_bytes()), vec![1, 1, 1]);
        })
        .is_err()
    );
    assert!(decode(&|run| run.class = None).is_err());
    let many = decode(&|run| run.lengths = vec![0; 3 * (MAX_OPERATIONS + 1)]);
    assert!(matches!(many, Err(WireError::TooMany(_))));
    let some = |wire: &mut pb::ExchangeRequest| {
        let run = wire
            .operations
            .iter()
            .find(|operation| matches!(operation.kind, Some(pb::operation::Kind::Confirms(_))));
        wire.operations = vec![run.cloned().expect("a run"); MAX_OPERATIONS];
    };
    let mut wire = encode_request(&request(), Dialect::Runs).expect("encode");
    some(&mut wire);
    assert!(decode_request(wire.clone(), &classes).is_ok());
    for operation in &mut wire.operations {
        if let Some(pb::operation::Kind::Confirms(run)) = &mut operation.kind {
            let text = [&run.text[..], &run.text[..]].concat();
            (run.text, run.lengths) = (text.into(), [&run.lengths[..], &run.lengths[..]].concat());
        }
    }
    assert!(matches!(decode_request(wire, &classes), Err(WireError::TooMany(_))));
}

#[test]
fn a_look_ahead_that_makes_no_sense_ends_with_the_first_node() {
    let next = vec![Next { local: -1, lot: 9, node: "m".into() }; 2];
    let tuple = Tuple {
        taints: 0,
        affinity: 0,
        preferences: 0,
        spread: None,
        local: 3,
        ties: 4,
        lot: 1,
        node: "n".into(),
        labels: Vec::new(),
        next,
        last: true,
    };
    let evaluation = Evaluation { tuples: vec![tuple.clone()], ..Evaluation::default() };
    let answers = vec![Answer::Evaluations(vec![evaluation])];
    let wire = encode_response(&Response { shards: Vec::new(), answers }, Dialect::Runs);
    let read = |change: fn(&mut pb::Tuple)| {
        let mut wire = wire.clone();
        if let Some(pb::answer::Kind::Evaluations(all)) = &mut wire.answers[0].kind {
            change(&mut all.evaluations[0].tuples[0]);
        }
        let Answer::Evaluations(all) = decode_response(wire).answers.remove(0) else {
            panic!("an evaluation")
        };
        all[0].tuples[0].clone()
    };
    assert_eq!(read(|_| {}), tuple);
    let alone = Tuple { next: Vec::new(), last: false, ..tuple };
    assert_eq!(read(|wire| wire.next_lengths.push(1)), alone);
    assert_eq!(read(|wire| wire.next_lots.truncate(1)), alone);
    assert_eq!(read(|wire| wire.next_locals.truncate(1)), alone);
    assert_eq!(read(|wire| wire.next_nodes = Bytes::from_static(b"m\xff")), alone);
    let many = vec![pb::Answer { kind: Some(pb::answer::Kind::Done(u32::MAX)) }; 3];
    let wire = pb::ExchangeResponse { answers: many, ..pb::ExchangeResponse::default() };
    assert_eq!(decode_response(wire).answers.len(), MAX_OPERATIONS);
}

#[test]
fn responses_come_back_as_they_went() {
    let rejections = [(Reason::cpu(), 3), (Reason::HostPorts, 1)].into();
    let tuple = |spread| Tuple {
        taints: 1,
        affinity: -2,
        preferences: -7,
        spread,
        local: 3,
        ties: 4,
        lot: u64::MAX,
        node: "n".into(),
        labels: vec![("zone".into(), "a".into())],
        next: vec![Next { local: -1, lot: 9, node: "m".into() }],
        last: true,
    };
    let evaluation = Evaluation {
        nodes: 9,
        feasible: 5,
        rejections,
        unresolvable: 1,
        lower_priority: true,
        tuples: vec![tuple(None), tuple(Some(vec![-1, 5])), tuple(Some(Vec::new()))],
        domains: vec![["a".into(), "".into()].into(), BTreeSet::new()],
        ignored: 1,
        wants_survey: true,
        missing: 2,
        ahead: true,
    };
    let refusals = [
        None,
        Some(Refusal::StaleTerm { current: 4 }),
        Some(Refusal::StaleMembership { current: 5 }),
        Some(Refusal::NotSynced),
        Some(Refusal::NewIncarnation),
        Some(Refusal::Unreachable("gone".to_owned())),
        Some(Refusal::Malformed("what".to_owned())),
    ];
    let report = |refusal| ShardReport {
        shard: "s".into(),
        incarnation: 8,
        changes: 6,
        events: EventSet::from_bits(5),
        keeps_domains_free: true,
        last_token: 12,
        pools: true,
        refusal,
    };
    let response = Response {
        shards: refusals.into_iter().map(report).collect(),
        answers: vec![
            Answer::Evaluations(vec![evaluation.clone(), evaluation]),
            Answer::Survey(survey().into()),
            Answer::Trial(Trial::default().into()),
            Answer::Trial(trial().into()),
            Answer::Outcome(Ok(())),
            Answer::Outcome(Ok(())),
            Answer::Outcome(Err("full".to_owned())),
            Answer::Outcome(Ok(())),
            Answer::Nobody,
        ],
    };
    for dialect in [Dialect::First, Dialect::CarryOver, Dialect::Runs] {
        let back = decode_response(encode_response(&response, dialect));
        assert_eq!(format!("{back:?}"), format!("{response:?}"));
    }
}

#[test]
fn nonsense_is_refused() {
    let classes = ClassCache::default();
    let decode = |change: fn(&mut pb::ExchangeRequest)| {
        let mut wire = encode_request(&request(), Dialect::First).expect("encode");
        change(&mut wire);
        decode_request(wire, &classes)
    };
    assert!(decode(|_| {}).is_ok());
    assert!(decode(|wire| wire.operations[0].kind = None).is_err());
    let class = |bytes: &'static [u8]| pb::PodClass { request: Bytes::from_static(bytes) };
    for bytes in [&b""[..], b"{", b"[]", b"null"] {
        let mut wire = encode_request(&request(), Dialect::First).expect("encode");
        let class = Some(class(bytes));
        let evaluate = pb::Evaluate { class, ..pb::Evaluate::default() };
        wire.operations[0].kind = Some(pb::operation::Kind::Evaluate(evaluate));
        assert!(decode_request(wire, &classes).is_err());
    }
    let many = decode(|wire| {
        let one = wire.operations[0].clone();
        wire.operations = vec![one; MAX_OPERATIONS + 1];
    });
    assert!(matches!(many, Err(WireError::TooMany(_))));
}
