//! The decisions about pods of several classes, one after the other, from the nodes of a [`Pool`].

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::ahead::has_way;
use super::bound::{Load, Offer};
use super::columns::lot;
use super::courses::with;
use super::evaluate::{Evaluation, Tuple};
use super::gather::{Placement, Scores, scores};
use super::hash;
use super::pod::PodRequest;
use super::pool::{Asked, Group, Pool};
use super::search::wanted;

/// A node that takes a pod: its score, its lot, its name and its place in the pool.
type Entry<'a> = (i64, u64, &'a str, usize);

/// A pool from which nodes are taken.
#[derive(Debug)]
pub struct Draw<'a> {
    pool: &'a Pool,
    seed: u64,
    offers: Vec<Offer>,
    /// By node, as it is by now.
    loads: Vec<Load>,
    /// Of the nodes' names.
    hashes: Vec<u64>,
}

impl<'a> Draw<'a> {
    /// The pool of all shards, and the seed that they were given.
    #[must_use]
    pub fn new(pool: &'a Pool, seed: u64) -> Self {
        let hash = |name: &Arc<str>| hash::hash(name.as_bytes());
        Self {
            pool,
            seed,
            offers: pool.kinds.iter().map(|kind| Offer::of_parts(kind.offer)).collect(),
            loads: pool.nodes.iter().map(|node| Load::of_parts(node.load)).collect(),
            hashes: pool.nodes.iter().map(|node| hash(&node.name)).collect(),
        }
    }

    /// Nodes for the pods of the class at this place. Fewer than there are pods where a node outside
    /// the pool might be better, or where nothing takes a pod.
    pub fn next(&mut self, place: usize, asked: &Asked) -> Vec<Placement> {
        let Some(Some(groups)) = self.pool.classes.get(place) else { return Vec::new() };
        let class = &*asked.class;
        let pods = usize::try_from(asked.count).unwrap_or(usize::MAX);
        let mut survey = asked.survey.as_deref().cloned();
        let mut waiting = self.waiting(place, groups.len(), class);
        let mut placed = Vec::with_capacity(pods.min(self.loads.len()));
        let mut present = vec![false; groups.len()];
        let mut bonuses = vec![0; groups.len()];
        while placed.len() < pods {
            let mut changed = false;
            for ((group, waiting), present) in groups.iter().zip(&waiting).zip(&mut present) {
                let open = has_way(class, survey.as_ref(), &group.labels);
                if open && waiting.is_empty() && group.floor.is_some() {
                    return placed;
                }
                let now = open && !waiting.is_empty();
                changed |= std::mem::replace(present, now) != now;
            }
            if changed {
                Self::weigh(groups, &present, class, &mut bonuses);
            }
            let heads = waiting.iter().enumerate().filter(|(group, _)| present[*group]);
            let best = heads.filter_map(|(group, waiting)| {
                let (local, lot, name, _) = waiting.peek()?;
                Some((local.saturating_add(bonuses[group]), *lot, *name, group))
            });
            let Some((score, lot, _, group)) = best.max() else { return placed };
            let hides = |group: usize| {
                let floor = groups[group].floor.filter(|_| present[group]);
                floor.is_some_and(|(local, highest)| {
                    (local.saturating_add(bonuses[group]), highest) >= (score, lot)
                })
            };
            if (0..groups.len()).any(hides) {
                return placed;
            }
            let Some((_, _, _, node)) = waiting[group].pop() else { return placed };
            placed.push(Placement {
                node: Arc::clone(&self.pool.nodes[node].name),
                score,
                feasible: 1,
                ties: 1,
                exact: true,
            });
            self.loads[node] = with(self.loads[node], class, 1);
            waiting[group].extend(self.entry(node, &wanted(class)));
            if let Some(survey) = &mut survey
                && !survey.place(class, &groups[group].labels, true)
            {
                return placed;
            }
        }
        placed
    }

    /// The nodes that take a pod of the class, by group.
    fn waiting(
        &self,
        place: usize,
        groups: usize,
        class: &PodRequest,
    ) -> Vec<BinaryHeap<Entry<'a>>> {
        let mut waiting: Vec<Vec<Entry<'a>>> = vec![Vec::new(); groups];
        let wanted = wanted(class);
        for (index, node) in self.pool.nodes.iter().enumerate() {
            let kind = self.pool.kinds.get(node.kind as usize);
            let group = kind.and_then(|kind| kind.groups.get(place).copied().flatten());
            if let Some(group) = group.and_then(|group| waiting.get_mut(group as usize)) {
                group.extend(self.entry(index, &wanted));
            }
        }
        waiting.into_iter().map(BinaryHeap::from).collect()
    }

    /// A node as it is by now; `None` where it doesn't take the pod.
    fn entry(&self, index: usize, wanted: &super::bound::Wanted) -> Option<Entry<'a>> {
        let node = self.pool.nodes.get(index)?;
        let (offer, load) = (self.offers.get(node.kind as usize)?, self.loads.get(index)?);
        let lot = lot(self.seed, *self.hashes.get(index)?, load.pods);
        wanted.fits(load, offer).then(|| (wanted.score(load, offer), lot, &*node.name, index))
    }

    /// What the nodes of each group get for what has to be normalised, beside the groups that have
    /// nodes.
    fn weigh(groups: &[Group], present: &[bool], class: &PodRequest, bonuses: &mut [i64]) {
        let of = |group: &Group| Tuple {
            taints: group.taints,
            affinity: group.affinity,
            preferences: 0,
            spread: Some(Vec::new()),
            local: 0,
            ties: 1,
            lot: 0,
            node: Arc::default(),
            labels: Vec::new(),
            next: Vec::new(),
            last: false,
        };
        let there = groups.iter().zip(present).filter(|(_, present)| **present);
        let tuples: Vec<Tuple> = there.map(|(group, _)| of(group)).collect();
        let evaluation = Evaluation { tuples, ..Evaluation::default() };
        let mut totals = scores(&evaluation, class).into_iter().map(Scores::total);
        for (bonus, present) in bonuses.iter_mut().zip(present) {
            *bonus = if *present { totals.next().unwrap_or_default() } else { 0 };
        }
    }
}
