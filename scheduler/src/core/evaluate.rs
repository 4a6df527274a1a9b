//! One pod against all nodes of one table: who passes, why the others don't, and the best score
//! for each distinct raw tuple.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::columns::{Columns, Slot};
use super::diagnosis::{Reason, Rejections};
use super::filter::{Filter, Tally, Verdict};
use super::maps::HashMap;
use super::others::{Counts, Others, SpreadId, Wishes};
use super::pod::PodRequest;
use super::score::Scorer;
use super::survey::{self, Relation, Survey};
use super::table::NodeTable;

/// What a shard answers about one pod, small whatever the number of nodes: the normalised scores
/// depend on maxima over the whole cluster, so a shard hands over its best local score for each
/// distinct set of raw scores and whoever gathers them normalises, exactly and in one round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Nodes looked at or known to be out.
    pub nodes: u64,
    /// Nodes that pass every filter.
    pub feasible: u64,
    /// Nodes by the reasons of the first plugin that rejected them.
    pub rejections: Rejections,
    /// Rejected nodes where no eviction would help.
    pub unresolvable: u64,
    /// Whether any pod on these nodes has a lower priority than this one.
    pub lower_priority: bool,
    /// One for each distinct set of raw scores, sorted by it: few, and never more than feasible
    /// nodes.
    pub tuples: Vec<Tuple>,
    /// For each soft spread constraint, the domains of the feasible nodes that are scored; empty
    /// for one whose domains are single nodes.
    pub domains: Vec<BTreeSet<Arc<str>>>,
    /// Feasible nodes that lack a label of a soft constraint and get no score for spreading.
    pub ignored: u64,
    /// Nodes or pods here matter to this pod in a way that needs the survey, and there was none:
    /// the rest of the answer is worthless.
    pub wants_survey: bool,
    /// Shards that should have answered and didn't. Not zero: this is a part of the truth, by
    /// which a pod may be placed but never declared unschedulable.
    pub missing: u32,
    /// Whether the tuples look ahead ([`super::ahead`]): each tells the next nodes, and groups of nodes
    /// in domains that are too full for a hard spread constraint now are among them.
    pub ahead: bool,
}

/// The best of the nodes that share their raw scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Untolerated `PreferNoSchedule` taints.
    pub taints: i64,
    /// Sum of the weights of the preferred node affinity terms that match.
    pub affinity: i64,
    /// Sum of the weights of the inter-pod preferences.
    pub preferences: i64,
    /// Pods that each soft spread constraint counts in the nodes' domains, -1 where a node lacks
    /// the label; `None` for nodes that are ignored.
    pub spread: Option<Vec<i64>>,
    /// Best weighted sum of the scores that need no normalisation.
    pub local: i64,
    /// Nodes that share the best sum, or as many of them as were looked at.
    pub ties: u64,
    /// The lot that the node drew: the highest among the ties. Drawn from the seed, the node's name
    /// and its number of pods, so it doesn't depend on how the nodes are divided.
    pub lot: u64,
    /// The node that drew it.
    pub node: Arc<str>,
    /// Its labels, as far as the pod's rules about other pods name them, the hostname left out; by
    /// them the survey is kept up to date ([`Survey::place`]). Empty without a survey.
    pub labels: Vec<Label>,
    /// The nodes for the next pods of the class, each once those before have been placed: as many
    /// as were looked for.
    pub next: Vec<Next>,
    /// Whether nothing takes a pod after those.
    pub last: bool,
}

/// A node for a later pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// As [`Tuple::local`].
    pub local: i64,
    /// As [`Tuple::lot`].
    pub lot: u64,
    /// As [`Tuple::node`].
    pub node: Arc<str>,
}

/// A label and its value.
pub type Label = (Arc<str>, Arc<str>);

/// Surveys the table's nodes for a pod.
#[must_use]
pub fn survey(table: &NodeTable, request: &PodRequest, full: bool) -> Survey {
    let relations = survey::relations(table.population(), request);
    survey::survey(table.columns(), table.population(), request, full, &relations)
}

