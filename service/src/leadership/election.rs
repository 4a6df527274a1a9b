//! A candidate's decisions, with clocks, connections and the apiserver's answers handed in.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;

use super::handover::Stopped;
use super::peers::Peers;
use super::record::{self, Claim, Peer, Record};
use super::standby::{End, Sign, Standby, Target};
use super::wire::{FromLeader, FromStandby};
use super::{Cause, ElectionConfig, Leadership, Takeover};

/// One whom a released Lease is not meant for waits this long.
const COURTESY: Duration = Duration::from_secs(1);
/// Looks that evidence of the leader's end causes are this far apart.
const SOON: Duration = Duration::from_millis(50);
/// Looks that a change of the standbys causes are this far apart.
const SETTLE_STANDBY: Duration = Duration::from_millis(150);

/// What the surroundings have to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the leader.
    Connect(Target),
    /// Close the connection of this session to the leader.
    Leave(u64),
    /// Send to the leader by the connection of this session.
    Answer(u64, FromStandby),
    /// Send to a standby by this connection.
    Say(u64, FromLeader),
    /// Close the connection of a standby, after what was sent.
    Close(u64),
}

/// What to write.
#[derive(Clone, Debug)]
pub enum Write {
    /// There is no Lease: create it.
    Create(Lease),
    /// Replace it at its resourceVersion.
    Update(Lease),
}

/// Our own leadership: the record last written was ours.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) epoch: u64,
    /// When the request began that last renewed it.
    renewed: Instant,
    /// No act before this.
    from: Instant,
    /// Nobody may act by it until the next renewal succeeds.
    suspended: bool,
    /// The session that the record names as the one that may take over.
    pub(super) armed: Option<record::Standby>,
    /// All sessions that the record may name: answers get lost.
    maybe_armed: Vec<u64>,
}

/// What a write that is under way would mean.
#[derive(Debug)]
struct Pending {
    acquire: Option<(Cause, Option<Instant>)>,
    /// Ours, unless the write makes one.
    epoch: Option<u64>,
    settling: bool,
    armed: Option<record::Standby>,
}

/// A candidate for one Lease.
#[derive(Debug)]
pub struct Election {
    pub(super) config: ElectionConfig,
    peer: Option<Peer>,
    pub(super) seen: Option<Lease>,
    pub(super) record: Record,
    /// When the record was seen to change, by our own clock: clocks are never compared.
    changed: Option<Instant>,
    pub(super) tenure: Option<Tenure>,
    pending: Option<Pending>,
    next_look: Instant,
    /// No look before this, whatever happens.
    hurry_at: Instant,
    /// What was heard may be newer than the look that is under way.
    again: bool,
    /// The version that the leader has written, until the next look.
    told: Option<String>,
    pub(super) standby: Standby,
    pub(super) peers: Peers,
    /// Our leadership, once we have stopped.
    pub(super) stopped: Option<Stopped>,
    synced: bool,
    /// Where session numbers come from.
    seed: u64,
    sessions: u64,
    pub(super) effects: Vec<Effect>,
    takeover: Option<Takeover>,
}

impl Election {
    /// A candidate that has seen nothing yet. `peer` is where it will listen if it leads; `seed`
    /// is another for each process.
    #[must_use]
    pub fn new(config: ElectionConfig, peer: Option<Peer>, seed: u64, now: Instant) -> Self {
        Self {
            config,
            peer,
            seen: None,
            record: Record::default(),
            changed: None,
            tenure: None,
            pending: None,
            next_look: now,
            hurry_at: now,
            again: false,
            told: None,
            standby: Standby::default(),
            peers: Peers::default(),
            stopped: None,
            synced: false,
            seed,
            sessions: 0,
            effects: Vec::new(),
            takeover: None,
        }
    }

    /// Whether this process holds all that it needs to lead.
    pub fn set_synced(&mut self, synced: bool) {
        self.synced = synced;
    }

