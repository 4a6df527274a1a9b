//! Between the protocol's own types and protobuf. What comes in is checked here once; a message
//! that makes no sense is refused whole.

mod preemption;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use self::preemption::{
    decode_nominees, decode_preempt, decode_trial, encode_nominees, encode_preempt, encode_trial,
};
use super::generated as pb;
use super::{Answer, Operation, PodId, Refusal, Request, Reservation, Response};
use super::{Settlement, ShardReport, Target};
use crate::core::diagnosis::{Reason, Rejections};
use crate::core::evaluate::{Evaluation, Label, Next, Tuple};
use crate::core::event::EventSet;
use crate::core::maps::HashMap;
use crate::core::pod::PodRequest;
use crate::core::survey::Survey;

/// Classes kept by their bytes; the cache starts anew when it is full.
const CLASSES: usize = 4096;
/// Operations in one message.
pub const MAX_OPERATIONS: usize = 4096;

/// A message can't be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A JSON part can't be read or written.
    #[error("{what}: {source}")]
    Json {
        /// Which part.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A UID that isn't 16 bytes long, or a class that isn't there.
    #[error("a nominee or victim makes no sense")]
    Nominee,
    /// More than the bound.
    #[error("{0} operations in one message: at most {MAX_OPERATIONS}")]
    TooMany(usize),
}

/// Compiled classes by their bytes, so that pods of one template are decoded once.
#[derive(Debug, Default)]
pub struct ClassCache {
    classes: Mutex<HashMap<Bytes, Arc<PodRequest>>>,
}

impl ClassCache {
    fn get(&self, class: Option<pb::PodClass>) -> Result<Arc<PodRequest>, WireError> {
        let bytes = class.ok_or(WireError::Missing("class"))?.request;
        if let Some(known) = self.classes.lock().get(&bytes) {
            return Ok(known.clone());
        }
        let class: Arc<PodRequest> = serde_json::from_slice(&bytes)
            .map(Arc::new)
            .map_err(|source| WireError::Json { what: "class", source })?;
        let mut classes = self.classes.lock();
        if classes.len() >= CLASSES {
            classes.clear();
        }
        classes.insert(bytes, class.clone());
        Ok(class)
    }
}

/// Classes of one message that are written already, by address: many of its operations share one.
#[derive(Default)]
struct Written(HashMap<usize, Bytes>);

impl Written {
    fn class(&mut self, class: &Arc<PodRequest>) -> Result<pb::PodClass, WireError> {
        let address = Arc::as_ptr(class).addr();
        if let Some(request) = self.0.get(&address) {
            return Ok(pb::PodClass { request: request.clone() });
        }
        let wire = encode_class(class)?;
        self.0.insert(address, wire.request.clone());
        Ok(wire)
    }
}

/// For sending.
pub fn encode_request(request: &Request) -> Result<pb::ExchangeRequest, WireError> {
    let mut written = Written::default();
    let target = |target: &Target| pb::Target {
        shard: target.shard.to_string(),
        incarnation: target.incarnation,
        changes: target.changes,
    };
    Ok(pb::ExchangeRequest {
        term: request.term,
        membership: request.membership,
        targets: request.targets.iter().map(target).collect(),
        relays: request.relays.iter().map(ToString::to_string).collect(),
        deadline_millis: u32::try_from(request.deadline.as_millis()).unwrap_or(u32::MAX),
        operations: request
            .operations
            .iter()
            .map(|operation| encode_operation(operation, &mut written))
            .collect::<Result<_, WireError>>()?,
    })
}

/// From the wire.
pub fn decode_request(
    request: pb::ExchangeRequest,
    classes: &ClassCache,
) -> Result<Request, WireError> {
    if request.operations.len() > MAX_OPERATIONS {
        return Err(WireError::TooMany(request.operations.len()));
    }
    let target = |target: pb::Target| Target {
        shard: target.shard.into(),
        incarnation: target.incarnation,
        changes: target.changes,
    };
    Ok(Request {
        term: request.term,
        membership: request.membership,
        targets: request.targets.into_iter().map(target).collect(),
        relays: request.relays.into_iter().map(Into::into).collect(),
        deadline: Duration::from_millis(request.deadline_millis.into()),
        operations: request
            .operations
            .into_iter()
            .map(|operation| decode_operation(operation, classes))
            .collect::<Result<_, WireError>>()?,
    })
}

