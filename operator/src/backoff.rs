//! When to try a failed reconcile again: exponential, with jitter, for each MegaCluster.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);

/// The longest pause.
const LONGEST: Duration = Duration::from_mins(2);

/// The pause after `failures` failures in a row. `dice`, from 0 to 1, spreads it over the upper
/// half, so that what failed together is not tried together.
#[must_use]
pub fn pause(failures: u32, dice: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    whole.mul_f64(0.5 + 0.5 * dice.clamp(0.0, 1.0))
}

/// Failures in a row, by namespace and name. It holds the failing clusters only.
#[derive(Debug, Default)]
pub struct Failures {
    counts: Mutex<HashMap<(String, String), u32>>,
}

impl Failures {
    /// Counts another failure: how many in a row now.
    pub fn add(&self, namespace: &str, name: &str) -> u32 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((namespace.to_owned(), name.to_owned())).or_insert(0);
        *count = count.saturating_add(1);
        *count
    }

    /// Forgets the failures of a cluster that succeeded or is gone.
    pub fn clear(&self, namespace: &str, name: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// How many clusters are failing.
    pub fn len(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no cluster is failing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_spread() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(500));
        assert_eq!(pause(2, 1.0), Duration::from_secs(1));
        assert_eq!(pause(2, 0.0), Duration::from_millis(500));
        assert_eq!(pause(9, 1.0), Duration::from_mins(2));
        assert_eq!(pause(u32::MAX, 1.0), Duration::from_mins(2));
    }

    #[test]
    fn success_starts_again() {
        let failures = Failures::default();
        assert_eq!(failures.add("ns", "a"), 1);
        assert_eq!(failures.add("ns", "a"), 2);
        assert_eq!(failures.add("ns", "b"), 1);
        failures.clear("ns", "a");
        assert_eq!(failures.len(), 1);
        assert_eq!(failures.add("ns", "a"), 1);
    }
}
