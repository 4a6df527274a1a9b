//! From the answers of all shards to one decision.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::diagnosis::{Diagnosis, Plugin, PluginSet, Preemption, Reason};
use super::evaluate::{Evaluation, Tuple};
use super::pod::PodRequest;

/// Weight of the taint score in the default profile.
pub const TAINT_TOLERATION_WEIGHT: i64 = 3;
/// Weight of the node affinity score in the default profile.
pub const NODE_AFFINITY_WEIGHT: i64 = 2;
/// The highest score of a plugin.
pub const MAX_SCORE: i64 = 100;

const AFFINITY_CONFLICT: &str = "pod affinity terms conflict";

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Reserve it there and bind it.
    Place(Placement),
    /// No node takes it, and all of them were asked.
    Unschedulable(Diagnosis),
    /// No node that answered takes it, but some didn't answer: try again, say nothing.
    Incomplete {
        /// Shards that didn't answer.
        missing: u32,
    },
}

/// A node for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The node's name.
    pub node: Arc<str>,
    /// Its weighted total.
    pub score: i64,
    /// Nodes that pass the filters.
    pub feasible: u64,
    /// Feasible nodes with this total.
    pub ties: u64,
    /// Whether every shard answered; else a better node may exist.
    pub exact: bool,
}

/// Merges the answers about one pod. Associative and commutative, so relays of a tree may merge
/// what they have and pass it on.
#[must_use]
pub fn merge(parts: impl IntoIterator<Item = Evaluation>) -> Evaluation {
    let mut merged = Evaluation::default();
    let mut tuples: BTreeMap<(i64, i64), Tuple> = BTreeMap::new();
    for part in parts {
        // Saturating throughout: the numbers come from other processes.
        merged.nodes = merged.nodes.saturating_add(part.nodes);
        merged.feasible = merged.feasible.saturating_add(part.feasible);
        merged.unresolvable = merged.unresolvable.saturating_add(part.unresolvable);
        merged.lower_priority |= part.lower_priority;
        merged.missing = merged.missing.saturating_add(part.missing);
        for (reason, nodes) in part.rejections {
            let count = merged.rejections.entry(reason).or_default();
            *count = count.saturating_add(nodes);
        }
        for tuple in part.tuples {
            match tuples.entry((tuple.taints, tuple.affinity)) {
                Entry::Vacant(entry) => {
                    entry.insert(tuple);
                }
                Entry::Occupied(mut entry) => entry.get_mut().absorb(tuple),
            }
        }
    }
    merged.tuples = tuples.into_values().collect();
    merged
}

impl Tuple {
    /// Joins another group of nodes with the same raw scores.
    fn absorb(&mut self, other: Self) {
        let ties = match self.local.cmp(&other.local) {
            std::cmp::Ordering::Less => other.ties,
            std::cmp::Ordering::Equal => self.ties.saturating_add(other.ties),
            std::cmp::Ordering::Greater => self.ties,
        };
        if (other.local, other.lot, &other.node) > (self.local, self.lot, &self.node) {
            *self = other;
        }
        self.ties = ties;
    }
}

/// Decides from the merged answers: normalises, weighs, adds and breaks ties by lot.
#[must_use]
pub fn decide(evaluation: &Evaluation, request: &PodRequest) -> Decision {
    let totals = totals(&evaluation.tuples);
    let best = totals.iter().zip(&evaluation.tuples).max_by_key(|(t, u)| (*t, u.lot, &u.node));
    if let Some((score, tuple)) = best {
        let tied = totals.iter().zip(&evaluation.tuples).filter(|(total, _)| *total == score);
        return Decision::Place(Placement {
            node: Arc::clone(&tuple.node),
            score: *score,
            feasible: evaluation.feasible,
            ties: tied.fold(0, |ties, (_, tuple)| ties.saturating_add(tuple.ties)),
            exact: evaluation.missing == 0,
        });
    }
    if evaluation.missing > 0 {
        return Decision::Incomplete { missing: evaluation.missing };
    }
    Decision::Unschedulable(diagnose(evaluation, request))
}

/// The weighted total of each tuple's best node (`helper.DefaultNormalizeScore`, then the sum in
/// `RunScorePlugins`).
fn totals(tuples: &[Tuple]) -> Vec<i64> {
    let most = |raw: fn(&Tuple) -> i64| tuples.iter().map(raw).max().unwrap_or_default().max(0);
    let (taints, affinity) = (most(|tuple| tuple.taints), most(|tuple| tuple.affinity));
    let share =
        |raw: i64, most: i64| if most == 0 { 0 } else { MAX_SCORE.saturating_mul(raw) / most };
    tuples
        .iter()
        .map(|tuple| {
            let tolerant = MAX_SCORE.saturating_sub(share(tuple.taints, taints));
            let affine = share(tuple.affinity, affinity);
            TAINT_TOLERATION_WEIGHT
                .saturating_mul(tolerant)
                .saturating_add(NODE_AFFINITY_WEIGHT.saturating_mul(affine))
                .saturating_add(tuple.local)
        })
        .collect()
}

fn diagnose(evaluation: &Evaluation, request: &PodRequest) -> Diagnosis {
    // Without any node no plugin runs.
    let pinned = request.pinned.as_ref().filter(|_| evaluation.nodes > 0);
    let conflict = pinned.is_some_and(Vec::is_empty);
    let mut plugins: PluginSet = evaluation.rejections.keys().map(Reason::plugin).collect();
    if pinned.is_some() {
        plugins.insert(Plugin::NodeAffinity);
    }
    Diagnosis {
        nodes: evaluation.nodes,
        rejections: evaluation.rejections.clone(),
        pod_reason: conflict.then(|| AFFINITY_CONFLICT.to_owned()),
        preemption: (evaluation.nodes > 0).then(|| preemption(evaluation, request)),
        plugins,
    }
}

fn preemption(evaluation: &Evaluation, request: &PodRequest) -> Preemption {
    let resolvable = evaluation.nodes.saturating_sub(evaluation.unresolvable);
    if !request.may_preempt {
        Preemption::Never
    } else if resolvable > 0 && evaluation.lower_priority {
        Preemption::Unsupported
    } else {
        Preemption::Unhelpful { unresolvable: evaluation.unresolvable, no_victims: resolvable }
    }
}

/// The decision for a pod that asks for what isn't supported: Pending, with a message that says
/// which, and woken by nothing but an update of the pod.
#[must_use]
pub fn refuse(nodes: u64, request: &PodRequest) -> Option<Diagnosis> {
    if request.unsupported.is_empty() {
        return None;
    }
    let wants: Vec<String> = request.unsupported.iter().map(ToString::to_string).collect();
    Some(Diagnosis {
        nodes,
        rejections: BTreeMap::new(),
        pod_reason: Some(format!(
            "pod asks for what this scheduler doesn't support yet: {}",
            wants.join(", ")
        )),
        preemption: None,
        plugins: [Plugin::Unsupported].into_iter().collect(),
    })
}
