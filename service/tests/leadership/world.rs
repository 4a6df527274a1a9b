//! The simulated world: time, processes, an apiserver with one Lease, and connections.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use megacluster_service::leadership::election::{Election, Write};
use megacluster_service::leadership::record::{Peer, Record};
use megacluster_service::leadership::wire::{FromLeader, FromStandby};
use megacluster_service::leadership::{ElectionConfig, End, Leadership};

use super::connections::{Connection, Packet};

/// Times are microseconds.
pub(crate) const MS: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000_000;

/// Something that happens to a process.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Read(Result<Option<Lease>, ()>),
    Wrote(Instant, Result<Lease, bool>),
    Told(u64, FromStandby),
    Gone(u64),
    Heard(u64, FromLeader),
    Ended(u64, End),
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A process has something to do.
    Wake(usize, u64),
    /// A request reaches the apiserver.
    Request { from: (usize, u64), call: u64, write: Option<Box<(Write, Instant)>> },
    /// An answer reaches a process; `call` may be over by then.
    Answer { to: (usize, u64), call: u64, input: Box<Answered> },
    /// A call has taken too long.
    Late { of: (usize, u64), call: u64 },
    /// A message reaches the other side of a connection.
    Arrive { connection: u64, to_leader: bool },
    /// A process starts.
    Start(usize),
    /// A process dies.
    Crash(usize),
    /// A process is asked to stop.
    Terminate(usize),
    /// One that has stopped leading gives the Lease back, and ends.
    GiveBack(usize, u64),
    /// A process does nothing for so long.
    Pause(usize, u64),
    /// The task of the election does nothing for so long, while the rest of the process goes on.
    Stall(usize, u64),
    /// A process goes on.
    Resume(usize),
    /// A connection is reset by something between.
    Reset(u64),
    /// A user deletes the Lease.
    Delete,
    /// A user edits the Lease.
    Edit(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Answered {
    Read(Option<Lease>),
    Wrote(Instant, Result<Lease, bool>),
    Failed,
}

pub(crate) struct Process {
    pub(crate) life: u64,
    pub(crate) election: Option<Election>,
    published: Leadership,
    pub(crate) rate: u64,
    pub(crate) wall: i64,
    pub(crate) paused_until: u64,
    pub(crate) stalled_until: u64,
    /// It has been asked to stop.
    pub(crate) ending: bool,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) call: Option<u64>,
    pub(crate) wake: u64,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) state: u64,
    pub(crate) now: u64,
    pub(crate) base: Instant,
    pub(crate) order: u64,
    pub(crate) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) processes: Vec<Process>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) lease: Option<Lease>,
    pub(crate) version: u64,
    pub(crate) outages: Vec<(u64, u64)>,
    pub(crate) isolated: BTreeMap<usize, u64>,
    pub(crate) cuts: BTreeMap<(usize, usize), u64>,
    /// Lost and late messages in a thousand.
    pub(crate) trouble: u64,
    pub(crate) calls: u64,
    pub(crate) actors: BTreeMap<u64, (usize, u64)>,
    pub(crate) acted: u64,
    pub(crate) edited: bool,
    pub(crate) verbose: bool,
}

impl World {
    pub(crate) fn new(seed: u64, processes: usize) -> Self {
        let mut world = Self {
            seed,
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            now: 0,
            base: Instant::now(),
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            processes: Vec::new(),
            connections: BTreeMap::new(),
            lease: None,
            version: 0,
            outages: Vec::new(),
            isolated: BTreeMap::new(),
            cuts: BTreeMap::new(),
            trouble: 20,
            calls: 0,
            actors: BTreeMap::new(),
            acted: 0,
            edited: false,
            verbose: std::env::var("MEGACLUSTER_SEED").is_ok(),
        };
        for _ in 0..processes {
            // Clocks run up to 5 % apart, and show times up to a minute apart.
            let rate = 1_000 + world.below(51);
            let wall = i64::try_from(world.below(121)).unwrap() - 60;
            world.processes.push(Process {
                life: 0,
                election: None,
                published: Leadership::default(),
                rate,
                wall,
                paused_until: 0,
                stalled_until: 0,
                ending: false,
                inbox: VecDeque::new(),
                call: None,
                wake: 0,
            });
        }
        for process in 0..processes {
            let at = if world.below(2) == 0 { 0 } else { world.below(3 * SECOND) };
            world.at(at, Event::Start(process));
        }
        world
    }

