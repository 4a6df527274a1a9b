//! Several classes at one look, on the wire.

use std::sync::Arc;

use bytes::Bytes;

use super::request::Written;
use super::runs::{Texts, texts};
use super::{ClassCache, Dialect, WireError, decode_survey, encode_survey};
use crate::core::evaluate::Label;
use crate::core::pool::{Asked, Candidate, Group, Kind, MAX_CLASSES, Pool};
use crate::protocol::Operation;
use crate::protocol::generated as pb;

/// Nodes in a pool at most, those of all shards together.
const MAX_NODES: usize = 1 << 20;
/// No amount of a node in a pool is larger: shards leave such nodes out, lest sums overflow.
const WILD: i64 = 1 << 56;

/// Whoever doesn't know of pools is asked about the first class alone, and its answer is no pool: then
/// the leader hears from its report that it doesn't.
pub(super) fn encode_draw(
    asked: &[Asked],
    seed: u64,
    written: &mut Written,
    dialect: Dialect,
) -> Result<pb::operation::Kind, WireError> {
    let survey = |asked: &Asked| asked.survey.as_ref().map(|survey| encode_survey(survey));
    if dialect < Dialect::Pools {
        let first = asked.first().ok_or(WireError::Missing("class"))?;
        return Ok(pb::operation::Kind::Evaluate(pb::Evaluate {
            class: Some(written.class(&first.class)?),
            seed,
            count: first.count,
            survey: survey(first).transpose()?.unwrap_or_default(),
            nominees: None,
        }));
    }
    let mut wire = |asked: &Asked| -> Result<pb::Asked, WireError> {
        Ok(pb::Asked {
            class: Some(written.class(&asked.class)?),
            count: asked.count,
            survey: survey(asked).transpose()?.unwrap_or_default(),
        })
    };
    let asked = asked.iter().map(&mut wire).collect::<Result<_, _>>()?;
    Ok(pb::operation::Kind::Draw(pb::Draw { asked, seed }))
}

pub(super) fn decode_draw(wire: pb::Draw, classes: &ClassCache) -> Result<Operation, WireError> {
    if wire.asked.len() > MAX_CLASSES {
        return Err(WireError::TooMany(wire.asked.len()));
    }
    let asked = |wire: pb::Asked| -> Result<Asked, WireError> {
        let survey = (!wire.survey.is_empty()).then(|| decode_survey(&wire.survey)).transpose()?;
        let (class, count) = (classes.get(wire.class)?, wire.count);
        Ok(Asked { class, count, survey: survey.map(Arc::new) })
    };
    let asked = wire.asked.into_iter().map(asked).collect::<Result<_, _>>()?;
    Ok(Operation::Draw { asked, seed: wire.seed })
}

pub(super) fn encode_pool(pool: &Pool) -> pb::Pool {
    let label = |(key, value): &Label| pb::Label { key: key.to_string(), value: value.to_string() };
    let group = |group: &Group| {
        let (local, lot) = group.floor.unwrap_or_default();
        pb::PoolGroup {
            taints: group.taints,
            affinity: group.affinity,
            labels: group.labels.iter().map(label).collect(),
            more: group.floor.is_some(),
            local,
            lot,
        }
    };
    let class = |groups: &Option<Vec<Group>>| pb::PoolClass {
        unknown: groups.is_none(),
        groups: groups.iter().flatten().map(group).collect(),
    };
    let kind = |kind: &Kind| {
        let [cpu, memory, storage, pods] = kind.offer;
        let groups = kind.groups.iter().map(|group| group.map_or(0, |group| group + 1)).collect();
        pb::PoolKind { cpu, memory, storage, pods, groups }
    };
    let mut names = Texts::default();
    for node in &pool.nodes {
        names.push(&node.name);
    }
    pb::Pool {
        classes: pool.classes.iter().map(class).collect(),
        kinds: pool.kinds.iter().map(kind).collect(),
        names: names.bytes.into(),
        lengths: names.lengths,
        kind: pool.nodes.iter().map(|node| node.kind).collect(),
        loads: pool.nodes.iter().flat_map(|node| node.load).collect(),
    }
}

