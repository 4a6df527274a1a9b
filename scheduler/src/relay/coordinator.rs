//! The leading relay without I/O: which pod is decided next, where it goes, what is bound.
//!
//! Decisions are made one after the other, each on the state that all earlier ones have left, as
//! in kube-scheduler. One message carries the reservations of the last pods and the evaluation of
//! the next, in this order. Equal pods that wait one behind the other are decided in one round:
//! shards look ahead, and from their answers follows for each pod how things are once those before
//! it have been placed. Binds go on beside it, many at once.
//!
//! What holds whatever is lost, late or dead: a pod is in the queue, in the open round, in a bind,
//! or settled; a reservation whose fate is unknown is released or left to expire, never assumed to
//! be free; no pod is declared unschedulable unless every shard has said so; and nobody is evicted
//! unless every shard has been asked where it costs least.

mod answers;
mod binds;
mod dossier;
mod pools;
mod preemption;
mod rounds;
mod volumes;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use self::pools::Pooled;
use self::preemption::{Contender, Eviction};
use self::volumes::Mounting;
use super::evict::Order;
use super::mount::MountOrder;
use super::nominations::Nominations;
use super::pods::{Intake, Pods};
use super::report::Report;
use super::shards::Shards;
use crate::core::directory::{Directory, Key};
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::core::pod::{PodRequest, PodUid};
use crate::core::preempt::Budget;
use crate::core::queue::{Attempt, Depths, Moment, Queue, QueueConfig};
use crate::core::survey::Survey;
use crate::core::volumes::late::Plan;
use crate::core::volumes::storage::Storage;
use crate::metrics::Metrics;
use crate::protocol::{Operation, PodId, Request, Reservation, Target};

/// A new leader waits this long for all shards before it goes on with those that answer.
const GATHER: Duration = Duration::from_secs(5);
/// Shards hear from the leader at least this often.
const IDLE: Duration = Duration::from_secs(1);
/// Pause before ties' lots are drawn anew.
const REDRAW: Duration = Duration::from_secs(1);
/// Pods of one class decided in one round.
const BATCH: usize = 128;
/// A pod whose reservation is refused is evaluated again at once this many times.
const AGAIN: u32 = 3;
/// A bind is repeated to a shard that restarts for this long after it was made: the shard's watch
/// may lag behind by this much.
const RECENT: Duration = Duration::from_mins(1);
/// Binds remembered for it.
const MAX_RECENT: usize = 100_000;

/// Classes remembered to need a survey; the memory starts anew when it is full.
const MAX_MINDED: usize = 4096;

/// What a relay needs to lead.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// All shards.
    pub membership: Membership,
    /// Relays that may stand between.
    pub relays: Vec<Arc<str>>,
    /// Binds under way at once.
    pub max_binds: usize,
    /// How long an exchange may take.
    pub deadline: Duration,
    /// The queue's times.
    pub queue: QueueConfig,
    /// Whether the surroundings hand in namespaces, Services, owners and budgets: then nothing is
    /// decided before all of them are known.
    pub await_directory: bool,
    /// Where ties' lots come from.
    pub seed: u64,
}

/// What the surroundings have to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send this and give the answer to [`Coordinator::exchanged`].
    Exchange {
        /// Tells answers apart.
        id: u64,
        /// The message.
        request: Request,
    },
    /// Bind and give the outcome to [`Coordinator::bound`].
    Bind {
        /// Which pod.
        pod: PodId,
        /// Where.
        node: Arc<str>,
    },
    /// Have pods leave a node, and give the outcome to [`Coordinator::evicted`].
    Evict(Box<Order>),
    /// Give a pod's claims their volumes, and the outcome to [`Coordinator::mounted`].
    Mount(Box<MountOrder>),
    /// Tell the cluster.
    Report(Report),
    /// List the pods that wait anew: there is room for those that were left out.
    List,
}

/// A pod with a node, not reserved yet.
#[derive(Debug)]
struct Chosen {
    attempt: Attempt,
    id: PodId,
    node: Arc<str>,
    /// The node's shard.
    owner: Arc<str>,
    /// What was evaluated.
    class: Arc<PodRequest>,
    begun: Moment,
    refusals: u32,
    /// What becomes of its claims that wait for the node.
    plan: Option<Arc<Plan>>,
}

#[derive(Debug)]
struct Evaluated {
    attempt: Attempt,
    /// The pod's request with all that hangs on other objects.
    class: Arc<PodRequest>,
    begun: Moment,
    refusals: u32,
}