    /// `SplitMix64`
    pub(crate) fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random() % bound
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn count(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at.max(self.now), self.order)));
        self.events.insert(self.order, event);
    }

    /// No message is lost any more.
    pub(crate) fn calm(&mut self) {
        self.trouble = 0;
    }

    /// Within this time after the last fault one leads.
    pub(crate) fn bound(&self) -> u64 {
        if self.edited { 75 * SECOND } else { 14 * SECOND }
    }

    pub(crate) fn outage(&mut self, at: u64, long: u64) {
        self.outages.push((at, at + long));
    }

    pub(crate) fn isolate(&mut self, process: usize, long: u64) {
        self.isolated.insert(process, self.now + long);
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize, long: u64) {
        self.cuts.insert((a.min(b), a.max(b)), self.now + long);
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.get(&(a.min(b), a.max(b))).is_some_and(|until| self.now < *until)
    }

    fn reaches(&self, process: usize) -> bool {
        let out = self.outages.iter().any(|(from, to)| *from <= self.now && self.now < *to);
        !out && self.isolated.get(&process).is_none_or(|until| self.now >= *until)
    }

    fn clock(&self, process: usize) -> Instant {
        let local = self.now * self.processes[process].rate / 1_000;
        self.base + Duration::from_micros(local)
    }

    fn wall(&self, process: usize) -> Timestamp {
        let second = 1_795_000_000 + i64::try_from(self.now / SECOND).unwrap();
        Timestamp::from_second(second + self.processes[process].wall).unwrap()
    }

    /// A local instant as time of the world.
    fn when(&self, process: usize, at: Instant) -> u64 {
        let local = at.saturating_duration_since(self.base).as_micros();
        u64::try_from(local).unwrap() * 1_000 / self.processes[process].rate + 1
    }

    fn is_awake(&self, process: usize) -> bool {
        let p = &self.processes[process];
        p.election.is_some() && self.now >= p.paused_until
    }

    /// Who acts now.
    pub(crate) fn actor(&self) -> Option<usize> {
        let acts = |process: &usize| {
            let published = &self.processes[*process].published;
            let clock = self.clock(*process);
            self.is_awake(*process)
                && published.leader
                && published.fence.is_some_and(|fence| clock < fence)
        };
        let actors: Vec<usize> = (0..self.processes.len()).filter(acts).collect();
        assert!(actors.len() < 2, "seed {}: {actors:?} act at {} us", self.seed, self.now);
        actors.first().copied()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.acted
    }

    /// One acts, and another one that the Lease names would take over.
    pub(crate) fn steady(&self) -> bool {
        let settled = self.lease.as_ref().is_some_and(|lease| !Record::read(lease).settling);
        settled && self.actor().is_some_and(|actor| self.processes[actor].published.standby_synced)
    }

    fn check(&mut self) {
        let Some(actor) = self.actor() else { return };
        let (epoch, life) = (self.processes[actor].published.epoch, self.processes[actor].life);
        let first = *self.actors.entry(epoch).or_insert((actor, life));
        let seed = self.seed;
        assert_eq!(first, (actor, life), "seed {seed}: two in epoch {epoch} at {} us", self.now);
        assert!(epoch >= self.acted, "seed {seed}: epoch {epoch} after {}", self.acted);
        if self.verbose && epoch > self.acted {
            println!("{:>12} us: {actor} acts in epoch {epoch}", self.now);
        }
        self.acted = epoch;
    }

    pub(crate) fn run_until(&mut self, until: u64) {
        self.run_while(until, |_| true);
        self.now = self.now.max(until);
    }

    pub(crate) fn run_while(&mut self, until: u64, goes_on: impl Fn(&Self) -> bool) {
        while goes_on(self) {
            let Some(Reverse((at, order))) = self.queue.peek().copied() else { return };
            if at > until {
                return;
            }
            self.queue.pop();
            self.now = at;
            if let Some(event) = self.events.remove(&order) {
                if self.verbose && !matches!(event, Event::Wake(..) | Event::Arrive { .. }) {
                    println!("{at:>12} us: {event:.120?}");
                }
                self.happen(event);
                self.check();
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(process, wake) => {
                if self.processes[process].wake == wake {
                    self.step(process);
                }
            }
            Event::Request { from, call, write } => self.request(from, call, write),
            Event::Answer { to, call, input } => {
                if self.is_life(to) && self.processes[to.0].call == Some(call) {
                    self.processes[to.0].call = None;
                    let input = match *input {
                        Answered::Read(lease) => Input::Read(Ok(lease)),
                        Answered::Wrote(started, result) => Input::Wrote(started, result),
                        Answered::Failed => Input::Read(Err(())),
                    };
                    self.input(to.0, input);
                }
            }
            Event::Late { of, call } => {
                if self.is_life(of) && self.processes[of.0].call == Some(call) {
                    self.processes[of.0].call = None;
                    self.input(of.0, Input::Read(Err(())));
                }
            }
            Event::Arrive { connection, to_leader } => self.arrive(connection, to_leader),
            Event::Start(process) => self.start(process),
            Event::Crash(process) => self.crash(process),
            Event::Terminate(process) => self.terminate(process),
            Event::GiveBack(process, life) => self.give_back(process, life),
            Event::Pause(process, long) => self.pause(process, long),
            Event::Stall(process, long) => {
                self.processes[process].stalled_until = self.now + long;
                self.at(self.now + long, Event::Resume(process));
            }
            Event::Resume(process) => self.step(process),
            Event::Reset(pick) => self.reset(pick),
            Event::Delete => self.lease = None,
            Event::Edit(what) => self.edit(what),
        }
    }

    pub(crate) fn is_life(&self, (process, life): (usize, u64)) -> bool {
        self.processes[process].life == life && self.processes[process].election.is_some()
    }

    fn start(&mut self, process: usize) {
        if self.processes[process].ending {
            return self.at(self.now + SECOND, Event::Start(process));
        }
        if self.processes[process].election.is_some() {
            return;
        }
        let key = format!("{:x}", self.random());
        let port = 7000 + u16::try_from(process).unwrap();
        let peer = Peer { address: ([10, 0, 0, 1], port).into(), key };
        let config = ElectionConfig::new("ns", "lease", &format!("c{process}"));
        let (seed, clock) = (self.random() << 16, self.clock(process));
        let mut election = Election::new(config, Some(peer), seed, clock);
        election.set_synced(true);
        let p = &mut self.processes[process];
        p.life += 1;
        p.election = Some(election);
        p.published = Leadership::default();
        p.paused_until = 0;
        p.stalled_until = 0;
        p.inbox.clear();
        p.call = None;
        self.step(process);
    }

    /// The process is gone; its kernel closes its connections.
    pub(crate) fn crash(&mut self, process: usize) {
        let life = self.processes[process].life;
        if self.processes[process].election.take().is_none() {
            return;
        }
        self.processes[process].ending = false;
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            let connection = &self.connections[&id];
            if connection.leader == (process, life) {
                self.send(id, false, Packet::Fin);
            } else if connection.standby == (process, life) {
                self.send(id, true, Packet::Fin);
            }
        }
    }

    /// Stops leading as on SIGTERM, and leaves the Lease to the standby for a while.
    pub(crate) fn terminate(&mut self, process: usize) {
        if !self.is_awake(process) || self.processes[process].ending {
            return;
        }
        let Some(election) = self.processes[process].election.as_mut() else { return };
        let left_to = election.stop();
        self.processes[process].published = Leadership::default();
        self.processes[process].ending = true;
        self.effects(process);
        // The standby leaves the connection when it has taken the Lease, or for another reason.
        let long = if left_to.is_some() { self.below(SECOND) } else { 0 };
        let life = self.processes[process].life;
        self.at(self.now + long, Event::GiveBack(process, life));
    }

    fn give_back(&mut self, process: usize, life: u64) {
        if !self.is_life((process, life)) {
            return;
        }
        if self.now < self.processes[process].paused_until {
            let later = self.processes[process].paused_until;
            return self.at(later, Event::GiveBack(process, life));
        }
        let wall = self.wall(process);
        let reaches = self.reaches(process);
        let Some(election) = self.processes[process].election.as_mut() else { return };
        let mut released = election.release(wall);
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        if released.is_some() && released.as_ref().map(version) != self.lease.as_ref().map(version)
        {
            // A renewal was under way: the record is looked at once more.
            let again = self.lease.as_ref().zip(self.processes[process].election.as_ref());
            released = again.and_then(|(now, election)| election.release_again(now, wall));
        }
        if let Some(lease) = released.filter(|_| reaches) {
            self.store(lease);
        }
        if let Some(election) = self.processes[process].election.as_mut() {
            election.released();
        }
        self.effects(process);
        self.crash(process);
    }

    pub(crate) fn pause(&mut self, process: usize, long: u64) {
        self.processes[process].paused_until = self.now + long;
        self.at(self.now + long, Event::Resume(process));
    }

    fn edit(&mut self, what: u64) {
        let Some(mut lease) = self.lease.clone() else { return };
        let spec = lease.spec.get_or_insert_default();
        let epoch = spec.lease_transitions.unwrap_or(0);
        match what % 7 {
            0 => spec.holder_identity = Some(String::new()),
            1 => spec.holder_identity = Some(format!("c{}", what % 3)),
            2 => spec.lease_transitions = Some(epoch - 2),
            3 => spec.lease_transitions = Some(epoch + 3),
            4 => spec.lease_duration_seconds = Some(0),
            5 => spec.lease_duration_seconds = Some(100_000),
            _ => {
                lease.metadata.annotations = None;
            }
        }
        self.edited = true;
        self.store(lease);
    }

    fn store(&mut self, mut lease: Lease) -> Lease {
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease.clone());
        lease
    }

    pub(crate) fn input(&mut self, process: usize, input: Input) {
        self.processes[process].inbox.push_back(input);
        self.step(process);
    }

    /// A process takes what came in, and does what is due.
    fn step(&mut self, process: usize) {
        let process_state = &self.processes[process];
        let busy = process_state.stalled_until > self.now || process_state.ending;
        if !self.is_awake(process) || busy {
            return;
        }
        let (clock, wall) = (self.clock(process), self.wall(process));
        loop {
            let p = &mut self.processes[process];
            let Some(election) = p.election.as_mut() else { return };
            election.tick(clock);
            let input = p.inbox.pop_front();
            let last = input.is_none();
            let mut write = None;
            match input {
                None => {}
                Some(Input::Read(Ok(found))) => write = election.read(found, clock, wall),
                Some(Input::Read(Err(()))) => election.failed(false, clock),
                Some(Input::Wrote(started, Ok(lease))) => election.wrote(lease, started, clock),
                Some(Input::Wrote(_, Err(conflict))) => election.failed(conflict, clock),
                Some(Input::Told(id, line)) => election.told(id, line),
                Some(Input::Gone(id)) => election.gone(id),
                Some(Input::Heard(session, line)) => election.heard(session, &line, clock),
                Some(Input::Ended(session, how)) => election.disconnected(session, how, clock),
            }
            if last && p.call.is_none() && clock >= election.next_look() {
                write = election.renewal(clock, wall);
                if write.is_none() {
                    self.call(process, None);
                }
            }
            if let Some(write) = write {
                self.call(process, Some(Box::new((write, clock))));
            }
            self.effects(process);
            if last {
                break;
            }
        }
        let p = &mut self.processes[process];
        let Some(election) = p.election.as_mut() else { return };
        p.published = election.leadership(clock);
        let mut wake = election.wake(clock);
        if p.call.is_none() {
            wake = wake.min(election.next_look());
        }
        p.wake += 1;
        let generation = p.wake;
        let at = self.when(process, wake).max(self.now + 1);
        let late = self.below(2 * MS);
        self.at(at + late, Event::Wake(process, generation));
    }

    fn call(&mut self, process: usize, write: Option<Box<(Write, Instant)>>) {
        self.calls += 1;
        let (call, life) = (self.calls, self.processes[process].life);
        self.processes[process].call = Some(call);
        if let Some(delay) = self.delay() {
            self.at(self.now + delay, Event::Request { from: (process, life), call, write });
        }
        let limit = 2 * SECOND * 1_000 / self.processes[process].rate;
        self.at(self.now + limit, Event::Late { of: (process, life), call });
    }

    /// How long a message takes; `None` if it is lost.
    pub(crate) fn delay(&mut self) -> Option<u64> {
        let luck = self.below(1_000);
        if luck < self.trouble {
            return None;
        }
        if luck < 2 * self.trouble {
            return Some(self.below(4 * SECOND));
        }
        Some(MS + self.below(8 * MS))
    }

    fn request(&mut self, from: (usize, u64), call: u64, write: Option<Box<(Write, Instant)>>) {
        if !self.reaches(from.0) {
            if self.below(2) == 0 {
                let input = Box::new(Answered::Failed);
                self.at(self.now + MS, Event::Answer { to: from, call, input });
            }
            return;
        }
        let answered = match write.map(|write| *write) {
            None => Answered::Read(self.lease.clone()),
            Some((Write::Create(lease), started)) => {
                let free = self.lease.is_none();
                Answered::Wrote(started, if free { Ok(self.store(lease)) } else { Err(true) })
            }
            Some((Write::Update(lease), started)) => {
                let version = |lease: &Lease| lease.metadata.resource_version.clone();
                let same = self.lease.as_ref().map(version) == Some(version(&lease));
                Answered::Wrote(started, if same { Ok(self.store(lease)) } else { Err(true) })
            }
        };
        if let Some(delay) = self.delay() {
            let input = Box::new(answered);
            self.at(self.now + delay, Event::Answer { to: from, call, input });
        }
    }
}
