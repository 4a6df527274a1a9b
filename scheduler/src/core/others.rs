//! The filters and raw scores that hang on other pods, node by node, once the survey of the
//! cluster is known: `PodTopologySpread` and `InterPodAffinity`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::columns::{Columns, Slot};
use super::diagnosis::{Plugin, Reason};
use super::facts::Profile;
use super::maps::{HashMap, HashSet};
use super::pod::PodRequest;
use super::population::Population;
use super::selector::HOSTNAME_LABEL;
use super::spread::Constraint;
use super::survey::{self, Domains, Inclusion, Pairs, Relation, Survey};

/// A soft constraint whose label the node lacks, among the counts of a node.
pub(super) const NO_LABEL: i64 = -1;

/// A hard constraint on one profile of labels.
#[derive(Clone, Copy, Debug)]
enum Hard {
    Missing,
    Count(i64),
    ByNode,
}

/// Required affinity on one profile of labels; the worst counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    #[default]
    Yes,
    No,
    /// A label of a term is missing.
    Never,
}

/// Which rules have domains of single nodes.
#[derive(Clone, Copy, Debug, Default)]
struct ByHostname {
    affinity: bool,
    against: bool,
    soft: bool,
}

/// What labels alone decide.
#[derive(Debug, Default)]
struct OnProfile {
    hard: Vec<Hard>,
    /// By soft constraint; those by node are filled in later.
    soft: Vec<i64>,
    soft_missing: bool,
    affinity: Met,
    against: bool,
    kept_free: bool,
    preferences: i64,
}

/// Rows of which something holds, for domains of one node.
#[derive(Debug, Default)]
struct ByNode {
    hard: Vec<HashMap<u32, i64>>,
    soft: Vec<HashMap<u32, i64>>,
    affinity: HashSet<u32>,
    against: HashSet<u32>,
    kept_free: HashSet<u32>,
    preferences: HashMap<u32, i64>,
}

/// The raw scores of a node that passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Sum of the preferences.
    pub(super) preferences: i64,
    /// The counts of soft constraints, as [`Others::counts`] knows them.
    pub(super) spread: SpreadId,
}

/// Counts by soft constraint, interned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SpreadId(u32);

/// Nodes that lack a label of a soft constraint and get no score.
const IGNORED: SpreadId = SpreadId(u32::MAX);

/// One pod's rules about other pods, against the nodes of one table.
pub(super) struct Others<'a> {
    columns: &'a Columns,
    request: &'a PodRequest,
    survey: &'a Survey,
    profiles: Vec<OnProfile>,
    nodes: ByNode,
    minimums: Vec<i64>,
    itself: Vec<i64>,
    first_of_series: bool,
    /// Whether domains that are too full now are let through.
    ahead: bool,
    by_hostname: ByHostname,
}

impl<'a> Others<'a> {
    pub(super) fn new(
        columns: &'a Columns,
        population: &Population,
        request: &'a PodRequest,
        survey: &'a Survey,
        relations: &[(u32, Relation)],
    ) -> Self {
        let identity = &request.identity;
        let hard = &request.spread.hard;
        let minimums = hard.iter().zip(&survey.hard).map(|(c, s)| s.minimum(c.min_domains));
        let by_node = |key: &Arc<str>| **key == *HOSTNAME_LABEL;
        let on_profile = |profile: &Profile| on_profile(request, survey, profile);
        Self {
            profiles: columns.profiles().map(on_profile),
            nodes: on_nodes(columns, population, request, survey, relations),
            minimums: minimums.collect(),
            itself: hard.iter().map(|c| i64::from(c.selector.matches(&identity.labels))).collect(),
            first_of_series: !survey.affinity_met && Relation::of(request, identity).affinity,
            by_hostname: ByHostname {
                affinity: identity.affinity.iter().any(|term| by_node(&term.key)),
                against: identity.anti_affinity.iter().any(|term| by_node(&term.key)),
                soft: request.spread.soft.iter().any(Constraint::is_by_node),
            },
            ahead: false,
            columns,
            request,
            survey,
        }
    }