    /// What is to be done, in this order.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When the Lease is to be read next.
    #[must_use]
    pub fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Takes over what the apiserver holds, and says what to write.
    pub fn read(&mut self, found: Option<Lease>, now: Instant, wall: Timestamp) -> Option<Write> {
        let record = found.as_ref().map(Record::read).unwrap_or_default();
        if self.seen.is_none() || self.record.version != record.version {
            self.changed = Some(now);
        }
        self.record = record;
        self.hurry_at = now + SOON;
        let left = self.standby.check(&self.record);
        self.effects.extend(left.map(Effect::Leave));
        let ours = self.record.holder.as_deref() == Some(&self.config.identity);
        let goes_on = ours && self.tenure.as_ref().is_some_and(|t| t.epoch == self.record.epoch);
        if !goes_on {
            self.step_down();
        }
        let Some(found) = found else {
            self.seen = None;
            // Somebody may lead by the record that was deleted.
            return Some(self.acquire(Cause::Vacant, None, true, wall));
        };
        self.seen = Some(found);
        if goes_on {
            return Some(self.renew(now, wall));
        }
        let settling = self.record.settling;
        if let Some((cause, since)) = self.cause(now) {
            return Some(self.acquire(cause, since, settling, wall));
        }
        // It has led to nothing: the leader lives, or another one leads.
        if self.standby.evidence(now).is_some() {
            let left = self.standby.forget();
            self.effects.extend(left.map(Effect::Leave));
        }
        self.connect(now);
        let attached = self.standby.is_attached();
        self.next_look = now + self.config.retry_period / if attached { 1 } else { 2 };
        let newer = self.told.take().is_some_and(|told| Some(told) != self.record.version);
        if std::mem::take(&mut self.again) || newer {
            self.hurry(now);
        }
        None
    }

    /// Why we may take the Lease that was just seen, if we may, and since when the leader is gone.
    fn cause(&self, now: Instant) -> Option<(Cause, Option<Instant>)> {
        let record = &self.record;
        let unchanged = now.saturating_duration_since(self.changed.unwrap_or(now));
        let Some(holder) = record.holder.as_ref() else {
            let meant = record.successor.as_ref().is_none_or(|name| *name == self.config.identity);
            if record.released && (meant || unchanged >= COURTESY) {
                return Some((Cause::Handover, self.changed));
            }
            // Nobody gave it back: somebody has taken the name away from one who may act.
            return (unchanged >= self.patience()).then_some((Cause::Expired, self.changed));
        };
        // The port is ours now, so whoever listened there before is dead.
        let here = record.peer.as_ref().zip(self.peer.as_ref());
        if *holder == self.config.identity && here.is_some_and(|(a, b)| a.address == b.address) {
            return Some((Cause::Restart, None));
        }
        if let Some(evidence) = self.standby.evidence(now)
            && evidence.leader == *holder
            && evidence.epoch == record.epoch
        {
            let armed = record.standby.as_ref().map(|standby| standby.session);
            let cause = match evidence.sign {
                Sign::Dead => Some(Cause::Death),
                Sign::Yielded(_) => Some(Cause::Handover),
                Sign::Silent => (armed == Some(evidence.session)).then_some(Cause::Silence),
            };
            if let Some(cause) = cause {
                return Some((cause, Some(evidence.since)));
            }
        }
        (unchanged >= self.patience()).then_some((Cause::Expired, self.changed))
    }

    /// How long a record must stand still: never less than the patience of those who write it.
    fn patience(&self) -> Duration {
        self.record.duration.max(self.config.lease_duration)
    }

    fn acquire(
        &mut self,
        cause: Cause,
        since: Option<Instant>,
        settling: bool,
        wall: Timestamp,
    ) -> Write {
        let acquire = Some((cause, since));
        self.pending = Some(Pending { acquire, epoch: None, settling, armed: None });
        self.write(wall)
    }

    /// What needs no look before it: a renewal of the record as it was last written, and taking
    /// the Lease that a leader has left to us as it was last seen.
    pub fn renewal(&mut self, now: Instant, wall: Timestamp) -> Option<Write> {
        if self.tenure.is_none()
            && self.stopped.is_none()
            && self.seen.is_some()
            && let Some(since) = self.standby.left_to_us(&self.record)
        {
            let settling = self.record.settling;
            return Some(self.acquire(Cause::Handover, Some(since), settling, wall));
        }
        let sure = self.tenure.as_ref().is_some_and(|tenure| !tenure.suspended);
        (sure && self.seen.is_some()).then(|| self.renew(now, wall))
    }

    fn renew(&mut self, now: Instant, wall: Timestamp) -> Write {
        let (mut epoch, mut settling, mut armed) = (None, false, None);
        if let Some(tenure) = self.tenure.as_mut() {
            epoch = Some(tenure.epoch);
            settling = now < tenure.from;
            armed = self.peers.choice(tenure.armed.as_ref().map(|standby| standby.session), now);
            if let Some(armed) = &armed
                && !tenure.maybe_armed.contains(&armed.session)
            {
                // It may be there from now on, whatever we hear of it.
                tenure.maybe_armed.push(armed.session);
            }
        }
        self.pending = Some(Pending { acquire: None, epoch, settling, armed });
        self.write(wall)
    }

