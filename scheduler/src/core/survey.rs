//! What a pod's rules about other pods need to know of the whole cluster: how many pods that count
//! are in which domain. Each shard surveys its own nodes, the surveys are added up, and the sum
//! goes back to the shards with the pod (`calPreFilterState` and `PreScore` of
//! `plugins/podtopologyspread`, `PreFilter` and `PreScore` of `plugins/interpodaffinity`).
//!
//! Domains of one node each, those of `kubernetes.io/hostname`, stay with the shard that owns the
//! node: there may be a million of them. Only where some node's hostname isn't its name, so that
//! nodes of two shards might share one, are they listed like all others ([`Survey::full`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::affinity::{Identity, PodTerm, Reach};
use super::columns::{Columns, Slot};
use super::diagnosis::Plugin;
use super::evaluate::Label;
use super::facts::{Anonymous, Hostname};
use super::labels::Selector;
use super::maps::HashMap;
use super::pod::PodRequest;
use super::population::Population;
use super::selector::HOSTNAME_LABEL;
use super::spread::Constraint;
use super::taint::{Taint, tolerated};

/// Pods, or weights, by value of a label.
pub type Domains = BTreeMap<Arc<str>, i64>;
/// The same by label.
pub type Pairs = BTreeMap<Arc<str>, Domains>;

/// The state of one hard spread constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spreading {
    /// Pods that count, by domain; empty domains are there too.
    pub domains: Domains,
    /// Domains that aren't listed, since each is a node of its own.
    pub nodes: u64,
    /// The fewest pods in one of those.
    pub fewest: Option<i64>,
}

impl Spreading {
    /// The fewest pods in any domain, as the filter takes it (`minMatchNum`). Without any domain
    /// it is the largest number there.
    #[must_use]
    pub fn minimum(&self, min_domains: i32) -> i64 {
        let count =
            u64::try_from(self.domains.len()).unwrap_or(u64::MAX).saturating_add(self.nodes);
        if count < u64::try_from(min_domains).unwrap_or_default() {
            return 0;
        }
        let listed = self.domains.values().min().copied();
        let fewest = [listed, self.fewest].into_iter().flatten().min();
        fewest.unwrap_or_else(|| i64::from(i32::MAX))
    }

    fn absorb(&mut self, other: Self) {
        add(&mut self.domains, other.domains);
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.fewest = [self.fewest, other.fewest].into_iter().flatten().min();
    }
}

/// The sums over all nodes that were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Whether domains of single nodes are listed.
    pub full: bool,
    /// Whether they have to be: some node's hostname isn't its name.
    pub odd_hostnames: bool,
    /// All nodes.
    pub nodes: u64,
    /// Nodes that have each of the pod's images.
    pub image_nodes: Vec<u64>,
    /// For each hard spread constraint.
    pub hard: Vec<Spreading>,
    /// Pods by domain for each soft one; none for those by node.
    pub soft: Vec<Domains>,
    /// Whether any pod meets all terms of the required affinity and is in a domain of theirs.
    pub affinity_met: bool,
    /// Pods that do, by the terms' domains.
    pub affinity: Pairs,
    /// Pods that a term of the required anti-affinity means.
    pub anti_affinity: Pairs,
    /// Pods whose own required anti-affinity means this pod.
    pub kept_free: Pairs,
    /// Weights of preferences, both ways.
    pub preferences: Pairs,
    /// Those of the pod's claims that one pod alone may use and some pod does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub claims_in_use: BTreeSet<Arc<str>>,
}

impl Survey {
    /// Adds another shard's survey for the same pod.
    pub fn absorb(&mut self, other: Self) {
        self.full |= other.full;
        self.odd_hostnames |= other.odd_hostnames;
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.affinity_met |= other.affinity_met;
        self.claims_in_use.extend(other.claims_in_use);
        extend(&mut self.image_nodes, other.image_nodes, |a, b| *a = a.saturating_add(b));
        extend(&mut self.hard, other.hard, Spreading::absorb);
        extend(&mut self.soft, other.soft, add);
        for (ours, theirs) in [
            (&mut self.affinity, other.affinity),
            (&mut self.anti_affinity, other.anti_affinity),
            (&mut self.kept_free, other.kept_free),
            (&mut self.preferences, other.preferences),
        ] {
            for (key, domains) in theirs {
                add(ours.entry(key).or_default(), domains);
            }
        }
    }
}