    /// The same, but lets domains through that are too full for a hard spread constraint now.
    pub(super) fn looking_ahead(self) -> Self {
        Self { ahead: true, ..self }
    }

    /// The rows of which something holds because of the pods there.
    pub(super) fn exceptions(&self) -> HashSet<u32> {
        let nodes = &self.nodes;
        let counted = nodes.hard.iter().chain(&nodes.soft).chain([&nodes.preferences]);
        let mut rows: HashSet<u32> = counted.flat_map(HashMap::keys).copied().collect();
        for some in [&nodes.affinity, &nodes.against, &nodes.kept_free] {
            rows.extend(some);
        }
        rows
    }

    /// Whether a node passes both filters; otherwise why not.
    pub(super) fn check(&self, row: usize) -> Result<(), Reason> {
        let profile = self.profile(row);
        for (number, constraint) in self.request.spread.hard.iter().enumerate() {
            let state = profile.hard.get(number).copied().unwrap_or(Hard::Missing);
            let count = match state {
                Hard::Missing => None,
                Hard::Count(count) => Some(count),
                Hard::ByNode => self.columns.hostname(row).map(|hostname| {
                    if self.survey.full {
                        get(self.survey.hard.get(number).map(|s| &s.domains), hostname)
                    } else {
                        look(self.nodes.hard.get(number), row)
                    }
                }),
            };
            let Some(count) = count else { return Err(Reason::SpreadLabel) };
            let minimum = self.minimums.get(number).copied().unwrap_or_default();
            let skew = count + self.itself[number] - minimum;
            if skew > i64::from(constraint.max_skew) && !self.ahead {
                return Err(Reason::SpreadSkew);
            }
        }
        if self.request.policy.filters.contains(Plugin::InterPodAffinity) {
            self.check_affinity(row, profile)
        } else {
            Ok(())
        }
    }

    /// Whether some pod meets a rule in the node's own domain.
    fn on_node(&self, row: usize, rows: &HashSet<u32>, pairs: &Pairs) -> bool {
        self.columns.hostname(row).is_some_and(|hostname| {
            if self.survey.full {
                get(pairs.get(HOSTNAME_LABEL), hostname) > 0
            } else {
                rows.contains(&Slot::of(row).row())
            }
        })
    }

    fn check_affinity(&self, row: usize, profile: &OnProfile) -> Result<(), Reason> {
        let hostname = self.columns.hostname(row);
        let met = || self.on_node(row, &self.nodes.affinity, &self.survey.affinity);
        if profile.affinity == Met::Never || (self.by_hostname.affinity && hostname.is_none()) {
            return Err(Reason::PodAffinity);
        }
        let unmet = profile.affinity == Met::No || (self.by_hostname.affinity && !met());
        if unmet && !self.first_of_series {
            return Err(Reason::PodAffinity);
        }
        self.kept_apart(row).map_or(Ok(()), Err)
    }

    /// Whether anti-affinity, the pod's own or another's, keeps the pod from a node.
    pub(super) fn kept_apart(&self, row: usize) -> Option<Reason> {
        if !self.request.policy.filters.contains(Plugin::InterPodAffinity) {
            return None;
        }
        let profile = self.profile(row);
        let against = || self.on_node(row, &self.nodes.against, &self.survey.anti_affinity);
        if profile.against || (self.by_hostname.against && against()) {
            return Some(Reason::PodAntiAffinity);
        }
        let kept_free = || self.on_node(row, &self.nodes.kept_free, &self.survey.kept_free);
        (profile.kept_free || kept_free()).then_some(Reason::ExistingAntiAffinity)
    }

    fn profile(&self, row: usize) -> &OnProfile {
        &self.profiles[self.columns.profile[row] as usize]
    }

    fn preferences(&self, row: usize) -> i64 {
        let by_node = if self.survey.full {
            let domains = self.survey.preferences.get(HOSTNAME_LABEL);
            self.columns.hostname(row).map_or(0, |hostname| get(domains, hostname))
        } else if self.columns.hostname(row).is_some() {
            look(Some(&self.nodes.preferences), row)
        } else {
            0
        };
        self.profile(row).preferences.saturating_add(by_node)
    }
}

