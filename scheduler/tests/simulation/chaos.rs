//! Pods come and go, processes die, and the Lease changes hands.

use std::time::Duration;

use rand::RngExt;

use crate::api::{ApiPod, Change};
use crate::claims::has_claim;
use crate::world::{Event, Process, Relay, Simulation};
use crate::{FAULTS_END, ms};

impl Simulation {
    /// Pods come and go; processes die.
    pub(crate) fn chaos(&mut self) {
        self.at(ms(100), Event::Chaos);
        let live = self.api.live().count();
        let faults = self.now < FAULTS_END;
        let most = if faults { 60 } else { 40 };
        if faults && live < most && self.chance(500) {
            let number = self.next_pod;
            self.next_pod += 1;
            self.api.pods.insert(number, ApiPod::new(number));
            self.api.history.push((self.now, Change::Created(number)));
            if has_claim(number) {
                self.api.claims.create(self.now, number);
            }
        }
        if live > most || self.faulty(200) {
            let numbers: Vec<u32> = self.api.live().map(|(number, _)| *number).collect();
            if !numbers.is_empty() {
                let number = numbers[self.random.random_range(0..numbers.len())];
                self.api.delete(self.now, number);
            }
        }
        if self.faulty(5) {
            let shard = self.random.random_range(0..self.shards.len());
            if self.shards[shard].take().is_some() {
                let after = ms(self.random.random_range(10..10_000));
                self.at(after, Event::RestartShard(shard));
            }
        }
        if self.faulty(3) {
            self.end_leader();
        }
    }

    /// The leader dies, or loses the Lease and goes on for a while without noticing.
    pub(crate) fn end_leader(&mut self) {
        let leads = |relay: &Option<Process<Relay>>| {
            relay.as_ref().is_some_and(|relay| relay.state.term.is_some() && !relay.state.fenced)
        };
        let Some(index) = self.relays.iter().position(leads) else { return };
        if self.chance(500) {
            self.relays[index] = None;
            let after = ms(self.random.random_range(10..20_000));
            self.at(after, Event::RestartRelay(index));
        } else if let Some(relay) = &mut self.relays[index] {
            relay.state.fenced = true;
        }
        // The Lease has to run out.
        self.at(Duration::from_secs(15), Event::Elect);
    }

    pub(crate) fn elect(&mut self) {
        let now = self.now;
        for relay in self.relays.iter_mut().flatten() {
            if relay.state.fenced {
                relay.state.fenced = false;
                relay.state.term = None;
                relay.state.orders.clear();
                relay.state.coordinator.step_down(now);
            }
        }
        if self.relays.iter().flatten().any(|relay| relay.state.term.is_some()) {
            return;
        }
        let next = self.random.random_range(0..self.relays.len());
        self.terms += 1;
        match &mut self.relays[next] {
            Some(relay) => {
                relay.state.term = Some(self.terms);
                relay.state.coordinator.lead(now, self.terms);
            }
            None => self.at(Duration::from_secs(1), Event::Elect),
        }
    }
}
