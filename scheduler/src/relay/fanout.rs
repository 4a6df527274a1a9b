//! Sends a message down the tree and puts the answers together. The leading relay and the relays
//! between it and the shards do the same.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::copies::Copies;
use super::tree::{self, Branch, Part};
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::metrics::{Metrics, labels};
use crate::protocol::transport::{Peer, Serve};
use crate::protocol::{Refusal, Request, Response, ShardReport};
use crate::shard::local::LocalShard;

/// A relay that did not answer is left out of the tree for this long at first; each further time
/// doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest that a silent relay is left out.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// With less time than this left nobody is asked any more.
const WORTHWHILE: Duration = Duration::from_millis(20);
/// What a relay keeps back of its own deadline, so that its answer about a silent shard arrives
/// before its parent gives the relay up: a part of this many.
const KEEP_BACK: u32 = 5;

/// A shard as a relay reaches it.
#[derive(Clone, Debug)]
pub enum Shard {
    /// In this process.
    Local(Arc<LocalShard>),
    /// At the other end of connections.
    Remote(Arc<Copies>),
}

#[derive(Debug)]
struct Relay {
    peer: Peer,
    breaker: Mutex<Breaker>,
}

/// Keeps a silent relay out of the tree for longer and longer.
#[derive(Debug, Default)]
struct Breaker {
    until: Option<Instant>,
    pause: Duration,
}

impl Breaker {
    fn open(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Some(Instant::now() + self.pause);
        self.pause
    }

    fn close(&mut self) {
        *self = Self::default();
    }
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
        let relay = |(name, peer)| (name, Relay { peer, breaker: Mutex::default() });
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
        relay.breaker.lock().until.is_some_and(|until| Instant::now() < until)
    }

    async fn send(&self, part: &Part, end: Instant) -> Response {
        match &part.to {
            Branch::Shard(name) => self.send_to_shard(name, &part.request).await,
            Branch::Relay(name) => self.send_to_relay(name, &part.request, end).await,
        }
    }

    async fn send_to_shard(&self, name: &Arc<str>, request: &Request) -> Response {
        let begun = Instant::now();
        let response = match self.shards.get(name) {
            Some(Shard::Local(shard)) => shard.exchange(request.clone()).await,
            Some(Shard::Remote(copies)) => copies.exchange(request).await,
            None => {
                let refusal = Refusal::Malformed(format!("no shard {name} is known here"));
                Response::refused(&request.targets, &refusal)
            }
        };
        self.observe(name, begun.elapsed(), &response);
        response
    }

    /// Where a relay is silent its shards are asked directly, with what time is left. Every
    /// operation may be carried out twice without harm.
    async fn send_to_relay(&self, name: &Arc<str>, request: &Request, end: Instant) -> Response {
        let Some(relay) = self.relays.get(name) else {
            let refusal = Refusal::Unreachable(format!("no relay {name} is known here"));
            return Response::refused(&request.targets, &refusal);
        };
        let begun = Instant::now();
        let response = relay.peer.exchange(request).await;
        self.observe(name, begun.elapsed(), &response);
        let silent = |report: &ShardReport| matches!(report.refusal, Some(Refusal::Unreachable(_)));
        if !response.shards.iter().all(silent) {
            relay.breaker.lock().close();
            return response;
        }
        let pause = relay.breaker.lock().open();
        warn!(relay = %name, ?pause, "relay left out of the tree");
        let left = end.saturating_duration_since(Instant::now());
        if left < WORTHWHILE {
            return response;
        }
        let direct = Request { relays: Vec::new(), deadline: left, ..request.clone() };
        let parts = tree::split(&direct, &self.membership, self.fan_out);
        let ask = async |part: &Part| match &part.to {
            Branch::Shard(shard) => self.send_to_shard(shard, &part.request).await,
            Branch::Relay(_) => Response::refused(
                &part.request.targets,
                &Refusal::Malformed("a tree without relays has none".to_owned()),
            ),
        };
        let responses = join_all(parts.iter().map(ask)).await;
        let places = parts.into_iter().map(|part| part.places);
        tree::join(&request.operations, places.zip(responses).collect())
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
        let end = Instant::now() + request.deadline;
        request.relays.retain(|relay| !self.is_open(relay));
        let mut parts = tree::split(&request, &self.membership, self.fan_out);
        let kept = request.deadline.saturating_sub(request.deadline / KEEP_BACK);
        for part in &mut parts {
            part.request.deadline = kept;
        }
        let responses = join_all(parts.iter().map(|part| self.send(part, end))).await;
        let places = parts.into_iter().map(|part| part.places);
        tree::join(&request.operations, places.zip(responses).collect())
    }
}
