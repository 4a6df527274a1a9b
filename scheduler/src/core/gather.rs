//! From the answers of all shards to one decision.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diagnosis::{Diagnosis, Plugin, PluginSet, Preemption, Reason};
use super::evaluate::{Evaluation, Label, Tuple};
use super::others::NO_LABEL;
use super::pod::PodRequest;
use super::spread::{Constraint, natural_logarithm};

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

/// All raw scores of a tuple, and its domains.
type Raw = (i64, i64, i64, Option<Vec<i64>>, Vec<Label>);

/// Merges the answers about one pod. Associative and commutative, so relays of a tree may merge
/// what they have and pass it on.
#[must_use]
pub fn merge(parts: impl IntoIterator<Item = Evaluation>) -> Evaluation {
    let mut merged = Evaluation { ahead: true, ..Evaluation::default() };
    let mut tuples: BTreeMap<Raw, Tuple> = BTreeMap::new();
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
        merged.ignored = merged.ignored.saturating_add(part.ignored);
        merged.wants_survey |= part.wants_survey;
        merged.ahead &= part.ahead;
        if merged.domains.len() < part.domains.len() {
            merged.domains.resize_with(part.domains.len(), BTreeSet::new);
        }
        for (ours, theirs) in merged.domains.iter_mut().zip(part.domains) {
            ours.extend(theirs);
        }
        for tuple in part.tuples {
            let spread = tuple.spread.clone();
            let labels = if tuple.looks_ahead() { tuple.labels.clone() } else { Vec::new() };
            let raw = (tuple.taints, tuple.affinity, tuple.preferences, spread, labels);
            match tuples.entry(raw) {
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

/// Decides from the merged answers: normalises, weighs, adds and breaks ties by lot.
#[must_use]
pub fn decide(evaluation: &Evaluation, request: &PodRequest) -> Decision {
    let totals = totals(evaluation, request);
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

/// The weighted scores of one tuple, plugin by plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scores {
    /// `TaintToleration`
    pub taints: i64,
    /// `NodeAffinity`
    pub affinity: i64,
    /// `PodTopologySpread`
    pub spread: i64,
    /// `InterPodAffinity`
    pub preferences: i64,
    /// `NodeResourcesFit`, `NodeResourcesBalancedAllocation` and `ImageLocality` together.
    pub local: i64,
}

impl Scores {
    pub(super) fn total(self) -> i64 {
        let Self { taints, affinity, spread, preferences, local } = self;
        [affinity, spread, preferences, local].into_iter().fold(taints, i64::saturating_add)
    }
}

fn totals(evaluation: &Evaluation, request: &PodRequest) -> Vec<i64> {
    scores(evaluation, request).into_iter().map(Scores::total).collect()
}

/// The scores of each tuple's best node (`NormalizeScore` of each plugin, then the weights of
/// `RunScorePlugins`).
#[must_use]
pub fn scores(evaluation: &Evaluation, request: &PodRequest) -> Vec<Scores> {
    let tuples = &evaluation.tuples;
    let weights = &request.policy.weights;
    let most = |raw: fn(&Tuple) -> i64| tuples.iter().map(raw).max().unwrap_or_default().max(0);
    let (taints, affinity) = (most(|tuple| tuple.taints), most(|tuple| tuple.affinity));
    let share =
        |raw: i64, most: i64| if most == 0 { 0 } else { MAX_SCORE.saturating_mul(raw) / most };
    let spreads = spreads(evaluation, request);
    let preferences = tuples.iter().map(|tuple| tuple.preferences);
    let preferred =
        (preferences.clone().min().unwrap_or_default(), preferences.max().unwrap_or_default());
    tuples
        .iter()
        .zip(spreads)
        .map(|(tuple, spread)| {
            let tolerant = MAX_SCORE.saturating_sub(share(tuple.taints, taints));
            let affine = share(tuple.affinity, affinity);
            let preferred = preference(tuple.preferences, preferred);
            Scores {
                taints: weights.taints.saturating_mul(tolerant),
                affinity: weights.affinity.saturating_mul(affine),
                spread: weights.spread.saturating_mul(spread),
                preferences: weights.preferences.saturating_mul(preferred),
                local: tuple.local,
            }
        })
        .collect()
}

/// `NormalizeScore` of `plugins/interpodaffinity/scoring.go`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the score is defined by these very conversions"
)]
fn preference(raw: i64, (least, most): (i64, i64)) -> i64 {
    let range = most.saturating_sub(least);
    if range <= 0 {
        return 0;
    }
    (MAX_SCORE as f64 * (raw.saturating_sub(least) as f64 / range as f64)) as i64
}

/// `Score` and `NormalizeScore` of `plugins/podtopologyspread/scoring.go`.
fn spreads(evaluation: &Evaluation, request: &PodRequest) -> Vec<i64> {
    let soft = &request.spread.soft;
    if soft.is_empty() {
        return vec![0; evaluation.tuples.len()];
    }
    let scored = evaluation.feasible.saturating_sub(evaluation.ignored);
    let weights: Vec<f64> = soft
        .iter()
        .enumerate()
        .map(|(number, constraint)| {
            let domains = evaluation.domains.get(number).map_or(0, BTreeSet::len) as u64;
            weight(if constraint.is_by_node() { scored } else { domains })
        })
        .collect();
    let raw: Vec<Option<i64>> = evaluation
        .tuples
        .iter()
        .map(|tuple| Some(ahead(tuple.spread.as_deref()?, soft, &weights)))
        .collect();
    let least = raw.iter().flatten().min().copied().unwrap_or_default();
    let most = raw.iter().flatten().max().copied().unwrap_or_default().max(0);
    raw.into_iter()
        .map(|raw| match raw {
            None => 0,
            Some(_) if most == 0 => MAX_SCORE,
            Some(raw) => MAX_SCORE * (most + least - raw) / most,
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "the weight is defined so")]
fn weight(domains: u64) -> f64 {
    natural_logarithm((domains + 2) as f64)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the score is defined by these very conversions"
)]
fn ahead(counts: &[i64], soft: &[Constraint], weights: &[f64]) -> i64 {
    let mut score = 0.0;
    for ((count, constraint), weight) in counts.iter().zip(soft).zip(weights) {
        if *count != NO_LABEL {
            score += *count as f64 * weight + f64::from(constraint.max_skew - 1);
        }
    }
    score.round() as i64
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
        preemption: (evaluation.nodes > 0 && request.policy.preemption)
            .then(|| preemption(evaluation, request)),
        plugins,
    }
}

