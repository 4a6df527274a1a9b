//! The leader's side of the connections: who stands by, and until when each has promised.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::record::Standby;
use super::{ASK_EVERY, GRANT};

/// Standbys of one leader.
const MOST: usize = 16;
/// Questions that may be answered late.
const REMEMBERED: usize = 16;
/// A standby that has been silent for this long is no longer the one that may take over: the
/// Lease is told so before its last promise ends, and the leader goes on without it.
const DOUBT: Duration = Duration::from_millis(500);
/// Promises in a row before a standby is told of in the Lease.
const STEADY: u32 = 3;
/// After a standby fell silent, none is told of for this long.
const CALM: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Session {
    identity: String,
    number: u64,
    asked: VecDeque<(u64, Instant)>,
    grants: u32,
    synced: bool,
}

/// The leader's side.
#[derive(Debug, Default)]
pub(super) struct Peers {
    sessions: BTreeMap<u64, Session>,
    /// By session number: when the last question was sent that it has answered with a promise.
    promised: BTreeMap<u64, Instant>,
    next_ask: Option<Instant>,
    asks: u64,
    calm_until: Option<Instant>,
}

impl Peers {
    /// A standby said hello on the connection `id`. `false` where it is to be closed.
    pub(super) fn open(&mut self, id: u64, identity: String, number: u64) -> bool {
        let taken = self.sessions.values().any(|session| session.number == number);
        if self.sessions.len() >= MOST || taken || self.promised.contains_key(&number) {
            return false;
        }
        let asked = VecDeque::new();
        let session = Session { identity, number, asked, grants: 0, synced: false };
        self.sessions.insert(id, session);
        self.next_ask = None;
        true
    }

    /// The connection is gone. What was promised on it still holds.
    pub(super) fn closed(&mut self, id: u64) {
        self.sessions.remove(&id);
    }

    /// All connections, which are to be closed.
    pub(super) fn close_all(&mut self) -> Vec<u64> {
        self.promised.clear();
        std::mem::take(&mut self.sessions).into_keys().collect()
    }

    /// The questions to be sent now: connection and number.
    pub(super) fn asks(&mut self, now: Instant) -> Vec<(u64, u64)> {
        if self.sessions.is_empty() || self.next_ask.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.next_ask = Some(now + ASK_EVERY);
        self.asks += 1;
        for session in self.sessions.values_mut() {
            session.asked.push_back((self.asks, now));
            if session.asked.len() > REMEMBERED {
                session.asked.pop_front();
            }
        }
        self.sessions.keys().map(|id| (*id, self.asks)).collect()
    }

    /// A promise arrived: it holds from when the question was sent.
    pub(super) fn granted(&mut self, id: u64, number: u64, synced: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.synced = synced;
        while let Some((asked, at)) = session.asked.pop_front() {
            if asked == number {
                session.grants = session.grants.saturating_add(1);
                self.promised.insert(session.number, at);
                return;
            }
            if asked > number {
                session.asked.push_front((asked, at));
                return;
            }
        }
    }

    /// Until when the standby of this session has promised not to take over; `None` if never.
    pub(super) fn fence(&self, number: u64) -> Option<Instant> {
        self.promised.get(&number).map(|at| *at + GRANT)
    }

    /// Forgets promises of sessions that are neither open nor in `armed`.
    pub(super) fn prune(&mut self, armed: &[u64]) {
        let open: Vec<u64> = self.sessions.values().map(|session| session.number).collect();
        self.promised.retain(|number, _| open.contains(number) || armed.contains(number));
    }

    /// Who may take over when we fall silent, as the Lease shall say: the one of now while it
    /// answers, else a synced one, else any.
    pub(super) fn choice(&mut self, armed: Option<u64>, now: Instant) -> Option<Standby> {
        let fresh = |session: &Session| {
            let at = self.promised.get(&session.number);
            at.is_some_and(|at| now.saturating_duration_since(*at) < DOUBT)
        };
        let answering: Vec<&Session> =
            self.sessions.values().filter(|session| fresh(session)).collect();
        let current = answering.iter().find(|session| Some(session.number) == armed);
        if armed.is_some() && current.is_none() {
            self.calm_until = Some(now + CALM);
            return None;
        }
        let calm = self.calm_until.is_some_and(|until| now < until);
        let steady =
            || answering.iter().filter(|session| !calm && session.grants >= STEADY).copied();
        let best = steady().max_by_key(|session| session.synced);
        let chosen = match (current, best) {
            (Some(current), Some(best)) if best.synced && !current.synced => best,
            (Some(current), _) => current,
            (None, best) => best?,
        };
        Some(Standby {
            identity: chosen.identity.clone(),
            session: chosen.number,
            synced: chosen.synced,
        })
    }

    /// When a question is to be sent, or the one armed begins to be doubted.
    pub(super) fn wake(&self, armed: &[u64]) -> Option<Instant> {
        let doubt =
            armed.iter().filter_map(|number| self.promised.get(number)).map(|at| *at + DOUBT);
        let ask = if self.sessions.is_empty() { None } else { self.next_ask };
        doubt.chain(ask).min()
    }

    /// The connection of a session.
    pub(super) fn connection(&self, number: u64) -> Option<u64> {
        self.sessions.iter().find(|(_, session)| session.number == number).map(|(id, _)| *id)
    }

    /// All connections.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.sessions.keys().copied().collect()
    }
}
