//! The scores of the default profile that need nothing but the node itself.

use super::columns::Columns;
use super::gather::MAX_SCORE;
use super::pod::PodRequest;
use super::policy::Weights;
use super::resources::CpuMemory;

/// One pod's least-allocated and balanced-allocation scores, over CPU and memory of equal weight.
pub(super) struct Scorer {
    least: CpuMemory,
    balanced: CpuMemory,
    weights: Weights,
}

impl Scorer {
    pub(super) fn new(request: &PodRequest) -> Self {
        let requests = &request.resources.requests;
        let balanced = CpuMemory { milli_cpu: requests.milli_cpu, memory: requests.memory };
        let weights = request.policy.weights;
        Self { least: request.resources.least_allocated, balanced, weights }
    }

    /// Weighted sum of both scores on a node, 0 to 200 by default.
    pub(super) fn local(&self, columns: &Columns, index: usize) -> i64 {
        let allocatable = (columns.allocatable_cpu[index], columns.allocatable_memory[index]);
        let non_zero = (columns.non_zero_cpu[index], columns.non_zero_memory[index]);
        let used = (columns.cpu[index], columns.memory[index]);
        self.of(non_zero, used, allocatable)
    }

    /// The same from the amounts themselves, each of CPU and memory.
    pub(super) fn of(
        &self,
        non_zero: (i64, i64),
        used: (i64, i64),
        allocatable: (i64, i64),
    ) -> i64 {
        let least = self.weights.fit * self.least_allocated(non_zero, allocatable);
        least + self.weights.balance * self.balanced_allocation(used, allocatable)
    }

    /// No node that takes the pod scores more on which no less is taken and whose share of CPU in
    /// use less that of memory lies between these two, which are infinite where nothing is known.
    pub(super) fn at_best(
        &self,
        non_zero: (i64, i64),
        tilt: (f64, f64),
        allocatable: (i64, i64),
    ) -> i64 {
        let least = self.weights.fit * self.least_allocated(non_zero, allocatable);
        least + self.weights.balance * self.balanced_at_best(tilt, allocatable)
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the score is defined by these very conversions"
    )]
    fn balanced_at_best(&self, (low, high): (f64, f64), allocatable: (i64, i64)) -> i64 {
        // What the sums with the pod may be off by from those of the shares.
        const SLIP: f64 = 1e-9;
        if self.balanced == CpuMemory::default() {
            return 0;
        }
        let half = MAX_SCORE / 2;
        if allocatable.0 == 0 || allocatable.1 == 0 {
            return half + half / 2;
        }
        if !(low.is_finite() && high.is_finite()) {
            return half + i64::midpoint(half, MAX_SCORE);
        }
        let shift = self.balanced.milli_cpu as f64 / allocatable.0 as f64
            - self.balanced.memory as f64 / allocatable.1 as f64;
        let even = |tilt: f64| (1.0 - (tilt / 2.0).abs()) * MAX_SCORE as f64;
        // Evenness with the pod less evenness without it changes one way as the tilt grows.
        let gain = |tilt: f64| half as f64 * (tilt.abs() - (tilt + shift).abs());
        let gain = gain(if shift > 0.0 { low } else { high });
        let (from, to) = (low + shift, high + shift);
        let nearest = if from <= 0.0 && to >= 0.0 { 0.0 } else { from.abs().min(to.abs()) };
        let with = (even(nearest) + SLIP) as i64;
        let without = even(low).min(even(high)) as i64;
        let difference = (with - without).min((gain + SLIP).floor() as i64 + 1);
        half + i64::midpoint(half, difference)
    }

    /// `leastResourceScorer`: the mean of the free shares, truncated at each step.
    fn least_allocated(&self, used: (i64, i64), allocatable: (i64, i64)) -> i64 {
        let resources = [
            (used.0, self.least.milli_cpu, allocatable.0),
            (used.1, self.least.memory, allocatable.1),
        ];
        let mut sum = 0;
        let mut weights = 0;
        for (used, request, allocatable) in resources {
            if allocatable != 0 {
                sum += free_share(used.wrapping_add(request), allocatable);
                weights += 1;
            }
        }
        if weights == 0 { 0 } else { sum / weights }
    }

    /// `balancedResourceScorer`: how much the pod evens out the shares of CPU and memory in use.
    /// Left out for a pod that requests neither.
    fn balanced_allocation(&self, used: (i64, i64), allocatable: (i64, i64)) -> i64 {
        if self.balanced == CpuMemory::default() {
            return 0;
        }
        let with = (
            used.0.wrapping_add(self.balanced.milli_cpu),
            used.1.wrapping_add(self.balanced.memory),
        );
        let half = MAX_SCORE / 2;
        half + (half + evenness(with, allocatable) - evenness(used, allocatable)) / 2
    }
}

fn free_share(used: i64, allocatable: i64) -> i64 {
    if used > allocatable {
        return 0;
    }
    let free = allocatable.wrapping_sub(used);
    if let Some(scaled) = free.checked_mul(MAX_SCORE) {
        return scaled / allocatable;
    }
    // Beyond 92 PB: still exact.
    let share = i128::from(free) * i128::from(MAX_SCORE) / i128::from(allocatable);
    i64::try_from(share).unwrap_or(MAX_SCORE)
}

/// `balancedResourceScore`: 100 less the standard deviation of the two shares.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "the score is defined by these very conversions"
)]
fn evenness(used: (i64, i64), allocatable: (i64, i64)) -> i64 {
    if allocatable.0 == 0 || allocatable.1 == 0 {
        return MAX_SCORE;
    }
    let share = |used: i64, allocatable: i64| (used as f64 / allocatable as f64).min(1.0);
    let deviation = ((share(used.0, allocatable.0) - share(used.1, allocatable.1)) / 2.0).abs();
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
