//! How many requests are served at a time. At the bound a request is turned away at once: a
//! queue here would only hide the load from clients that know how to wait.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::gauge::Gauge;

/// One bound and how much of it is taken. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Bounded {
    taken: Gauge,
}

/// One place below a bound, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    taken: Gauge,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

impl Bounded {
    /// Takes a place if fewer than `max` are taken. `max` may differ from call to call: a lower
    /// one turns new requests away until enough old ones have ended.
    #[must_use]
    pub fn take(&self, max: usize) -> Option<Permit> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.taken
            .inner()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < max).then_some(taken + 1)
            })
            .ok()
            .map(|_| Permit { taken: self.taken.clone() })
    }

    /// Takes a place whatever the bound.
    #[must_use]
    pub fn take_always(&self) -> Permit {
        self.taken.inc();
        Permit { taken: self.taken.clone() }
    }

    /// The gauge of what is taken, for metrics.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        self.taken.clone()
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        usize::try_from(self.taken.get()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_the_bound(steps in proptest::collection::vec(any::<bool>(), 0..200), max in 1usize..8) {
            let bounded = Bounded::default();
            let mut held = Vec::new();
            for take in steps {
                if take {
                    let permit = bounded.take(max);
                    prop_assert_eq!(permit.is_some(), held.len() < max);
                    held.extend(permit);
                } else {
                    held.pop();
                }
                prop_assert_eq!(bounded.taken(), held.len());
            }
            drop(held);
            prop_assert_eq!(bounded.taken(), 0);
        }
    }

    #[test]
    fn some_are_never_turned_away() {
        let bounded = Bounded::default();
        let _one = bounded.take(1).unwrap();
        assert!(bounded.take(1).is_none());
        let _two = bounded.take_always();
        assert_eq!(bounded.taken(), 2);
    }
}
