//! What watches show, each with a lag of its own.

use std::time::Duration;

use megacluster_scheduler::relay::pods::Intake;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::api::Change;
use crate::ms;
use crate::world::{Event, Relay, Simulation};

impl Simulation {
    /// Deliveries of watches: each process sees the next changes after a lag of its own.
    pub(crate) fn watch(&mut self) {
        let lag = |random: &mut SmallRng| ms(random.random_range(0..2_000));
        for index in 0..self.shards.len() {
            let seen_until = self.now.saturating_sub(lag(&mut self.random));
            let Some(shard) = &mut self.shards[index] else { continue };
            while let Some((at, change)) = self.api.history.get(shard.cursor) {
                if *at > seen_until {
                    break;
                }
                shard.cursor += 1;
                match change {
                    Change::Created(_) | Change::Promised(..) => {}
                    Change::Bound(number) | Change::Leaving(number) => {
                        shard.state.pod_applied(&self.api.object(*number));
                    }
                    Change::Deleted(number) => shard.state.pod_deleted(&self.api.object(*number)),
                }
            }
        }
        for index in 0..self.relays.len() {
            let seen_until = self.now.saturating_sub(lag(&mut self.random));
            let Some(relay) = &mut self.relays[index] else { continue };
            while let Some((at, change)) = self.api.history.get(relay.cursor) {
                if *at > seen_until {
                    break;
                }
                relay.cursor += 1;
                let Relay { coordinator, compiler, .. } = &mut relay.state;
                let (Change::Created(number)
                | Change::Promised(number, _)
                | Change::Bound(number)
                | Change::Leaving(number)
                | Change::Deleted(number)) = change;
                let mut pod = self.api.object(*number);
                if let (Change::Created(_) | Change::Promised(..), Some(spec)) =
                    (change, &mut pod.spec)
                {
                    // As it was then: it may have got a node since.
                    spec.node_name = None;
                }
                let mut waiting = compiler.waiting(&pod);
                waiting.deleting = false;
                waiting.version = relay.cursor as u64;
                let intake = match change {
                    Change::Created(_) => {
                        waiting.nominated = None;
                        Intake::Applied(Box::new(waiting))
                    }
                    Change::Promised(_, node) => {
                        waiting.nominated = node.as_deref().map(Into::into);
                        Intake::Applied(Box::new(waiting))
                    }
                    Change::Bound(_) | Change::Leaving(_) | Change::Deleted(_) => {
                        Intake::Gone(waiting.pending.uid)
                    }
                };
                coordinator.intake(self.now, intake);
            }
        }
        self.watch_claims();
        self.at(ms(50), Event::Watch);
    }

    pub(crate) fn tick(&mut self) {
        for index in 0..self.shards.len() {
            let Some(shard) = &mut self.shards[index] else { continue };
            let run = shard.run;
            for expiring in shard.state.due(self.now) {
                let lost = self.faulty(200);
                let after = ms(self.random.random_range(1..100));
                self.at(after, Event::Checked { shard: index, run, expiring, lost });
            }
        }
        self.api.claims.release(self.now);
        self.at(Duration::from_secs(1), Event::Tick);
    }
}
