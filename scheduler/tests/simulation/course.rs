//! The course of events, from the first to the last.

use std::collections::BTreeMap;
use std::time::Duration;

use megacluster_scheduler::relay::coordinator::Action;
use megacluster_scheduler::relay::report::Report;

use crate::api::role;
use crate::claims::has_claim;
use crate::world::{Event, Simulation};
use crate::{END, ms, number};

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) evictions: u32,
    /// Claims that were bound to volumes, and volumes that were made.
    pub(crate) bound: (u32, u32),
}

impl Simulation {
    pub(crate) fn run(mut self) -> Outcome {
        self.go();
        self.check()
    }

    /// From the first event to the last.
    pub(crate) fn go(&mut self) {
        while let Some(std::cmp::Reverse((at, sequence))) = self.events.pop() {
            if at > END {
                break;
            }
            self.now = at;
            if let Some(event) = self.payloads.remove(&sequence) {
                self.handle(event);
            }
            self.poll();
        }
    }

    /// Nothing is left over.
    fn check(&self) -> Outcome {
        // Rules may leave no room for some.
        let mut taken: BTreeMap<String, u32> = BTreeMap::new();
        for node in self.api.live().filter_map(|(_, pod)| pod.node.clone()) {
            *taken.entry(node).or_default() += 1;
        }
        let anywhere = |number: u32| {
            role(number) == "plain"
                && (!has_claim(number) || self.api.claims.has_room(number, &taken))
        };
        let left = self.api.live().filter(|(n, pod)| pod.node.is_none() && anywhere(**n));
        let waiting: Vec<_> = left.map(|(n, _)| *n).collect();
        for relay in self.relays.iter().flatten().filter(|relay| relay.state.term.is_some()) {
            let coordinator = &relay.state.coordinator;
            let (up, of) = coordinator.shards_up();
            println!(
                "leader: {up} of {of} shards, {:?}, {} binds",
                coordinator.depths(),
                coordinator.binds_in_flight()
            );
        }
        for shard in self.shards.iter().flatten() {
            let (table, held) = (shard.state.table(), shard.state.reservations());
            println!("{}: {} pods, {held} held", shard.state.name(), table.pod_count());
        }
        for number in waiting.iter().filter(|number| has_claim(**number)) {
            println!("p{number}: {}", self.api.claims.tell(*number));
        }
        assert!(waiting.is_empty(), "pods left waiting though there is room: {waiting:?}");
        for shard in self.shards.iter().flatten() {
            assert_eq!(shard.state.reservations(), 0, "reservations left behind");
        }
        Outcome { evictions: self.api.evictions, bound: self.api.claims.bound }
    }

    pub(crate) fn poll(&mut self) {
        let now = self.now;
        let mut wake = now + Duration::from_mins(1);
        for index in 0..self.relays.len() {
            let Some(relay) = &mut self.relays[index] else { continue };
            let run = relay.run;
            let actions = relay.state.coordinator.poll(now);
            relay.state.coordinator.prepare(now);
            let next = relay.state.coordinator.next_wake(now).max(now + ms(1));
            if relay.state.term.is_some() {
                wake = wake.min(next);
            }
            self.act(index, run, actions);
        }
        if self.wake_at.is_none_or(|at| at <= now || wake < at) {
            self.wake_at = Some(wake);
            self.at(wake.saturating_sub(now), Event::Wake);
        }
    }

    pub(crate) fn act(&mut self, relay: usize, run: u64, actions: Vec<Action>) {
        for action in actions {
            self.transcript.says(self.now, relay, &action);
            match action {
                Action::Exchange { id, request } => self.send(relay, run, id, request),
                Action::Bind { pod, node } => self.bind(relay, run, pod, &node),
                Action::Report(Report::Scheduled { pod, node, .. }) => {
                    let known = &self.api.pods[&number(&pod)];
                    assert_eq!(known.node.as_deref(), Some(&*node), "believed in a bind of {pod}");
                }
                Action::Mount(order) => self.mount(relay, run, *order),
                Action::Evict(order) => self.order(relay, run, *order),
                Action::Report(Report::Failed { pod, withdraw: true, .. }) => {
                    if !self.faulty(50) {
                        self.api.promise(self.now, number(&pod), None);
                    }
                }
                Action::List => self.list(relay),
                Action::Report(Report::Failed { .. } | Report::Preempted { .. }) => {}
            }
        }
    }

    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Chaos => self.chaos(),
            Event::Wake => {}
            Event::Tick => self.tick(),
            Event::Watch => self.watch(),
            Event::Arrive { exchange, leaf, copy, request } => {
                self.arrive((exchange, leaf, copy), &request);
            }
            Event::Answer { exchange, leaf, copy, response } => {
                self.answered((exchange, leaf, copy), response);
            }
            Event::Silence { exchange, leaf } => self.silence(exchange, leaf),
            Event::Deadline { exchange } => self.deadline(exchange),
            Event::BindArrives { pod, node } => {
                self.api.bind(self.now, pod, &node);
            }
            Event::BindEnds { relay, run, pod, outcome, node } => {
                let outcome =
                    outcome.unwrap_or_else(|| self.api.bind(self.now, number(&pod), &node));
                let Some(process) = &mut self.relays[relay] else { return };
                if process.run == run {
                    let actions = process.state.coordinator.bound(self.now, &pod, outcome);
                    self.act(relay, run, actions);
                }
            }
            Event::EvictStep(evicting) => self.evict_step(evicting),
            Event::EvictEnds { evicting, ended } => self.evict_ends(evicting, ended),
            Event::MountStep(writing) => self.mount_step(writing),
            Event::MountEnds { writing, outcome } => self.mount_ends(&writing, outcome),
            Event::Settle(number) => {
                let fails = self.faulty(200);
                self.api.claims.settle(self.now, number, fails);
            }
            Event::Ended(number) => {
                if !self.api.pods[&number].deleted {
                    self.api.delete(self.now, number);
                }
            }
            Event::Checked { shard, run, expiring, lost } => {
                let pod = &self.api.pods[&number(&expiring.pod)];
                let bound = !pod.deleted && pod.node.as_deref() == Some(&*expiring.node);
                if let Some(shard) = &mut self.shards[shard]
                    && shard.run == run
                {
                    shard.state.checked(self.now, &expiring, (!lost).then_some(bound));
                }
            }
            Event::RestartShard(shard) => self.start_shard(shard),
            Event::RestartRelay(relay) => self.start_relay(relay),
            Event::Elect => self.elect(),
        }
    }
}
