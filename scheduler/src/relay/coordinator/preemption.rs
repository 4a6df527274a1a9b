//! Pods that fit nowhere unless others go: asking the shards where that costs least, and what
//! becomes of the evictions (`framework/preemption`).
//!
//! The pod stays out of the queue until the evictions have been sent, as with kube-scheduler's
//! asynchronous preemption, then waits like any other for the room. Nobody is evicted on a partial
//! answer, and no more for a pod whose evictions haven't left their node.

use std::sync::Arc;

use tracing::{info, warn};

use super::answers::to_blame;
use super::{AGAIN, Action, Chosen, Coordinator, Evaluated, Question};
use crate::core::diagnosis::{Diagnosis, PluginSet};
use crate::core::pod::PodUid;
use crate::core::preempt::{Budget, Candidate, Trial};
use crate::core::queue::Moment;
use crate::core::survey::Survey;
use crate::metrics::labels;
use crate::protocol::{Answer, Operation, PodId, Preempt, Reservation};
use crate::relay::evict::{Ended, EvictOutcome, Order};
use crate::relay::lookup::News;
use crate::relay::report::Report;

/// A pod that fits nowhere, and might if others went.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) pod: Evaluated,
    /// Why it fits nowhere.
    pub(super) diagnosis: Diagnosis,
}

/// Evictions under way for a pod.
#[derive(Debug)]
pub(super) struct Eviction {
    node: Arc<str>,
    plugins: PluginSet,
    /// The preemptor's.
    profile: Arc<str>,
    /// Whose promises of the node are being taken back.
    withdrawn: Vec<PodUid>,
}

/// What the surroundings tell of budgets, at most: more are too many to ask every shard about, and
/// then nobody is evicted.
const MAX_BUDGETS: usize = 50_000;

impl Coordinator {
    pub(super) fn budgets_changed(&mut self, news: News<Budget>) {
        self.budget_list = None;
        match news {
            News::All(listed) => {
                self.budgets = listed.into_iter().collect();
                self.budgets_known = true;
            }
            News::One(key, Some(budget)) => drop(self.budgets.insert(key, budget)),
            News::One(key, None) => drop(self.budgets.remove(&key)),
        }
    }

    fn budget_list(&mut self) -> Arc<[Budget]> {
        let all = || {
            let mut sorted: Vec<_> = self.budgets.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            sorted.into_iter().map(|(_, budget)| budget.clone()).collect()
        };
        self.budget_list.get_or_insert_with(all).clone()
    }

    /// Evictions under way, by the pods that they are for.
    #[must_use]
    pub fn evictions_in_flight(&self) -> usize {
        self.evictions.len()
    }

    /// A survey of single nodes first, then the question.
    pub(super) fn ask_preemption(
        &mut self,
        contender: &Contender,
        reserve: &[(Chosen, Reservation)],
        survey: Option<Arc<Survey>>,
        operations: &mut Vec<Operation>,
    ) {
        let class = contender.pod.class.clone();
        let Some(survey) = survey else {
            operations.push(Operation::Survey { class, full: true });
            return;
        };
        let uid = contender.pod.attempt.pod.uid;
        operations.push(Operation::Preempt(Preempt {
            uid,
            nominated: self.nominations.node(uid).cloned(),
            evicted: self.nominations.victims(uid),
            survey,
            nominees: self.nominees(&class, uid, reserve),
            budgets: self.budget_list(),
            seed: self.lot(),
            class,
        }));
    }

    /// The shards have said where evictions make room, or not all of them have.
    pub(super) fn tried(
        &mut self,
        now: Moment,
        contender: Box<Contender>,
        answer: Option<Answer>,
        missing: usize,
    ) -> Vec<Action> {
        let uid = contender.pod.attempt.pod.uid;
        let trial = match answer {
            Some(Answer::Trial(trial)) if missing == 0 && self.term.is_some() => *trial,
            _ => {
                self.metrics.partial.inc();
                self.give_back(now, Question::Preempt(contender));
                return Vec::new();
            }
        };
        // Somebody has left since.
        if trial.feasible > 0 {
            let mut pod = contender.pod;
            pod.refusals += 1;
            if pod.refusals <= AGAIN {
                self.again.push_back(pod);
            } else {
                self.queue.retry(uid, now);
            }
            return Vec::new();
        }
        match trial.best {
            Some(ref candidate) if !trial.waiting => self.preempt(now, contender, candidate),
            _ => self.no_room_by_eviction(now, contender, &trial),
        }
    }

