//! A shard behind a lock, with the clock: what watches feed and relays ask.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::machine::{ShardMachine, Time};
use crate::metrics::{Metrics, labels};
use crate::protocol::transport::Serve;
use crate::protocol::{Request, Response};

/// A shard of this process.
#[derive(Debug)]
pub struct LocalShard {
    name: Arc<str>,
    machine: Mutex<ShardMachine>,
    begun: Instant,
    metrics: Metrics,
}

impl LocalShard {
    /// Puts the shard behind a lock.
    #[must_use]
    pub fn new(machine: ShardMachine, metrics: Metrics) -> Self {
        let name = machine.name().clone();
        Self { name, machine: Mutex::new(machine), begun: Instant::now(), metrics }
    }

    /// The shard's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The time as the shard counts it.
    #[must_use]
    pub fn now(&self) -> Time {
        self.begun.elapsed()
    }

    /// The shard itself. Held for the time of one change or one message, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, ShardMachine> {
        self.machine.lock()
    }

    /// Brings the gauges up to date.
    pub fn observe(&self) {
        let (nodes, pods, reservations) = {
            let machine = self.machine.lock();
            (machine.table().node_count(), machine.table().pod_count(), machine.reservations())
        };
        let labels = labels([("shard", &self.name)]);
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.shard_nodes.get_or_create(&labels).set(gauge(nodes));
        self.metrics.shard_pods.get_or_create(&labels).set(gauge(pods));
        self.metrics.reservations.get_or_create(&labels).set(gauge(reservations));
    }
}

impl Serve for LocalShard {
    async fn exchange(&self, request: Request) -> Response {
        let response = self.machine.lock().exchange(self.now(), &request);
        for refusal in response.shards.iter().filter_map(|report| report.refusal.as_ref()) {
            let labels = labels([("shard", &self.name), ("reason", refusal.label())]);
            self.metrics.refusals.get_or_create(&labels).inc();
        }
        response
    }
}