fn preemption(evaluation: &Evaluation, request: &PodRequest) -> Preemption {
    let resolvable = evaluation.nodes.saturating_sub(evaluation.unresolvable);
    if !request.may_preempt {
        Preemption::Never
    } else if resolvable > 0 && evaluation.lower_priority {
        Preemption::Possible
    } else {
        Preemption::Unhelpful {
            unresolvable: evaluation.unresolvable,
            no_victims: resolvable,
            rejections: BTreeMap::new(),
            nodes: evaluation.nodes,
        }
    }
}

/// The decision for a pod that asks for what isn't supported: Pending, with a message that says
/// which, and woken by nothing but an update of the pod.
#[must_use]
pub fn refuse(nodes: u64, request: &PodRequest) -> Option<Diagnosis> {
    if request.unsupported.is_empty() {
        return refuse_volumes(nodes, request);
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

/// A pod whose volumes keep it from every node: `PreFilter` of a volume plugin says so before any
/// node is looked at.
fn refuse_volumes(nodes: u64, request: &PodRequest) -> Option<Diagnosis> {
    let refusal = request.volumes.refusal.as_ref()?;
    // Without nodes no plugin runs, and `NodeAffinity` comes first.
    let conflict = request.pinned.as_ref().is_some_and(Vec::is_empty);
    if nodes == 0 || conflict {
        return None;
    }
    let none = Evaluation { nodes, unresolvable: nodes, ..Evaluation::default() };
    Some(Diagnosis {
        nodes,
        rejections: BTreeMap::new(),
        pod_reason: Some(refusal.message.clone()),
        preemption: request.policy.preemption.then(|| preemption(&none, request)),
        plugins: [refusal.plugin].into_iter().collect(),
    })
}
