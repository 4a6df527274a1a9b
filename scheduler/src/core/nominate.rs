//! Pods that were promised a node and wait for it to be cleared, as filters count them
//! (`RunFilterPluginsWithNominatedPods`): a node takes a pod only if it does so both with and
//! without the pods of the same or a higher priority that are nominated to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::affinity::Identity;
use super::columns::{Columns, Slot};
use super::diagnosis::{Plugin, Reason, Rejections};
use super::evaluate::{self, Evaluation, HeldBack};
use super::filter::{Filter, Tally, Verdict};
use super::maps::HashMap;
use super::pod::{PodRequest, PodUid};
use super::survey::{Inclusion, Survey};
use super::table::{NodeTable, Share};
use super::volumes::Mounts;

/// A pod that is promised a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nominee {
    /// Whose promise.
    pub uid: PodUid,
    /// Of which node.
    pub node: Arc<str>,
    /// What the pod is like.
    pub class: Arc<PodRequest>,
}

/// What one pod on a node is to the rules of the pod that is to be placed, as `AddPod` and
/// `RemovePod` of `PodTopologySpread` and `InterPodAffinity` count it.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect {
    hard: Vec<usize>,
    affinity: bool,
    against: Vec<usize>,
    kept_free: Vec<Arc<str>>,
    claims: i64,
}

impl Effect {
    /// Unlike the survey these count a pod that is being deleted, and one that a selector of
    /// everything selects.
    pub(super) fn of(request: &PodRequest, other: &Identity) -> Self {
        let mine = &request.identity;
        let mut effect = Self::default();
        if other.namespace == mine.namespace {
            let hard = request.spread.hard.iter().enumerate();
            let counted = hard.filter(|(_, c)| c.selector.matches(&other.labels));
            effect.hard = counted.map(|(number, _)| number).collect();
        }
        let means = |number: usize, selector: &super::labels::Selector| {
            let reach = request.reaches.get(number);
            reach.is_some_and(|reach| reach.contains(&other.namespace))
                && selector.matches(&other.labels)
        };
        let required = mine.affinity.len();
        effect.affinity = required > 0
            && mine.affinity.iter().enumerate().all(|(n, term)| means(n, &term.selector));
        let against = mine.anti_affinity.iter().enumerate();
        effect.against = against
            .filter(|(n, term)| means(required + n, &term.selector))
            .map(|(n, _)| n)
            .collect();
        let labels = &request.namespace_labels;
        let theirs = other.anti_affinity.iter().filter(|term| term.means(mine, labels));
        effect.kept_free = theirs.map(|term| Arc::clone(&term.key)).collect();
        effect
    }

    /// Of a pod with these mounts. As in kube-scheduler claims go by their name alone here.
    pub(super) fn mounting(mut self, request: &PodRequest, mounts: Option<&Arc<Mounts>>) -> Self {
        let exclusive = &request.volumes.exclusive;
        if let Some(mounts) = mounts.filter(|_| !exclusive.is_empty()) {
            self.claims = mounts.references(exclusive);
        }
        self
    }
}

/// The pods that came to a node and went from it, in thought.
#[derive(Clone, Debug, Default)]
pub(super) struct Delta {
    hard: BTreeMap<usize, i64>,
    affinity: i64,
    against: BTreeMap<usize, i64>,
    kept_free: BTreeMap<Arc<str>, i64>,
    claims: i64,
}

impl Delta {
    pub(super) fn add(&mut self, effect: &Effect, pods: i64) {
        for number in &effect.hard {
            *self.hard.entry(*number).or_default() += pods;
        }
        self.affinity += if effect.affinity { pods } else { 0 };
        for number in &effect.against {
            *self.against.entry(*number).or_default() += pods;
        }
        self.claims += effect.claims * pods;
        for key in &effect.kept_free {
            *self.kept_free.entry(Arc::clone(key)).or_default() += pods;
        }
    }
}

/// A domain and its pods.
type Domain = (Arc<str>, i64);

