//! Metrics: kube-scheduler's own names where they mean the same
//! (`k8s.io/kubernetes/pkg/scheduler/metrics/metrics.go`), `megacluster_scheduler_…` for what only a
//! relay or a shard has.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels as name and value; each metric uses one fixed set of names, and values come from fixed
/// lists or from the configured children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// Labels from pairs.
#[must_use]
pub fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    Labels(pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
}

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// `scheduler_schedule_attempts_total{result,profile}`
    pub attempts: Family<Labels, Counter>,
    /// `scheduler_pending_pods{queue}`
    pub pending: Family<Labels, Gauge>,
    /// `scheduler_scheduling_attempt_duration_seconds{result,profile}`
    pub attempt_seconds: Histograms,
    /// `scheduler_pod_scheduling_sli_duration_seconds{attempts}`
    pub sli_seconds: Histograms,
    /// `scheduler_pod_scheduling_attempts`
    pub pod_attempts: Histogram,
    /// `scheduler_preemption_attempts_total`
    pub preemption_attempts: Counter,
    /// `scheduler_preemption_victims`
    pub preemption_victims: Histogram,
    /// Evictions ended, by what became of them.
    pub evictions: Family<Labels, Counter>,
    /// Whether this relay leads.
    pub leader: Gauge,
    /// Binds under way.
    pub binds: Gauge,
    /// Binds ended, by what became of them.
    pub bind_results: Family<Labels, Counter>,
    /// Seconds from the first request of a bind to its end.
    pub bind_seconds: Histogram,
    /// Decisions made although a shard was missing.
    pub partial: Counter,
    /// Reservations that the owning shard refused.
    pub reserve_refused: Counter,
    /// Exchanges that a child answered, by child.
    pub exchange_seconds: Histograms,
    /// Exchanges without a usable answer, by child and reason.
    pub exchange_failures: Family<Labels, Counter>,
    /// Whether a child is being asked, by child.
    pub child_up: Family<Labels, Gauge>,
    /// Events and conditions written.
    pub reports_written: Counter,
    /// Events and conditions that the apiserver refused or did not answer.
    pub reports_failed: Counter,
    /// Events and conditions dropped at the bound.
    pub reports_dropped: Counter,
    /// Pods that the apiserver has and that are not held, for there are too many.
    pub left_out: Gauge,
    /// Nodes that a shard of this process owns.
    pub shard_nodes: Family<Labels, Gauge>,
    /// Assigned pods on them.
    pub shard_pods: Family<Labels, Gauge>,
    /// Reservations that the watch has not confirmed yet.
    pub reservations: Family<Labels, Gauge>,
    /// Reservations that ended by expiry.
    pub expired: Family<Labels, Counter>,
    /// Whole messages that a shard refused, by shard and reason.
    pub refusals: Family<Labels, Counter>,
    /// Watches that failed and were started again, by resource.
    pub watch_failures: Family<Labels, Counter>,
    /// Members of the families above that each pod counts in.
    often: Arc<Mutex<Often>>,
}

/// Members of families that are looked up once: the labels of each are few.
#[derive(Debug, Default)]
struct Often {
    /// Of `attempts` and `attempt_seconds`, by result and profile.
    attempts: Vec<(&'static str, String, Counter, Histogram)>,
    /// Of `bind_results`.
    binds: Vec<(&'static str, Counter)>,
    /// Of `sli_seconds`, by number of attempts.
    bound: Vec<(u32, Histogram)>,
}

/// Attempts from which on pods are counted together, as `getAttemptsLabel` in
/// `pkg/scheduler/schedule_one.go`.
const MANY_ATTEMPTS: u32 = 15;

fn attempt_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn sli_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

fn exchange_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_02, 2.0, 17))
}

