//! Leases: ids with a deadline that keys hang on. The clock is handed in as milliseconds since
//! some fixed start, and never runs backwards.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::error::Error;

/// The longest time to live in seconds (etcd `server/lease/lessor.go`).
const MAX_TTL: i64 = 9_000_000_000;
/// The shortest: etcd's one and a half default election timeouts, rounded up.
const MIN_TTL: i64 = 2;

/// Milliseconds since the process's own start of time.
pub type Millis = u64;

#[derive(Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    deadline: Millis,
    keys: BTreeSet<Bytes>,
}

/// What a lease looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Time to live it was granted, in seconds.
    pub granted_ttl: i64,
    /// Whole seconds left.
    pub remaining: i64,
    /// Its keys, in order.
    pub keys: Vec<Bytes>,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Leases {
    leases: HashMap<i64, Lease>,
    by_deadline: BTreeSet<(Millis, i64)>,
}

fn deadline(now: Millis, ttl: i64) -> Millis {
    now.saturating_add(u64::try_from(ttl).unwrap_or(0).saturating_mul(1000))
}

impl Leases {
    /// Grants a lease for `ttl` seconds, at least two, and gives the time granted.
    pub fn grant(&mut self, id: i64, ttl: i64, now: Millis) -> Result<i64, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > MAX_TTL {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let ttl = ttl.max(MIN_TTL);
        let deadline = deadline(now, ttl);
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.by_deadline.insert((deadline, id));
        Ok(ttl)
    }

    /// Whether a lease lives. One that is due and not revoked yet does.
    #[must_use]
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Starts a lease's time anew and gives its time to live. One that is due is not found, though
    /// it is not revoked yet.
    pub fn renew(&mut self, id: i64, now: Millis) -> Result<i64, Error> {
        let lease = self.leases.get_mut(&id).ok_or(Error::LeaseNotFound)?;
        if lease.deadline <= now {
            return Err(Error::LeaseNotFound);
        }
        self.by_deadline.remove(&(lease.deadline, id));
        lease.deadline = deadline(now, lease.ttl);
        self.by_deadline.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// Forgets a lease and gives its keys, in order; they are the caller's to delete.
    pub fn revoke(&mut self, id: i64) -> Result<Vec<Bytes>, Error> {
        let lease = self.leases.remove(&id).ok_or(Error::LeaseNotFound)?;
        self.by_deadline.remove(&(lease.deadline, id));
        Ok(lease.keys.into_iter().collect())
    }

    /// Moves a key from one lease to another; 0 is none. A lease that is not there is passed over.
    pub fn attach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    /// Up to `limit` leases that are due.
    #[must_use]
    pub fn due(&self, now: Millis, limit: usize) -> Vec<i64> {
        self.by_deadline
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(limit)
            .map(|(_, id)| *id)
            .collect()
    }

    /// When the next lease is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.by_deadline.first().map(|(at, _)| *at)
    }

    /// A lease seen from outside.
    #[must_use]
    pub fn view(&self, id: i64, now: Millis, keys: bool) -> Option<LeaseView> {
        let lease = self.leases.get(&id)?;
        let remaining =
            i64::try_from(lease.deadline.saturating_sub(now) / 1000).unwrap_or(i64::MAX);
        let keys = if keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
        Some(LeaseView { granted_ttl: lease.ttl, remaining, keys })
    }

    /// All leases, soonest due first.
    #[must_use]
    pub fn ids(&self) -> Vec<i64> {
        self.by_deadline.iter().map(|(_, id)| *id).collect()
    }

    /// Leases with their granted time to live, for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// Number of leases.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_from_grant_to_deadline() {
        let mut leases = Leases::default();
        let key = b"k".as_slice();
        assert_eq!(leases.grant(0, 5, 0), Err(Error::LeaseNotFound));
        assert_eq!(leases.grant(7, MAX_TTL + 1, 0), Err(Error::LeaseTtlTooLarge));
        assert_eq!(leases.grant(7, 0, 0), Ok(2));
        assert_eq!(leases.grant(7, 5, 0), Err(Error::LeaseExists));
        assert_eq!(leases.grant(8, 10, 0), Ok(10));
        leases.attach(key, 0, 7);
        leases.attach(key, 7, 8);
        assert!(leases.view(7, 0, true).unwrap().keys.is_empty());
        assert_eq!(leases.view(8, 1500, true).unwrap().remaining, 8);
        assert_eq!(leases.due(2000, 10), vec![7]);
        assert_eq!(leases.renew(7, 2000), Err(Error::LeaseNotFound));
        assert_eq!(leases.renew(8, 9999), Ok(10));
        assert_eq!(leases.due(11_000, 10), vec![7]);
        assert_eq!(leases.revoke(8).unwrap(), vec![key]);
        assert_eq!(leases.revoke(8), Err(Error::LeaseNotFound));
        assert_eq!(leases.ids(), vec![7]);
    }

    #[test]
    fn a_lease_of_the_longest_time_is_never_due() {
        let mut leases = Leases::default();
        leases.grant(1, MAX_TTL, u64::MAX / 2).unwrap();
        assert!(leases.due(u64::MAX / 2 + 1_000_000, 1).is_empty());
    }
}