/// A pod's rules about other pods against one node after the other, each changed in thought. The
/// survey must list domains of single nodes too.
pub(super) struct Rules<'a> {
    request: &'a PodRequest,
    survey: &'a Survey,
    /// For each hard constraint, the two domains with the fewest pods.
    fewest: Vec<[Option<Domain>; 2]>,
    /// Pods that meet the required affinity, over all domains.
    met: i64,
    minds_affinity: bool,
    /// Claims that one pod alone may use and some pod does; `None`: `PreFilter` of the plugin
    /// skips all of it.
    claims_in_use: Option<i64>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(request: &'a PodRequest, survey: &'a Survey) -> Self {
        let fewest = survey.hard.iter().map(|state| {
            let mut two: [Option<Domain>; 2] = [None, None];
            for (value, pods) in &state.domains {
                let less = |than: &Option<Domain>| than.as_ref().is_none_or(|(_, n)| pods < n);
                let [first, second] = &mut two;
                if less(first) {
                    *second = first.replace((Arc::clone(value), *pods));
                } else if less(second) {
                    *second = Some((Arc::clone(value), *pods));
                }
            }
            two
        });
        let used = i64::try_from(survey.claims_in_use.len()).unwrap_or(i64::MAX);
        let disks = request.mounts.as_ref().is_some_and(|mounts| !mounts.disks.is_empty());
        let identity = &request.identity;
        let kept_free = survey.kept_free.values().any(|domains| domains.values().any(|n| *n > 0));
        // `PreFilter` of the plugin skips all of it for a pod that nothing concerns.
        let concerned =
            kept_free || !identity.affinity.is_empty() || !identity.anti_affinity.is_empty();
        Self {
            request,
            survey,
            fewest: fewest.collect(),
            met: survey.affinity.values().flat_map(BTreeMap::values).sum(),
            claims_in_use: (used > 0 || disks).then_some(used),
            minds_affinity: concerned && request.policy.filters.contains(Plugin::InterPodAffinity),
        }
    }

    /// Which hard constraints count the node.
    pub(super) fn inclusion(&self, columns: &Columns, slot: Slot) -> Vec<bool> {
        let hard = self.request.spread.hard.len();
        if hard == 0 {
            return Vec::new();
        }
        let mut inclusion = Inclusion::new(columns, self.request, true);
        (0..hard).map(|number| inclusion.counts(slot.index(), number)).collect()
    }

    /// Whether the rules let the pod on a node; otherwise why not, and whether no eviction helps.
    pub(super) fn check(
        &self,
        columns: &Columns,
        slot: Slot,
        included: &[bool],
        delta: &Delta,
    ) -> Result<(), (Reason, bool)> {
        let row = slot.index();
        for (number, constraint) in self.request.spread.hard.iter().enumerate() {
            let Some(value) = columns.label(row, &constraint.key) else {
                return Err((Reason::SpreadLabel, true));
            };
            let counts = included.get(number).copied().unwrap_or_default();
            let change = delta.hard.get(&number).filter(|_| counts).copied().unwrap_or_default();
            let (count, minimum) = self.spread(number, constraint.min_domains, value, change);
            let itself = i64::from(constraint.selector.matches(&self.request.identity.labels));
            if count + itself - minimum > i64::from(constraint.max_skew) {
                return Err((Reason::SpreadSkew, false));
            }
        }
        if self.minds_affinity { self.affinity(columns, row, delta) } else { Ok(()) }
    }

    /// The pods in a domain that are counted, and the fewest in any.
    fn spread(&self, number: usize, min_domains: i32, value: &str, change: i64) -> (i64, i64) {
        let Some(state) = self.survey.hard.get(number) else { return (0, 0) };
        let here = state.domains.get(value).copied();
        let count = here.unwrap_or_default() + change;
        let domains = state.domains.len() as u64;
        if domains < u64::try_from(min_domains).unwrap_or_default() {
            return (count, 0);
        }
        let others = self.fewest.get(number).into_iter().flatten().flatten();
        let others = others.filter(|(domain, _)| **domain != *value).map(|(_, pods)| *pods);
        let here = here.map(|_| count);
        (count, others.chain(here).min().unwrap_or_else(|| i64::from(i32::MAX)))
    }

    fn affinity(&self, columns: &Columns, row: usize, delta: &Delta) -> Result<(), (Reason, bool)> {
        let identity = &self.request.identity;
        let counted = |pairs: &super::survey::Pairs, key: &str, value: &str| {
            pairs.get(key).and_then(|domains| domains.get(value)).copied().unwrap_or_default()
        };
        let mut unmet = false;
        let mut changed = 0;
        for term in &identity.affinity {
            let Some(value) = columns.label(row, &term.key) else {
                return Err((Reason::PodAffinity, true));
            };
            // Each term of a key counts its pods once more.
            let same = identity.affinity.iter().filter(|other| other.key == term.key).count();
            let same = i64::try_from(same).unwrap_or(i64::MAX);
            unmet |= counted(&self.survey.affinity, &term.key, value) + same * delta.affinity <= 0;
            changed += delta.affinity;
        }
        if unmet {
            let first = || Effect::of(self.request, identity).affinity;
            if self.met + changed != 0 || !first() {
                return Err((Reason::PodAffinity, true));
            }
        }
        let mut against: HashMap<&str, i64> = HashMap::default();
        for (number, term) in identity.anti_affinity.iter().enumerate() {
            let change = delta.against.get(&number).copied().unwrap_or_default();
            *against.entry(&term.key).or_default() += change;
        }
        for (key, change) in against {
            if let Some(value) = columns.label(row, key)
                && counted(&self.survey.anti_affinity, key, value) + change > 0
            {
                return Err((Reason::PodAntiAffinity, false));
            }
        }
        let keys = self.survey.kept_free.keys().chain(delta.kept_free.keys());
        for key in keys {
            let change = delta.kept_free.get(key).copied().unwrap_or_default();
            if let Some(value) = columns.label(row, key)
                && counted(&self.survey.kept_free, key, value) + change > 0
            {
                return Err((Reason::ExistingAntiAffinity, false));
            }
        }
        Ok(())
    }
}