impl Survey {
    /// Counts a pod that is placed on a node which passed every filter, so that the next of its
    /// class needs no other survey. `labels` are the node's, as the evaluation tells them, and
    /// `scored` says whether it got a score for spreading. Whether the survey is as good as a new
    /// one: not where domains of single nodes are in it.
    #[must_use]
    pub fn place(&mut self, request: &PodRequest, labels: &[Label], scored: bool) -> bool {
        let filters = request.policy.filters;
        let included =
            filters.contains(Plugin::NodeAffinity) && filters.contains(Plugin::TaintToleration);
        let spread = &request.spread;
        if self.full || !included || spread.hard.iter().any(Constraint::is_by_node) {
            return false;
        }
        let label = |key: &str| labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| value);
        let relation = Relation::of(request, &request.identity);
        for number in &relation.hard {
            let value = spread.hard.get(*number).and_then(|c| label(&c.key));
            if let (Some(value), Some(state)) = (value, self.hard.get_mut(*number)) {
                *state.domains.entry(Arc::clone(value)).or_default() += 1;
            }
        }
        for number in relation.soft.iter().filter(|_| scored || !spread.needs_all_labels) {
            let Some(constraint) = spread.soft.get(*number).filter(|c| !c.is_by_node()) else {
                continue;
            };
            if let Some(domains) = self.soft.get_mut(*number) {
                let value = label(&constraint.key).cloned().unwrap_or_default();
                *domains.entry(value).or_default() += 1;
            }
        }
        let enter = |pairs: &mut Pairs, key: &Arc<str>, amount: i64| {
            if let Some(value) = label(key) {
                let domains = pairs.entry(Arc::clone(key)).or_default();
                *domains.entry(Arc::clone(value)).or_default() += amount;
            }
        };
        if relation.affinity {
            let by_label = |term: &PodTerm| *term.key != *HOSTNAME_LABEL;
            if !request.identity.affinity.iter().all(by_label) {
                return false;
            }
            for term in &request.identity.affinity {
                enter(&mut self.affinity, &term.key, 1);
                self.affinity_met |= label(&term.key).is_some();
            }
        }
        for key in &relation.anti_affinity {
            enter(&mut self.anti_affinity, key, 1);
        }
        for key in &relation.keeps_free {
            enter(&mut self.kept_free, key, 1);
        }
        for (key, weight) in &relation.preferences {
            enter(&mut self.preferences, key, *weight);
        }
        true
    }
}

fn add(ours: &mut Domains, theirs: Domains) {
    for (value, count) in theirs {
        let sum = ours.entry(value).or_default();
        *sum = sum.saturating_add(count);
    }
}

fn extend<T>(ours: &mut Vec<T>, theirs: Vec<T>, absorb: impl Fn(&mut T, T)) {
    let mut theirs = theirs.into_iter();
    ours.iter_mut().zip(&mut theirs).for_each(|(ours, theirs)| absorb(ours, theirs));
    ours.extend(theirs);
}

/// What the pods of one identity are to a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Relation {
    /// Which hard constraints count them.
    pub(super) hard: Vec<usize>,
    /// Which soft ones do.
    pub(super) soft: Vec<usize>,
    /// Whether they meet all terms of the required affinity.
    pub(super) affinity: bool,
    /// Keys of the required anti-affinity terms that mean them.
    pub(super) anti_affinity: Vec<Arc<str>>,
    /// Keys of their required anti-affinity terms that mean the pod.
    pub(super) keeps_free: Vec<Arc<str>>,
    /// What preferences say, by key.
    pub(super) preferences: Vec<(Arc<str>, i64)>,
}

