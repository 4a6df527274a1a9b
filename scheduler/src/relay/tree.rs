//! The tree between the leading relay and the shards. Each message says which shards it is for and
//! which relays may stand between, so any relay can be the root or a branch, and the tree is cut
//! anew for each message from the relays that answer. A branch's answers are merged on the way up;
//! merging is associative, so the tree's shape doesn't show in the result.

use std::sync::Arc;

use crate::core::evaluate::Evaluation;
use crate::core::gather;
use crate::core::membership::Membership;
use crate::core::pool::Pool;
use crate::core::preempt::Trial;
use crate::core::survey::Survey;
use crate::protocol::{Answer, Operation, Request, Response, Target};

/// Who gets a part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Branch {
    /// A shard itself.
    Shard(Arc<str>),
    /// A relay, for several shards.
    Relay(Arc<str>),
}

/// A message's part for one child.
#[derive(Clone, Debug)]
pub struct Part {
    /// To whom.
    pub to: Branch,
    /// What.
    pub request: Request,
    /// The places of its operations in the whole message.
    pub places: Vec<usize>,
}

/// Cuts a message into parts, so that each target gets one, for at most `fan_out` children. Where the relays are too few for
/// that, more shards are asked directly: an answer matters more than the bound.
#[must_use]
pub fn split(request: &Request, membership: &Membership, fan_out: usize) -> Vec<Part> {
    let targets = &request.targets;
    // Worked out once for all parts.
    let owner = |operation: &Operation| operation.node().and_then(|node| membership.owner(node));
    let owners: Vec<_> = request.operations.iter().map(owner).collect();
    if targets.len() <= fan_out || request.relays.is_empty() {
        let direct = |target: &Target| {
            let to = Branch::Shard(target.shard.clone());
            part(request, (membership, &owners), to, vec![target.clone()], Vec::new())
        };
        return targets.iter().map(direct).collect();
    }
    let branches = fan_out.min(request.relays.len()).max(1);
    let (heads, spare) = request.relays.split_at(branches);
    let mut parts = Vec::with_capacity(branches);
    let mut rest: &[Target] = targets;
    for (index, head) in heads.iter().enumerate() {
        let (own, left) = rest.split_at(rest.len().div_ceil(branches - index));
        rest = left;
        let (to, relays) = match own {
            [] => continue,
            [only] => (Branch::Shard(only.shard.clone()), Vec::new()),
            _ => {
                let relays = spare.iter().skip(index).step_by(branches).cloned().collect();
                (Branch::Relay(head.clone()), relays)
            }
        };
        parts.push(part(request, (membership, &owners), to, own.to_vec(), relays));
    }
    parts
}

/// The widest fan-out that [`split`] makes anywhere in the tree.
#[must_use]
pub fn widest(shards: usize, relays: usize, fan_out: usize) -> usize {
    if shards <= fan_out || relays == 0 {
        return shards;
    }
    let branches = fan_out.min(relays).max(1);
    let spare = (relays - branches) / branches;
    branches.max(widest(shards.div_ceil(branches), spare, fan_out))
}

fn part(
    request: &Request,
    (membership, owners): (&Membership, &[Option<&Arc<str>>]),
    to: Branch,
    targets: Vec<Target>,
    relays: Vec<Arc<str>>,
) -> Part {
    let at = |owner: Option<&Arc<str>>| targets.iter().any(|target| Some(&target.shard) == owner);
    let owned = |node: &str| at(membership.owner(node));
    // What is about no node is for all.
    let ours = |owner: Option<&Arc<str>>| owner.is_none() || at(owner);
    let (places, operations): (Vec<_>, Vec<_>) = request
        .operations
        .iter()
        .zip(owners)
        .enumerate()
        .filter(|(_, (_, owner))| ours(**owner))
        .map(|(place, (operation, _))| (place, operation.clone().concerning(owned)))
        .unzip();
    let Request { term, membership, deadline, .. } = *request;
    let request = Request { term, membership, targets, relays, deadline, operations };
    Part { to, request, places }
}

/// Puts the children's answers together. `parts` and `responses` are in the same order.
#[must_use]
pub fn join(operations: &[Operation], answered: Vec<(Vec<usize>, Response)>) -> Response {
    let mut shards = Vec::new();
    let mut gathered: Vec<Gathered> = Vec::new();
    for (places, response) in answered {
        shards.extend(response.shards);
        for (place, answer) in places.into_iter().zip(response.answers) {
            if gathered.is_empty() {
                gathered.resize_with(operations.len(), Gathered::default);
            }
            if let Some(at) = gathered.get_mut(place) {
                at.add(answer);
            }
        }
    }
    Response { shards, answers: gathered.into_iter().map(Gathered::answer).collect() }
}

/// The children's answers to one operation, so far.
#[derive(Default)]
struct Gathered {
    parts: Vec<Evaluation>,
    outcome: Option<Result<(), String>>,
    survey: Option<Box<Survey>>,
    trial: Option<Box<Trial>>,
    pool: Option<Box<Pool>>,
}