/// A rejection: why, and whether no eviction helps.
pub(super) type Rejected = (Rejections, bool);

/// Runs the filters on one node as the columns are now.
pub(super) fn check(
    columns: &Columns,
    slot: Slot,
    rules: &Rules<'_>,
    included: &[bool],
    delta: &Delta,
) -> Result<(), Rejected> {
    let mut tally = Tally::new(rules.request);
    let in_use = rules.claims_in_use.is_some_and(|used| used + delta.claims > 0);
    let filter = Filter::single(columns, rules.request, None).claims_in_use(in_use);
    let verdict = filter.check(slot.index(), &mut tally);
    if verdict == Verdict::Rejected {
        let (rejections, unresolvable) = tally.finish(0);
        return Err((rejections, unresolvable > 0));
    }
    let about_others = rules.check(columns, slot, included, delta);
    about_others.map_err(|(reason, unresolvable)| ([(reason, 1)].into(), unresolvable))
}

/// Nominees of a node, as they would count there.
pub(super) struct Promised {
    shares: Vec<Share>,
    effects: Vec<Effect>,
}

impl Promised {
    pub(super) fn of(request: &PodRequest, nominees: &[&Nominee]) -> Self {
        Self {
            shares: nominees.iter().map(|nominee| Share::reserved(&nominee.class)).collect(),
            effects: nominees
                .iter()
                .map(|nominee| &nominee.class)
                .map(|class| {
                    let effect = Effect::of(request, &class.identity);
                    effect.mounting(request, class.mounts.as_ref())
                })
                .collect(),
        }
    }

    /// Both passes: with the nominees, then without.
    pub(super) fn check(
        &self,
        table: &mut NodeTable,
        slot: Slot,
        rules: &Rules<'_>,
        included: &[bool],
        delta: &Delta,
    ) -> Result<(), Rejected> {
        if !self.shares.is_empty() {
            self.check_with(table, slot, rules, included, delta)?;
        }
        check(table.columns(), slot, rules, included, delta)
    }

    fn check_with(
        &self,
        table: &mut NodeTable,
        slot: Slot,
        rules: &Rules<'_>,
        included: &[bool],
        delta: &Delta,
    ) -> Result<(), Rejected> {
        let mut with = delta.clone();
        self.effects.iter().for_each(|effect| with.add(effect, 1));
        let columns = table.columns_mut();
        self.shares.iter().for_each(|share| columns.add(slot, share));
        let outcome = check(columns, slot, rules, included, &with);
        self.shares.iter().for_each(|share| columns.subtract(slot, share));
        outcome
    }
}

/// The nominees that a pod has to yield to, by node of the table.
pub(super) fn by_node<'n>(
    table: &NodeTable,
    request: &PodRequest,
    uid: Option<PodUid>,
    nominees: &'n [Nominee],
) -> HashMap<Slot, Vec<&'n Nominee>> {
    let mut found: HashMap<Slot, Vec<&Nominee>> = HashMap::default();
    let before = |n: &&Nominee| n.class.priority >= request.priority && Some(n.uid) != uid;
    for nominee in nominees.iter().filter(before) {
        if let Some(slot) = table.columns().find(&nominee.node) {
            found.entry(slot).or_default().push(nominee);
        }
    }
    found
}

/// As [`evaluate::evaluate`], beside pods that are promised a node. Where there are such, a survey
/// must list domains of single nodes. Leaves the table as it was.
#[must_use]
pub fn evaluate_beside(
    table: &mut NodeTable,
    request: &PodRequest,
    seed: u64,
    survey: Option<&Survey>,
    nominees: &[Nominee],
) -> Evaluation {
    let promised = by_node(table, request, None, nominees);
    if promised.is_empty() {
        return evaluate::evaluate(table, request, seed, survey);
    }
    let none = Survey::default();
    let rules = Rules::new(request, survey.unwrap_or(&none));
    let mut held = Vec::new();
    for (slot, nominees) in promised {
        let pinned = request.pinned.as_ref();
        let name = table.columns().name(slot);
        if pinned.is_some_and(|names| !names.contains(name)) {
            continue;
        }
        let included = rules.inclusion(table.columns(), slot);
        let promised = Promised::of(request, &nominees);
        let outcome = promised.check_with(table, slot, &rules, &included, &Delta::default());
        if let Err((rejections, unresolvable)) = outcome {
            held.push(HeldBack { row: slot.index(), rejections, unresolvable });
        }
    }
    held.sort_by_key(|held| held.row);
    evaluate::evaluate_but(table, request, seed, survey, &held)
}