fn get(domains: Option<&Domains>, value: &str) -> i64 {
    domains.and_then(|domains| domains.get(value)).copied().unwrap_or_default()
}

fn look(rows: Option<&HashMap<u32, i64>>, row: usize) -> i64 {
    rows.and_then(|rows| rows.get(&Slot::of(row).row())).copied().unwrap_or_default()
}

fn on_profile(request: &PodRequest, survey: &Survey, profile: &Profile) -> OnProfile {
    let mut on = OnProfile::default();
    let count = |domains: Option<&Domains>, key: &str| profile.get(key).map(|v| get(domains, v));
    for (number, constraint) in request.spread.hard.iter().enumerate() {
        let domains = survey.hard.get(number).map(|state| &state.domains);
        on.hard.push(match count(domains, &constraint.key) {
            _ if constraint.is_by_node() => Hard::ByNode,
            None => Hard::Missing,
            Some(count) => Hard::Count(count),
        });
    }
    for (number, constraint) in request.spread.soft.iter().enumerate() {
        let counted = count(survey.soft.get(number), &constraint.key);
        on.soft_missing |= counted.is_none() && !constraint.is_by_node();
        on.soft.push(counted.unwrap_or(NO_LABEL));
    }
    let by_label = |key: &str| key != HOSTNAME_LABEL;
    for term in request.identity.affinity.iter().filter(|term| by_label(&term.key)) {
        match count(survey.affinity.get(&term.key), &term.key) {
            None => on.affinity = Met::Never,
            Some(pods) if pods <= 0 => on.affinity = on.affinity.max(Met::No),
            Some(_) => {}
        }
    }
    let mut against = request.identity.anti_affinity.iter().filter(|term| by_label(&term.key));
    on.against = against
        .any(|t| count(survey.anti_affinity.get(&t.key), &t.key).is_some_and(|pods| pods > 0));
    let mut kept_free = survey.kept_free.iter().filter(|(key, _)| by_label(key));
    on.kept_free = kept_free.any(|(k, domains)| count(Some(domains), k).is_some_and(|n| n > 0));
    let preferences = survey.preferences.iter().filter(|(key, _)| by_label(key));
    on.preferences = preferences.filter_map(|(key, domains)| count(Some(domains), key)).sum();
    on
}

fn on_nodes(
    columns: &Columns,
    population: &Population,
    request: &PodRequest,
    survey: &Survey,
    relations: &[(u32, Relation)],
) -> ByNode {
    let spread = &request.spread;
    let mut nodes = ByNode {
        hard: vec![HashMap::default(); spread.hard.len()],
        soft: vec![HashMap::default(); spread.soft.len()],
        ..ByNode::default()
    };
    for (identity, relation) in relations {
        let Some(placed) = population.placed(*identity) else { continue };
        for number in relation.soft.iter().filter(|number| spread.soft[**number].is_by_node()) {
            for (row, pods) in &placed.rows {
                *nodes.soft[*number].entry(*row).or_default() += i64::from(*pods);
            }
        }
        if survey.full {
            continue;
        }
        let rows = || placed.rows.keys().copied();
        let here = |keys: &[Arc<str>]| keys.iter().any(|key| **key == *HOSTNAME_LABEL);
        let mine = &request.identity;
        if relation.affinity && mine.affinity.iter().any(|term| *term.key == *HOSTNAME_LABEL) {
            nodes.affinity.extend(rows());
        }
        if here(&relation.anti_affinity) {
            nodes.against.extend(rows());
        }
        if here(&relation.keeps_free) {
            nodes.kept_free.extend(rows());
        }
        let weights = relation.preferences.iter().filter(|(key, _)| **key == *HOSTNAME_LABEL);
        let weight: i64 = weights.map(|(_, weight)| weight).sum();
        if weight != 0 {
            for (row, pods) in &placed.rows {
                *nodes.preferences.entry(*row).or_default() += weight * i64::from(*pods);
            }
        }
    }
    if !survey.full {
        let mut inclusion = Inclusion::new(columns, request, false);
        for (number, constraint) in spread.hard.iter().enumerate() {
            if constraint.is_by_node() {
                nodes.hard[number] =
                    survey::by_node(columns, population, &mut inclusion, relations, number);
            }
        }
    }
    nodes
}

