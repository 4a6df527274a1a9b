//! Metrics, under etcd's names where they mean the same, so that dashboards and alerts made for
//! etcd show the truth.

mod process;

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::core::{Command, Status};

type Int = Gauge<i64, AtomicI64>;

/// All metrics of the store.
#[derive(Debug)]
pub struct Metrics {
    ranges: Counter,
    puts: Counter,
    deletes: Counter,
    txns: Counter,
    granted: Counter,
    revoked: Counter,
    renewed: Counter,
    revision: Int,
    compacted: Int,
    keys: Int,
    size: Int,
    size_in_use: Int,
    watchers: Int,
    streams: Int,
    leases: Int,
    proposals: Int,
    quota: Int,
    expired: Counter,
    fsync: Histogram,
    /// From the first byte handed to the log until a batch is durable for its class, in seconds.
    pub commit: Histogram,
    /// Events handed to watch streams.
    pub events: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Requests refused because the queue was full.
    pub shed: Counter,
}

impl Metrics {
    /// Makes the metrics and registers them. `version` goes into `etcd_server_version`'s place.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            ranges: Counter::default(),
            puts: Counter::default(),
            deletes: Counter::default(),
            txns: Counter::default(),
            granted: Counter::default(),
            revoked: Counter::default(),
            renewed: Counter::default(),
            revision: Int::default(),
            compacted: Int::default(),
            keys: Int::default(),
            size: Int::default(),
            size_in_use: Int::default(),
            watchers: Int::default(),
            streams: Int::default(),
            leases: Int::default(),
            proposals: Int::default(),
            quota: Int::default(),
            expired: Counter::default(),
            // etcd's own buckets.
            fsync: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            commit: Histogram::new(exponential_buckets(0.000_016, 2.0, 18)),
            events: Counter::default(),
            connections: Counter::default(),
            handshakes_failed: Counter::default(),
            shed: Counter::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let one = Int::default();
        one.set(1);
        registry.register(
            "etcd_server_has_leader",
            "Always 1: one member leads itself",
            one.clone(),
        );
        registry.register(
            "etcd_server_is_leader",
            "Always 1: one member leads itself",
            one.clone(),
        );
        registry.register("etcd_server_is_learner", "Always 0", Int::default());
        for (name, help) in [
            ("etcd_server_leader_changes_seen", "Always 0: there is no election"),
            ("etcd_server_proposals_failed", "Always 0: nothing is proposed to others"),
        ] {
            registry.register(name, help, Counter::<u64>::default());
        }
        for (name, label, version) in [
            ("etcd_server_version", "server_version", crate::api::ETCD_VERSION),
            ("etcd_cluster_version", "cluster_version", "3.6"),
        ] {
            let family = Family::<[(&'static str, &'static str); 1], Int>::default();
            family.get_or_create(&[(label, version)]).set(1);
            registry.register(name, "1 for the version of etcd that is offered", family);
        }
        registry.register("etcd_server_proposals_pending", "Always 0", Int::default());
        registry.register_collector(Box::new(process::Process));
        for (name, help, counter) in [
            ("etcd_mvcc_range", "Ranges", &self.ranges),
            ("etcd_mvcc_put", "Puts outside transactions", &self.puts),
            ("etcd_mvcc_delete", "Range deletes outside transactions", &self.deletes),
            ("etcd_mvcc_txn", "Transactions", &self.txns),
            ("etcd_debugging_lease_granted", "Leases granted", &self.granted),
            ("etcd_debugging_lease_revoked", "Leases revoked by clients", &self.revoked),
            ("etcd_debugging_lease_renewed", "Leases renewed", &self.renewed),
            (
                "etcd_debugging_server_lease_expired",
                "Leases that ended by themselves",
                &self.expired,
            ),
            ("etcd_debugging_mvcc_events", "Events sent to watchers", &self.events),
            ("megacluster_store_connections", "Connections accepted", &self.connections),
            (
                "megacluster_store_handshakes_failed",
                "TLS handshakes that failed",
                &self.handshakes_failed,
            ),
            ("megacluster_store_shed", "Requests refused by a full queue", &self.shed),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("etcd_debugging_mvcc_current_revision", "Current revision", &self.revision),
            ("etcd_debugging_mvcc_compact_revision", "Compacted revision", &self.compacted),
            ("etcd_debugging_mvcc_keys_total", "Live keys", &self.keys),
            ("etcd_mvcc_db_total_size_in_bytes", "Bytes of all versions", &self.size),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "The same", &self.size_in_use),
            ("etcd_debugging_mvcc_watcher_total", "Watchers", &self.watchers),
            ("etcd_debugging_mvcc_watch_stream_total", "Watch streams", &self.streams),
            ("megacluster_store_leases", "Leases", &self.leases),
            ("etcd_server_quota_backend_bytes", "The quota; 0 is none", &self.quota),
            // Gauges in etcd too, for all their names.
            ("etcd_server_proposals_committed_total", "Batches made durable", &self.proposals),
            ("etcd_server_proposals_applied_total", "The same", &self.proposals),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "etcd_disk_wal_fsync_duration_seconds",
            "Seconds of a sync of the log that writes waited for",
            self.fsync.clone(),
        );
        registry.register(
            "megacluster_store_commit_seconds",
            "Seconds to make a batch durable for its class",
            self.commit.clone(),
        );
    }

    /// The quota, once it is known.
    pub fn set_quota(&self, bytes: usize) {
        self.quota.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Leases that ended by themselves.
    pub fn count_expired(&self, leases: usize) {
        self.expired.inc_by(leases as u64);
    }

    /// A sync of the log that writes waited for.
    pub fn observe_fsync(&self, took: Duration) {
        self.fsync.observe(took.as_secs_f64());
    }

    /// A batch that is durable.
    pub fn count_batch(&self) {
        self.proposals.inc();
    }

    /// Counts a command.
    pub fn count(&self, command: &Command) {
        let counter = match command {
            Command::Range(_) => &self.ranges,
            Command::Put(_) => &self.puts,
            Command::Delete(_) => &self.deletes,
            Command::Txn(_) => &self.txns,
            Command::LeaseGrant { .. } => &self.granted,
            Command::LeaseRevoke(_) => &self.revoked,
            Command::LeaseRenew(_) => &self.renewed,
            _ => return,
        };
        counter.inc();
    }

    /// Takes over sizes and revisions.
    pub fn report(&self, status: &Status, streams: usize) {
        let int = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.revision.set(status.revision);
        self.compacted.set(status.compacted);
        self.keys.set(int(status.keys));
        self.size.set(int(status.bytes));
        self.size_in_use.set(int(status.bytes));
        self.watchers.set(int(status.watchers));
        self.streams.set(int(streams));
        self.leases.set(int(status.leases));
    }
}
