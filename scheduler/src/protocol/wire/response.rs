//! Responses on the wire.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::preemption::{decode_trial, encode_trial};
use super::{decode_rejections, decode_survey, encode_rejections, encode_survey};
use crate::core::evaluate::{Evaluation, Label, Next, Tuple};
use crate::core::event::EventSet;
use crate::protocol::generated as pb;
use crate::protocol::{Answer, Refusal, Response, ShardReport};

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
        classes_carry_over: true,
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
