//! What is known of nodes that are alike, one by one and many together: how much is taken on them,
//! what a pod asks, and how good the best of them can be.
//!
//! Scores that need no normalisation are those of [`super::score`]; both give the same numbers.

use super::hash;
use super::maps::HashSet;
use super::score::Scorer;

/// What is taken on a node, as far as a score or a filter that all nodes of a cell share reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) non_zero: (i64, i64),
    pub(super) used: (i64, i64),
    pub(super) storage: i64,
    pub(super) pods: i64,
}

impl Load {
    /// As a [`super::pool::Candidate`] tells it.
    pub(super) fn parts(self) -> [i64; 6] {
        let Self { non_zero, used, storage, pods } = self;
        [non_zero.0, non_zero.1, used.0, used.1, storage, pods]
    }

    pub(super) fn of_parts(parts: [i64; 6]) -> Self {
        let [cpu, memory, used_cpu, used_memory, storage, pods] = parts;
        Self { non_zero: (cpu, memory), used: (used_cpu, used_memory), storage, pods }
    }

    fn map(self, other: Self, f: fn(i64, i64) -> i64) -> Self {
        Self {
            non_zero: (f(self.non_zero.0, other.non_zero.0), f(self.non_zero.1, other.non_zero.1)),
            used: (f(self.used.0, other.used.0), f(self.used.1, other.used.1)),
            storage: f(self.storage, other.storage),
            pods: f(self.pods, other.pods),
        }
    }

    /// Places loads that score alike side by side, and equal ones together: first by how much is
    /// taken of CPU and memory in all, then by how uneven that is.
    fn order(&self, all: (i64, i64)) -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "an order of any kind will do"
        )]
        let share = |used: i64, all: i64| {
            (used as f64 / all.max(1) as f64 * 65536.0).clamp(0.0, 4_000_000.0) as i64
        };
        let (cpu, memory) = (share(self.non_zero.0, all.0), share(self.non_zero.1, all.1));
        let sum = ((cpu + memory) >> 10).cast_unsigned();
        let tilt = (cpu - memory + (1 << 23)).cast_unsigned();
        let parts = [self.used.0, self.used.1, self.storage, self.pods];
        let equal = parts.iter().fold(0, |all, part| hash::mix(all ^ part.cast_unsigned()));
        sum << 48 | tilt << 24 | equal >> 40
    }
}

/// What the nodes of a cell offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Offer {
    pub(super) cpu_memory: (i64, i64),
    pub(super) storage: i64,
    pub(super) pods: i64,
}

impl Offer {
    /// As a [`super::pool::Kind`] tells it.
    pub(super) fn parts(self) -> [i64; 4] {
        [self.cpu_memory.0, self.cpu_memory.1, self.storage, self.pods]
    }

    pub(super) fn of_parts([cpu, memory, storage, pods]: [i64; 4]) -> Self {
        Self { cpu_memory: (cpu, memory), storage, pods }
    }
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    pub(super) row: u32,
    pub(super) lot: u64,
    pub(super) load: Load,
    order: u64,
}

impl Resident {
    pub(super) fn new(row: u32, lot: u64, load: Load, offer: Offer) -> Self {
        Self { row, lot, load, order: load.order(offer.cpu_memory) }
    }

    /// Where it lies among others: of equal ones the highest lot is first.
    pub(super) fn order(&self) -> (u64, u64) {
        (self.order, !self.lot)
    }
}

/// What is known of some nodes together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) least: Load,
    pub(super) most: Load,
    /// The share of CPU in use less that of memory: the smallest and the largest. Infinite where a
    /// node has more in use than it has.
    tilt: (f64, f64),
    /// The highest lot.
    pub(super) lot: u64,
}

impl Bound {
    pub(super) fn of(resident: &Resident, offer: Offer) -> Self {
        let (used, all) = (resident.load.used, offer.cpu_memory);
        let tilt = if used.0 > all.0 || used.1 > all.1 || used.0 < 0 || used.1 < 0 {
            (f64::NEG_INFINITY, f64::INFINITY)
        } else {
            let tilt = tilt(used, all);
            (tilt, tilt)
        };
        Self { least: resident.load, most: resident.load, tilt, lot: resident.lot }
    }

    pub(super) fn join(self, other: Self) -> Self {
        Self {
            least: self.least.map(other.least, i64::min),
            most: self.most.map(other.most, i64::max),
            tilt: (self.tilt.0.min(other.tilt.0), self.tilt.1.max(other.tilt.1)),
            lot: self.lot.max(other.lot),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "as the score does it")]
fn tilt(used: (i64, i64), all: (i64, i64)) -> f64 {
    if all.0 == 0 || all.1 == 0 {
        return 0.0;
    }
    used.0 as f64 / all.0 as f64 - used.1 as f64 / all.1 as f64
}

/// What a pod asks of a node of a cell.
pub(super) struct Wanted {
    pub(super) scorer: Scorer,
    pub(super) cpu_memory: (i64, i64),
    pub(super) storage: i64,
}

impl Wanted {
    pub(super) fn fits(&self, load: &Load, offer: &Offer) -> bool {
        let room =
            |amount: i64, all: i64, used: i64| amount <= 0 || amount <= all.saturating_sub(used);
        load.pods < offer.pods
            && room(self.cpu_memory.0, offer.cpu_memory.0, load.used.0)
            && room(self.cpu_memory.1, offer.cpu_memory.1, load.used.1)
            && room(self.storage, offer.storage, load.storage)
    }

    pub(super) fn score(&self, load: &Load, offer: &Offer) -> i64 {
        self.scorer.of(load.non_zero, load.used, offer.cpu_memory)
    }

    /// No node below scores more.
    pub(super) fn at_best(&self, bound: &Bound, offer: &Offer) -> i64 {
        let (least, most) = (&bound.least, &bound.most);
        if least == most {
            return self.score(least, offer);
        }
        self.scorer.at_best(least.non_zero, bound.tilt, offer.cpu_memory)
    }
}

/// A node that takes the pod, with its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) local: i64,
    pub(super) lot: u64,
    pub(super) row: u32,
}

/// Nodes of which something else holds than of the others of their cell.
pub(super) type Exceptions = HashSet<u32>;

/// The best nodes so far, as many as are wanted: the highest scores, and among equals the highest
/// lots.
#[derive(Debug)]
pub(super) struct Top {
    wanted: usize,
    found: Vec<Found>,
}

impl Top {
    pub(super) fn of(wanted: usize) -> Self {
        Self { wanted, found: Vec::with_capacity(wanted) }
    }

    /// Whether there is still room for it.
    pub(super) fn takes(&self, local: i64, lot: u64) -> bool {
        self.found.len() < self.wanted
            || self.found.last().is_some_and(|last| (local, lot) > (last.local, last.lot))
    }

    pub(super) fn offer(&mut self, found: Found) {
        if !self.takes(found.local, found.lot) {
            return;
        }
        if self.found.len() == self.wanted {
            self.found.pop();
        }
        let better = |other: &Found| (other.local, other.lot) > (found.local, found.lot);
        let place = self.found.partition_point(better);
        self.found.insert(place, found);
    }

    /// The best first.
    pub(super) fn into_found(self) -> Vec<Found> {
        self.found
    }
}
