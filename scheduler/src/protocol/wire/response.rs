//! Responses on the wire.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::pools::{decode_pool, encode_pool};
use super::preemption::{decode_trial, encode_trial};
use super::runs::{read_next, write_next};
use super::{Dialect, MAX_OPERATIONS};
use super::{decode_rejections, decode_survey, encode_rejections, encode_survey};
use crate::core::evaluate::{Evaluation, Label, Next, Tuple};
use crate::core::event::EventSet;
use crate::protocol::generated as pb;
use crate::protocol::{Answer, Refusal, Response, ShardReport};

/// For sending to a peer that understands so much.
#[must_use]
pub fn encode_response(response: &Response, dialect: Dialect) -> pb::ExchangeResponse {
    let report = |report: &ShardReport| pb::ShardReport {
        shard: report.shard.to_string(),
        incarnation: report.incarnation,
        changes: report.changes,
        events: report.events.bits(),
        keeps_domains_free: report.keeps_domains_free,
        last_token: report.last_token,
        pools: report.pools,
        refusal: report.refusal.as_ref().map(encode_refusal),
    };
    pb::ExchangeResponse {
        shards: response.shards.iter().map(report).collect(),
        answers: encode_answers(&response.answers, dialect),
        classes_carry_over: true,
        dialect: Dialect::OURS,
    }
}

fn encode_answers(answers: &[Answer], dialect: Dialect) -> Vec<pb::Answer> {
    use pb::answer::Kind;
    let mut encoded: Vec<pb::Answer> = Vec::new();
    for answer in answers {
        if dialect >= Dialect::Runs && matches!(answer, Answer::Outcome(Ok(()))) {
            match encoded.last_mut() {
                Some(pb::Answer { kind: Some(Kind::Done(done)) }) => *done += 1,
                _ => encoded.push(pb::Answer { kind: Some(Kind::Done(1)) }),
            }
        } else {
            encoded.push(encode_answer(answer, dialect));
        }
    }
    encoded
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
        pools: report.pools,
        refusal: report.refusal.map(decode_refusal),
    };
    Response {
        shards: response.shards.into_iter().map(report).collect(),
        answers: decode_answers(response.answers),
    }
}

fn decode_answers(encoded: Vec<pb::Answer>) -> Vec<Answer> {
    use pb::answer::Kind;
    let mut answers = Vec::with_capacity(encoded.len());
    for answer in encoded {
        // Nobody asked for more than that.
        let room = MAX_OPERATIONS.saturating_sub(answers.len());
        match answer.kind {
            _ if room == 0 => break,
            Some(Kind::Done(done)) => {
                let done = usize::try_from(done).unwrap_or(usize::MAX).min(room);
                answers.extend(std::iter::repeat_with(|| Answer::Outcome(Ok(()))).take(done));
            }
            _ => answers.push(decode_answer(answer)),
        }
    }
    answers
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

fn encode_answer(answer: &Answer, dialect: Dialect) -> pb::Answer {
    use pb::answer::Kind;
    let kind = match answer {
        Answer::Evaluations(evaluations) => {
            let encode = |evaluation| encode_evaluation(evaluation, dialect);
            let evaluations = evaluations.iter().map(encode).collect();
            Some(Kind::Evaluations(pb::Evaluations { evaluations }))
        }
        // What can't be written is left out, and a survey that is left out is no survey.
        Answer::Survey(survey) => encode_survey(survey).ok().map(Kind::Survey),
        Answer::Pool(pool) => Some(Kind::Pool(encode_pool(pool))),
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
        // Several of them are read before.
        None | Some(Kind::Done(_)) => Answer::Nobody,
        Some(Kind::Evaluations(wire)) => {
            Answer::Evaluations(wire.evaluations.into_iter().map(decode_evaluation).collect())
        }
        Some(Kind::Survey(survey)) => {
            decode_survey(&survey).map_or(Answer::Nobody, |survey| Answer::Survey(survey.into()))
        }
        Some(Kind::Pool(pool)) => {
            decode_pool(pool).map_or(Answer::Nobody, |pool| Answer::Pool(pool.into()))
        }
        Some(Kind::Trial(trial)) => {
            decode_trial(trial).map_or(Answer::Nobody, |trial| Answer::Trial(trial.into()))
        }
        Some(Kind::Outcome(outcome)) => {
            Answer::Outcome(if outcome.done { Ok(()) } else { Err(outcome.message) })
        }
    }
}

fn encode_evaluation(evaluation: &Evaluation, dialect: Dialect) -> pb::Evaluation {
    let label = |(key, value): &Label| pb::Label { key: key.to_string(), value: value.to_string() };
    let next =
        |next: &Next| pb::Next { local: next.local, lot: next.lot, node: next.node.to_string() };
    let columns = dialect >= Dialect::Runs;
    let next = |all: &[Next]| all.iter().map(next).collect();
    let plain = |tuple: &Tuple| pb::Tuple {
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
        next: if columns { Vec::new() } else { next(&tuple.next) },
        last: tuple.last,
        ..pb::Tuple::default()
    };
    let tuple = |tuple: &Tuple| {
        let mut wire = plain(tuple);
        if columns {
            write_next(&tuple.next, &mut wire);
        }
        wire
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
    let read = |mut tuple: pb::Tuple| {
        // Without those that come next its node is known, and no more.
        let next = read_next(&mut tuple);
        let last = next.is_some() && tuple.last;
        (tuple, next.unwrap_or_default(), last)
    };
    let tuple = |(tuple, next, last): (pb::Tuple, Vec<Next>, bool)| Tuple {
        taints: tuple.taints,
        affinity: tuple.affinity,
        local: tuple.local,
        ties: tuple.ties,
        lot: tuple.lot,
        node: tuple.node.into(),
        preferences: tuple.preferences,
        spread: (!tuple.ignored).then_some(tuple.spread),
        labels: tuple.labels.into_iter().map(|l| (l.key.into(), l.value.into())).collect(),
        next,
        last,
    };
    let domains = |domains: pb::Domains| domains.values.into_iter().map(Arc::from).collect();
    Evaluation {
        nodes: evaluation.nodes,
        feasible: evaluation.feasible,
        rejections: decode_rejections(evaluation.rejections),
        unresolvable: evaluation.unresolvable,
        lower_priority: evaluation.lower_priority,
        tuples: evaluation.tuples.into_iter().map(read).map(tuple).collect(),
        missing: evaluation.missing,
        domains: evaluation.domains.into_iter().map(domains).collect(),
        ignored: evaluation.ignored,
        wants_survey: evaluation.wants_survey,
        ahead: evaluation.ahead,
    }
}