/// `None` where it makes no sense.
pub(super) fn decode_pool(wire: pb::Pool) -> Option<Pool> {
    let pb::Pool { classes, kinds, names, lengths, kind, loads } = wire;
    let (loads, rest) = loads.as_chunks::<6>();
    let sane = |amount: &i64| (0..=WILD).contains(amount);
    let fits = lengths.len() == kind.len() && loads.len() == kind.len() && rest.is_empty();
    if !fits || kind.len() > MAX_NODES || !loads.iter().flatten().all(sane) {
        return None;
    }
    let label = |label: pb::Label| (label.key.into(), label.value.into());
    let group = |group: pb::PoolGroup| Group {
        taints: group.taints,
        affinity: group.affinity,
        labels: group.labels.into_iter().map(label).collect(),
        floor: group.more.then_some((group.local, group.lot)),
    };
    let class = |class: pb::PoolClass| {
        let groups = class.groups.into_iter().map(group).collect::<Vec<_>>();
        (!class.unknown).then_some(groups)
    };
    let classes: Vec<_> = classes.into_iter().map(class).collect();
    let as_kind = |kind: pb::PoolKind| {
        let offer = [kind.cpu, kind.memory, kind.storage, kind.pods];
        let groups = kind.groups.into_iter().map(|group| group.checked_sub(1)).collect();
        offer.iter().all(sane).then_some(Kind { offer, groups })
    };
    let kinds: Vec<Kind> = kinds.into_iter().map(as_kind).collect::<Option<_>>()?;
    let names: Bytes = names;
    let names = texts(&names, &lengths)?.zip(&kind).zip(loads);
    let node = |((name, kind), load): ((Option<&str>, &u32), &[i64; 6])| {
        Some(Candidate { name: name?.into(), kind: *kind, load: *load })
    };
    let nodes = names.map(node).collect::<Option<_>>()?;
    Some(Pool { classes, kinds, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pod::PodRequest;
    use crate::protocol::wire::{decode_request, decode_response, encode_request, encode_response};
    use crate::protocol::{Answer, Request, Response};

    fn pool() -> Pool {
        let group = |floor| Group {
            taints: 1,
            affinity: 2,
            labels: vec![("zone".into(), "a".into())],
            floor,
        };
        let node =
            |name: &str, kind| Candidate { name: name.into(), kind, load: [1, 2, 3, 4, 5, 6] };
        Pool {
            classes: vec![Some(vec![group(Some((-3, u64::MAX))), group(None)]), None],
            kinds: vec![
                Kind { offer: [7, 8, 9, 10], groups: vec![Some(1), None] },
                Kind { offer: [7, 8, 9, 11], groups: vec![None, None] },
            ],
            nodes: vec![node("a", 1), node("bc", 0)],
        }
    }

    fn request() -> Request {
        let class = Arc::new(PodRequest::default());
        let asked = |survey| Asked { class: Arc::clone(&class), count: 5, survey };
        let asked = [asked(None), asked(Some(Arc::default()))].into();
        Request {
            term: 1,
            membership: 2,
            targets: Vec::new(),
            relays: Vec::new(),
            deadline: std::time::Duration::from_secs(1),
            operations: vec![Operation::Draw { asked, seed: 4 }],
        }
    }

    #[test]
    fn pools_come_back_as_they_went() {
        let back = decode_pool(encode_pool(&pool())).expect("it makes sense");
        assert_eq!(back, pool());
        let answers = vec![Answer::Pool(Box::new(pool()))];
        let response = Response { shards: Vec::new(), answers };
        let back = decode_response(encode_response(&response, Dialect::Pools));
        assert_eq!(format!("{back:?}"), format!("{response:?}"));
        let wire = encode_request(&request(), Dialect::Pools).expect("encode");
        let back = decode_request(wire, &ClassCache::default()).expect("decode");
        assert_eq!(format!("{back:?}"), format!("{:?}", request()));
    }

    #[test]
    fn who_does_not_know_of_pools_is_asked_about_the_first_class() {
        let wire = encode_request(&request(), Dialect::Runs).expect("encode");
        let back = decode_request(wire, &ClassCache::default()).expect("decode");
        let [Operation::Evaluate { count: 5, seed: 4, survey: None, .. }] = &back.operations[..]
        else {
            panic!("{back:?}")
        };
    }

    #[test]
    fn a_pool_that_makes_no_sense_is_none() {
        let broken: [fn(&mut pb::Pool); 5] = [
            |pool| pool.loads.truncate(11),
            |pool| pool.lengths[0] = 9,
            |pool| {
                pool.kind.pop();
            },
            |pool| pool.loads[3] = -1,
            |pool| pool.kinds[1].memory = i64::MAX,
        ];
        for breaks in broken {
            let mut wire = encode_pool(&pool());
            breaks(&mut wire);
            assert_eq!(decode_pool(wire), None);
        }
        // Kinds and groups that are not there are nobody's.
        let mut wire = encode_pool(&pool());
        (wire.kind[0], wire.kinds[0].groups[0]) = (77, 78);
        let pool = decode_pool(wire).expect("numbers that add up");
        let Operation::Draw { asked, seed } = &request().operations[0] else { panic!("the draw") };
        assert!(crate::core::draw::Draw::new(&pool, *seed).next(0, &asked[0]).is_empty());
    }
}
