//! What the leading relay knows of each shard: whether it answers, in which run, and what it still
//! has to be told.
//!
//! A shard that does not answer is left out of the next messages, so that it delays nobody, and is
//! greeted again after a pause. One that has restarted has lost its reservations: it hears them
//! again before it is asked anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::core::event::EventSet;
use crate::core::maps::HashMap;
use crate::core::queue::Moment;
use crate::protocol::{Incarnation, Operation, Refusal, ShardReport, Target};

/// The first pause before a silent shard is greeted again; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);
/// Pause where the shard answers but is not ready.
const NOT_READY: Duration = Duration::from_millis(200);
/// Operations to one shard in one message.
const CHUNK: usize = 1000;
/// Confirmations and releases that wait for one shard. What is dropped beyond is only late: the
/// shard finds out by itself when the reservation expires.
const OUTBOX: usize = 50_000;

#[derive(Debug)]
enum Phase {
    /// Not asked. Greeted again at this time.
    Down(Moment),
    /// Answers; these reservations are repeated to it first.
    Joining(VecDeque<Operation>),
    /// Asked.
    Up,
}

#[derive(Debug)]
struct Shard {
    name: Arc<str>,
    phase: Phase,
    incarnation: Incarnation,
    changes: u64,
    /// Whether its pods keep others away from more than their own nodes, as last heard.
    keeps_domains_free: bool,
    /// Whether it knows pools, as last heard.
    pools: bool,
    pause: Duration,
    outbox: VecDeque<Operation>,
}

/// Something about a shard worth a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It answers and is asked.
    Joined,
    /// It answers in a new run: repeat what it has to know.
    Restarted,
    /// It is left out.
    Lost(Refusal),
}

/// All shards.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<Shard>,
    index: HashMap<Arc<str>, usize>,
}

