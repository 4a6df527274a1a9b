//! Looking ahead: one look at the nodes decides about many pods of a class.
//!
//! Placing a pod changes the node that it is placed on and, where the class spreads over domains,
//! how many pods are in the node's domain. So a shard says for each group of nodes with the same
//! raw scores and the same domains which nodes the next pods of the class would get in that group
//! ([`Tuple::next`]); whoever decides takes pod by pod the best of all groups, moves on in that one,
//! and counts the domains himself. That gives what deciding one by one would.

use std::cmp::Ordering;
use std::sync::Arc;

use super::diagnosis::Plugin;
use super::evaluate::{Evaluation, Label, Next, Tuple};
use super::gather::{Decision, decide};
use super::pod::PodRequest;
use super::selector::HOSTNAME_LABEL;
use super::spread::Constraint;
use super::survey::{Relation, Survey};

/// What becomes of a node in its group once a pod of the class is placed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It stays, with the pod's share taken.
    Stays,
    /// It takes no more pods of the class if it has a hostname.
    Leaves,
}

/// Whether placing pods of a class changes nothing but what [`Course`] reckons with.
pub(super) fn can_look_ahead(class: &PodRequest, survey: Option<&Survey>) -> Option<After> {
    let Some(survey) = survey else { return Some(After::Stays) };
    let relation = Relation::of(class, &class.identity);
    let by_hostname = |keys: &[Arc<str>]| keys.iter().all(|key| **key == *HOSTNAME_LABEL);
    let filters = class.policy.filters;
    let spread = &class.spread;
    let counts = spread.hard.is_empty()
        || filters.contains(Plugin::NodeAffinity) && filters.contains(Plugin::TaintToleration);
    let simple = !survey.full
        && counts
        && spread.soft.is_empty()
        && !spread.hard.iter().any(Constraint::is_by_node)
        && !relation.affinity
        && relation.preferences.is_empty()
        && by_hostname(&relation.anti_affinity)
        && by_hostname(&relation.keeps_free);
    let leaves = !(relation.anti_affinity.is_empty() && relation.keeps_free.is_empty())
        && filters.contains(Plugin::InterPodAffinity);
    simple.then_some(if leaves { After::Leaves } else { After::Stays })
}

/// Whether hard spread constraints let a pod into these domains.
pub(super) fn has_way(class: &PodRequest, survey: Option<&Survey>, labels: &[Label]) -> bool {
    let Some(survey) = survey else { return true };
    class.spread.hard.iter().zip(&survey.hard).all(|(constraint, state)| {
        let label = labels.iter().find(|(key, _)| *key == constraint.key);
        let Some((_, value)) = label else { return false };
        let count = state.domains.get(value).copied().unwrap_or_default();
        let itself = i64::from(constraint.selector.matches(&class.identity.labels));
        count + itself - state.minimum(constraint.min_domains) <= i64::from(constraint.max_skew)
    })
}

impl Tuple {
    /// Whether it tells what comes after its node; if so, its domains may be too full now.
    pub(super) fn looks_ahead(&self) -> bool {
        self.last || !self.next.is_empty()
    }

    fn head(&self) -> Next {
        Next { local: self.local, lot: self.lot, node: Arc::clone(&self.node) }
    }

    /// Goes on to the next node, the last one of `next`. Whether it is known; `None` where there is
    /// none.
    fn advance(&mut self) -> Option<bool> {
        let Some(Next { local, lot, node }) = self.next.pop() else {
            return if self.last { None } else { Some(false) };
        };
        (self.local, self.lot, self.node, self.ties) = (local, lot, node, 1);
        Some(true)
    }

