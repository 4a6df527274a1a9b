//! Metrics, under etcd's names where they mean the same, so that dashboards and alerts made for
//! etcd show the truth.

mod grpc;
mod process;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use self::grpc::{Direct, Grpc, Meter, Tally, Ticket};
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
    healthy: Int,
    unhealthy: Int,
    lease_ttl: Histogram,
    hash: Histogram,
    /// What is counted of each gRPC method.
    pub grpc: Arc<Grpc>,
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
            healthy: Int::default(),
            unhealthy: Int::default(),
            lease_ttl: Histogram::new(exponential_buckets(1.0, 2.0, 24)),
            hash: Histogram::new(exponential_buckets(0.01, 2.0, 15)),
            grpc: Arc::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        constants(registry);
        registry.register_collector(Box::new(process::Process));
        registry.register_collector(Box::new(grpc::Shown(self.grpc.clone())));
        // Counters in etcd, with names that are not a counter's here.
        for (name, help, counter) in [
            ("etcd_server_health_success", "Answers of /health that were true", &self.healthy),
            ("etcd_server_health_failures", "Answers of /health that were false", &self.unhealthy),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "etcd_debugging_lease_ttl_total",
            "Seconds of the leases that were asked for",
            self.lease_ttl.clone(),
        );
        registry.register(
            "etcd_mvcc_hash_rev_duration_seconds",
            "Seconds that a HashKV took",
            self.hash.clone(),
        );
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
        // What bbolt's commit is in etcd: until a batch is on disk.
        registry.register(
            "etcd_disk_backend_commit_duration_seconds",
            "Seconds to make a batch durable for its class",
            self.commit.clone(),
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

    /// An answer of `/health`.
    pub fn count_health(&self, healthy: bool) {
        if healthy { &self.healthy } else { &self.unhealthy }.inc();
    }

    /// A `HashKV` that was answered.
    pub fn observe_hash(&self, took: Duration) {
        self.hash.observe(took.as_secs_f64());
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
            Command::LeaseGrant { ttl, .. } => {
                self.lease_ttl
                    .observe(Duration::from_secs(u64::try_from(*ttl).unwrap_or(0)).as_secs_f64());
                &self.granted
            }
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

/// What is the same for every store: of one member, with nobody to ask.
fn constants(registry: &mut Registry) {
    let one = Int::default();
    one.set(1);
    registry.register("etcd_server_has_leader", "Always 1: one member leads itself", one.clone());
    registry.register("etcd_server_is_leader", "Always 1: one member leads itself", one.clone());
    registry.register("etcd_server_is_learner", "Always 0", Int::default());
    for (name, help) in [
        ("etcd_server_leader_changes_seen", "Always 0: there is no election"),
        ("etcd_server_proposals_failed", "Always 0: nothing is proposed to others"),
        ("etcd_server_heartbeat_send_failures", "Always 0: there is no peer"),
        ("etcd_server_read_indexes_failed", "Always 0: no peer is asked before a read"),
        ("etcd_server_slow_read_indexes", "Always 0: no peer is asked before a read"),
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
    for (name, help) in [
        ("etcd_server_proposals_pending", "Always 0"),
        ("etcd_disk_defrag_inflight", "Always 0: there is nothing to defragment"),
    ] {
        registry.register(name, help, Int::default());
    }
}
