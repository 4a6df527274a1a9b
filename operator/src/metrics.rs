//! Metrics of the operator.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Why a reconcile failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    reason: &'static str,
}

/// Counters of the operator; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    durations: Histogram,
    failures: Family<Failure, Counter>,
    in_flight: Gauge,
    retrying: Gauge,
    leader: Gauge,
    watch_failures: Counter,
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            // 10 ms to 40 s: the lower end is a reconcile that writes nothing.
            durations: Histogram::new(exponential_buckets(0.01, 2.0, 13)),
            failures: Family::default(),
            in_flight: Gauge::default(),
            retrying: Gauge::default(),
            leader: Gauge::default(),
            watch_failures: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("megacluster_operator");
        registry.register(
            "reconcile_duration_seconds",
            "Time of each reconcile, failed ones too",
            metrics.durations.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed reconciles by reason",
            metrics.failures.clone(),
        );
        registry.register(
            "reconciles_in_flight",
            "Reconciles that run now",
            metrics.in_flight.clone(),
        );
        registry.register(
            "clusters_retrying",
            "MegaClusters whose last reconcile failed, in the queue for another try",
            metrics.retrying.clone(),
        );
        registry.register("leader", "Whether this process leads", metrics.leader.clone());
        registry.register(
            "watch_errors",
            "Failures of the watches that trigger reconciles",
            metrics.watch_failures.clone(),
        );
        metrics
    }

    /// Notes that a reconcile has begun; dropping the guard ends it.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight { metrics: Arc::new(self.clone()), began: std::time::Instant::now() }
    }

    /// Counts a failed reconcile.
    pub fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&Failure { reason }).inc();
    }

    /// Sets how many clusters wait for another try.
    pub fn retrying(&self, clusters: usize) {
        self.retrying.set(i64::try_from(clusters).unwrap_or(i64::MAX));
    }

    /// Sets whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self) {
        self.watch_failures.inc();
    }

    fn end(&self, took: Duration) {
        self.in_flight.dec();
        self.durations.observe(took.as_secs_f64());
    }
}

/// A reconcile that runs.
#[derive(Debug)]
pub struct InFlight {
    metrics: Arc<Metrics>,
    began: std::time::Instant,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.end(self.began.elapsed());
    }
}
