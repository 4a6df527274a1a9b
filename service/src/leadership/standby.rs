//! The standby's side of the connection: what it has promised and what it has seen of the leader.

use std::time::{Duration, Instant};

use super::TAKEOVER_DELAY;
use super::record::{Peer, Record};

/// After a connection failed the next is tried this much later.
const PAUSE: Duration = Duration::from_millis(500);
/// A leader that takes a connection but does not ask for this long is left.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where, and the key to show.
    pub peer: Peer,
    /// The session to name.
    pub session: u64,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The leader's kernel closed it: nobody but a process that ended leaves it to the kernel.
    Closed,
    /// The leader said that it ends, or we ended it: nothing follows.
    Told,
    /// The Lease was given back.
    Released,
    /// All else: a reset, a line that is none, a connection that could not be made.
    Broken,
}

#[derive(Clone, Debug)]
struct Link {
    target: Target,
    leader: String,
    epoch: u64,
    began: Instant,
    /// When the last question that we answered was read.
    promised: Option<Instant>,
}

impl Link {
    /// When a leader that says nothing more counts as silent.
    fn silent_at(&self) -> Instant {
        self.promised.map_or(self.began + PATIENCE, |at| at + TAKEOVER_DELAY)
    }
}

/// What tells of a leader's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Its connection ended as only that of a dead process does.
    Dead,
    /// It has said nothing for too long.
    Silent,
    /// It has said that it has stopped, and what version the Lease has; `None` once that is known
    /// not to be so.
    Yielded(Option<String>),
}

/// What a standby knows of the leader's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) leader: String,
    pub(super) epoch: u64,
    pub(super) session: u64,
    pub(super) sign: Sign,
    /// When the last sign of it was seen.
    pub(super) since: Instant,
    /// Not before this may anything follow from it.
    pub(super) ready: Instant,
}

/// The standby's side.
#[derive(Debug, Default)]
pub(super) struct Standby {
    link: Option<Link>,
    evidence: Option<Evidence>,
    retry_at: Option<Instant>,
}

impl Standby {
    /// Whom to connect to now, by what the Lease says.
    pub(super) fn connect(
        &mut self,
        record: &Record,
        identity: &str,
        now: Instant,
        session: impl FnOnce() -> u64,
    ) -> Option<Target> {
        let leader = record.holder.as_ref().filter(|holder| *holder != identity)?;
        let peer = record.peer.as_ref()?;
        let wait = self.retry_at.is_some_and(|at| now < at);
        if self.link.is_some() || self.evidence.is_some() || wait {
            return None;
        }
        let target = Target { peer: peer.clone(), session: session() };
        self.link = Some(Link {
            target: target.clone(),
            leader: leader.clone(),
            epoch: record.epoch,
            began: now,
            promised: None,
        });
        Some(target)
    }

    /// The leader asked: whether to promise. `false` where the connection is to be left.
    pub(super) fn asked(&mut self, session: u64, epoch: u64, now: Instant) -> bool {
        let Some(link) = self.link.as_mut().filter(|link| link.target.session == session) else {
            return false;
        };
        if link.epoch != epoch {
            self.link = None;
            return false;
        }
        link.promised = Some(now);
        true
    }

    /// The connection ended. Whether it says that the Lease is worth a look at once.
    pub(super) fn ended(&mut self, session: u64, how: End, now: Instant) -> bool {
        let Some(link) = self.link.take_if(|link| link.target.session == session) else {
            return false;
        };
        self.retry_at = Some(now + PAUSE);
        let Some(promised) = link.promised else { return false };
        let ready = match how {
            End::Told => return false,
            End::Released => return true,
            End::Closed => now,
            End::Broken => promised + TAKEOVER_DELAY,
        };
        let sign = if how == End::Closed { Sign::Dead } else { Sign::Silent };
        self.note(&link, sign, promised, ready);
        how == End::Closed
    }

    /// The leader has stopped for us. `false` where it is not the one of this session.
    pub(super) fn yielded(
        &mut self,
        session: u64,
        epoch: u64,
        version: &str,
        now: Instant,
    ) -> bool {
        let Some(link) = self.link.take_if(|link| {
            link.target.session == session && link.epoch == epoch && link.promised.is_some()
        }) else {
            return false;
        };
        self.retry_at = Some(now + PAUSE);
        self.note(&link, Sign::Yielded(Some(version.to_owned())), now, now);
        true
    }

    /// Whether this is the session of the leader.
    pub(super) fn hears(&self, session: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.target.session == session)
    }

    /// Since when the Lease, as it is in `record`, is left to us.
    pub(super) fn left_to_us(&self, record: &Record) -> Option<Instant> {
        let evidence = self.evidence.as_ref()?;
        let Sign::Yielded(Some(version)) = &evidence.sign else { return None };
        let same = record.version.as_ref() == Some(version)
            && record.holder.as_ref() == Some(&evidence.leader)
            && record.epoch == evidence.epoch;
        same.then_some(evidence.since)
    }

    /// The Lease is not as the leader has left it: it has to be looked at.
    pub(super) fn doubt(&mut self) {
        if let Some(Evidence { sign: Sign::Yielded(version), .. }) = &mut self.evidence {
            *version = None;
        }
    }

    fn note(&mut self, link: &Link, sign: Sign, since: Instant, ready: Instant) {
        self.evidence = Some(Evidence {
            leader: link.leader.clone(),
            epoch: link.epoch,
            session: link.target.session,
            sign,
            since,
            ready,
        });
    }

    /// Time has passed: the session that is to be left since the leader is silent.
    pub(super) fn tick(&mut self, now: Instant) -> Option<u64> {
        let link = self.link.as_ref()?;
        let until = link.silent_at();
        if now < until {
            return None;
        }
        let link = self.link.take()?;
        self.retry_at = Some(now + PAUSE);
        if let Some(promised) = link.promised {
            self.note(&link, Sign::Silent, promised, until);
        }
        Some(link.target.session)
    }

    /// What is known of the leader's end, once something may follow from it.
    pub(super) fn evidence(&self, now: Instant) -> Option<&Evidence> {
        self.evidence.as_ref().filter(|evidence| now >= evidence.ready)
    }

    /// When there is something to do though nothing happens.
    pub(super) fn wake(&self) -> Option<Instant> {
        let silent = self.link.as_ref().map(Link::silent_at);
        [silent, self.evidence.as_ref().map(|evidence| evidence.ready)].into_iter().flatten().min()
    }

    /// Forgets what is known of the leader's end; the session that is to be left. A leader that has
    /// yielded waits for that.
    pub(super) fn forget(&mut self) -> Option<u64> {
        let evidence = self.evidence.take()?;
        matches!(evidence.sign, Sign::Yielded(_)).then_some(evidence.session)
    }

    /// Forgets all; the sessions that are to be left.
    pub(super) fn reset(&mut self) -> impl Iterator<Item = u64> + use<> {
        let link = self.link.take().map(|link| link.target.session);
        self.forget().into_iter().chain(link)
    }

    /// Leaves a leader that is no longer the one of the Lease.
    pub(super) fn check(&mut self, record: &Record) -> Option<u64> {
        let link = self.link.take_if(|link| {
            record.holder.as_ref() != Some(&link.leader) || record.epoch != link.epoch
        })?;
        Some(link.target.session)
    }

    pub(super) fn is_attached(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.promised.is_some())
    }
}