fn encode_operation(
    operation: &Operation,
    written: &mut Written,
) -> Result<pb::Operation, WireError> {
    use pb::operation::Kind;
    let kind = match operation {
        Operation::Survey { class, full } => {
            Kind::Survey(pb::Survey { class: Some(written.class(class)?), full: *full })
        }
        Operation::Evaluate { class, seed, count, survey, nominees } => {
            Kind::Evaluate(pb::Evaluate {
                class: Some(written.class(class)?),
                seed: *seed,
                count: *count,
                survey: match survey {
                    Some(survey) => encode_survey(survey)?,
                    None => Bytes::new(),
                },
                nominees: encode_nominees(nominees)?,
            })
        }
        Operation::Preempt(preempt) => Kind::Preempt(encode_preempt(preempt)?),
        Operation::Reserve(reservation) => Kind::Reserve(encode_reservation(reservation, written)?),
        Operation::Restore(reservation) => Kind::Restore(encode_reservation(reservation, written)?),
        Operation::Confirm(settlement) => Kind::Confirm(encode_settlement(settlement)),
        Operation::Release(settlement) => Kind::Release(encode_settlement(settlement)),
    };
    Ok(pb::Operation { kind: Some(kind) })
}

fn decode_operation(
    operation: pb::Operation,
    classes: &ClassCache,
) -> Result<Operation, WireError> {
    use pb::operation::Kind;
    let reservation = |reservation: pb::Reservation| -> Result<Reservation, WireError> {
        Ok(Reservation {
            pod: decode_pod(reservation.pod)?,
            node: reservation.node.into(),
            class: classes.get(reservation.class)?,
            token: reservation.token,
        })
    };
    let settlement = |settlement: pb::Settlement| -> Result<Settlement, WireError> {
        Ok(Settlement {
            pod: decode_pod(settlement.pod)?,
            node: settlement.node.into(),
            token: settlement.token,
        })
    };
    Ok(match operation.kind.ok_or(WireError::Missing("operation"))? {
        Kind::Survey(wire) => {
            Operation::Survey { class: classes.get(wire.class)?, full: wire.full }
        }
        Kind::Evaluate(wire) => Operation::Evaluate {
            class: classes.get(wire.class)?,
            seed: wire.seed,
            count: wire.count,
            survey: if wire.survey.is_empty() {
                None
            } else {
                Some(Arc::new(decode_survey(&wire.survey)?))
            },
            nominees: decode_nominees(wire.nominees, classes)?,
        },
        Kind::Preempt(wire) => Operation::Preempt(decode_preempt(wire, classes)?),
        Kind::Reserve(wire) => Operation::Reserve(reservation(wire)?),
        Kind::Restore(wire) => Operation::Restore(reservation(wire)?),
        Kind::Confirm(wire) => Operation::Confirm(settlement(wire)?),
        Kind::Release(wire) => Operation::Release(settlement(wire)?),
    })
}

fn encode_class(class: &PodRequest) -> Result<pb::PodClass, WireError> {
    let request = serde_json::to_vec(class)
        .map_err(|source| WireError::Json { what: "class", source })?
        .into();
    Ok(pb::PodClass { request })
}

fn encode_survey(survey: &Survey) -> Result<Bytes, WireError> {
    let json = serde_json::to_vec(survey);
    Ok(json.map_err(|source| WireError::Json { what: "survey", source })?.into())
}

fn decode_survey(survey: &[u8]) -> Result<Survey, WireError> {
    serde_json::from_slice(survey).map_err(|source| WireError::Json { what: "survey", source })
}

fn encode_rejections(rejections: &Rejections) -> Vec<pb::Rejection> {
    let rejection = |(reason, nodes): (&Reason, &u64)| pb::Rejection {
        reason: reason.to_string(),
        nodes: *nodes,
    };
    rejections.iter().map(rejection).collect()
}

fn decode_rejections(rejections: Vec<pb::Rejection>) -> Rejections {
    let rejection = |rejection: pb::Rejection| match rejection.reason.parse::<Reason>() {
        Ok(reason) => (reason, rejection.nodes),
    };
    rejections.into_iter().map(rejection).collect()
}

fn encode_pod(pod: &PodId) -> pb::PodId {
    pb::PodId {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
    }
}

fn decode_pod(pod: Option<pb::PodId>) -> Result<PodId, WireError> {
    let pod = pod.ok_or(WireError::Missing("pod"))?;
    if pod.uid.is_empty() {
        return Err(WireError::Missing("uid"));
    }
    Ok(PodId { uid: pod.uid.into(), namespace: pod.namespace.into(), name: pod.name.into() })
}

fn encode_reservation(
    reservation: &Reservation,
    written: &mut Written,
) -> Result<pb::Reservation, WireError> {
    Ok(pb::Reservation {
        pod: Some(encode_pod(&reservation.pod)),
        node: reservation.node.to_string(),
        class: Some(written.class(&reservation.class)?),
        token: reservation.token,
    })
}