impl Gathered {
    fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Evaluations(evaluations) => self.parts.extend(evaluations.into_iter().next()),
            Answer::Survey(survey) => match &mut self.survey {
                Some(sum) => sum.absorb(*survey),
                None => self.survey = Some(survey),
            },
            Answer::Trial(trial) => match &mut self.trial {
                Some(sum) => sum.absorb(*trial),
                None => self.trial = Some(trial),
            },
            Answer::Pool(pool) => match &mut self.pool {
                Some(sum) => sum.absorb(*pool),
                None => self.pool = Some(pool),
            },
            // Only the node's owner answers.
            Answer::Outcome(result) => self.outcome = Some(result),
            Answer::Nobody => {}
        }
    }

    fn answer(self) -> Answer {
        if let Some(survey) = self.survey {
            return Answer::Survey(survey);
        }
        if let Some(trial) = self.trial {
            return Answer::Trial(trial);
        }
        if let Some(pool) = self.pool {
            // Of somebody who doesn't know of pools there is an evaluation instead.
            return if self.parts.is_empty() { Answer::Pool(pool) } else { Answer::Nobody };
        }
        match self.outcome {
            Some(result) => Answer::Outcome(result),
            None if self.parts.is_empty() => Answer::Nobody,
            None => Answer::Evaluations(vec![gather::merge(self.parts)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::evaluate::{Next, Tuple};

    fn request(shards: usize, relays: usize) -> Request {
        let target = |i| Target { shard: format!("s{i}").into(), incarnation: 1, changes: 0 };
        Request {
            term: 1,
            membership: 0,
            targets: (0..shards).map(target).collect(),
            relays: (0..relays).map(|i| format!("r{i}").into()).collect(),
            deadline: std::time::Duration::from_secs(1),
            operations: Vec::new(),
        }
    }

    fn leaves(
        request: &Request,
        membership: &Membership,
        fan_out: usize,
        widest: &mut usize,
    ) -> usize {
        let parts = split(request, membership, fan_out);
        *widest = (*widest).max(parts.len());
        let below = |part: &Part, widest: &mut usize| match part.to {
            Branch::Shard(_) => 1,
            Branch::Relay(_) => leaves(&part.request, membership, fan_out, widest),
        };
        parts.iter().map(|part| below(part, widest)).sum()
    }

    #[test]
    fn every_shard_is_asked_once_and_nobody_asks_too_many() {
        for (shards, relays, fan_out) in [
            (1, 0, 10),
            (10, 3, 10),
            (11, 2, 10),
            (100, 10, 10),
            (64, 7, 10),
            (500, 60, 10),
            (30, 1, 10),
        ] {
            let names: Vec<String> = (0..shards).map(|i| format!("s{i}")).collect();
            let membership = Membership::new(0, &names);
            let mut found = 0;
            let asked = leaves(&request(shards, relays), &membership, fan_out, &mut found);
            assert_eq!(asked, shards);
            let bound = widest(shards, relays, fan_out);
            assert!(found <= bound, "{shards} shards, {relays} relays: {found} > {bound}");
        }
        assert_eq!(widest(100, 10, 10), 10);
        assert_eq!(widest(30, 1, 10), 30);
    }

    fn sees(node: &str, locals: &[i64]) -> Answer {
        let node = |local: &i64| Arc::from(format!("{node}{local}"));
        let next = locals[1..].iter().map(|l| Next { local: *l, lot: 0, node: node(l) });
        let tuple = Tuple {
            taints: 0,
            affinity: 0,
            preferences: 0,
            spread: Some(Vec::new()),
            local: locals[0],
            ties: 1,
            lot: 0,
            node: node(&locals[0]),
            labels: Vec::new(),
            next: next.collect(),
            last: false,
        };
        let evaluation = Evaluation {
            nodes: 1,
            feasible: 1,
            tuples: vec![tuple],
            ahead: true,
            ..Evaluation::default()
        };
        Answer::Evaluations(vec![evaluation])
    }

    fn merged(parts: Vec<Answer>) -> Answer {
        let mut gathered = Gathered::default();
        for answer in parts {
            gathered.add(answer);
        }
        gathered.answer()
    }

    fn best(answer: Answer) -> Vec<i64> {
        let Answer::Evaluations(evaluations) = answer else { panic!("{answer:?}") };
        let tuple = &evaluations[0].tuples[0];
        std::iter::once(tuple.local).chain(tuple.next.iter().map(|next| next.local)).collect()
    }

    #[test]
    fn looking_ahead_is_deciding_one_by_one_in_any_tree() {
        let (a, b, c) = (sees("a", &[9, 7, 1]), sees("b", &[8, 6, 5]), sees("c", &[7, 3, 2]));
        // Ends where a shard's view ends: after b's 5 something else may be the best.
        let flat = best(merged(vec![a.clone(), b.clone(), c.clone()]));
        assert_eq!(flat, [9, 8, 7, 7, 6, 5]);
        let left = merged(vec![merged(vec![a.clone(), b.clone()]), c.clone()]);
        let right = merged(vec![a, merged(vec![b, c])]);
        assert_eq!(best(left), flat);
        assert_eq!(best(right), flat);
    }

    #[test]
    fn a_node_that_gets_better_does_not_come_before_its_shard_says_so() {
        let merged = merged(vec![sees("a", &[5, 9, 1]), sees("b", &[6, 4])]);
        assert_eq!(best(merged), [6, 5, 9, 4]);
    }
}
