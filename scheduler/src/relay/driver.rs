//! Runs a [`Coordinator`] with a clock, a watch, a Lease and an apiserver: no logic of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use megacluster_service::admin::Readiness;
use megacluster_service::leadership::Leadership;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bind::{BindLimits, BindOutcome, bind};
use super::connections::Requests;
use super::coordinator::{Action, Coordinator};
use super::evict::{EvictLimits, EvictOutcome, evict};
use super::explain::Question;
use super::fanout::Fanout;
use super::mount::{MountOrder, MountOutcome, mount};
use super::pods::Intake;
use super::report::Reporter;
use crate::metrics::{Metrics, labels};
use crate::protocol::transport::Serve;
use crate::protocol::{PodId, Response};

/// Binds that wait for their turn for longer than this are given back.
const BIND_TURN: Duration = Duration::from_secs(15);
/// A drain ends after this long, whatever is still under way.
const DRAIN: Duration = Duration::from_secs(20);
/// Pods taken from the watch before other things get their turn.
const INTAKE_BATCH: usize = 256;
/// What has ended, taken before the next step.
const DONE_BATCH: usize = 64;

/// What a relay acts through.
#[expect(missing_debug_implementations, reason = "a client has none")]
pub struct Surroundings {
    /// The way to the shards.
    pub fanout: Arc<Fanout>,
    /// The apiserver.
    pub requests: Requests,
    /// Binds sent at once.
    pub bind_concurrency: usize,
    /// How long a bind may take.
    pub limits: BindLimits,
    /// Events and conditions.
    pub reporter: Reporter,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// `/readyz`
    pub readiness: Readiness,
    /// Counters.
    pub metrics: Metrics,
    /// Has the pods that wait listed anew.
    pub list: Arc<Notify>,
    /// Questions about waiting pods.
    pub questions: mpsc::Receiver<Question>,
}

enum Done {
    Exchange { id: u64, response: Response },
    Bind { pod: PodId, outcome: BindOutcome },
    Evict { pod: PodId, outcome: EvictOutcome },
    Mount { order: Box<MountOrder>, outcome: MountOutcome },
}

/// Runs until `token` is cancelled and what was under way then has ended.
pub async fn run(
    mut coordinator: Coordinator,
    mut surroundings: Surroundings,
    mut intake: mpsc::Receiver<Intake>,
    token: CancellationToken,
) {
    let begun = Instant::now();
    let (done_sender, mut done) = mpsc::channel(1024);
    let (no_questions, mut questions) = mpsc::channel(1);
    drop(no_questions);
    std::mem::swap(&mut questions, &mut surroundings.questions);
    let pending = &surroundings.metrics.pending;
    let queues = QUEUES.map(|queue| pending.get_or_create_owned(&labels([("queue", queue)])));
    let driver = Driver {
        turns: Arc::new(Semaphore::new(surroundings.bind_concurrency)),
        done: done_sender,
        queues,
        surroundings,
    };
    let mut leadership = driver.surroundings.leadership.clone();
    let mut term = None;
    let mut drain_until: Option<Instant> = None;
    let mut batch = Vec::with_capacity(INTAKE_BATCH);
    let mut actions = Vec::new();
    let mut ended = Vec::with_capacity(DONE_BATCH);
    driver.surroundings.readiness.set("pending-pods", false);
    loop {
        let now = begun.elapsed();
        let leads = leadership.borrow_and_update().clone();
        let new_term = leads.may_act().then_some(leads.epoch);
        if new_term != term {
            term = new_term;
            driver.leads(&mut coordinator, now, term);
        }
        // The next message first: the shards work on it while the binds of the last one begin.
        for action in coordinator.poll(now).into_iter().chain(actions) {
            driver.start(action);
        }
        coordinator.prepare(now);
        driver.observe(&coordinator);
        if let Some(until) = drain_until
            && (coordinator.is_idle() || Instant::now() >= until)
        {
            return;
        }
        let wake = coordinator.next_wake(now).saturating_sub(now).max(Duration::from_millis(1));
        actions = tokio::select! {
            biased;
            () = token.cancelled(), if drain_until.is_none() => {
                coordinator.drain();
                drain_until = Some(Instant::now() + DRAIN);
                Vec::new()
            }
            _ = done.recv_many(&mut ended, DONE_BATCH) => {
                let now = begun.elapsed();
                ended.drain(..).flat_map(|done| take(&mut coordinator, now, done)).collect()
            },
            count = intake.recv_many(&mut batch, INTAKE_BATCH), if !intake.is_closed() => {
                let now = begun.elapsed();
                for item in batch.drain(..) {
                    if matches!(item, Intake::End) {
                        driver.surroundings.readiness.set("pending-pods", true);
                    }
                    coordinator.intake(now, item);
                }
                if count == 0 { intake.close(); }
                Vec::new()
            }
            Ok(()) = leadership.changed() => Vec::new(),
            Some(Question { namespace, name, answer }) = questions.recv() => {
                // Who asked may have gone.
                drop(answer.send(coordinator.dossier(&namespace, &name)));
                Vec::new()
            }
            () = tokio::time::sleep(wake) => Vec::new(),
        };
    }
}