    /// Nobody's going helps. What is true of the pod is true of the next of its kind.
    fn no_room_by_eviction(
        &mut self,
        now: Moment,
        contender: Box<Contender>,
        trial: &Trial,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let alone = |this: &Self, contender: &Contender| {
            this.nominations.node(contender.pod.attempt.pod.uid).is_some()
        };
        let mut same = !alone(self, &contender);
        let class = contender.pod.class.clone();
        let mut next = Some(contender);
        while let Some(contender) = next {
            let Contender { pod, mut diagnosis } = *contender;
            diagnosis.preemption = Some(trial.refusal());
            actions.extend(self.unschedulable(now, &pod, &diagnosis));
            let front = self.contenders.front();
            same &= front.is_some_and(|c| Arc::ptr_eq(&c.pod.class, &class) && !alone(self, c));
            next = if same { self.contenders.pop_front() } else { None };
        }
        actions
    }

    fn preempt(
        &mut self,
        now: Moment,
        contender: Box<Contender>,
        candidate: &Candidate,
    ) -> Vec<Action> {
        let Contender { pod, mut diagnosis } = *contender;
        let uid = pod.attempt.pod.uid;
        let Some(id) = self.pods.id(uid) else {
            self.queue.done(uid, now);
            return Vec::new();
        };
        let node = candidate.node.clone();
        let priority = pod.class.priority;
        // Whether a pod that is being bound will be there nobody knows.
        let bound = |victim: &PodUid| {
            !self.binds.contains_key(victim) && !self.mounting.contains_key(victim)
        };
        let certain = !candidate.victims.is_empty() && candidate.victims.iter().all(bound);
        let promised = self.nominations.node(uid).is_some() || self.nominations.has_room();
        let counted = self.budgets.len() <= MAX_BUDGETS;
        let withdrawn = self.nominations.below(priority, &node);
        // Who is having others leave the node right now is not told that it was for nothing.
        let busy = withdrawn.iter().any(|below| self.evictions.contains_key(below));
        // The request that takes its promise back may come after the one that writes a new one.
        let late = self.evictions.values().any(|eviction| eviction.withdrawn.contains(&uid));
        if !counted {
            warn!(budgets = self.budgets.len(), most = MAX_BUDGETS, "too many to preempt by");
        }
        if busy || late || !certain || !promised || !counted || self.draining {
            self.queue.retry(uid, now);
            return Vec::new();
        }
        info!(pod = %id, %node, victims = candidate.victims.len(), "preempts");
        self.metrics.preemption_victims.observe(victims_as_number(candidate.victims.len()));
        for below in &withdrawn {
            self.nominations.withdraw(*below);
        }
        let ids = withdrawn.iter().filter_map(|below| self.pods.id(*below)).collect();
        self.nominations.promise(uid, &pod.attempt.pod.request, node.clone());
        let plugins = to_blame(&pod.class, &diagnosis);
        let profile = pod.class.policy.profile.clone();
        let eviction = Eviction { node: node.clone(), plugins, profile, withdrawn };
        self.evictions.insert(uid, eviction);
        // What kube-scheduler says of a pod that waits for its victims to go.
        diagnosis.preemption = None;
        let mut actions: Vec<Action> =
            self.say_unschedulable(now, &pod, &diagnosis, false).into_iter().collect();
        actions.push(Action::Evict(Box::new(Order {
            preemptor: id,
            priority,
            scheduler: pod.class.policy.profile.to_string(),
            node,
            victims: candidate.victims.clone(),
            withdrawn: ids,
        })));
        actions
    }

    /// Takes over the outcome of [`Action::Evict`].
    pub fn evicted(&mut self, now: Moment, pod: &PodId, outcome: EvictOutcome) -> Vec<Action> {
        let uid = PodUid::new(&pod.uid);
        let Some(Eviction { node, plugins, profile, .. }) = self.evictions.remove(&uid) else {
            return Vec::new();
        };
        let result = outcome.ended.label();
        self.metrics.evictions.get_or_create(&labels([("result", result)])).inc();
        // Once its promise is written it stands, whatever became of the evictions.
        let stands = outcome.ended == Ended::Done
            || outcome.promised.is_some()
            || !outcome.leaving.is_empty();
        if stands {
            self.nominations.written(uid, &node, outcome.promised, outcome.leaving);
        }
        match outcome.ended {
            // Its promise is its own.
            Ended::Done => self.queue.unschedulable(uid, plugins, true, now),
            Ended::Gone => {
                self.nominations.forget(uid);
                self.queue.done(uid, now);
            }
            Ended::Fenced | Ended::Failed(_) => {
                if let Ended::Failed(message) = &outcome.ended {
                    warn!(%pod, %node, %message, "evictions failed");
                }
                if !stands {
                    self.nominations.revert(uid);
                }
                self.queue.retry(uid, now);
            }
        }
        let tell = |victim| {
            let (preemptor, node, profile) = (pod.clone(), node.clone(), profile.clone());
            Action::Report(Report::Preempted { victim, preemptor, node, profile })
        };
        outcome.evicted.into_iter().map(tell).collect()
    }
}

fn victims_as_number(victims: usize) -> f64 {
    f64::from(u32::try_from(victims).unwrap_or(u32::MAX))
}
