//! Latencies in buckets of even relative width, as `HdrHistogram` keeps them: 64 for each power of
//! two, so that a percentile is off by less than 1.6 %.

use std::time::Duration;

/// Bits of a value below its highest one that are kept.
const BITS: u32 = 6;
const SUB: u64 = 1 << BITS;
/// Values of up to 64 bits.
const BUCKETS: usize = ((64 - BITS as usize) + 1) << BITS;

/// Counts of latencies in nanoseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    pub(crate) total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one latency in nanoseconds.
    pub(crate) fn record(&mut self, nanos: u64) {
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// The latency that `share` (0 to 1) of all don't exceed; zero if there are none.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are far below 2^52, and the share is at most 1"
        )]
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(index).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// The largest.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }
}

fn bucket(value: u64) -> usize {
    let high = (value | SUB).ilog2();
    let shift = high - BITS;
    usize::try_from((u64::from(shift) << BITS) + (value >> shift)).unwrap_or(0)
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB {
        return index;
    }
    let shift = (index >> BITS) - 1;
    let base = (index & (SUB - 1)) + SUB;
    ((base + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_value_closely() {
        for value in (0..70_u32).flat_map(|bit| {
            let base = 1_u64.checked_shl(bit.min(63)).unwrap_or(0);
            [base - 1, base, base | base >> 3, base | base >> 7]
        }) {
            let high = upper(bucket(value));
            assert!(high >= value, "{value} {high}");
            assert!(high - value <= value >> BITS, "{value} {high}");
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), Duration::ZERO);
        for micros in 1..=1000 {
            histogram.record(micros * 1000);
        }
        for (share, micros) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.percentile(share).as_secs_f64() * 1e6;
            assert!((found / micros - 1.0).abs() < 0.02, "{share}: {found}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
        assert_eq!(histogram.total, 1000);
    }
}