fn take(coordinator: &mut Coordinator, now: Duration, done: Done) -> Vec<Action> {
    match done {
        Done::Exchange { id, response } => coordinator.exchanged(now, id, response),
        Done::Bind { pod, outcome } => coordinator.bound(now, &pod, outcome),
        Done::Mount { order, outcome } => coordinator.mounted(now, &order, outcome),
        Done::Evict { pod, outcome } => coordinator.evicted(now, &pod, outcome),
    }
}

/// The parts of the queue, by their labels.
const QUEUES: [&str; 4] = ["active", "backoff", "unschedulable", "gated"];

struct Driver {
    surroundings: Surroundings,
    /// Looked up once: they are set after each step.
    queues: [Gauge; 4],
    turns: Arc<Semaphore>,
    done: mpsc::Sender<Done>,
}

impl Driver {
    fn leads(&self, coordinator: &mut Coordinator, now: Duration, term: Option<u64>) {
        self.surroundings.metrics.leader.set(i64::from(term.is_some()));
        if let Some(term) = term {
            info!(term, "leading");
            coordinator.lead(now, term);
        } else {
            warn!("not leading any more");
            coordinator.step_down(now);
        }
    }

    fn start(&self, action: Action) {
        let done = self.done.clone();
        match action {
            Action::Report(report) => self.surroundings.reporter.report(report),
            Action::List => self.surroundings.list.notify_one(),
            Action::Exchange { id, request } => {
                let fanout = self.surroundings.fanout.clone();
                tokio::spawn(async move {
                    let response = fanout.exchange(request).await;
                    // Only fails when the relay has ended.
                    drop(done.send(Done::Exchange { id, response }).await);
                });
            }
            Action::Evict(order) => {
                let client = self.surroundings.requests.client().clone();
                let leadership = self.surroundings.leadership.clone();
                tokio::spawn(async move {
                    // As for a bind: a leader that was asleep must not act on what it knew.
                    let may_act = || leadership.borrow().may_act();
                    let outcome = evict(&client, &order, EvictLimits::default(), &may_act).await;
                    let pod = order.preemptor.clone();
                    drop(done.send(Done::Evict { pod, outcome }).await);
                });
            }
            Action::Mount(order) => {
                let client = self.surroundings.requests.client().clone();
                let leadership = self.surroundings.leadership.clone();
                tokio::spawn(async move {
                    let may_act = || leadership.borrow().may_act();
                    let outcome = mount(&client, &order, &may_act).await;
                    drop(done.send(Done::Mount { order, outcome }).await);
                });
            }
            Action::Bind { pod, node } => {
                let task = BindTask {
                    requests: self.surroundings.requests.clone(),
                    turns: self.turns.clone(),
                    leadership: self.surroundings.leadership.clone(),
                    limits: self.surroundings.limits,
                    seconds: self.surroundings.metrics.bind_seconds.clone(),
                };
                tokio::spawn(async move {
                    let outcome = task.run(&pod, &node).await;
                    drop(done.send(Done::Bind { pod, outcome }).await);
                });
            }
        }
    }

    fn observe(&self, coordinator: &Coordinator) {
        let metrics = &self.surroundings.metrics;
        let depths = coordinator.depths();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let pods = [depths.active, depths.backoff, depths.unschedulable, depths.gated];
        for (queue, pods) in self.queues.iter().zip(pods) {
            queue.set(gauge(pods));
        }
        metrics.left_out.set(gauge(coordinator.left_out()));
        metrics.binds.set(gauge(coordinator.binds_in_flight()));
    }
}

struct BindTask {
    requests: Requests,
    turns: Arc<Semaphore>,
    leadership: watch::Receiver<Leadership>,
    limits: BindLimits,
    seconds: Histogram,
}

impl BindTask {
    async fn run(self, pod: &PodId, node: &str) -> BindOutcome {
        let Ok(Ok(_turn)) = tokio::time::timeout(BIND_TURN, self.turns.acquire()).await else {
            return BindOutcome::Refused("too many binds before this one".to_owned());
        };
        // A leader that was asleep must not act on what it knew.
        if !self.leadership.borrow().may_act() {
            return BindOutcome::Refused("no longer the leader".to_owned());
        }
        let begun = Instant::now();
        let outcome = bind(&self.requests, pod, node, self.limits).await;
        self.seconds.observe(begun.elapsed().as_secs_f64());
        outcome
    }
}