/// Runs the filters and scores of the default profile on every node of the table, or on as many as
/// its profile wants ([`super::policy::Policy::enough`]). The seed draws
/// among equals; shards that work on one pod must be given the same. The survey is the sum over all
/// shards.
#[must_use]
pub fn evaluate(
    table: &NodeTable,
    request: &PodRequest,
    seed: u64,
    survey: Option<&Survey>,
) -> Evaluation {
    evaluate_but(table, request, seed, survey, &[])
}

/// A node that is kept for other pods, and why it would not take this one beside them.
pub(super) struct HeldBack {
    pub(super) row: usize,
    pub(super) rejections: Rejections,
    pub(super) unresolvable: bool,
}

/// As [`evaluate`], but for some nodes, sorted by row.
pub(super) fn evaluate_but(
    table: &NodeTable,
    request: &PodRequest,
    seed: u64,
    survey: Option<&Survey>,
    held: &[HeldBack],
) -> Evaluation {
    let columns = table.columns();
    let nodes = columns.node_count() as u64;
    if survey.is_none() && wants_survey(table, request) {
        return Evaluation { nodes, wants_survey: true, ..Evaluation::default() };
    }
    let relations = survey.map(|_| survey::relations(table.population(), request));
    let relations = relations.unwrap_or_default();
    let others =
        survey.map(|survey| Others::new(columns, table.population(), request, survey, &relations));
    let others = others.as_ref();
    let images = survey.and_then(|survey| {
        let (images, containers) = (&request.images, request.containers);
        columns.images.scorer(images, containers, &survey.image_nodes, survey.nodes)
    });
    let mut tally = Tally::new(request);
    let mut best = Best::default();
    let mut counts = Counts::default();
    let scorer = Scorer::new(request);
    let mut feasible = 0;
    let mut absent = 0;
    let mut visit = |filter: &Filter, index: usize| {
        if !held.is_empty() && held.binary_search_by_key(&index, |held| held.row).is_ok() {
            return feasible;
        }
        let Verdict::Pass { taints, affinity } = filter.check(index, &mut tally) else {
            return feasible;
        };
        feasible += 1;
        let image = images.as_ref().map_or(0, |images| columns.images.score(images, index));
        let local = scorer.local(columns, index) + request.policy.weights.images * image;
        let wishes = others.map(|others| counts.wishes(others, index)).unwrap_or_default();
        let raw = Raw { taints, affinity, wishes };
        best.offer(raw, local, index, || columns.lot(seed, index));
        feasible
    };
    let in_use = survey.is_some_and(|survey| !survey.claims_in_use.is_empty());
    if let Some(pinned) = &request.pinned {
        let filter = Filter::single(columns, request, others).claims_in_use(in_use);
        let known: Vec<Slot> = pinned.iter().filter_map(|name| columns.find(name)).collect();
        absent = nodes - known.len() as u64;
        for slot in known {
            visit(&filter, slot.index());
        }
    } else {
        let filter = Filter::memoised(columns, request, others).claims_in_use(in_use);
        let enough = request.policy.enough(nodes);
        table.sample(|index| visit(&filter, index) < enough);
    }
    let keys = request.tuple_keys(survey.is_some());
    let tuples = best.tuples(&counts, columns, &keys);
    let (mut rejections, mut unresolvable) = tally.finish(absent);
    for held in held {
        unresolvable += u64::from(held.unresolvable);
        for (reason, nodes) in &held.rejections {
            *rejections.entry(reason.clone()).or_default() += nodes;
        }
    }
    Evaluation {
        nodes,
        feasible,
        rejections,
        unresolvable,
        lower_priority: table.has_pods_below(request.priority),
        tuples,
        domains: counts.domains(columns, request),
        ignored: counts.ignored,
        wants_survey: false,
        missing: 0,
        ahead: false,
    }
}

/// Whether the pod can't be weighed without a survey: because of its own rules, because a pod here
/// has rules about it, or because a node here has one of its images.
fn wants_survey(table: &NodeTable, request: &PodRequest) -> bool {
    request.minds_others()
        || table.columns().images.any(&request.images)
        || !survey::relations(table.population(), request).is_empty()
}