/// What all shards are asked.
#[derive(Debug)]
enum Question {
    /// Where pods of one class fit. More than one only if none of them is promised a node.
    Evaluate(Vec<Evaluated>),
    /// Where pods of several classes fit. None of them is promised a node, nor is any other pod.
    Pool(Pooled),
    /// Where evicting others makes room for a pod.
    Preempt(Box<Contender>),
}

#[derive(Debug)]
struct Round {
    id: u64,
    targets: Vec<Target>,
    told: Vec<(Arc<str>, Operation)>,
    reserve: Vec<(Chosen, Reservation)>,
    question: Option<Question>,
    /// What the shards were given with it: one for each class; none for a class without rules.
    surveys: Vec<Arc<Survey>>,
    /// Whether the shards are surveyed for it first.
    surveying: bool,
    /// Whether the only pod is evaluated twice: on the node that it is promised, then on all.
    promised: bool,
    /// How many times a shard had joined when it began.
    joins: u64,
}

/// Whether a class is asked about beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    /// Where it can be.
    Others,
    /// Not now: a pool had no node for it.
    None,
}

/// A question for which all shards have been surveyed.
#[derive(Debug)]
struct Surveyed {
    question: Question,
    /// One for each class.
    surveys: Vec<Arc<Survey>>,
    /// The shards that are in it.
    targets: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Binding {
    attempt: Attempt,
    reservation: Reservation,
    /// The node's shard.
    owner: Arc<str>,
    begun: Moment,
}

#[derive(Debug)]
struct Recent {
    until: Moment,
    reservation: Reservation,
    bound: bool,
}

/// The state of a relay, leading or standing by.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    metrics: Metrics,
    queue: Queue,
    pods: Pods,
    shards: Shards,
    /// How many times a shard has joined.
    joins: u64,
    term: Option<u64>,
    gather_until: Moment,
    next_id: u64,
    greeting: Option<(u64, Vec<Target>)>,
    round: Option<Round>,
    surveyed: Option<Surveyed>,
    directory: Directory,
    storage: Storage,
    /// Classes without rules of their own that needed a survey all the same, by address.
    minded: HashMap<usize, Arc<PodRequest>>,
    /// How the pods that come next are asked about.
    company: Company,
    /// Whether some node's hostname isn't its name.
    odd_hostnames: bool,
    again: VecDeque<Evaluated>,
    /// Pods that fit nowhere unless others go; asked about before any other pod is.
    contenders: VecDeque<Box<Contender>>,
    nominations: Nominations,
    budgets: HashMap<Key, Budget>,
    budgets_known: bool,
    /// The budgets as they travel; made anew when they have changed.
    budget_list: Option<Arc<[Budget]>>,
    evictions: HashMap<PodUid, Eviction>,
    chosen: Vec<Chosen>,
    binds: HashMap<PodUid, Binding>,
    /// Pods that have a node and wait for their volumes.
    mounting: HashMap<PodUid, Mounting>,
    mounts_checked: Moment,
    recent: VecDeque<Recent>,
    last_round: Moment,
    /// What nodes' lots are drawn by, and since when.
    lots: u64,
    drawn: Moment,
    draining: bool,
}

impl Coordinator {
    /// A relay that stands by.
    #[must_use]
    pub fn new(config: CoordinatorConfig, metrics: Metrics) -> Self {
        Self {
            queue: Queue::new(config.queue),
            shards: Shards::new(config.membership.names().cloned()),
            pods: Pods::default(),
            metrics,
            joins: 0,
            term: None,
            gather_until: Moment::ZERO,
            next_id: 0,
            greeting: None,
            round: None,
            surveyed: None,
            directory: Directory::default(),
            storage: Storage::default(),
            minded: HashMap::default(),
            company: Company::Others,
            odd_hostnames: false,
            again: VecDeque::new(),
            contenders: VecDeque::new(),
            nominations: Nominations::default(),
            budgets: HashMap::default(),
            budgets_known: false,
            budget_list: None,
            evictions: HashMap::default(),
            chosen: Vec::new(),
            binds: HashMap::default(),
            mounting: HashMap::default(),
            mounts_checked: Moment::ZERO,
            recent: VecDeque::new(),
            last_round: Moment::ZERO,
            lots: config.seed,
            drawn: Moment::ZERO,
            draining: false,
            config,
        }
    }

    /// We lead from now on, in this term.
    pub fn lead(&mut self, now: Moment, term: u64) {
        self.term = Some(term);
        self.gather_until = now + GATHER;
        self.shards.reset();
    }

