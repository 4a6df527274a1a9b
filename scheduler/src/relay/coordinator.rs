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
mod preemption;
mod volumes;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

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
use crate::core::nominate::Nominee;
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
    /// What the shards were given with it.
    survey: Option<Arc<Survey>>,
    /// Whether the shards are surveyed for it first.
    surveying: bool,
    /// Whether the only pod is evaluated twice: on the node that it is promised, then on all.
    promised: bool,
}

/// A question for which all shards have been surveyed.
#[derive(Debug)]
struct Surveyed {
    question: Question,
    survey: Arc<Survey>,
    /// The shards that are in it.
    targets: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Binding {
    attempt: Attempt,
    reservation: Reservation,
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
            term: None,
            gather_until: Moment::ZERO,
            next_id: 0,
            greeting: None,
            round: None,
            surveyed: None,
            directory: Directory::default(),
            storage: Storage::default(),
            minded: HashMap::default(),
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

    fn next_round(&mut self, now: Moment, term: u64) -> Option<Action> {
        let reserve = self.takeable_choices(now);
        let (question, survey) = self.next_question(now, reserve.len());
        let told = self.shards.take_outbox();
        let idle = now >= self.last_round + IDLE && self.shards.up() > 0;
        if reserve.is_empty() && question.is_none() && told.is_empty() && !idle {
            return None;
        }
        let id = self.id();
        // Grows with the round, and with the term: a term is a revision of the store, of which
        // there is at least one for each million rounds.
        let token = (term << 20).wrapping_add(id);
        let with_reservation = |chosen: Chosen| {
            let reservation = chosen.reservation(token);
            (chosen, reservation)
        };
        let reserve: Vec<_> = reserve.into_iter().map(with_reservation).collect();
        let mut operations: Vec<Operation> = told.iter().map(|(_, o)| o.clone()).collect();
        operations.extend(reserve.iter().map(|(_, r)| Operation::Reserve(r.clone())));
        let surveying = survey.is_none() && question.as_ref().is_some_and(|q| self.needs_survey(q));
        let before = operations.len();
        match &question {
            None => {}
            Some(Question::Evaluate(pods)) => {
                self.ask_evaluation(pods, &reserve, surveying, survey.clone(), &mut operations);
            }
            Some(Question::Preempt(contender)) => {
                self.ask_preemption(contender, &reserve, survey.clone(), &mut operations);
            }
        }
        let promised = operations.len() > before + 1;
        let mut targets = self.shards.up_targets();
        if question.is_none() && !idle {
            let owner = |chosen: &Chosen| self.config.membership.owner(&chosen.node);
            targets.retain(|target| {
                told.iter().any(|(name, _)| *name == target.shard)
                    || reserve.iter().any(|(chosen, _)| owner(chosen) == Some(&target.shard))
            });
        }
        let request = self.request(term, targets.clone(), operations);
        self.last_round = now;
        self.round =
            Some(Round { id, targets, told, reserve, question, survey, surveying, promised });
        Some(Action::Exchange { id, request })
    }

    /// One operation, or two for a pod that is promised a node: that node first.
    fn ask_evaluation(
        &mut self,
        pods: &[Evaluated],
        reserve: &[(Chosen, Reservation)],
        surveying: bool,
        survey: Option<Arc<Survey>>,
        operations: &mut Vec<Operation>,
    ) {
        let Some(first) = pods.first() else { return };
        let class = first.class.clone();
        let nominees = self.nominees(&class, first.attempt.pod.uid, reserve);
        if surveying {
            // Beside nominees single nodes count.
            let full = self.odd_hostnames || !nominees.is_empty();
            operations.push(Operation::Survey { class, full });
            return;
        }
        let seed = self.lots;
        if let Some(only) = self.promised_alone(first) {
            let (survey, nominees) = (survey.clone(), nominees.clone());
            operations.push(Operation::Evaluate { class: only, seed, count: 1, survey, nominees });
        }
        let count = u32::try_from(pods.len()).unwrap_or(u32::MAX);
        operations.push(Operation::Evaluate { class, seed, count, survey, nominees });
    }

    /// The pods that one of this class has to yield to on the nodes that they are promised.
    fn nominees(
        &self,
        class: &PodRequest,
        uid: PodUid,
        reserve: &[(Chosen, Reservation)],
    ) -> Arc<[Nominee]> {
        let reserving =
            |uid: PodUid| reserve.iter().any(|(chosen, _)| chosen.attempt.pod.uid == uid);
        self.nominations.of_at_least(class.priority, |other| {
            other != uid && self.pods.is_waiting(other) && !reserving(other)
        })
    }

    /// The pod's class on the node that it is promised, and nowhere else (`evaluateNominatedNode`).
    fn promised_alone(&self, pod: &Evaluated) -> Option<Arc<PodRequest>> {
        let node = self.nominations.node(pod.attempt.pod.uid)?;
        if pod.class.pinned.as_ref().is_some_and(|pinned| !pinned.contains(node)) {
            return None;
        }
        let mut class = PodRequest::clone(&pod.class);
        class.pinned = Some(vec![node.clone()]);
        Some(Arc::new(class))
    }

    fn takeable_choices(&mut self, now: Moment) -> Vec<Chosen> {
        let mut takeable = Vec::new();
        for chosen in std::mem::take(&mut self.chosen) {
            let owner = self.config.membership.owner(&chosen.node);
            let usable = owner.is_some_and(|owner| self.shards.is_up(owner));
            if usable && self.pods.is_waiting(chosen.attempt.pod.uid) {
                takeable.push(chosen);
            } else {
                self.abandon(now, &chosen);
            }
        }
        takeable
    }

    /// The question whose survey is there, or the next one.
    fn next_question(
        &mut self,
        now: Moment,
        reserving: usize,
    ) -> (Option<Question>, Option<Arc<Survey>>) {
        if let Some(Surveyed { question, survey, targets }) = self.surveyed.take() {
            let up = self.shards.up_targets();
            if up.iter().all(|target| targets.contains(&target.shard))
                && self.suits(&question, &survey)
            {
                return (Some(question), Some(survey));
            }
            // A shard has come since, and its pods aren't in the survey; or a pod was promised a
            // node.
            self.ask_again(question);
        }
        if !self.contenders.is_empty() && self.may_evaluate(now, reserving) {
            return (self.contenders.pop_front().map(Question::Preempt), None);
        }
        let pods = self.next_pods(now, reserving);
        ((!pods.is_empty()).then_some(Question::Evaluate(pods)), None)
    }

    fn ask_again(&mut self, question: Question) {
        match question {
            Question::Evaluate(pods) => {
                for pod in pods.into_iter().rev() {
                    self.again.push_front(pod);
                }
            }
            Question::Preempt(contender) => self.contenders.push_front(contender),
        }
    }

    fn suits(&self, question: &Question, survey: &Survey) -> bool {
        let Question::Evaluate(pods) = question else { return true };
        let Some(first) = pods.first() else { return true };
        survey.full || self.nominees(&first.class, first.attempt.pod.uid, &[]).is_empty()
    }

    fn needs_survey(&self, question: &Question) -> bool {
        let Question::Evaluate(pods) = question else { return true };
        let minds = |class: &Arc<PodRequest>| {
            class.minds_others() || self.minded.contains_key(&Arc::as_ptr(class).addr())
        };
        pods.first().is_some_and(|first| minds(&first.class))
    }

    fn may_evaluate(&self, now: Moment, reserving: usize) -> bool {
        let known = self.directory.is_complete() && self.budgets_known;
        let known = known && self.storage.is_complete();
        if self.config.await_directory && !known {
            return false;
        }
        let up = self.shards.up();
        let gathering = up < self.shards.len() && now < self.gather_until;
        let acting = self.binds.len() + self.evictions.len() + reserving;
        let full = acting >= self.config.max_binds;
        !(self.draining || up == 0 || gathering || full)
    }

    /// The next pods, all of one class.
    fn next_pods(&mut self, now: Moment, reserving: usize) -> Vec<Evaluated> {
        let mut pods: Vec<Evaluated> = Vec::new();
        while pods.len() < BATCH && self.may_evaluate(now, reserving + pods.len()) {
            let like = pods.first().map(|first| first.attempt.pod.uid);
            let Some(next) = self.next_pod(like, now) else { break };
            let promised = |pod: &Evaluated| self.nominations.node(pod.attempt.pod.uid).is_some();
            let same = |first: &Evaluated| {
                // The next sees what becomes of the claims of the one before.
                !promised(first)
                    && first.class.volumes.late.is_none()
                    && !promised(&next)
                    && (Arc::ptr_eq(&first.class, &next.class) || first.class == next.class)
            };
            if !pods.first().is_none_or(same) {
                self.again.push_front(next);
                break;
            }
            pods.push(next);
        }
        pods
    }

    /// The next pod, one that asks for the same as `like` first.
    fn next_pod(&mut self, like: Option<PodUid>, now: Moment) -> Option<Evaluated> {
        loop {
            let mut next = if let Some(again) = self.again.pop_front() {
                again
            } else {
                let alike = like.and_then(|first| self.queue.pop_like(first, now));
                let attempt = alike.or_else(|| self.queue.pop(now))?;
                let class = attempt.pod.request.clone();
                Evaluated { attempt, class, begun: now, refusals: 0 }
            };
            next.class = self.resolve(&next.attempt.pod.request);
            let uid = next.attempt.pod.uid;
            let acting = self.binds.contains_key(&uid) || self.mounting.contains_key(&uid);
            let free = !acting && !self.evictions.contains_key(&uid);
            if self.pods.is_waiting(uid) && free {
                return Some(next);
            }
            self.queue.done(uid, now);
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
