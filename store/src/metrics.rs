//! Metrics, under etcd's names where they mean the same, so that dashboards and alerts made for
//! etcd show the truth.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
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
        registry.register("etcd_server_is_leader", "Always 1: one member leads itself", one);
        for (name, help, counter) in [
            ("etcd_mvcc_range", "Ranges", &self.ranges),
            ("etcd_mvcc_put", "Puts outside transactions", &self.puts),
            ("etcd_mvcc_delete", "Range deletes outside transactions", &self.deletes),
            ("etcd_mvcc_txn", "Transactions", &self.txns),
            ("etcd_debugging_lease_granted", "Leases granted", &self.granted),
            ("etcd_debugging_lease_revoked", "Leases revoked by clients", &self.revoked),
            ("etcd_debugging_lease_renewed", "Leases renewed", &self.renewed),
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
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "megacluster_store_commit_seconds",
            "Seconds to make a batch durable for its class",
            self.commit.clone(),
        );
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