fn encode_settlement(settlement: &Settlement) -> pb::Settlement {
    pb::Settlement {
        pod: Some(encode_pod(&settlement.pod)),
        node: settlement.node.to_string(),
        token: settlement.token,
    }
}

/// For sending.
#[must_use]
pub fn encode_response(response: &Response) -> pb::ExchangeResponse {
    let report = |report: &ShardReport| pb::ShardReport {
        shard: report.shard.to_string(),
        incarnation: report.incarnation,
        changes: report.changes,
        events: report.events.bits(),
        keeps_domains_free: report.keeps_domains_free,
        last_token: report.last_token,
        refusal: report.refusal.as_ref().map(encode_refusal),
    };
    pb::ExchangeResponse {
        shards: response.shards.iter().map(report).collect(),
        answers: response.answers.iter().map(encode_answer).collect(),
    }
}

/// From the wire.
#[must_use]
pub fn decode_response(response: pb::ExchangeResponse) -> Response {
    let report = |report: pb::ShardReport| ShardReport {
        shard: report.shard.into(),
        incarnation: report.incarnation,
        changes: report.changes,
        events: EventSet::from_bits(report.events),
        keeps_domains_free: report.keeps_domains_free,
        last_token: report.last_token,
        refusal: report.refusal.map(decode_refusal),
    };
    Response {
        shards: response.shards.into_iter().map(report).collect(),
        answers: response.answers.into_iter().map(decode_answer).collect(),
    }
}

fn encode_refusal(refusal: &Refusal) -> pb::Refusal {
    use pb::refusal::Reason;
    let (reason, current, message) = match refusal {
        Refusal::StaleTerm { current } => (Reason::StaleTerm, *current, String::new()),
        Refusal::StaleMembership { current } => (Reason::StaleMembership, *current, String::new()),
        Refusal::NotSynced => (Reason::NotSynced, 0, String::new()),
        Refusal::NewIncarnation => (Reason::NewIncarnation, 0, String::new()),
        Refusal::Unreachable(message) => (Reason::Unreachable, 0, message.clone()),
        Refusal::Malformed(message) => (Reason::Malformed, 0, message.clone()),
    };
    pb::Refusal { reason: reason.into(), current, message }
}

fn decode_refusal(refusal: pb::Refusal) -> Refusal {
    use pb::refusal::Reason;
    let current = refusal.current;
    match refusal.reason() {
        Reason::StaleTerm => Refusal::StaleTerm { current },
        Reason::StaleMembership => Refusal::StaleMembership { current },
        Reason::NotSynced => Refusal::NotSynced,
        Reason::NewIncarnation => Refusal::NewIncarnation,
        Reason::Unreachable => Refusal::Unreachable(refusal.message),
        // A reason that a later version knows: nothing was done, that much is sure.
        Reason::Malformed | Reason::Unspecified => Refusal::Malformed(refusal.message),
    }
}

fn encode_answer(answer: &Answer) -> pb::Answer {
    use pb::answer::Kind;
    let kind = match answer {
        Answer::Evaluations(evaluations) => {
            let evaluations = evaluations.iter().map(encode_evaluation).collect();
            Some(Kind::Evaluations(pb::Evaluations { evaluations }))
        }
        // What can't be written is left out, and a survey that is left out is no survey.
        Answer::Survey(survey) => encode_survey(survey).ok().map(Kind::Survey),
        Answer::Trial(trial) => Some(Kind::Trial(encode_trial(trial))),
        Answer::Outcome(Ok(())) => {
            Some(Kind::Outcome(pb::Outcome { done: true, message: String::new() }))
        }
        Answer::Outcome(Err(message)) => {
            Some(Kind::Outcome(pb::Outcome { done: false, message: message.clone() }))
        }
        Answer::Nobody => None,
    };
    pb::Answer { kind }
}

fn decode_answer(answer: pb::Answer) -> Answer {
    use pb::answer::Kind;
    match answer.kind {
        None => Answer::Nobody,
        Some(Kind::Evaluations(wire)) => {
            Answer::Evaluations(wire.evaluations.into_iter().map(decode_evaluation).collect())
        }
        Some(Kind::Survey(survey)) => {
            decode_survey(&survey).map_or(Answer::Nobody, |survey| Answer::Survey(survey.into()))
        }
        Some(Kind::Trial(trial)) => {
            decode_trial(trial).map_or(Answer::Nobody, |trial| Answer::Trial(trial.into()))
        }
        Some(Kind::Outcome(outcome)) => {
            Answer::Outcome(if outcome.done { Ok(()) } else { Err(outcome.message) })
        }
    }
}