impl Relation {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What `other` is to the pod.
    pub(super) fn of(request: &PodRequest, other: &Identity) -> Self {
        let mine = &request.identity;
        let mut relation = Self::default();
        if other.namespace == mine.namespace && !other.terminating {
            let counting = |constraints: &[Constraint]| {
                let counts = constraints.iter().map(|c| c.counts(&other.labels));
                counts.enumerate().filter(|(_, counts)| *counts).map(|(i, _)| i).collect()
            };
            relation.hard = counting(&request.spread.hard);
            relation.soft = counting(&request.spread.soft);
        }
        let mut reaches = request.reaches.iter();
        let mut means = |selector: &super::labels::Selector| {
            let reach = reaches.next();
            reach.is_some_and(|reach| reach.contains(&other.namespace))
                && selector.matches(&other.labels)
        };
        let met = mine.affinity.iter().filter(|term| means(&term.selector)).count();
        relation.affinity = met > 0 && met == mine.affinity.len();
        let against = mine.anti_affinity.iter().filter(|term| means(&term.selector));
        relation.anti_affinity = against.map(|term| Arc::clone(&term.key)).collect();
        for weighted in &mine.preferred {
            if means(&weighted.term.selector) {
                let weight = i64::from(weighted.weight);
                relation.preferences.push((Arc::clone(&weighted.term.key), weight));
            }
        }
        let labels = &request.namespace_labels;
        let policy = &request.policy;
        let against = other.anti_affinity.iter().filter(|term| term.means(mine, labels));
        relation.keeps_free = against.map(|term| Arc::clone(&term.key)).collect();
        if policy.ignore_preferred_terms && mine.preferred.is_empty() {
            return relation;
        }
        let hard = i64::from(policy.hard_pod_affinity_weight);
        if hard > 0 {
            let required = other.affinity.iter().filter(|term| term.means(mine, labels));
            relation.preferences.extend(required.map(|term| (Arc::clone(&term.key), hard)));
        }
        let wished = other.preferred.iter().filter(|w| w.term.means(mine, labels));
        let wished = wished.map(|w| (Arc::clone(&w.term.key), i64::from(w.weight)));
        relation.preferences.extend(wished);
        relation
    }
}

/// The identities that are anything to a pod.
pub(super) fn relations(population: &Population, request: &PodRequest) -> Vec<(u32, Relation)> {
    let mut candidates: Vec<u32> = population.minding(&request.identity.namespace).collect();
    let (mut here, mut everywhere) = (false, false);
    for constraint in request.spread.hard.iter().chain(&request.spread.soft) {
        match population.selected(&constraint.selector) {
            Some(selected) => candidates.extend(selected),
            None => here |= constraint.selector != Selector::Nothing,
        }
    }
    for (term, reach) in request.identity.terms().zip(&request.reaches) {
        match (population.selected(&term.selector), reach) {
            (Some(selected), _) => candidates.extend(selected),
            (None, Reach::Everywhere) => everywhere = true,
            (None, Reach::Named(names)) => {
                candidates.extend(names.iter().flat_map(|name| population.in_namespace(name)));
            }
        }
    }
    if everywhere {
        candidates = population.all().collect();
    } else if here {
        candidates.extend(population.in_namespace(&request.identity.namespace));
    }
    candidates.sort_unstable();
    candidates.dedup();
    let relation = |id: u32| {
        let relation = Relation::of(request, population.identity(id)?);
        (!relation.is_none()).then_some((id, relation))
    };
    candidates.into_iter().filter_map(relation).collect()
}

/// A node, or all nodes of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Kind(u32),
    Row(usize),
}

/// Which nodes count for which spread constraints.
pub(super) struct Inclusion<'a> {
    columns: &'a Columns,
    request: &'a PodRequest,
    /// Whether nodes of one kind may differ.
    by_row: bool,
    hard: HashMap<Place, Vec<bool>>,
    soft: HashMap<Place, Vec<bool>>,
}

impl<'a> Inclusion<'a> {
    pub(super) fn new(columns: &'a Columns, request: &'a PodRequest, by_row: bool) -> Self {
        let constraints = || request.spread.hard.iter().chain(&request.spread.soft);
        let by_row = by_row
            || (request.required.reads_identity() && constraints().any(|c| c.honor_affinity));
        Self { columns, request, by_row, hard: HashMap::default(), soft: HashMap::default() }
    }

    fn place(&self, row: usize) -> Option<Place> {
        if self.by_row {
            return Some(Place::Row(row));
        }
        self.columns.kind(Slot::of(row)).map(Place::Kind)
    }