    /// Joins another group of nodes with the same raw scores and domains.
    pub(super) fn absorb(&mut self, other: Self) {
        let ties = match self.local.cmp(&other.local) {
            Ordering::Less => other.ties,
            Ordering::Equal => self.ties.saturating_add(other.ties),
            Ordering::Greater => self.ties,
        };
        let labels = if better(&other.head(), &self.head()) {
            other.labels.clone()
        } else {
            std::mem::take(&mut self.labels)
        };
        let course = |tuple: &mut Self| {
            let head = tuple.head();
            std::iter::once(head).chain(std::mem::take(&mut tuple.next)).peekable()
        };
        let (mine_last, theirs_last) = (self.last, other.last);
        let mut other = other;
        let (mut mine, mut theirs) = (course(self), course(&mut other));
        let mut joined = Vec::new();
        let last = loop {
            let first = match (mine.peek(), theirs.peek()) {
                // What comes after the end of a part is not known, unless nothing does.
                (None, _) if !mine_last => break false,
                (_, None) if !theirs_last => break false,
                (None, None) => break true,
                (Some(a), Some(b)) => better(a, b),
                (mine, _) => mine.is_some(),
            };
            joined.extend(if first { mine.next() } else { theirs.next() });
        };
        let mut joined = joined.into_iter();
        if let Some(Next { local, lot, node }) = joined.next() {
            (self.local, self.lot, self.node) = (local, lot, node);
        }
        self.next = joined.collect();
        (self.last, self.ties, self.labels) = (last, ties, labels);
    }
}

fn better(a: &Next, b: &Next) -> bool {
    (a.local, a.lot, &a.node) > (b.local, b.lot, &b.node)
}

/// The decisions about pods of one class, one after the other.
#[derive(Debug)]
pub struct Course<'a> {
    class: &'a PodRequest,
    /// The nodes that come next are here in reverse, so that the first of them is taken off the end.
    evaluation: Evaluation,
    survey: Option<Survey>,
    /// Groups in domains that are too full.
    barred: Vec<Tuple>,
    decided: usize,
    /// What comes next isn't known.
    spent: bool,
}

impl<'a> Course<'a> {
    /// What all shards answered, and the survey that they were given.
    #[must_use]
    pub fn new(mut evaluation: Evaluation, class: &'a PodRequest, survey: Option<&Survey>) -> Self {
        evaluation.tuples.iter_mut().for_each(|tuple| tuple.next.reverse());
        let ahead = evaluation.tuples.iter().any(Tuple::looks_ahead);
        let survey = survey.filter(|_| ahead).cloned();
        Self { class, evaluation, survey, barred: Vec::new(), decided: 0, spent: false }
    }

    /// What the shards answered, as far as it isn't used up; nodes that come next in reverse.
    #[must_use]
    pub fn evaluation(&self) -> &Evaluation {
        &self.evaluation
    }

    /// The decision about the next pod; `None` where it needs another look at the nodes.
    pub fn decide(&mut self) -> Option<Decision> {
        if self.spent {
            return None;
        }
        self.sort_out();
        let decision = decide(&self.evaluation, self.class);
        if let Decision::Place(placement) = &decision {
            self.decided += 1;
            self.spent = !self.evaluation.ahead || self.place(&placement.node).is_none();
        } else if self.decided > 0 {
            // Why the rest fits nowhere the first look doesn't say.
            self.spent = true;
            return None;
        }
        Some(decision)
    }

    /// Sets groups aside that are in domains too full now, and takes back those that aren't.
    fn sort_out(&mut self) {
        if self.class.spread.hard.is_empty() || self.survey.is_none() {
            return;
        }
        let survey = self.survey.as_ref();
        let mut tuples = std::mem::take(&mut self.evaluation.tuples);
        tuples.append(&mut self.barred);
        for tuple in tuples {
            // One of a shard that does not look ahead has passed every filter.
            let passed = !self.evaluation.ahead && !tuple.looks_ahead();
            if passed || has_way(self.class, survey, &tuple.labels) {
                self.evaluation.tuples.push(tuple);
            } else {
                self.barred.push(tuple);
            }
        }
    }

    /// Counts a pod on the node; `None` where nothing is known beyond it.
    fn place(&mut self, node: &Arc<str>) -> Option<()> {
        let tuples = &mut self.evaluation.tuples;
        let place = tuples.iter().position(|tuple| tuple.node == *node)?;
        let tuple = tuples.get_mut(place)?;
        if let Some(survey) = &mut self.survey
            && !survey.place(self.class, &tuple.labels, tuple.spread.is_some())
        {
            return None;
        }
        if let Some(known) = tuple.advance() {
            return known.then_some(());
        }
        tuples.remove(place);
        Some(())
    }
}