fn encode_evaluation(evaluation: &Evaluation) -> pb::Evaluation {
    let label = |(key, value): &Label| pb::Label { key: key.to_string(), value: value.to_string() };
    let next =
        |next: &Next| pb::Next { local: next.local, lot: next.lot, node: next.node.to_string() };
    let tuple = |tuple: &Tuple| pb::Tuple {
        taints: tuple.taints,
        affinity: tuple.affinity,
        local: tuple.local,
        ties: tuple.ties,
        lot: tuple.lot,
        node: tuple.node.to_string(),
        preferences: tuple.preferences,
        spread: tuple.spread.clone().unwrap_or_default(),
        ignored: tuple.spread.is_none(),
        labels: tuple.labels.iter().map(label).collect(),
        next: tuple.next.iter().map(next).collect(),
        last: tuple.last,
    };
    let domains = |domains: &BTreeSet<Arc<str>>| pb::Domains {
        values: domains.iter().map(ToString::to_string).collect(),
    };
    pb::Evaluation {
        nodes: evaluation.nodes,
        feasible: evaluation.feasible,
        rejections: encode_rejections(&evaluation.rejections),
        unresolvable: evaluation.unresolvable,
        lower_priority: evaluation.lower_priority,
        tuples: evaluation.tuples.iter().map(tuple).collect(),
        missing: evaluation.missing,
        domains: evaluation.domains.iter().map(domains).collect(),
        ignored: evaluation.ignored,
        wants_survey: evaluation.wants_survey,
        ahead: evaluation.ahead,
    }
}

fn decode_evaluation(evaluation: pb::Evaluation) -> Evaluation {
    let next = |next: pb::Next| Next { local: next.local, lot: next.lot, node: next.node.into() };
    let tuple = |tuple: pb::Tuple| Tuple {
        taints: tuple.taints,
        affinity: tuple.affinity,
        local: tuple.local,
        ties: tuple.ties,
        lot: tuple.lot,
        node: tuple.node.into(),
        preferences: tuple.preferences,
        spread: (!tuple.ignored).then_some(tuple.spread),
        labels: tuple.labels.into_iter().map(|l| (l.key.into(), l.value.into())).collect(),
        next: tuple.next.into_iter().map(next).collect(),
        last: tuple.last,
    };
    let domains = |domains: pb::Domains| domains.values.into_iter().map(Arc::from).collect();
    Evaluation {
        nodes: evaluation.nodes,
        feasible: evaluation.feasible,
        rejections: decode_rejections(evaluation.rejections),
        unresolvable: evaluation.unresolvable,
        lower_priority: evaluation.lower_priority,
        tuples: evaluation.tuples.into_iter().map(tuple).collect(),
        missing: evaluation.missing,
        domains: evaluation.domains.into_iter().map(domains).collect(),
        ignored: evaluation.ignored,
        wants_survey: evaluation.wants_survey,
        ahead: evaluation.ahead,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::core::nominate::Nominee;
    use crate::core::pod::PodUid;
    use crate::core::preempt::{Budget, Candidate, Trial};
    use crate::core::survey::Spreading;
    use crate::protocol::Preempt;

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
        let wire = encode_request(&request()).expect("encode");
        let back = decode_request(wire.clone(), &classes).expect("decode");
        assert_eq!(format!("{back:?}"), format!("{:?}", request()));
        // Equal classes are one.
        let (Operation::Reserve(a), Operation::Evaluate { class: b, .. }) =
            (&back.operations[3], &back.operations[5])
        else {
            panic!("the operations' order")
        };
        assert!(Arc::ptr_eq(&a.class, b));
        let again = encode_request(&back).expect("encode");
        assert_eq!(again, wire);
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
                Answer::Outcome(Err("full".to_owned())),
                Answer::Nobody,
            ],
        };
        let back = decode_response(encode_response(&response));
        assert_eq!(format!("{back:?}"), format!("{response:?}"));
    }

    #[test]
    fn nonsense_is_refused() {
        let classes = ClassCache::default();
        let decode = |change: fn(&mut pb::ExchangeRequest)| {
            let mut wire = encode_request(&request()).expect("encode");
            change(&mut wire);
            decode_request(wire, &classes)
        };
        assert!(decode(|_| {}).is_ok());
        assert!(decode(|wire| wire.operations[0].kind = None).is_err());
        let class = |bytes: &'static [u8]| pb::PodClass { request: Bytes::from_static(bytes) };
        for bytes in [&b""[..], b"{", b"[]", b"null"] {
            let mut wire = encode_request(&request()).expect("encode");
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
}
