//! One pod against all nodes of one table: who passes, why the others don't, and the best score
//! for each distinct raw tuple.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::columns::Slot;
use super::diagnosis::Rejections;
use super::filter::{Filter, Tally, Verdict};
use super::hash::mix;
use super::pod::PodRequest;
use super::score::Scorer;
use super::table::NodeTable;

/// What a shard answers about one pod, small whatever the number of nodes: the normalised scores
/// depend on maxima over the whole cluster, so a shard hands over its best local score for each
/// distinct pair of raw scores and whoever gathers them normalises, exactly and in one round.
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
    /// One for each distinct pair of raw scores, sorted by that pair: few, and never more than
    /// feasible nodes or than (taints of a node + 1) × (100 × preferred terms + 1).
    pub tuples: Vec<Tuple>,
    /// Shards that should have answered and didn't. Not zero: this is a part of the truth, by
    /// which a pod may be placed but never declared unschedulable.
    pub missing: u32,
}

/// The best of the nodes that share their raw scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Untolerated `PreferNoSchedule` taints.
    pub taints: i64,
    /// Sum of the weights of the preferred node affinity terms that match.
    pub affinity: i64,
    /// Best weighted sum of the scores that need no normalisation.
    pub local: i64,
    /// Nodes that share the best sum.
    pub ties: u64,
    /// The lot that the node drew: the highest among the ties. Drawn from the seed and the node's
    /// name, so it doesn't depend on how the nodes are divided.
    pub lot: u64,
    /// The node that drew it.
    pub node: Arc<str>,
}

/// Runs the filters and scores of the default profile on every node of the table. The seed draws
/// among equals; shards that work on one pod must be given the same.
#[must_use]
pub fn evaluate(table: &NodeTable, request: &PodRequest, seed: u64) -> Evaluation {
    let columns = table.columns();
    let mut tally = Tally::new(request);
    let mut best = Best::default();
    let scorer = Scorer::new(request);
    let nodes = columns.node_count() as u64;
    let mut feasible = 0;
    let mut absent = 0;
    let mut visit = |filter: &Filter, index: usize| {
        let Verdict::Pass { taints, affinity } = filter.check(index, &mut tally) else { return };
        feasible += 1;
        let local = scorer.local(columns, index);
        best.offer((taints, affinity), local, index, || mix(seed ^ columns.name_hash[index]));
    };
    if let Some(pinned) = &request.pinned {
        let filter = Filter::single(columns, request);
        let known: Vec<Slot> = pinned.iter().filter_map(|name| columns.find(name)).collect();
        absent = nodes - known.len() as u64;
        for slot in known {
            visit(&filter, slot.index());
        }
    } else {
        let filter = Filter::memoised(columns, request);
        let present = columns.present.iter().enumerate().filter(|(_, present)| **present);
        for (index, _) in present {
            visit(&filter, index);
        }
    }
    let tuples = best.tuples(|index| Arc::clone(columns.name(Slot::of(index))));
    let (rejections, unresolvable) = tally.finish(absent);
    Evaluation {
        nodes,
        feasible,
        rejections,
        unresolvable,
        lower_priority: table.has_pods_below(request.priority),
        tuples,
        missing: 0,
    }
}

/// Why one node doesn't take the pod; empty when it does.
pub(super) fn reject(table: &NodeTable, slot: Slot, request: &PodRequest) -> Rejections {
    let mut tally = Tally::new(request);
    Filter::single(table.columns(), request).check(slot.index(), &mut tally);
    tally.finish(0).0
}

/// The best node so far among those that share their raw scores.
struct Leader {
    raw: (i64, i64),
    local: i64,
    ties: u64,
    lot: u64,
    index: usize,
}

/// The best nodes by raw scores.
#[derive(Default)]
struct Best {
    leaders: Vec<Leader>,
    by_raw: HashMap<(i64, i64), usize>,
    /// The group of the node before: mostly that of the next one too.
    last: usize,
}

impl Best {
    fn offer(&mut self, raw: (i64, i64), local: i64, index: usize, lot: impl Fn() -> u64) {
        if self.leaders.get(self.last).is_none_or(|leader| leader.raw != raw) {
            self.last = *self.by_raw.entry(raw).or_insert_with(|| {
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

    fn tuples(self, name: impl Fn(usize) -> Arc<str>) -> Vec<Tuple> {
        let mut leaders = self.leaders;
        leaders.sort_by_key(|leader| leader.raw);
        let tuple = |leader: Leader| Tuple {
            taints: leader.raw.0,
            affinity: leader.raw.1,
            local: leader.local,
            ties: leader.ties,
            lot: leader.lot,
            node: name(leader.index),
        };
        leaders.into_iter().map(tuple).collect()
    }
}
