//! Between the protocol's own types and protobuf. What comes in is checked here once; a message
//! that makes no sense is refused whole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::generated as pb;
use super::{Answer, Operation, PodId, Refusal, Request, Reservation, Response};
use super::{Settlement, ShardReport, Target};
use crate::core::event::EventSet;
use crate::core::pod::PodRequest;

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

/// For sending.
pub fn encode_request(request: &Request) -> Result<pb::ExchangeRequest, WireError> {
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
            .map(encode_operation)
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

fn encode_operation(operation: &Operation) -> Result<pb::Operation, WireError> {
    use pb::operation::Kind;
    let kind = match operation {
        Operation::Evaluate { class, seed } => {
            Kind::Evaluate(pb::Evaluation { class: Some(encode_class(class)?), seed: *seed })
        }
        Operation::Reserve(reservation) => Kind::Reserve(encode_reservation(reservation)?),
        Operation::Restore(reservation) => Kind::Restore(encode_reservation(reservation)?),
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
        Kind::Evaluate(wire) => {
            Operation::Evaluate { class: classes.get(wire.class)?, seed: wire.seed }
        }
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

fn encode_reservation(reservation: &Reservation) -> Result<pb::Reservation, WireError> {
    Ok(pb::Reservation {
        pod: Some(encode_pod(&reservation.pod)),
        node: reservation.node.to_string(),
        class: Some(encode_class(&reservation.class)?),
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
pub fn encode_response(response: &Response) -> Result<pb::ExchangeResponse, WireError> {
    let report = |report: &ShardReport| pb::ShardReport {
        shard: report.shard.to_string(),
        incarnation: report.incarnation,
        changes: report.changes,
        events: report.events.bits().into(),
        refusal: report.refusal.as_ref().map(encode_refusal),
    };
    Ok(pb::ExchangeResponse {
        shards: response.shards.iter().map(report).collect(),
        answers: response.answers.iter().map(encode_answer).collect::<Result<_, WireError>>()?,
    })
}

/// From the wire.
pub fn decode_response(response: pb::ExchangeResponse) -> Result<Response, WireError> {
    let report = |report: pb::ShardReport| ShardReport {
        shard: report.shard.into(),
        incarnation: report.incarnation,
        changes: report.changes,
        events: u8::try_from(report.events).map_or(EventSet::ALL, EventSet::from_bits),
        refusal: report.refusal.map(decode_refusal),
    };
    Ok(Response {
        shards: response.shards.into_iter().map(report).collect(),
        answers: response
            .answers
            .into_iter()
            .map(decode_answer)
            .collect::<Result<_, WireError>>()?,
    })
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

fn encode_answer(answer: &Answer) -> Result<pb::Answer, WireError> {
    use pb::answer::Kind;
    let kind = match answer {
        Answer::Evaluation(evaluation) => Some(Kind::Evaluation(
            serde_json::to_vec(evaluation)
                .map_err(|source| WireError::Json { what: "evaluation", source })?
                .into(),
        )),
        Answer::Outcome(Ok(())) => {
            Some(Kind::Outcome(pb::Outcome { done: true, message: String::new() }))
        }
        Answer::Outcome(Err(message)) => {
            Some(Kind::Outcome(pb::Outcome { done: false, message: message.clone() }))
        }
        Answer::Nobody => None,
    };
    Ok(pb::Answer { kind })
}

fn decode_answer(answer: pb::Answer) -> Result<Answer, WireError> {
    use pb::answer::Kind;
    Ok(match answer.kind {
        None => Answer::Nobody,
        Some(Kind::Evaluation(json)) => Answer::Evaluation(
            serde_json::from_slice(&json)
                .map_err(|source| WireError::Json { what: "evaluation", source })?,
        ),
        Some(Kind::Outcome(outcome)) => {
            Answer::Outcome(if outcome.done { Ok(()) } else { Err(outcome.message) })
        }
    })
}