    fn write(&self, wall: Timestamp) -> Write {
        let pending = self.pending.as_ref();
        let claim = Claim {
            namespace: &self.config.namespace,
            name: &self.config.name,
            identity: &self.config.identity,
            duration: self.config.lease_duration,
            epoch: pending.and_then(|pending| pending.epoch),
            peer: self.peer.as_ref(),
            standby: pending.and_then(|pending| pending.armed.as_ref()),
            settling: pending.is_some_and(|pending| pending.settling),
        };
        let lease = record::claim(self.seen.as_ref(), &claim, wall);
        if self.seen.is_some() { Write::Update(lease) } else { Write::Create(lease) }
    }

    /// The write landed; it was begun at `started`.
    pub fn wrote(&mut self, lease: Lease, started: Instant, now: Instant) {
        let Some(pending) = self.pending.take() else { return };
        self.record = Record::read(&lease);
        self.seen = Some(lease);
        self.changed = Some(now);
        self.next_look = started + self.config.retry_period;
        self.hurry_at = now + SETTLE_STANDBY;
        let maybe_armed: Vec<u64> = pending.armed.iter().map(|armed| armed.session).collect();
        self.peers.prune(&maybe_armed);
        match (pending.acquire, self.tenure.as_mut()) {
            (None, Some(tenure)) => {
                tenure.renewed = started;
                tenure.suspended = false;
                tenure.armed = pending.armed;
                tenure.maybe_armed = maybe_armed;
                if let Some(version) = &self.record.version {
                    for id in self.peers.ids() {
                        let line = FromLeader::Wrote { version: version.clone() };
                        self.effects.push(Effect::Say(id, line));
                    }
                }
            }
            (None, None) => {}
            (Some((cause, since)), _) => {
                let left = self.standby.reset();
                self.effects.extend(left.map(Effect::Leave));
                let settle = if pending.settling { self.settle() } else { Duration::ZERO };
                let took = since.map(|since| now.saturating_duration_since(since) + settle);
                let epoch = self.record.epoch;
                self.takeover = Some(Takeover { epoch, cause, took });
                self.tenure = Some(Tenure {
                    epoch,
                    renewed: started,
                    from: now + settle,
                    suspended: false,
                    armed: None,
                    maybe_armed,
                });
            }
        }
    }

    /// Longer than anybody may act by a record that nobody here has seen.
    fn settle(&self) -> Duration {
        self.config.renew_deadline + self.config.renew_deadline / 8
    }

    /// The look or the write failed. `conflict`: the record is another than the one that was seen,
    /// and the write has not landed.
    pub fn failed(&mut self, conflict: bool, now: Instant) {
        self.pending = None;
        self.standby.doubt();
        if conflict {
            // Whoever changed it may lead by now.
            if let Some(tenure) = self.tenure.as_mut() {
                tenure.suspended = true;
            }
            self.next_look = now;
        } else {
            self.next_look = now + self.config.retry_period / 4;
            self.hurry_at = self.next_look;
        }
    }

    fn step_down(&mut self) {
        if self.tenure.take().is_some() {
            for id in self.peers.close_all() {
                self.effects.push(Effect::Say(id, FromLeader::No));
                self.effects.push(Effect::Close(id));
            }
        }
    }

    fn connect(&mut self, now: Instant) {
        let (seed, sessions) = (self.seed, &mut self.sessions);
        let session = || {
            *sessions += 1;
            seed.wrapping_add(*sessions)
        };
        let target = self.standby.connect(&self.record, &self.config.identity, now, session);
        self.effects.extend(target.map(Effect::Connect));
    }