/// Why one node doesn't take the pod; empty when it does. Without a survey the rules about other
/// pods aren't looked at.
pub(super) fn reject(
    table: &NodeTable,
    slot: Slot,
    request: &PodRequest,
    survey: Option<&Survey>,
) -> Rejections {
    let columns = table.columns();
    let relations = survey.map(|_| survey::relations(table.population(), request));
    let relations = relations.unwrap_or_default();
    let others =
        survey.map(|survey| Others::new(columns, table.population(), request, survey, &relations));
    let in_use = match survey {
        Some(survey) => !survey.claims_in_use.is_empty(),
        // A reservation: what other tables know of was asked before.
        None => !columns.mounts.used_of(request).is_empty(),
    };
    let mut tally = Tally::new(request);
    let filter = Filter::single(columns, request, others.as_ref()).claims_in_use(in_use);
    filter.check(slot.index(), &mut tally);
    tally.finish(0).0
}

/// Whether a pod of this very table and the pod keep each other away from the node: what a
/// reservation checks again without the survey of the other tables.
pub(super) fn kept_apart(
    table: &NodeTable,
    slot: Slot,
    request: &PodRequest,
    relations: &[(u32, Relation)],
) -> Option<Reason> {
    let (columns, population) = (table.columns(), table.population());
    let apart = |(_, relation): &(u32, Relation)| {
        !relation.anti_affinity.is_empty() || !relation.keeps_free.is_empty()
    };
    if !relations.iter().any(apart) {
        return None;
    }
    let full = columns.has_odd_hostnames();
    let own = survey::survey(columns, population, request, full, relations);
    Others::new(columns, population, request, &own, relations).kept_apart(slot.index())
}

/// All raw scores of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) taints: i64,
    pub(super) affinity: i64,
    pub(super) wishes: Wishes,
}

impl Raw {
    fn key(self) -> (i64, i64, i64, SpreadId) {
        (self.taints, self.affinity, self.wishes.preferences, self.wishes.spread)
    }
}

/// The best node so far among those that share their raw scores.
struct Leader {
    raw: Raw,
    local: i64,
    ties: u64,
    lot: u64,
    index: usize,
}

/// The best nodes by raw scores.
#[derive(Default)]
pub(super) struct Best {
    leaders: Vec<Leader>,
    by_raw: HashMap<(i64, i64, i64, SpreadId), usize>,
    /// The group of the node before: mostly that of the next one too.
    last: usize,
}

impl Best {
    pub(super) fn offer(&mut self, raw: Raw, local: i64, index: usize, lot: impl Fn() -> u64) {
        if self.leaders.get(self.last).is_none_or(|leader| leader.raw != raw) {
            self.last = *self.by_raw.entry(raw.key()).or_insert_with(|| {
                self.leaders.push(Leader { raw, local: i64::MIN, ties: 0, lot: 0, index });
                self.leaders.len() - 1
            });
        }
        let Some(leader) = self.leaders.get_mut(self.last) else { return };
        if local > leader.local {
            *leader = Leader { raw, local, ties: 1, lot: lot(), index };
        } else if local == leader.local {
            leader.ties += 1;
            let lot = lot();
            if lot > leader.lot {
                (leader.lot, leader.index) = (lot, index);
            }
        }
    }

    /// One tuple for each group, of the node that leads it; `keys` are the labels to tell of it.
    pub(super) fn tuples(
        self,
        counts: &Counts,
        columns: &Columns,
        keys: &[Arc<str>],
    ) -> Vec<Tuple> {
        let labels = |index: usize| {
            let label = |key: &Arc<str>| Some((Arc::clone(key), columns.label(index, key)?.into()));
            keys.iter().filter_map(label).collect()
        };
        let tuple = |leader: Leader| Tuple {
            taints: leader.raw.taints,
            affinity: leader.raw.affinity,
            preferences: leader.raw.wishes.preferences,
            spread: counts.get(leader.raw.wishes.spread),
            local: leader.local,
            ties: leader.ties,
            lot: leader.lot,
            node: Arc::clone(columns.name_at(leader.index)),
            labels: labels(leader.index),
            next: Vec::new(),
            last: false,
        };
        let mut tuples: Vec<Tuple> = self.leaders.into_iter().map(tuple).collect();
        tuples.sort_by(|a, b| a.raw().cmp(&b.raw()));
        tuples
    }
}

impl Tuple {
    /// What nodes of one tuple share.
    #[must_use]
    pub fn raw(&self) -> (i64, i64, i64, Option<&[i64]>) {
        (self.taints, self.affinity, self.preferences, self.spread.as_deref())
    }
}
