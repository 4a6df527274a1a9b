//! A candidate's decisions, with the clocks handed in.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::{ElectionConfig, Leadership};

/// What to write.
#[derive(Debug)]
pub enum Action {
    /// Nothing: somebody else leads.
    Wait,
    /// There is no Lease: create it.
    Create(Lease),
    /// Renew or take over: replace it at its resourceVersion.
    Update(Lease),
}

/// The record last seen and when it changed, by our own monotonic clock: clocks of different
/// machines are never compared.
#[derive(Debug)]
pub struct ElectionState {
    config: ElectionConfig,
    seen: Option<Lease>,
    changed: Option<Instant>,
    /// The Lease was gone at the last look.
    absent: bool,
    /// Set by our own successful write.
    fence: Option<Instant>,
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Whether the record names `identity` as its holder.
pub(super) fn is_held_by(lease: &Lease, identity: &str) -> bool {
    holder(lease) == Some(identity)
}

fn transitions(lease: &Lease) -> i32 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0)
}

impl ElectionState {
    /// A candidate that has seen nothing yet.
    #[must_use]
    pub fn new(config: ElectionConfig) -> Self {
        Self { config, seen: None, changed: None, absent: false, fence: None }
    }

    /// Takes in what the apiserver holds and says what to write.
    pub fn observe(&mut self, found: Option<Lease>, now: Instant, wall: Timestamp) -> Action {
        let Some(found) = found else { return self.observe_none(now, wall) };
        // Any write counts as a sign of life, even one whose content is the same.
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|seen| version(seen) != version(&found)) {
            self.changed = Some(now);
        }
        self.absent = false;
        let ours = holder(&found) == Some(self.config.identity.as_str());
        if !ours {
            self.fence = None;
        }
        self.seen = Some(found.clone());
        if ours && self.fence.is_some() {
            return Action::Update(self.record(Some(&found), transitions(&found), wall));
        }
        if holder(&found).is_none() || self.expired(&found, now) || ours {
            // Also where our own name stands there from an earlier life: a new epoch, since what
            // that life still had under way must not pass for ours.
            return Action::Update(self.record(Some(&found), transitions(&found) + 1, wall));
        }
        Action::Wait
    }

    /// There is no Lease. Who ever saw one, and does not lead by it still, waits as long from now
    /// as if it were there: deleting the record does not stop the one who acts by it, who may be
    /// another than the last holder that we saw.
    fn observe_none(&mut self, now: Instant, wall: Timestamp) -> Action {
        let Some(seen) = self.seen.clone() else {
            return Action::Create(self.record(None, 0, wall));
        };
        if self.leadership(now).leader {
            self.fence = None;
        } else {
            if !self.absent {
                self.absent = true;
                self.changed = Some(now);
            }
            if !self.expired(&seen, now) {
                return Action::Wait;
            }
        }
        Action::Create(self.record(None, transitions(&seen) + 1, wall))
    }

    fn expired(&self, lease: &Lease, now: Instant) -> bool {
        self.changed
            .is_some_and(|changed| now.saturating_duration_since(changed) >= duration_of(lease))
    }

    /// Our write succeeded; it was begun at `started`.
    pub fn wrote(&mut self, lease: &Lease, started: Instant) {
        self.seen = Some(lease.clone());
        self.changed = Some(started);
        self.absent = false;
        self.fence = Some(started + self.config.renew_deadline);
    }

    /// Our write met a newer record.
    pub fn lost_race(&mut self) {
        self.fence = None;
    }

    /// The record that gives the Lease back, where it is ours.
    pub fn release(&mut self, wall: Timestamp) -> Option<Lease> {
        self.fence.take()?;
        let mut lease = self.seen.clone()?;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(wall));
        Some(lease)
    }

    /// What others may know at `now`.
    #[must_use]
    pub fn leadership(&self, now: Instant) -> Leadership {
        let seen = self.seen.as_ref();
        let fence = self.fence.filter(|fence| now < *fence);
        Leadership {
            leader: fence.is_some(),
            epoch: seen.and_then(|lease| u64::try_from(transitions(lease)).ok()).unwrap_or(0),
            holder: seen.and_then(holder).map(str::to_owned),
            fence,
        }
    }

    /// How long to wait before the next look: never past the fence, so that its passing is told
    /// at once.
    #[must_use]
    pub fn pause(&self, now: Instant) -> Duration {
        let to_fence = self.fence.map(|fence| fence.saturating_duration_since(now));
        match to_fence {
            Some(left) if !left.is_zero() => left.min(self.config.retry_period),
            _ => self.config.retry_period,
        }
    }

    fn record(&self, found: Option<&Lease>, transitions: i32, wall: Timestamp) -> Lease {
        let kept = found.and_then(|lease| lease.spec.as_ref());
        let same = found.is_some_and(|lease| self::transitions(lease) == transitions);
        let acquired = kept.and_then(|spec| spec.acquire_time.clone()).filter(|_| same);
        let seconds = i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX);
        Lease {
            metadata: found.map_or_else(
                || ObjectMeta {
                    namespace: Some(self.config.namespace.clone()),
                    name: Some(self.config.name.clone()),
                    ..ObjectMeta::default()
                },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.config.identity.clone()),
                lease_duration_seconds: Some(seconds.max(1)),
                acquire_time: Some(acquired.unwrap_or(MicroTime(wall))),
                renew_time: Some(MicroTime(wall)),
                lease_transitions: Some(transitions),
                ..kept.cloned().unwrap_or_default()
            }),
        }
    }
}