impl Metrics {
    /// Makes the metrics and registers them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        metrics.register_stock(registry.sub_registry_with_prefix("scheduler"));
        metrics.register_relay(registry.sub_registry_with_prefix("megacluster_scheduler"));
        metrics.register_shard(registry.sub_registry_with_prefix("megacluster_scheduler_shard"));
        metrics
    }

    /// Metrics that nobody reads, for tests and simulations.
    #[must_use]
    pub fn unregistered() -> Self {
        Self {
            attempts: Family::default(),
            pending: Family::default(),
            attempt_seconds: Family::new_with_constructor(attempt_histogram as fn() -> Histogram),
            sli_seconds: Family::new_with_constructor(sli_histogram as fn() -> Histogram),
            pod_attempts: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            preemption_attempts: Counter::default(),
            preemption_victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            evictions: Family::default(),
            leader: Gauge::default(),
            binds: Gauge::default(),
            bind_results: Family::default(),
            bind_seconds: attempt_histogram(),
            partial: Counter::default(),
            reserve_refused: Counter::default(),
            exchange_seconds: Family::new_with_constructor(exchange_histogram as fn() -> Histogram),
            exchange_failures: Family::default(),
            child_up: Family::default(),
            reports_written: Counter::default(),
            reports_failed: Counter::default(),
            reports_dropped: Counter::default(),
            left_out: Gauge::default(),
            shard_nodes: Family::default(),
            shard_pods: Family::default(),
            reservations: Family::default(),
            expired: Family::default(),
            refusals: Family::default(),
            watch_failures: Family::default(),
            often: Arc::default(),
        }
    }

    fn register_stock(&self, stock: &mut Registry) {
        stock.register(
            "schedule_attempts",
            "Attempts to schedule pods, by result",
            self.attempts.clone(),
        );
        stock.register("pending_pods", "Pending pods, by queue", self.pending.clone());
        stock.register(
            "scheduling_attempt_duration_seconds",
            "From a pod's leaving the queue to its bind or its refusal",
            self.attempt_seconds.clone(),
        );
        stock.register(
            "pod_scheduling_sli_duration_seconds",
            "From a pod's first entering the queue to its bind, by attempts",
            self.sli_seconds.clone(),
        );
        stock.register(
            "pod_scheduling_attempts",
            "Attempts until a pod is bound",
            self.pod_attempts.clone(),
        );
        stock.register(
            "preemption_attempts",
            "Attempts to make room by evictions",
            self.preemption_attempts.clone(),
        );
        stock.register(
            "preemption_victims",
            "Victims of a preemption",
            self.preemption_victims.clone(),
        );
    }

    fn register_relay(&self, ours: &mut Registry) {
        ours.register(
            "evictions",
            "Preemptions ended, by what became of their evictions",
            self.evictions.clone(),
        );
        ours.register("leader", "1 while this relay leads", self.leader.clone());
        ours.register("binds_in_flight", "Binds under way", self.binds.clone());
        ours.register("binds", "Binds ended, by result", self.bind_results.clone());
        ours.register("bind_duration_seconds", "Duration of binds", self.bind_seconds.clone());
        ours.register(
            "partial_decisions",
            "Decisions made although a shard was missing",
            self.partial.clone(),
        );
        ours.register(
            "reservations_refused",
            "Reservations that the owning shard refused",
            self.reserve_refused.clone(),
        );
        ours.register(
            "exchange_duration_seconds",
            "Duration of answered exchanges, by child",
            self.exchange_seconds.clone(),
        );
        ours.register(
            "exchange_failures",
            "Exchanges without a usable answer, by child and reason",
            self.exchange_failures.clone(),
        );
        ours.register("child_up", "1 while a child is being asked", self.child_up.clone());
        ours.register(
            "reports_written",
            "Events and conditions written",
            self.reports_written.clone(),
        );
        ours.register(
            "reports_failed",
            "Events and conditions that failed",
            self.reports_failed.clone(),
        );
        ours.register(
            "reports_dropped",
            "Events and conditions dropped at the bound",
            self.reports_dropped.clone(),
        );
        ours.register(
            "pods_left_out",
            "Pods without a node that are not held, for there are more than --max-pending-pods",
            self.left_out.clone(),
        );
        ours.register(
            "watch_failures",
            "Watches that failed and were started again, by resource",
            self.watch_failures.clone(),
        );
    }

    fn register_shard(&self, shard: &mut Registry) {
        shard.register("nodes", "Nodes that the shard owns", self.shard_nodes.clone());
        shard.register("pods", "Assigned pods on the shard's nodes", self.shard_pods.clone());
        shard.register(
            "reservations",
            "Reservations that the watch has not confirmed",
            self.reservations.clone(),
        );
        shard.register(
            "reservations_expired",
            "Reservations that ended by expiry",
            self.expired.clone(),
        );
        shard.register("refusals", "Messages refused, by reason", self.refusals.clone());
    }

    /// Counts one attempt of a pod and its duration. `result` is kube-scheduler's label:
    /// `scheduled`, `unschedulable` or `error`.
    pub fn attempt(&self, result: &'static str, profile: &str, took: Duration) {
        let mut often = self.often.lock();
        let all = &mut often.attempts;
        let known = all.iter().position(|(of, by, ..)| *of == result && by == profile);
        let place = known.unwrap_or_else(|| {
            let labels = labels([("result", result), ("profile", profile)]);
            let count = self.attempts.get_or_create_owned(&labels);
            let seconds = self.attempt_seconds.get_or_create_owned(&labels);
            all.push((result, profile.to_owned(), count, seconds));
            all.len() - 1
        });
        let Some((_, _, count, seconds)) = all.get(place) else { return };
        count.inc();
        seconds.observe(took.as_secs_f64());
    }

    /// Counts one bind that has ended, by what became of it.
    pub fn bind_ended(&self, result: &'static str) {
        let mut often = self.often.lock();
        if let Some((_, count)) = often.binds.iter().find(|(of, _)| *of == result) {
            count.inc();
            return;
        }
        let count = self.bind_results.get_or_create_owned(&labels([("result", result)]));
        count.inc();
        often.binds.push((result, count));
    }

    /// Counts a bound pod's whole way, from its first entering the queue.
    pub fn bound(&self, attempts: u32, since_first: Duration) {
        self.pod_attempts.observe(f64::from(attempts));
        let attempts = attempts.min(MANY_ATTEMPTS);
        let mut often = self.often.lock();
        if let Some((_, seconds)) = often.bound.iter().find(|(of, _)| *of == attempts) {
            seconds.observe(since_first.as_secs_f64());
            return;
        }
        let many = attempts == MANY_ATTEMPTS;
        let label = if many { "15+".to_owned() } else { attempts.to_string() };
        let seconds = self.sli_seconds.get_or_create_owned(&Labels(vec![("attempts", label)]));
        seconds.observe(since_first.as_secs_f64());
        often.bound.push((attempts, seconds));
    }
}
