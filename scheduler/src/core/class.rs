//! Classes of equal pods: pods of one template compile to the same request, and whatever is worked
//! out for one holds for all of its class.

use std::sync::Arc;

use super::maps::HashSet;
use super::pod::PodRequest;

/// Below this many classes a sweep isn't worth it.
const FIRST_SWEEP: usize = 256;

/// The requests in use, each once. Classes that no pod holds any more go when the set has doubled
/// since the last sweep, so it holds at most twice what lives.
#[derive(Debug, Default)]
pub struct Classes {
    requests: HashSet<Arc<PodRequest>>,
    sweep_at: usize,
}

impl Classes {
    /// The shared request that equals this one: equal requests are one allocation, so a class is
    /// told by its address.
    pub fn intern(&mut self, request: PodRequest) -> Arc<PodRequest> {
        if let Some(shared) = self.requests.get(&request) {
            return Arc::clone(shared);
        }
        if self.requests.len() >= self.sweep_at.max(FIRST_SWEEP) {
            self.requests.retain(|request| Arc::strong_count(request) > 1);
            self.sweep_at = 2 * self.requests.len();
        }
        let shared = Arc::new(request);
        self.requests.insert(Arc::clone(&shared));
        shared
    }

    /// Classes held, some of which may have no pod left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether no class is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(priority: i32) -> PodRequest {
        PodRequest { priority, ..PodRequest::default() }
    }

    #[test]
    fn equal_requests_are_one() {
        let mut classes = Classes::default();
        let first = classes.intern(request(1));
        assert!(Arc::ptr_eq(&first, &classes.intern(request(1))));
        assert!(!Arc::ptr_eq(&first, &classes.intern(request(2))));
    }

    #[test]
    fn the_dead_are_swept() {
        let mut classes = Classes::default();
        let kept = classes.intern(request(-1));
        for priority in 0..10_000 {
            classes.intern(request(priority));
        }
        assert!(classes.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &classes.intern(request(-1))));
    }
}
