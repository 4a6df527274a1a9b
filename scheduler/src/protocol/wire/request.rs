//! Requests on the wire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::pools::{decode_draw, encode_draw};
use super::preemption::{decode_nominees, decode_preempt, encode_nominees, encode_preempt};
use super::runs::{self, OpenRun};
use super::{ClassCache, Dialect, MAX_OPERATIONS, WireError};
use super::{decode_survey, encode_class, encode_survey};
use crate::core::maps::HashMap;
use crate::core::pod::PodRequest;
use crate::protocol::generated as pb;
use crate::protocol::{Operation, PodId, Request, Reservation, Settlement, Target};

/// Classes of one message that are written already, by address: many of its operations share one.
#[derive(Default)]
pub(super) struct Written {
    classes: HashMap<usize, Bytes>,
    /// The class of the last reservation, where the receiver takes one without to be of the same.
    last: Option<usize>,
    carry_over: bool,
}

impl Written {
    /// A reservation's class; nothing where it is that of the reservation before.
    fn reserved(&mut self, class: &Arc<PodRequest>) -> Result<Option<pb::PodClass>, WireError> {
        let address = Some(Arc::as_ptr(class).addr());
        if self.carry_over && std::mem::replace(&mut self.last, address) == address {
            return Ok(None);
        }
        self.class(class).map(Some)
    }

    pub(super) fn class(&mut self, class: &Arc<PodRequest>) -> Result<pb::PodClass, WireError> {
        let address = Arc::as_ptr(class).addr();
        if let Some(request) = self.classes.get(&address) {
            return Ok(pb::PodClass { request: request.clone() });
        }
        let wire = encode_class(class)?;
        self.classes.insert(address, wire.request.clone());
        Ok(wire)
    }
}

/// For sending to a peer that understands so much.
pub fn encode_request(
    request: &Request,
    dialect: Dialect,
) -> Result<pb::ExchangeRequest, WireError> {
    let mut written = Written { carry_over: dialect >= Dialect::CarryOver, ..Written::default() };
    let target = |target: &Target| pb::Target {
        shard: target.shard.to_string(),
        incarnation: target.incarnation,
        changes: target.changes,
    };
    let mut operations = Vec::new();
    let mut run = None;
    for operation in &request.operations {
        if dialect < Dialect::Runs {
            operations.push(encode_operation(operation, &mut written, dialect)?);
            continue;
        }
        if run.as_mut().is_some_and(|run: &mut OpenRun| run.takes(operation)) {
            continue;
        }
        operations.extend(run.take().map(OpenRun::close));
        run = OpenRun::of(operation, |class| written.class(class))?;
        if run.is_none() {
            operations.push(encode_operation(operation, &mut written, dialect)?);
        }
    }
    operations.extend(run.map(OpenRun::close));
    Ok(pb::ExchangeRequest {
        term: request.term,
        membership: request.membership,
        targets: request.targets.iter().map(target).collect(),
        relays: request.relays.iter().map(ToString::to_string).collect(),
        deadline_millis: u32::try_from(request.deadline.as_millis()).unwrap_or(u32::MAX),
        operations,
        dialect: Dialect::OURS,
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
    let mut reserved = None;
    let mut operations = Vec::with_capacity(request.operations.len());
    for operation in request.operations {
        match runs::expand(&operation, classes)? {
            Some(run) => operations.extend(run),
            None => operations.push(decode_operation(operation, classes, &mut reserved)?),
        }
        if operations.len() > MAX_OPERATIONS {
            return Err(WireError::TooMany(operations.len()));
        }
    }
    Ok(Request {
        term: request.term,
        membership: request.membership,
        targets: request.targets.into_iter().map(target).collect(),
        relays: request.relays.into_iter().map(Into::into).collect(),
        deadline: Duration::from_millis(request.deadline_millis.into()),
        operations,
    })
}

fn encode_operation(
    operation: &Operation,
    written: &mut Written,
    dialect: Dialect,
) -> Result<pb::Operation, WireError> {
    use pb::operation::Kind;
    let kind = match operation {
        Operation::Draw { asked, seed } => encode_draw(asked, *seed, written, dialect)?,
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
    reserved: &mut Option<Arc<PodRequest>>,
) -> Result<Operation, WireError> {
    use pb::operation::Kind;
    let mut reservation = |reservation: pb::Reservation| -> Result<Reservation, WireError> {
        let class = match (reservation.class, reserved.take()) {
            (None, Some(before)) => before,
            (class, _) => classes.get(class)?,
        };
        *reserved = Some(class.clone());
        Ok(Reservation {
            pod: decode_pod(reservation.pod)?,
            node: reservation.node.into(),
            class,
            token: reservation.token,
        })
    };
    let settlement = |settlement: pb::Settlement| -> Result<Settlement, WireError> {
        let uid = settlement.pod.ok_or(WireError::Missing("pod"))?.uid;
        if uid.is_empty() {
            return Err(WireError::Missing("uid"));
        }
        Ok(Settlement { uid: uid.into(), node: settlement.node.into(), token: settlement.token })
    };
    Ok(match operation.kind.ok_or(WireError::Missing("operation"))? {
        // Expanded before.
        Kind::Reserves(_) | Kind::Confirms(_) => return Err(WireError::Run),
        Kind::Draw(wire) => decode_draw(wire, classes)?,
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
        class: written.reserved(&reservation.class)?,
        token: reservation.token,
    })
}

fn encode_settlement(settlement: &Settlement) -> pb::Settlement {
    let uid = settlement.uid.to_string();
    pb::Settlement {
        pod: Some(pb::PodId { uid, ..pb::PodId::default() }),
        node: settlement.node.to_string(),
        token: settlement.token,
    }
}