    /// The leader spoke by the connection of this session.
    pub fn heard(&mut self, session: u64, line: &FromLeader, now: Instant) {
        match line {
            FromLeader::Ask { epoch, number } => {
                if self.standby.asked(session, *epoch, now) {
                    let grant = FromStandby::Grant { number: *number, synced: self.synced };
                    self.effects.push(Effect::Answer(session, grant));
                } else {
                    self.effects.push(Effect::Leave(session));
                }
            }
            FromLeader::Wrote { version } => {
                if self.standby.hears(session) && self.record.version.as_ref() != Some(version) {
                    self.told = Some(version.clone());
                    self.hurry(now);
                }
            }
            FromLeader::Yours { epoch, version } => {
                if self.standby.yielded(session, *epoch, version, now) {
                    self.again = true;
                    self.next_look = now;
                } else {
                    self.effects.push(Effect::Leave(session));
                }
            }
            FromLeader::Bye => {
                self.disconnected(session, End::Released, now);
                self.effects.push(Effect::Leave(session));
            }
            FromLeader::No => {
                self.disconnected(session, End::Told, now);
                self.effects.push(Effect::Leave(session));
            }
        }
    }

    /// The connection to the leader ended, or could not be made.
    pub fn disconnected(&mut self, session: u64, how: End, now: Instant) {
        if self.standby.ended(session, how, now) {
            self.again = true;
            self.hurry(now);
        }
    }

    /// A standby spoke by this connection.
    pub fn told(&mut self, id: u64, line: FromStandby) {
        match line {
            FromStandby::Hello { key, identity, session } => {
                let known = self.peer.as_ref().is_some_and(|peer| peer.key == key);
                let taken =
                    self.tenure.is_some() && known && self.peers.open(id, identity, session);
                if !taken {
                    self.effects.push(Effect::Say(id, FromLeader::No));
                    self.effects.push(Effect::Close(id));
                }
            }
            FromStandby::Grant { number, synced } => self.peers.granted(id, number, synced),
        }
    }

    /// The connection of a standby is gone.
    pub fn gone(&mut self, id: u64) {
        self.peers.closed(id);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        if let Some(session) = self.standby.tick(now) {
            self.effects.push(Effect::Leave(session));
        }
        if self.standby.evidence(now).is_some() {
            self.hurry(now);
        }
        let Some(tenure) = &self.tenure else { return };
        let epoch = tenure.epoch;
        for (id, number) in self.peers.asks(now) {
            self.effects.push(Effect::Say(id, FromLeader::Ask { epoch, number }));
        }
        let armed = tenure.armed.as_ref();
        if self.pending.is_none() {
            let choice = self.peers.choice(armed.map(|standby| standby.session), now);
            // Whoever takes over need not wait any more once the Lease says so.
            let settled = self.record.settling && now >= tenure.from;
            if settled || choice.as_ref() != armed {
                self.hurry(now);
            }
        }
    }

    fn hurry(&mut self, now: Instant) {
        self.next_look = self.next_look.min(now.max(self.hurry_at));
    }

    /// When [`Self::tick`] has something to do though nothing happens.
    #[must_use]
    pub fn wake(&self, now: Instant) -> Instant {
        let mut wake = now + self.config.retry_period;
        let standby = self.standby.wake();
        let (mut peers, mut turn) = (None, None);
        if let Some(tenure) = &self.tenure {
            peers = self.peers.wake(&tenure.maybe_armed);
            turn = if now < tenure.from { Some(tenure.from) } else { self.fence() };
        }
        for at in [standby, peers, turn].into_iter().flatten().filter(|at| *at > now) {
            wake = wake.min(at);
        }
        wake
    }

    /// Past this nobody acts by our leadership, whatever comes; `None` if nobody does now.
    fn fence(&self) -> Option<Instant> {
        let tenure = self.tenure.as_ref().filter(|tenure| !tenure.suspended)?;
        let mut fence = tenure.renewed + self.config.renew_deadline;
        for session in &tenure.maybe_armed {
            fence = fence.min(self.peers.fence(*session)?);
        }
        Some(fence)
    }

    /// What others may know at `now`.
    #[must_use]
    pub fn leadership(&self, now: Instant) -> Leadership {
        let from = self.tenure.as_ref().map(|tenure| tenure.from);
        let fence = self.fence().filter(|fence| now < *fence && from.is_some_and(|at| now >= at));
        let standby_synced = match &self.tenure {
            Some(tenure) => tenure.armed.as_ref().is_some_and(|standby| standby.synced),
            None => self.record.standby.as_ref().is_some_and(|standby| standby.synced),
        };
        Leadership {
            leader: fence.is_some(),
            holds: self.tenure.is_some(),
            epoch: self.tenure.as_ref().map_or(self.record.epoch, |tenure| tenure.epoch),
            holder: self.record.holder.clone(),
            fence,
            standby_synced,
        }
    }

    /// How the present leadership began, told once.
    pub fn takeover(&mut self) -> Option<Takeover> {
        self.takeover.take()
    }
}