impl Shards {
    /// Shards by name, none of which has been heard of.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let fresh = |name| Shard {
            name,
            phase: Phase::Down(Moment::ZERO),
            incarnation: 0,
            changes: 0,
            keeps_domains_free: false,
            pools: false,
            pause: FIRST,
            outbox: VecDeque::new(),
        };
        let shards: Vec<Shard> = names.into_iter().map(fresh).collect();
        let index = shards.iter().enumerate().map(|(i, shard)| (shard.name.clone(), i)).collect();
        Self { shards, index }
    }

    /// Forgets which shards answer: each is greeted anew.
    pub fn reset(&mut self) {
        for shard in &mut self.shards {
            shard.phase = Phase::Down(Moment::ZERO);
            shard.incarnation = 0;
            shard.changes = 0;
            shard.pause = FIRST;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// How many are asked.
    #[must_use]
    pub fn up(&self) -> usize {
        self.shards.iter().filter(|shard| matches!(shard.phase, Phase::Up)).count()
    }

    /// Whether a shard that isn't asked is known to have pods whose rules hold on other shards'
    /// nodes.
    #[must_use]
    pub fn silent_rules(&self) -> bool {
        let silent = |shard: &Shard| !matches!(shard.phase, Phase::Up);
        self.shards.iter().any(|shard| silent(shard) && shard.keeps_domains_free)
    }

    /// Whether every shard is asked and knows pools.
    #[must_use]
    pub fn know_pools(&self) -> bool {
        self.shards.iter().all(|shard| matches!(shard.phase, Phase::Up) && shard.pools)
    }

    /// Whether this one is asked.
    #[must_use]
    pub fn is_up(&self, name: &str) -> bool {
        self.find(name).is_some_and(|shard| matches!(shard.phase, Phase::Up))
    }

    /// All that are asked, as targets.
    #[must_use]
    pub fn up_targets(&self) -> Vec<Target> {
        let up = |shard: &&Shard| matches!(shard.phase, Phase::Up);
        self.shards.iter().filter(up).map(Shard::target).collect()
    }

    /// Queues a confirmation or release.
    pub fn tell(&mut self, name: &str, operation: Operation) {
        if let Some(shard) = self.find_mut(name)
            && shard.outbox.len() < OUTBOX
        {
            shard.outbox.push_back(operation);
        }
    }

    /// Whether something waits for a shard that is asked.
    #[must_use]
    pub fn has_outbox(&self) -> bool {
        let waits = |shard: &Shard| matches!(shard.phase, Phase::Up) && !shard.outbox.is_empty();
        self.shards.iter().any(waits)
    }

    /// Takes what waits for the shards that are asked, with the shards' names.
    pub fn take_outbox(&mut self) -> Vec<(Arc<str>, Operation)> {
        let mut taken = Vec::new();
        for shard in &mut self.shards {
            if matches!(shard.phase, Phase::Up) {
                let some = shard.outbox.len().min(CHUNK);
                taken.extend(shard.outbox.drain(..some).map(|o| (shard.name.clone(), o)));
            }
        }
        taken
    }

    /// The shards to greet now, with what they have to hear first.
    #[must_use]
    pub fn greeting(&self, now: Moment) -> Option<(Vec<Target>, Vec<Operation>)> {
        let mut targets = Vec::new();
        let mut operations = Vec::new();
        for shard in &self.shards {
            match &shard.phase {
                Phase::Down(at) if *at <= now => targets.push(shard.target()),
                Phase::Joining(restore) => {
                    targets.push(shard.target());
                    operations.extend(restore.iter().take(CHUNK).cloned());
                }
                Phase::Down(_) | Phase::Up => {}
            }
        }
        (!targets.is_empty()).then_some((targets, operations))
    }

    /// When a shard is to be greeted next; in the past where one is due.
    #[must_use]
    pub fn next_greeting(&self) -> Option<Moment> {
        let at = |shard: &Shard| match &shard.phase {
            Phase::Down(at) => Some(*at),
            Phase::Joining(_) => Some(Moment::ZERO),
            Phase::Up => None,
        };
        self.shards.iter().filter_map(at).min()
    }

    /// Takes over what a shard said to a greeting.
    pub fn greeted(&mut self, now: Moment, report: &ShardReport) -> Option<Change> {
        if report.refusal.is_some() {
            return self.heard(now, report).1;
        }
        let shard = self.find_mut(&report.shard)?;
        shard.incarnation = report.incarnation;
        shard.changes = report.changes;
        shard.keeps_domains_free = report.keeps_domains_free;
        shard.pools = report.pools;
        shard.pause = FIRST;
        if let Phase::Joining(restore) = &mut shard.phase {
            restore.drain(..restore.len().min(CHUNK));
            if !restore.is_empty() {
                return None;
            }
        }
        shard.phase = Phase::Up;
        Some(Change::Joined)
    }

    /// Takes over what a shard reported: what may help waiting pods, and what became of the shard.
    pub fn heard(&mut self, now: Moment, report: &ShardReport) -> (EventSet, Option<Change>) {
        let Some(shard) = self.find_mut(&report.shard) else { return (EventSet::EMPTY, None) };
        let Some(refusal) = &report.refusal else {
            shard.changes = report.changes;
            shard.keeps_domains_free = report.keeps_domains_free;
            shard.pools = report.pools;
            return (report.events, None);
        };
        let pause = match refusal {
            Refusal::NewIncarnation => {
                shard.incarnation = report.incarnation;
                shard.changes = 0;
                shard.phase = Phase::Joining(VecDeque::new());
                return (EventSet::ALL, Some(Change::Restarted));
            }
            Refusal::NotSynced => NOT_READY,
            Refusal::Unreachable(_)
            | Refusal::StaleTerm { .. }
            | Refusal::StaleMembership { .. }
            | Refusal::Malformed(_) => {
                let pause = shard.pause;
                shard.pause = (pause * 2).min(LONGEST);
                pause
            }
        };
        if matches!(shard.phase, Phase::Joining(_)) {
            // It may not have heard all that it has to. As one that is unknown it hears it anew.
            shard.incarnation = 0;
        }
        let news = match &shard.phase {
            Phase::Down(_) => None,
            Phase::Joining(_) | Phase::Up => Some(Change::Lost(refusal.clone())),
        };
        shard.phase = Phase::Down(now + pause);
        (EventSet::EMPTY, news)
    }

    /// What a shard that has restarted has to hear before it is asked.
    pub fn restore(&mut self, name: &str, operations: VecDeque<Operation>) {
        if let Some(shard) = self.find_mut(name)
            && matches!(shard.phase, Phase::Joining(_))
        {
            shard.phase = Phase::Joining(operations);
        }
    }

    fn find(&self, name: &str) -> Option<&Shard> {
        self.index.get(name).map(|index| &self.shards[*index])
    }

    fn find_mut(&mut self, name: &str) -> Option<&mut Shard> {
        self.index.get(name).map(|index| &mut self.shards[*index])
    }
}

impl Shard {
    fn target(&self) -> Target {
        Target { shard: self.name.clone(), incarnation: self.incarnation, changes: self.changes }
    }
}