/// Collects the counts of soft constraints: few distinct ones, on however many nodes.
#[derive(Default)]
pub(super) struct Counts {
    known: Vec<Box<[i64]>>,
    ids: HashMap<Box<[i64]>, SpreadId>,
    /// For the most common case, one constraint by node.
    memo: HashMap<(u32, i64), SpreadId>,
    /// Which profiles have a node that passes and is scored.
    seen: Vec<bool>,
    /// Nodes that pass and aren't scored.
    pub(super) ignored: u64,
    /// Nodes that the next one stands for, less one.
    beside: u64,
}

impl Counts {
    /// The next nodes stand for so many each.
    pub(super) fn stand_for(&mut self, nodes: u64) {
        self.beside = nodes - 1;
    }

    /// The raw scores of a node that passes.
    pub(super) fn wishes(&mut self, others: &Others<'_>, row: usize) -> Wishes {
        let preferences = others.preferences(row);
        let spread = &others.request.spread;
        if spread.soft.is_empty() {
            return Wishes { preferences, spread: SpreadId::default() };
        }
        let profile = others.profile(row);
        let unnamed = others.by_hostname.soft && others.columns.hostname(row).is_none();
        if spread.needs_all_labels && (profile.soft_missing || unnamed) {
            self.ignored += 1 + self.beside;
            return Wishes { preferences, spread: IGNORED };
        }
        let id = others.columns.profile[row];
        let seen = id as usize;
        if self.seen.len() <= seen {
            self.seen.resize(seen + 1, false);
        }
        self.seen[seen] = true;
        let mut by_node = (0..spread.soft.len()).filter(|i| spread.soft[*i].is_by_node());
        let first = by_node.next();
        let count = |number: usize| {
            if unnamed { NO_LABEL } else { look(others.nodes.soft.get(number), row) }
        };
        let key = (id, first.map_or(0, count));
        let single = by_node.next().is_none();
        if single && let Some(known) = self.memo.get(&key) {
            return Wishes { preferences, spread: *known };
        }
        let mut counts = profile.soft.clone();
        for (number, constraint) in spread.soft.iter().enumerate() {
            if constraint.is_by_node() {
                counts[number] = count(number);
            }
        }
        let spread = self.intern(counts.into());
        if single {
            self.memo.insert(key, spread);
        }
        Wishes { preferences, spread }
    }

    fn intern(&mut self, counts: Box<[i64]>) -> SpreadId {
        if let Some(id) = self.ids.get(&counts) {
            return *id;
        }
        let id = SpreadId(u32::try_from(self.known.len()).unwrap_or(u32::MAX - 1));
        self.known.push(counts.clone());
        self.ids.insert(counts, id);
        id
    }

    /// The counts themselves; `None` for a node that gets no score.
    pub(super) fn get(&self, id: SpreadId) -> Option<Vec<i64>> {
        if id == IGNORED {
            return None;
        }
        Some(self.known.get(id.0 as usize).map(|counts| counts.to_vec()).unwrap_or_default())
    }

    /// For each soft constraint that isn't by node, the domains of the nodes that are scored.
    pub(super) fn domains(
        &self,
        columns: &Columns,
        request: &PodRequest,
    ) -> Vec<BTreeSet<Arc<str>>> {
        let soft = &request.spread.soft;
        let mut domains = vec![BTreeSet::new(); soft.len()];
        for (id, profile, _) in columns.profiles().iter() {
            if !self.seen.get(id as usize).copied().unwrap_or_default() {
                continue;
            }
            for (constraint, domains) in soft.iter().zip(&mut domains) {
                if !constraint.is_by_node() {
                    domains.insert(profile.get(&constraint.key).unwrap_or_default().into());
                }
            }
        }
        domains
    }
}
