//! Preemption on the wire: pods that are promised a node, the question and its answer.

use std::sync::Arc;

use bytes::Bytes;

use super::{ClassCache, WireError, decode_rejections, decode_survey, encode_class};
use super::{encode_rejections, encode_survey};
use crate::core::maps::HashMap;
use crate::core::nominate::Nominee;
use crate::core::pod::PodUid;
use crate::core::preempt::{Candidate, Trial};
use crate::protocol::Preempt;
use crate::protocol::generated as pb;

fn encode_uid(uid: PodUid) -> Bytes {
    Bytes::copy_from_slice(&uid.to_bytes())
}

fn decode_uid(uid: &Bytes) -> Option<PodUid> {
    <[u8; 16]>::try_from(&**uid).ok().map(PodUid::from_bytes)
}

fn decode_uids<T: FromIterator<PodUid>>(uids: &[Bytes]) -> Result<T, WireError> {
    uids.iter().map(decode_uid).collect::<Option<T>>().ok_or(WireError::Nominee)
}

pub(super) fn encode_nominees(nominees: &[Nominee]) -> Result<Option<pb::Nominees>, WireError> {
    let mut wire = pb::Nominees::default();
    let mut places: HashMap<usize, u32> = HashMap::default();
    for nominee in nominees {
        let next = u32::try_from(wire.classes.len()).unwrap_or(u32::MAX);
        let place = *places.entry(Arc::as_ptr(&nominee.class).addr()).or_insert(next);
        if place == next {
            wire.classes.push(encode_class(&nominee.class)?);
        }
        let uid = encode_uid(nominee.uid);
        wire.nominees.push(pb::Nominee { uid, node: nominee.node.to_string(), class: place });
    }
    Ok((!nominees.is_empty()).then_some(wire))
}

pub(super) fn decode_nominees(
    wire: Option<pb::Nominees>,
    classes: &ClassCache,
) -> Result<Arc<[Nominee]>, WireError> {
    let wire = wire.unwrap_or_default();
    let kinds = wire.classes.into_iter().map(|class| classes.get(Some(class)));
    let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
    let nominee = |nominee: pb::Nominee| {
        let class = usize::try_from(nominee.class).ok().and_then(|place| kinds.get(place));
        Some(Nominee {
            uid: decode_uid(&nominee.uid)?,
            node: nominee.node.into(),
            class: class?.clone(),
        })
    };
    wire.nominees.into_iter().map(nominee).collect::<Option<_>>().ok_or(WireError::Nominee)
}

pub(super) fn encode_preempt(preempt: &Preempt) -> Result<pb::Preempt, WireError> {
    Ok(pb::Preempt {
        class: Some(encode_class(&preempt.class)?),
        uid: encode_uid(preempt.uid),
        nominated: preempt.nominated.as_deref().unwrap_or_default().to_owned(),
        evicted: preempt.evicted.iter().map(|uid| encode_uid(*uid)).collect(),
        survey: encode_survey(&preempt.survey)?,
        nominees: encode_nominees(&preempt.nominees)?,
        budgets: serde_json::to_vec(&*preempt.budgets)
            .map_err(|source| WireError::Json { what: "budgets", source })?
            .into(),
        seed: preempt.seed,
    })
}

pub(super) fn decode_preempt(
    wire: pb::Preempt,
    classes: &ClassCache,
) -> Result<Preempt, WireError> {
    let budgets: Vec<_> = serde_json::from_slice(&wire.budgets)
        .map_err(|source| WireError::Json { what: "budgets", source })?;
    Ok(Preempt {
        class: classes.get(wire.class)?,
        uid: decode_uid(&wire.uid).ok_or(WireError::Missing("uid"))?,
        nominated: (!wire.nominated.is_empty()).then(|| wire.nominated.into()),
        evicted: decode_uids::<Vec<_>>(&wire.evicted)?.into(),
        survey: Arc::new(decode_survey(&wire.survey)?),
        nominees: decode_nominees(wire.nominees, classes)?,
        budgets: budgets.into(),
        seed: wire.seed,
    })
}

pub(super) fn encode_trial(trial: &Trial) -> pb::Trial {
    let candidate = |candidate: &Candidate| pb::Candidate {
        node: candidate.node.to_string(),
        victims: candidate.victims.iter().map(|uid| encode_uid(*uid)).collect(),
        violations: candidate.violations,
        highest: candidate.highest,
        sum: candidate.sum,
        start: candidate.start,
        lot: candidate.lot,
    };
    pb::Trial {
        nodes: trial.nodes,
        feasible: trial.feasible,
        unresolvable: trial.unresolvable,
        no_victims: trial.no_victims,
        rejections: encode_rejections(&trial.rejections),
        waiting: trial.waiting,
        best: trial.best.as_ref().map(candidate),
    }
}

/// `None` for one that makes no sense: as good as no answer.
pub(super) fn decode_trial(wire: pb::Trial) -> Option<Trial> {
    let candidate = |candidate: pb::Candidate| {
        Some(Candidate {
            node: candidate.node.into(),
            victims: decode_uids(&candidate.victims).ok()?,
            violations: candidate.violations,
            highest: candidate.highest,
            sum: candidate.sum,
            start: candidate.start,
            lot: candidate.lot,
        })
    };
    Some(Trial {
        nodes: wire.nodes,
        feasible: wire.feasible,
        unresolvable: wire.unresolvable,
        no_victims: wire.no_victims,
        rejections: decode_rejections(wire.rejections),
        waiting: wire.waiting,
        best: match wire.best {
            Some(best) => Some(candidate(best)?),
            None => None,
        },
    })
}
