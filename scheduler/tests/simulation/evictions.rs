//! Evictions: each request of an order by itself, so that the one who sends them may die, or lose
//! the right to, between any two.

use megacluster_scheduler::core::pod::PodUid;
use megacluster_scheduler::protocol::{Operation, Request, Response};
use megacluster_scheduler::relay::evict::{Ended, EvictOutcome, Order};
use rand::RngExt;

use crate::world::{Event, Evicting, Simulation};
use crate::{SHARDS, ms, number};

impl Simulation {
    /// Only who has asked every shard, and been answered, may evict.
    pub(crate) fn may_evict(request: &Request, response: &Response) -> bool {
        let spoke = response.shards.iter().filter(|report| report.refusal.is_none()).count();
        let asked = |operation: &Operation| matches!(operation, Operation::Preempt(_));
        request.operations.iter().any(asked) && spoke == SHARDS
    }

    pub(crate) fn order(&mut self, relay: usize, run: u64, order: Order) {
        let preemptor = number(&order.preemptor);
        let process = self.relays[relay].as_mut().expect("it has just spoken");
        // Who has just lost its promise to this pod may look for another node.
        for pod in &order.withdrawn {
            process.state.orders.remove(&number(pod));
        }
        // Whom it had leave for this pod before has left, unless the pod can't have that node any more
        // (`PodEligibleToPreemptOthers` in kube-scheduler's defaultpreemption).
        if let Some(before) = process.state.orders.insert(preemptor, order.clone())
            && self.api.claims.allows(preemptor, &before.node)
        {
            for (victim, pod) in self.api.live().filter(|(_, pod)| pod.leaving_for.is_some()) {
                let again = before.victims.contains(&PodUid::new(&pod.uid))
                    && pod.leaving_for == Some(preemptor);
                assert!(!again, "{:?}: p{preemptor} evicts more while p{victim} leaves", self.now);
            }
        }
        let outcome = EvictOutcome {
            ended: Ended::Done,
            promised: None,
            evicted: Vec::new(),
            leaving: Vec::new(),
        };
        let evicting = Evicting { relay, run, order, promised: false, told: 0, outcome };
        self.step_after(evicting);
    }

    fn step_after(&mut self, evicting: Evicting) {
        let after = ms(self.random.random_range(1..40));
        self.at(after, Event::EvictStep(evicting));
    }

    /// The next request. A dead process sends none.
    pub(crate) fn evict_step(&mut self, mut evicting: Evicting) {
        let Some(process) = &self.relays[evicting.relay] else { return };
        if process.run != evicting.run {
            return;
        }
        let fenced = process.state.fenced || process.state.term.is_none();
        let lost = self.faulty(50);
        let ended = if fenced {
            Ended::Fenced
        } else if lost && self.chance(500) {
            Ended::Failed("lost on the way".to_owned())
        } else {
            let done = self.carry_out(&mut evicting);
            match done {
                Some(ended) => ended,
                None if lost => {
                    // If it is the one that tells the version, that is lost with it.
                    if evicting.told == 0 {
                        evicting.outcome.promised = None;
                    }
                    Ended::Failed("the answer is lost".to_owned())
                }
                None => return self.step_after(evicting),
            }
        };
        let after = ms(self.random.random_range(1..40));
        self.at(after, Event::EvictEnds { evicting, ended });
    }

    fn carry_out(&mut self, evicting: &mut Evicting) -> Option<Ended> {
        let Order { preemptor, node, victims, withdrawn, .. } = evicting.order.clone();
        if !evicting.promised {
            if !self.api.promise(self.now, number(&preemptor), Some(&node)) {
                return Some(Ended::Gone);
            }
            evicting.outcome.promised = Some(self.api.version());
            for pod in withdrawn {
                self.api.promise(self.now, number(&pod), None);
            }
            evicting.promised = true;
            return None;
        }
        let Some(victim) = victims.get(evicting.told) else { return Some(Ended::Done) };
        evicting.told += 1;
        let found = self.api.live().find(|(_, pod)| PodUid::new(&pod.uid) == *victim);
        let victim = *found?.0;
        // Who was deleted since its promise was written evicts all the same: it may not know.
        let evicted = self.api.evict(self.now, victim, &node, number(&preemptor));
        let pod = &self.api.pods[&victim];
        if pod.leaving_for.is_some() {
            evicting.outcome.leaving.push(PodUid::new(&pod.uid));
        }
        if evicted {
            let after = ms(self.random.random_range(10..6_000));
            self.at(after, Event::Ended(victim));
        }
        None
    }

    pub(crate) fn evict_ends(&mut self, evicting: Evicting, ended: Ended) {
        let Evicting { relay, run, order, mut outcome, .. } = evicting;
        outcome.ended = ended;
        let Some(process) = &mut self.relays[relay] else { return };
        if process.run == run {
            let coordinator = &mut process.state.coordinator;
            let actions = coordinator.evicted(self.now, &order.preemptor, outcome);
            self.act(relay, run, actions);
        }
    }
}
