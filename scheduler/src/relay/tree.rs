//! The tree between the leading relay and the shards. Each message says which shards it is for and
//! which relays may stand between, so any relay can be the root or a branch, and the tree is cut
//! anew for each message from the relays that answer. A branch's answers are merged on the way up;
//! merging is associative, so the tree's shape doesn't show in the result.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::core::gather;
use crate::core::membership::Membership;
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
    if targets.len() <= fan_out || request.relays.is_empty() {
        let direct = |target: &Target| {
            let to = Branch::Shard(target.shard.clone());
            part(request, membership, to, vec![target.clone()], Vec::new())
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
        parts.push(part(request, membership, to, own.to_vec(), relays));
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
    membership: &Membership,
    to: Branch,
    targets: Vec<Target>,
    relays: Vec<Arc<str>>,
) -> Part {
    let ours = |operation: &Operation| match operation.node() {
        None => true,
        Some(node) => {
            let owner = membership.owner(node);
            targets.iter().any(|target| Some(&target.shard) == owner)
        }
    };
    let (places, operations): (Vec<_>, Vec<_>) = request
        .operations
        .iter()
        .enumerate()
        .filter(|(_, operation)| ours(operation))
        .map(|(place, operation)| (place, operation.clone()))
        .unzip();
    let request = Request { targets, relays, operations, ..request.clone() };
    Part { to, request, places }
}

/// Puts the children's answers together. `parts` and `responses` are in the same order.
#[must_use]
pub fn join(operations: usize, answered: Vec<(Vec<usize>, Response)>) -> Response {
    let mut shards = Vec::new();
    let mut gathered: HashMap<usize, Vec<Answer>> = HashMap::new();
    for (places, response) in answered {
        shards.extend(response.shards);
        for (place, answer) in places.into_iter().zip(response.answers) {
            gathered.entry(place).or_default().push(answer);
        }
    }
    if gathered.is_empty() {
        return Response { shards, answers: Vec::new() };
    }
    let answers = (0..operations).map(|place| one(gathered.remove(&place))).collect();
    Response { shards, answers }
}

fn one(answers: Option<Vec<Answer>>) -> Answer {
    let mut evaluations = Vec::new();
    let mut outcome = None;
    for answer in answers.into_iter().flatten() {
        match answer {
            Answer::Evaluation(evaluation) => evaluations.push(*evaluation),
            // Only the node's owner answers.
            Answer::Outcome(result) => outcome = Some(result),
            Answer::Nobody => {}
        }
    }
    match outcome {
        Some(result) => Answer::Outcome(result),
        None if evaluations.is_empty() => Answer::Nobody,
        None => Answer::Evaluation(Box::new(gather::merge(evaluations))),
    }
}