    /// We lead no more. Binds under way end as they may.
    pub fn step_down(&mut self, now: Moment) {
        self.term = None;
        match self.surveyed.take().map(|surveyed| surveyed.question) {
            Some(Question::Evaluate(pods)) => self.again.extend(pods),
            Some(Question::Pool(pooled)) => self.again.extend(pooled.into_pods()),
            Some(Question::Preempt(contender)) => self.contenders.push_back(contender),
            None => {}
        }
        self.again.extend(self.contenders.drain(..).map(|contender| contender.pod));
        self.nominations.revert_all();
        for again in std::mem::take(&mut self.again) {
            self.queue.retry(again.attempt.pod.uid, now);
        }
        for chosen in std::mem::take(&mut self.chosen) {
            self.abandon(now, &chosen);
        }
        self.give_up_mounts(now);
    }

    /// Begin nothing new; binds under way end.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing is under way any more.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let deciding = self.round.is_some() || self.surveyed.is_some();
        let acting = !self.binds.is_empty() || !self.evictions.is_empty();
        !acting && !deciding && self.chosen.is_empty()
    }

    /// How many pods are where.
    #[must_use]
    pub fn depths(&self) -> Depths {
        self.queue.depths()
    }

    /// Pods that the apiserver has and that are not held, for there are too many.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.pods.left_out()
    }

    /// How many shards answer, and of how many.
    #[must_use]
    pub fn shards_up(&self) -> (usize, usize) {
        (self.shards.up(), self.shards.len())
    }

    /// Binds under way.
    #[must_use]
    pub fn binds_in_flight(&self) -> usize {
        self.binds.len()
    }

    /// Takes over what the watch of waiting pods shows.
    pub fn intake(&mut self, now: Moment, intake: Intake) {
        match intake {
            Intake::Directory(change) => self.directory.apply(change),
            Intake::Budgets(news) => self.budgets_changed(news),
            Intake::Storage(change) => self.stored(now, *change),
            other => self.pods.take(&mut self.queue, &mut self.nominations, now, other),
        }
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        // In a relay that stands by, too: its pods go as the leader binds them.
        if self.pods.wants_list(self.queue.max_pending(), now) {
            actions.push(Action::List);
        }
        let Some(term) = self.term else { return actions };
        if self.greeting.is_none()
            && let Some((targets, operations)) = self.shards.greeting(now)
        {
            let id = self.id();
            self.greeting = Some((id, targets.clone()));
            let request = self.request(term, targets, operations);
            actions.push(Action::Exchange { id, request });
        }
        actions.extend(self.check_mounts(now));
        if self.round.is_none() {
            actions.extend(self.next_round(now, term));
        }
        actions
    }

    /// When [`Self::poll`] has something to do though nothing happens.
    #[must_use]
    pub fn next_wake(&self, now: Moment) -> Moment {
        let idle = now + IDLE;
        if self.term.is_none() {
            return idle;
        }
        let greeting = if self.greeting.is_none() { self.shards.next_greeting() } else { None };
        if self.round.is_none() && self.surveyed.is_some() {
            return now;
        }
        let ready = self.round.is_none() && self.may_evaluate(now, 0);
        let queue = if ready { self.queue.next_wake() } else { None };
        let gathered = (now < self.gather_until).then_some(self.gather_until);
        [greeting, queue, gathered].into_iter().flatten().min().map_or(idle, |at| at.min(idle))
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn request(&self, term: u64, targets: Vec<Target>, operations: Vec<Operation>) -> Request {
        Request {
            term,
            membership: self.config.membership.fingerprint(),
            targets,
            relays: self.config.relays.clone(),
            deadline: self.config.deadline,
            operations,
        }
    }

    /// Nodes draw anew, so that a pod whose bind fails doesn't meet the same node again and again.
    /// Not more often than each second: shards draw for all their nodes at once.
    fn redraw(&mut self, now: Moment) {
        if now >= self.drawn + REDRAW {
            self.drawn = now;
            self.lots = self.lot();
        }
    }

    /// `SplitMix64`: the seeds need no secrecy, only to differ.
    fn lot(&mut self) -> u64 {
        self.config.seed = self.config.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut lot = self.config.seed;
        lot = (lot ^ (lot >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        lot = (lot ^ (lot >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        lot ^ (lot >> 31)
    }
}

impl Chosen {
    fn reservation(&self, token: u64) -> Reservation {
        Reservation {
            token,
            pod: self.id.clone(),
            node: self.node.clone(),
            class: self.class.clone(),
        }
    }
}