    fn label(&self, place: Place, key: &str) -> Option<&'a str> {
        match place {
            Place::Kind(kind) => {
                let kind = self.columns.kinds().get(kind)?;
                if key == HOSTNAME_LABEL {
                    // Some value, which nobody reads.
                    return (kind.hostname != Hostname::Absent).then_some("");
                }
                self.columns.profiles().get(kind.profile)?.get(key)
            }
            Place::Row(row) => self.columns.label(row, key),
        }
    }

    fn includes(&self, place: Place, constraints: &[Constraint], need_all: bool) -> Vec<bool> {
        let has_all = || constraints.iter().all(|c| self.label(place, &c.key).is_some());
        if need_all && !has_all() {
            return vec![false; constraints.len()];
        }
        let request = self.request;
        let affine = match place {
            Place::Kind(kind) => {
                let kind = self.columns.kinds().get(kind);
                let profile = kind.and_then(|kind| self.columns.profiles().get(kind.profile));
                profile.is_some_and(|profile| request.required.matches(&Anonymous(profile)))
            }
            Place::Row(row) => request.required.matches(&self.columns.named(row)),
        };
        let taints = match place {
            Place::Kind(kind) => self.columns.kinds().get(kind).map(|kind| kind.taints),
            Place::Row(row) => Some(self.columns.taint_set[row]),
        };
        let taints = taints.and_then(|taints| self.columns.taint_sets().get(taints));
        let mut forbidding = taints.into_iter().flatten().filter(|taint| Taint::forbids(taint));
        let tolerant = forbidding.all(|taint| tolerated(&request.tolerations, taint));
        constraints
            .iter()
            .map(|c| (affine || !c.honor_affinity) && (tolerant || !c.honor_taints))
            .collect()
    }

    fn hard(&mut self, place: Place) -> &[bool] {
        if !self.hard.contains_key(&place) {
            let included = self.includes(place, &self.request.spread.hard, true);
            self.hard.insert(place, included);
        }
        self.hard.get(&place).map_or(&[], Vec::as_slice)
    }

    fn soft(&mut self, place: Place) -> &[bool] {
        if !self.soft.contains_key(&place) {
            let spread = &self.request.spread;
            let included = self.includes(place, &spread.soft, spread.needs_all_labels);
            self.soft.insert(place, included);
        }
        self.soft.get(&place).map_or(&[], Vec::as_slice)
    }

    /// Whether a node counts for a hard constraint.
    pub(super) fn counts(&mut self, row: usize, constraint: usize) -> bool {
        let Some(place) = self.place(row) else { return false };
        self.hard(place).get(constraint).copied().unwrap_or_default()
    }

    /// All nodes, with how many each place stands for.
    fn places(&self) -> Vec<(Place, u64)> {
        if self.by_row {
            let present = self.columns.present.iter().enumerate().filter(|(_, present)| **present);
            return present.map(|(row, _)| (Place::Row(row), 1)).collect();
        }
        let kinds = self.columns.kinds().iter();
        kinds.map(|(kind, _, nodes)| (Place::Kind(kind), u64::from(nodes))).collect()
    }

    /// Where the pods of an identity are, on nodes that are known.
    fn pods(&self, population: &Population, identity: u32) -> Vec<(Place, i64)> {
        let Some(placed) = population.placed(identity) else { return Vec::new() };
        if self.by_row {
            let known = |row: &usize| self.columns.present[*row];
            let rows = placed.rows.iter().map(|(row, pods)| (*row as usize, i64::from(*pods)));
            return rows.filter(|(row, _)| known(row)).map(|(r, n)| (Place::Row(r), n)).collect();
        }
        placed.kinds.iter().map(|(kind, pods)| (Place::Kind(*kind), i64::from(*pods))).collect()
    }
}

/// Pods that a hard constraint by node counts, by row.
pub(super) fn by_node(
    columns: &Columns,
    population: &Population,
    inclusion: &mut Inclusion<'_>,
    relations: &[(u32, Relation)],
    constraint: usize,
) -> HashMap<u32, i64> {
    let mut counts = HashMap::default();
    for (identity, relation) in relations {
        if !relation.hard.contains(&constraint) {
            continue;
        }
        for (row, pods) in population.placed(*identity).into_iter().flat_map(|p| &p.rows) {
            let index = *row as usize;
            if columns.present[index] && inclusion.counts(index, constraint) {
                *counts.entry(*row).or_default() += i64::from(*pods);
            }
        }
    }
    counts
}

