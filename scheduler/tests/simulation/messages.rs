//! Messages through the tree of relays, and binds: lost, late, or answered too late.

use std::sync::Arc;

use megacluster_scheduler::protocol::{PodId, Refusal, Request, Response};
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::Action;
use megacluster_scheduler::relay::tree::{self, Branch};
use rand::RngExt;

use crate::world::{Event, Exchange, Simulation};
use crate::{ms, number};

impl Simulation {
    /// Cuts a message as the relays of the tree would, down to the shards.
    pub(crate) fn leaves(&self, request: &Request, found: &mut Vec<Request>) {
        for part in tree::split(request, &self.membership, 2) {
            match part.to {
                Branch::Shard(_) => found.push(part.request),
                Branch::Relay(_) => self.leaves(&part.request, found),
            }
        }
    }

    /// Puts the answers together as the relays of the tree would.
    pub(crate) fn gather(
        &self,
        request: &Request,
        leaves: &mut impl Iterator<Item = Response>,
    ) -> Response {
        let mut answered = Vec::new();
        for part in tree::split(request, &self.membership, 2) {
            let response = match part.to {
                Branch::Shard(_) => leaves.next().expect("one for each leaf"),
                Branch::Relay(_) => self.gather(&part.request, leaves),
            };
            answered.push((part.places, response));
        }
        tree::join(&request.operations, answered)
    }

    pub(crate) fn send(&mut self, relay: usize, run: u64, id: u64, request: Request) {
        let mut leaves = Vec::new();
        self.leaves(&request, &mut leaves);
        self.next_exchange += 1;
        let exchange = self.next_exchange;
        for leaf in 0..leaves.len() {
            // Lost, or so late that nobody waits for it: it may still be carried out.
            if self.faulty(20) {
                continue;
            }
            let late = if self.faulty(20) { 1500 } else { 0 };
            let after = ms(late + self.random.random_range(1..5));
            self.at(after, Event::Arrive { exchange, leaf });
        }
        let deadline = request.deadline;
        let leaves = leaves.into_iter().map(|request| (request, None)).collect();
        self.exchanges.insert(exchange, Exchange { relay, run, id, request, leaves });
        self.at(deadline, Event::Deadline { exchange });
    }

    pub(crate) fn answer(&mut self, exchange: u64) {
        let Some(found) = self.exchanges.remove(&exchange) else { return };
        let silent = Refusal::Unreachable("silent".to_owned());
        let mut leaves = found.leaves.into_iter().map(|(request, response)| {
            response.unwrap_or_else(|| Response::refused(&request.targets, &silent))
        });
        let response = self.gather(&found.request, &mut leaves);
        let Some(relay) = &mut self.relays[found.relay] else { return };
        if relay.run == found.run {
            let complete = Self::may_evict(&found.request, &response);
            let actions = relay.state.coordinator.exchanged(self.now, found.id, response);
            let evicts = actions.iter().any(|action| matches!(action, Action::Evict(_)));
            assert!(!evicts || complete, "{:?}: evicts without every shard's word", self.now);
            self.act(found.relay, found.run, actions);
        }
    }

    pub(crate) fn bind(&mut self, relay: usize, run: u64, pod: PodId, node: &Arc<str>) {
        let node = node.to_string();
        let fenced = self.relays[relay].as_ref().is_some_and(|relay| relay.state.fenced);
        let number = number(&pod);
        let answer = ms(self.random.random_range(5..50));
        if fenced || self.faulty(30) {
            let outcome = Some(BindOutcome::Refused("not sent".to_owned()));
            self.at(answer, Event::BindEnds { relay, run, pod, outcome, node });
        } else if self.faulty(60) {
            // Unanswered: carried out at once, later than the relay waits, or never.
            if self.chance(700) {
                let late = ms(self.random.random_range(1..8_000));
                self.at(late, Event::BindArrives { pod: number, node: node.clone() });
            }
            let outcome = Some(BindOutcome::Unknown("unanswered".to_owned()));
            let after = ms(self.random.random_range(500..6_000));
            self.at(after, Event::BindEnds { relay, run, pod, outcome, node });
        } else {
            self.at(answer, Event::BindEnds { relay, run, pod, outcome: None, node });
        }
    }

    pub(crate) fn arrive(&mut self, exchange: u64, leaf: usize) {
        // An exchange that nobody waits for any more is carried out all the same.
        let Some(found) = self.exchanges.get(&exchange) else { return };
        let request = found.leaves[leaf].0.clone();
        let name = &request.targets[0].shard;
        let shard = self.shards.iter_mut().flatten().find(|shard| shard.state.name() == name);
        let Some(shard) = shard else { return };
        let response = shard.state.exchange(self.now, &request);
        self.transcript.says(self.now, leaf, &response);
        if !self.faulty(20) {
            let after = ms(self.random.random_range(1..5));
            self.at(after, Event::Answer { exchange, leaf, response });
        }
    }
}