fn duration_of(lease: &Lease) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An apiserver's compare-and-swap on one Lease.
    #[derive(Default)]
    struct Server {
        lease: Option<Lease>,
        version: u64,
    }

    impl Server {
        fn write(&mut self, action: Action) -> Result<Option<Lease>, ()> {
            let mut lease = match action {
                Action::Wait => return Ok(None),
                Action::Create(_) if self.lease.is_some() => return Err(()),
                Action::Create(lease) => lease,
                Action::Update(lease) => {
                    let current =
                        self.lease.as_ref().and_then(|l| l.metadata.resource_version.clone());
                    if lease.metadata.resource_version != current {
                        return Err(());
                    }
                    lease
                }
            };
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            Ok(Some(lease))
        }
    }

    fn step(state: &mut ElectionState, server: &mut Server, now: Instant) {
        let action = state.observe(server.lease.clone(), now, Timestamp::UNIX_EPOCH);
        match server.write(action) {
            Ok(Some(lease)) => state.wrote(&lease, now),
            Ok(None) => {}
            Err(()) => state.lost_race(),
        }
    }

    fn candidate(identity: &str) -> ElectionState {
        ElectionState::new(ElectionConfig::new("ns", "lease", identity))
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_leads_and_the_second_waits_for_the_whole_duration() {
        let (mut a, mut b, mut server) = (candidate("a"), candidate("b"), Server::default());
        let start = Instant::now();
        step(&mut a, &mut server, start);
        step(&mut b, &mut server, start);
        assert!(a.leadership(start).leader);
        assert_eq!(b.leadership(start).holder.as_deref(), Some("a"));
        // A dies at once; B has seen the record at 0.
        for second in 1..15 {
            step(&mut b, &mut server, after(start, second));
            assert!(!b.leadership(after(start, second)).leader, "{second}");
        }
        step(&mut b, &mut server, after(start, 15));
        assert!(b.leadership(after(start, 15)).leader);
        assert_eq!(b.leadership(after(start, 15)).epoch, 1);
        // A is fenced long before, without having heard of it.
        assert!(!a.leadership(after(start, 10)).leader);
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (mut a, mut b, mut server) = (candidate("a"), candidate("b"), Server::default());
        let start = Instant::now();
        step(&mut a, &mut server, start);
        step(&mut b, &mut server, start);
        let freed = a.release(Timestamp::UNIX_EPOCH).unwrap();
        assert!(!a.leadership(start).leader);
        server.write(Action::Update(freed)).unwrap();
        step(&mut b, &mut server, after(start, 1));
        assert!(b.leadership(after(start, 1)).leader);
    }

    #[test]
    fn an_own_name_from_an_earlier_life_starts_a_new_epoch() {
        let (mut a, mut server) = (candidate("a"), Server::default());
        let start = Instant::now();
        step(&mut a, &mut server, start);
        let mut again = candidate("a");
        step(&mut again, &mut server, after(start, 1));
        assert!(again.leadership(after(start, 1)).leader);
        assert_eq!(again.leadership(after(start, 1)).epoch, 1);
    }

    #[test]
    fn a_deleted_lease_raises_the_epoch() {
        let (mut a, mut server) = (candidate("a"), Server::default());
        let start = Instant::now();
        step(&mut a, &mut server, start);
        server.lease = None;
        step(&mut a, &mut server, after(start, 2));
        assert_eq!(a.leadership(after(start, 2)).epoch, 1);
    }

    /// Candidates that sleep, lose writes and wake at random never lead at the same instant.
    #[test]
    fn never_two_leaders_at_one_instant() {
        use proptest::prelude::*;
        let run = |steps: &[(u8, u16, bool, bool)]| {
            let mut server = Server::default();
            let mut candidates: Vec<_> = ["a", "b", "c"].map(candidate).into();
            let (start, mut clock, mut gone) = (Instant::now(), 0_u64, false);
            // All know of the first leader: who starts with nothing after a deletion can't wait.
            for state in &mut candidates {
                step(state, &mut server, start);
            }
            for (who, wait, lost, deleted) in steps {
                clock += u64::from(*wait);
                let now = start + Duration::from_millis(clock);
                let state = &mut candidates[usize::from(*who) % 3];
                // Once: who misses a Lease that came and went between two looks can't know of it.
                if *deleted && !std::mem::replace(&mut gone, true) {
                    server.lease = None;
                }
                let action = state.observe(server.lease.clone(), now, Timestamp::UNIX_EPOCH);
                // A lost answer: the server has the write, the candidate never hears of it.
                match server.write(action) {
                    Ok(Some(lease)) if !lost => state.wrote(&lease, now),
                    Ok(_) => {}
                    Err(()) => state.lost_race(),
                }
                let leaders = candidates.iter().filter(|c| c.leadership(now).leader).count();
                assert!(leaders <= 1, "{leaders} leaders at {clock} ms");
            }
        };
        proptest!(ProptestConfig::with_cases(2_000), |(steps in prop::collection::vec((0_u8..3, 0_u16..6_000, prop::bool::weighted(0.2), prop::bool::weighted(0.1)), 1..120))| {
            run(&steps);
        });
    }
}