/// Surveys the nodes of one table, given what the pods on them are to the pod.
pub(super) fn survey(
    columns: &Columns,
    population: &Population,
    request: &PodRequest,
    full: bool,
    relations: &[(u32, Relation)],
) -> Survey {
    let mut inclusion = Inclusion::new(columns, request, full);
    let spread = &request.spread;
    let mut survey = Survey {
        full,
        odd_hostnames: columns.has_odd_hostnames(),
        nodes: columns.node_count() as u64,
        image_nodes: request.images.iter().map(|name| columns.images.nodes_with(name)).collect(),
        hard: vec![Spreading::default(); spread.hard.len()],
        soft: vec![Domains::default(); spread.soft.len()],
        claims_in_use: columns.mounts.used_of(request),
        ..Survey::default()
    };
    let listed = |key: &str| full || key != HOSTNAME_LABEL;
    if !spread.hard.is_empty() {
        for (place, nodes) in inclusion.places() {
            let included = inclusion.hard(place).to_vec();
            for ((constraint, state), _) in
                spread.hard.iter().zip(&mut survey.hard).zip(included).filter(|(_, yes)| *yes)
            {
                if !listed(&constraint.key) {
                    state.nodes += nodes;
                } else if let Some(value) = inclusion.label(place, &constraint.key) {
                    state.domains.entry(value.into()).or_default();
                }
            }
        }
    }
    for (identity, relation) in relations {
        for (place, pods) in inclusion.pods(population, *identity) {
            count(&mut survey, &mut inclusion, request, relation, (place, pods), listed);
        }
    }
    for (number, constraint) in spread.hard.iter().enumerate() {
        if !listed(&constraint.key) {
            let counts = by_node(columns, population, &mut inclusion, relations, number);
            let state = &mut survey.hard[number];
            let empty = state.nodes > counts.len() as u64;
            state.fewest = if empty { Some(0) } else { counts.values().min().copied() };
        }
    }
    survey
}

fn count(
    survey: &mut Survey,
    inclusion: &mut Inclusion<'_>,
    request: &PodRequest,
    relation: &Relation,
    (place, pods): (Place, i64),
    listed: impl Fn(&str) -> bool,
) {
    let spread = &request.spread;
    for number in &relation.hard {
        let key = &spread.hard[*number].key;
        if listed(key)
            && inclusion.hard(place)[*number]
            && let Some(value) = inclusion.label(place, key)
        {
            *survey.hard[*number].domains.entry(value.into()).or_default() += pods;
        }
    }
    for number in &relation.soft {
        let constraint = &spread.soft[*number];
        if !constraint.is_by_node() && inclusion.soft(place)[*number] {
            // A node without the label is of the domain of the empty name.
            let value = inclusion.label(place, &constraint.key).unwrap_or_default();
            *survey.soft[*number].entry(value.into()).or_default() += pods;
        }
    }
    let enter = |pairs: &mut Pairs, key: &Arc<str>, amount: i64| {
        if let Some(value) = inclusion.label(place, key)
            && listed(key)
        {
            let domains = pairs.entry(Arc::clone(key)).or_default();
            *domains.entry(value.into()).or_default() += amount;
        }
    };
    if relation.affinity {
        for term in &request.identity.affinity {
            enter(&mut survey.affinity, &term.key, pods);
        }
    }
    for key in &relation.anti_affinity {
        enter(&mut survey.anti_affinity, key, pods);
    }
    for key in &relation.keeps_free {
        enter(&mut survey.kept_free, key, pods);
    }
    for (key, weight) in &relation.preferences {
        enter(&mut survey.preferences, key, pods.saturating_mul(*weight));
    }
    if relation.affinity {
        let somewhere = |key: &str| inclusion.label(place, key).is_some();
        survey.affinity_met |= request.identity.affinity.iter().any(|term| somewhere(&term.key));
    }
}
