//! Messages through the tree of relays, and binds: lost, late, or answered too late.

use std::sync::Arc;

use megacluster_scheduler::protocol::{PodId, Refusal, Request, Response};
use megacluster_scheduler::relay::asking::Asking;
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::coordinator::Action;
use megacluster_scheduler::relay::tree::{self, Branch};
use rand::RngExt;

use crate::world::{Event, Exchange, Leaf, Simulation};
use crate::{COPIES, SHARDS, ms, number};

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
        let mut found = Vec::new();
        self.leaves(&request, &mut found);
        self.next_exchange += 1;
        let exchange = self.next_exchange;
        let active = self.relays[relay].as_ref().map_or([0; SHARDS], |relay| relay.state.active);
        let leaves = found.into_iter().map(|request| {
            let name = &request.targets[0].shard;
            let shard = name.trim_start_matches('s').parse().expect("a shard of ours");
            let asking = Asking::new(COPIES, active[shard], &request);
            let (request, silent) = (Arc::new(request), Vec::new());
            Leaf { request, shard, asking, silent, response: None }
        });
        let leaves: Vec<_> = leaves.collect();
        let (count, deadline, sent) = (leaves.len(), request.deadline, self.now);
        self.exchanges.insert(exchange, Exchange { relay, run, id, request, sent, leaves });
        (0..count).for_each(|leaf| self.ask(exchange, leaf));
        self.at(deadline, Event::Deadline { exchange });
    }

    /// Asks the copies that are to be asked by now, or takes what came of it.
    fn ask(&mut self, exchange: u64, leaf: usize) {
        let Some(found) = self.exchanges.get_mut(&exchange) else { return };
        let elapsed = self.now.saturating_sub(found.sent);
        let Leaf { request, shard, asking, silent, response } = &mut found.leaves[leaf];
        if response.is_some() {
            return;
        }
        if let Some(asked) = asking.take() {
            *response = asked.answer;
            let (relay, run, shard) = (found.relay, found.run, *shard);
            let complete = found.leaves.iter().all(|leaf| leaf.response.is_some());
            if let Some(relay) = self.relays[relay].as_mut().filter(|relay| relay.run == run) {
                relay.state.active[shard] = asked.copy;
            }
            if complete {
                self.answer(exchange);
            }
            return;
        }
        let next: Vec<usize> = asking.next(elapsed).into_iter().map(|(copy, _)| copy).collect();
        silent.extend(&next);
        let (request, wake) = (request.clone(), asking.wake());
        for copy in next {
            // Lost, or so late that nobody waits for it: it is carried out all the same.
            if self.faulty(20) {
                continue;
            }
            let late = if self.faulty(20) { 1500 } else { 0 };
            // Now and then a copy is slow.
            let slow = if self.faulty(20) { self.random.random_range(200..800) } else { 0 };
            let after = ms(late + slow + self.random.random_range(1..5));
            self.at(after, Event::Arrive { exchange, leaf, copy, request: request.clone() });
        }
        if let Some(wake) = wake.filter(|wake| *wake > elapsed) {
            self.at(wake.saturating_sub(elapsed), Event::Silence { exchange, leaf });
        }
    }

    pub(crate) fn answered(
        &mut self,
        (exchange, leaf, copy): (u64, usize, usize),
        response: Response,
    ) {
        let Some(found) = self.exchanges.get_mut(&exchange) else { return };
        let elapsed = self.now.saturating_sub(found.sent);
        let Leaf { asking, silent, .. } = &mut found.leaves[leaf];
        silent.retain(|silent| *silent != copy);
        asking.answered(elapsed, copy, response);
        self.ask(exchange, leaf);
    }

    pub(crate) fn silence(&mut self, exchange: u64, leaf: usize) {
        let Some(found) = self.exchanges.get_mut(&exchange) else { return };
        let elapsed = self.now.saturating_sub(found.sent);
        found.leaves[leaf].asking.woken(elapsed);
        self.ask(exchange, leaf);
    }

    /// Who is silent still does not answer any more.
    pub(crate) fn deadline(&mut self, exchange: u64) {
        let Some(found) = self.exchanges.get(&exchange) else { return };
        let lost = Refusal::Unreachable("silent".to_owned());
        let mut late = Vec::new();
        for (number, leaf) in found.leaves.iter().enumerate() {
            for copy in leaf.silent.iter().filter(|_| leaf.response.is_none()) {
                late.push((number, *copy, Response::refused(&leaf.request.targets, &lost)));
            }
        }
        for (leaf, copy, response) in late {
            self.answered((exchange, leaf, copy), response);
        }
        // One to no shard at all.
        self.answer(exchange);
    }

    fn answer(&mut self, exchange: u64) {
        let Some(found) = self.exchanges.remove(&exchange) else { return };
        let mut leaves = found.leaves.into_iter().map(|leaf| leaf.response.expect("all answered"));
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

    pub(crate) fn arrive(
        &mut self,
        (exchange, leaf, copy): (u64, usize, usize),
        request: &Request,
    ) {
        let name = &request.targets[0].shard;
        let copies = self.shards.iter_mut().enumerate();
        let mut copies = copies.filter(|(number, _)| number % COPIES == copy);
        let shard =
            copies.find_map(|(_, shard)| shard.as_mut().filter(|shard| shard.state.name() == name));
        // Now and then somebody of an older version stands between.
        let pools = !(self.now.as_secs() / 20).is_multiple_of(3);
        let response = if let Some(shard) = shard {
            let mut response = shard.state.exchange(self.now, request);
            response.shards.iter_mut().for_each(|report| report.pools &= pools);
            response
        } else if self.chance(500) {
            // A connection that is refused; else nobody says a word.
            let gone = Refusal::Unreachable("gone".to_owned());
            Response::refused(&request.targets, &gone)
        } else {
            return;
        };
        self.transcript.says(self.now, leaf, &response);
        if !self.faulty(20) {
            let after = ms(self.random.random_range(1..5));
            self.at(after, Event::Answer { exchange, leaf, copy, response });
        }
    }
}
