//! Sends a message down the tree and puts the answers together. The leading relay and the relays
//! between it and the shards do the same.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::tree::{self, Branch, Part};
use crate::core::membership::Membership;
use crate::metrics::{Metrics, labels};
use crate::protocol::transport::{Peer, Serve};
use crate::protocol::{Refusal, Request, Response};
use crate::shard::local::LocalShard;

/// A relay that did not answer is left out of the tree for this long.
const OPEN: Duration = Duration::from_secs(2);
/// What a relay keeps back of its own deadline, so that its answer about a silent shard arrives
/// before its parent gives the relay up: a part of this many.
const KEEP_BACK: u32 = 5;

/// A shard as a relay reaches it.
#[derive(Clone, Debug)]
pub enum Shard {
    /// In this process.
    Local(Arc<LocalShard>),
    /// At the other end of a connection.
    Remote(Peer),
}

#[derive(Debug)]
struct Relay {
    peer: Peer,
    open_until: Mutex<Option<Instant>>,
}

/// All that can stand below a relay.
#[derive(Debug)]
pub struct Fanout {
    membership: Membership,
    shards: HashMap<Arc<str>, Shard>,
    relays: HashMap<Arc<str>, Relay>,
    fan_out: usize,
    metrics: Metrics,
}

impl Fanout {
    /// Children by name.
    #[must_use]
    pub fn new(
        membership: Membership,
        shards: HashMap<Arc<str>, Shard>,
        relays: HashMap<Arc<str>, Peer>,
        fan_out: usize,
        metrics: Metrics,
    ) -> Self {
        let relay = |(name, peer)| (name, Relay { peer, open_until: Mutex::new(None) });
        let relays = relays.into_iter().map(relay).collect();
        Self { membership, shards, relays, fan_out: fan_out.max(1), metrics }
    }

    /// Relays that may stand between this one and the shards, sorted by name.
    #[must_use]
    pub fn relay_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.relays.keys().cloned().collect();
        names.sort();
        names
    }

    fn is_open(&self, relay: &str) -> bool {
        let Some(relay) = self.relays.get(relay) else { return true };
        relay.open_until.lock().is_some_and(|until| Instant::now() < until)
    }

    async fn send(&self, part: &Part) -> Response {
        let request = &part.request;
        let begun = Instant::now();
        let (child, response) = match &part.to {
            Branch::Shard(name) => match self.shards.get(name) {
                Some(Shard::Local(shard)) => (name, shard.exchange(request.clone()).await),
                Some(Shard::Remote(peer)) => (name, peer.exchange(request).await),
                None => {
                    let refusal = Refusal::Malformed(format!("no shard {name} is known here"));
                    (name, Response::refused(&request.targets, &refusal))
                }
            },
            Branch::Relay(name) => (name, self.send_to_relay(name, request).await),
        };
        self.observe(child, begun.elapsed(), &response);
        response
    }

    async fn send_to_relay(&self, name: &Arc<str>, request: &Request) -> Response {
        let Some(relay) = self.relays.get(name) else {
            let refusal = Refusal::Unreachable(format!("no relay {name} is known here"));
            return Response::refused(&request.targets, &refusal);
        };
        let response = relay.peer.exchange(request).await;
        // The peer makes such a report for every target only where the relay itself is silent; a
        // relay that reports all its shards as silent may as well be the one that is cut off.
        let silent = |report: &crate::protocol::ShardReport| {
            matches!(report.refusal, Some(Refusal::Unreachable(_)))
        };
        if response.shards.iter().all(silent) {
            warn!(relay = %name, "relay left out of the tree");
            *relay.open_until.lock() = Some(Instant::now() + OPEN);
        }
        response
    }

    fn observe(&self, child: &str, took: Duration, response: &Response) {
        let child_label = labels([("child", child)]);
        let mut refused = false;
        for report in &response.shards {
            if let Some(refusal) = &report.refusal {
                refused = true;
                let labels = labels([("child", child), ("reason", refusal.label())]);
                self.metrics.exchange_failures.get_or_create(&labels).inc();
            }
        }
        if !refused {
            self.metrics.exchange_seconds.get_or_create(&child_label).observe(took.as_secs_f64());
        }
        self.metrics.child_up.get_or_create(&child_label).set(i64::from(!refused));
    }
}

impl Serve for Fanout {
    async fn exchange(&self, mut request: Request) -> Response {
        request.relays.retain(|relay| !self.is_open(relay));
        let operations = request.operations.len();
        let mut parts = tree::split(&request, &self.membership, self.fan_out);
        let kept = request.deadline - request.deadline / KEEP_BACK;
        for part in &mut parts {
            part.request.deadline = kept;
        }
        let responses = join_all(parts.iter().map(|part| self.send(part))).await;
        let answered =
            parts.iter().map(|part| part.places.clone()).zip(responses).collect::<Vec<_>>();
        tree::join(operations, answered)
    }
}
