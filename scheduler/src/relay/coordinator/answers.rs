//! What the shards' answers mean for the pods of a round.

use std::sync::Arc;

use tracing::{info, warn};

use super::{AGAIN, Action, Binding, Chosen, Contender, Coordinator, Evaluated};
use super::{MAX_MINDED, Question, Round, Surveyed};
use crate::core::ahead::Course;
use crate::core::diagnosis::{Diagnosis, Plugin, PluginSet, Preemption};
use crate::core::evaluate::Evaluation;
use crate::core::event::EventSet;
use crate::core::gather::{Decision, refuse};
use crate::core::maps::HashMap;
use crate::core::pod::{PodRequest, Unsupported};
use crate::core::queue::Moment;
use crate::core::survey::Survey;
use crate::protocol::{Answer, Operation, Refusal, Reservation, Response, ShardReport, Target};
use crate::relay::shards::Change;

impl Coordinator {
    /// Takes over the answer to [`Action::Exchange`].
    pub fn exchanged(&mut self, now: Moment, id: u64, response: Response) -> Vec<Action> {
        if self.greeting.as_ref().is_some_and(|(greeting, _)| *greeting == id) {
            if let Some((_, targets)) = self.greeting.take()
                && self.term.is_some()
            {
                self.greeted(now, &targets, &response);
            }
            return Vec::new();
        }
        match self.round.take() {
            Some(round) if round.id == id => {
                let joins = round.joins;
                let actions = self.round_ended(now, round, response);
                if self.joins != joins {
                    // The shard that its pods could not be decided without came meanwhile, when
                    // they did not wait yet.
                    self.queue.end_error_pauses(now);
                }
                actions
            }
            other => {
                self.round = other;
                Vec::new()
            }
        }
    }

    fn greeted(&mut self, now: Moment, targets: &[Target], response: &Response) {
        for report in complete(targets, response) {
            let change = self.shards.greeted(now, &report);
            self.noticed(now, &report.shard, change);
        }
    }

    fn noticed(&mut self, now: Moment, shard: &Arc<str>, change: Option<Change>) {
        match change {
            None => {}
            Some(Change::Joined) => {
                // What could not be decided without it can be now.
                self.joins += 1;
                let pods = self.queue.end_error_pauses(now);
                info!(%shard, pods, "shard joined");
            }
            Some(Change::Lost(refusal)) => warn!(%shard, %refusal, "shard left out"),
            Some(Change::Restarted) => {
                let operations = self.restoration(now, shard);
                info!(%shard, reservations = operations.len(), "shard in a new run");
                self.shards.restore(shard, operations);
            }
        }
    }

    fn round_ended(&mut self, now: Moment, round: Round, response: Response) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut silent: HashMap<Arc<str>, Refusal> = HashMap::default();
        for report in complete(&round.targets, &response) {
            let (events, change) = self.shards.heard(now, &report);
            self.noticed(now, &report.shard, change);
            self.queue.notify(events, now);
            if let Some(refusal) = report.refusal {
                silent.insert(report.shard, refusal);
            }
        }
        let mut answers = response.answers.into_iter();
        for (shard, operation) in round.told {
            let answer = answers.next();
            if silent.contains_key(&shard) || !matches!(answer, Some(Answer::Outcome(_))) {
                self.shards.tell(&shard, operation);
            }
        }
        for reserve in round.reserve {
            actions.extend(self.reserved(now, reserve, answers.next(), &silent));
        }
        let Some(question) = round.question else { return actions };
        let missing = self.shards.len() - (round.targets.len() - silent.len());
        if round.surveying {
            let spoke = |target: &&Target| !silent.contains_key(&target.shard);
            let spoke = round.targets.iter().filter(spoke).map(|target| target.shard.clone());
            let spoke = spoke.collect();
            if let Question::Pool(pooled) = question {
                self.pool_surveyed(now, pooled, answers, spoke, missing);
            } else {
                self.was_surveyed(now, question, answers.next(), spoke, missing);
            }
            return actions;
        }
        match question {
            Question::Evaluate(pods) => {
                let alone = if round.promised { evaluation(answers.next()) } else { None };
                let all = evaluation(answers.next());
                // The node that the pod is promised comes before better ones.
                let takes = |alone: &Evaluation| !alone.wants_survey && !alone.tuples.is_empty();
                let answer = alone.filter(takes).or(all);
                let survey = round.surveys.first().map(|survey| &**survey);
                actions.extend(self.all_evaluated(now, pods, answer, survey, missing));
            }
            Question::Pool(pooled) => {
                actions.extend(self.drawn(now, pooled, answers.next(), missing));
            }
            Question::Preempt(contender) => {
                actions.extend(self.tried(now, contender, answers.next(), missing));
            }
        }
        actions
    }

    fn reserved(
        &mut self,
        now: Moment,
        (chosen, reservation): (Chosen, Reservation),
        answer: Option<Answer>,
        silent: &HashMap<Arc<str>, Refusal>,
    ) -> Option<Action> {
        let uid = chosen.attempt.pod.uid;
        let owner = Arc::clone(&chosen.owner);
        let outcome = match (silent.get(&owner), answer) {
            (None, Some(Answer::Outcome(outcome))) => Some(outcome),
            _ => None,
        };
        match outcome {
            Some(Ok(())) if self.term.is_some() && self.pods.binds(uid) => {
                let Reservation { pod, node, .. } = reservation.clone();
                let Chosen { attempt, begun, plan, .. } = chosen;
                let binding = Binding { attempt, reservation, owner, begun };
                if let Some(plan) = plan {
                    return self.mount(now, binding, plan);
                }
                self.binds.insert(uid, binding);
                Some(Action::Bind { pod, node })
            }
            Some(Err(message)) => {
                self.metrics.reserve_refused.inc();
                info!(pod = %chosen.id, node = %chosen.node, %message, "reservation refused");
                self.unplan(&chosen);
                if chosen.refusals < AGAIN && self.term.is_some() {
                    let Chosen { attempt, class, begun, refusals, .. } = chosen;
                    let refusals = refusals + 1;
                    self.again.push_back(Evaluated { attempt, class, begun, refusals });
                } else {
                    self.queue.retry(uid, now);
                }
                None
            }
            // Nobody knows whether it is reserved; or the pod is gone; or we lead no more.
            None | Some(Ok(())) => {
                self.shards.tell(&owner, Operation::Release(reservation.settlement()));
                self.abandon(now, &chosen);
                None
            }
        }
    }

    /// The survey for a question is there, or isn't.
    fn was_surveyed(
        &mut self,
        now: Moment,
        question: Question,
        answer: Option<Answer>,
        targets: Vec<Arc<str>>,
        missing: usize,
    ) {
        let Some(Answer::Survey(survey)) = answer.filter(|_| self.term.is_some()) else {
            return self.give_back(now, question);
        };
        // What a silent shard's pods forbid nobody knows.
        let insists = match &question {
            Question::Evaluate(pods) => {
                pods.first().is_some_and(|pod| pod.class.insists_on_others())
            }
            Question::Pool(_) | Question::Preempt(_) => true,
        };
        if missing > 0 && (insists || self.shards.silent_rules()) {
            self.metrics.partial.inc();
            return self.give_back(now, question);
        }
        let odd = survey.odd_hostnames;
        if odd && !survey.full {
            self.odd_hostnames = true;
            return self.ask_again(question);
        }
        self.odd_hostnames = odd;
        let surveys = vec![Arc::from(survey)];
        self.surveyed = Some(Surveyed { question, surveys, targets });
    }

    /// Nothing is known about these pods now: they are tried again after a pause.
    pub(super) fn give_back(&mut self, now: Moment, question: Question) {
        match question {
            Question::Evaluate(pods) => self.retry_all(now, pods),
            Question::Pool(pooled) => self.retry_all(now, pooled.into_pods()),
            Question::Preempt(contender) => self.queue.retry(contender.pod.attempt.pod.uid, now),
        }
    }

    fn retry_all(&mut self, now: Moment, pods: impl IntoIterator<Item = Evaluated>) {
        for pod in pods {
            self.queue.retry(pod.attempt.pod.uid, now);
        }
    }

    /// The pods can't be decided without a survey after all.
    fn survey_first(&mut self, pods: Vec<Evaluated>) {
        for pod in pods.into_iter().rev() {
            if self.minded.len() >= MAX_MINDED {
                self.minded.clear();
            }
            self.minded.insert(Arc::as_ptr(&pod.class).addr(), pod.class.clone());
            self.again.push_front(pod);
        }
    }

    fn all_evaluated(
        &mut self,
        now: Moment,
        pods: Vec<Evaluated>,
        evaluation: Option<Evaluation>,
        survey: Option<&Survey>,
        missing: usize,
    ) -> Vec<Action> {
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let mut actions = Vec::new();
        if missing > 0 && self.shards.silent_rules() {
            self.metrics.partial.inc();
            self.retry_all(now, pods);
            return actions;
        }
        if evaluation.as_ref().is_some_and(|evaluation| evaluation.wants_survey) {
            if self.term.is_some() {
                self.survey_first(pods);
            } else {
                self.retry_all(now, pods);
            }
            return actions;
        }
        let Some(class) = pods.first().map(|pod| Arc::clone(&pod.class)) else { return actions };
        let Some(mut evaluation) = evaluation else {
            self.retry_all(now, pods);
            return actions;
        };
        evaluation.missing = evaluation.missing.saturating_add(missing);
        let partial = evaluation.missing > 0;
        let refused = refuse(evaluation.nodes, &class).map(Decision::Unschedulable);
        let mut course = Course::new(evaluation, &class, survey);
        let mut unseen = Vec::new();
        for pod in pods {
            if self.term.is_none() {
                self.queue.retry(pod.attempt.pod.uid, now);
                continue;
            }
            match refused.clone().or_else(|| course.decide()) {
                Some(decision) => {
                    if partial {
                        self.metrics.partial.inc();
                    }
                    actions.extend(self.evaluated(now, pod, decision, course.evaluation()));
                }
                // The shards did not look that far ahead.
                None => unseen.push(pod),
            }
        }
        self.pods_again(unseen);
        actions
    }

    pub(super) fn evaluated(
        &mut self,
        now: Moment,
        pod: Evaluated,
        decision: Decision,
        evaluation: &Evaluation,
    ) -> Option<Action> {
        let uid = pod.attempt.pod.uid;
        match decision {
            Decision::Place(placement) => {
                let Ok(plan) = self.plan(&pod.class, &placement.node, evaluation) else {
                    self.queue.retry(uid, now);
                    return None;
                };
                let node = placement.node;
                let Some(owner) = self.config.membership.owner(&node).cloned() else {
                    self.queue.retry(uid, now);
                    return None;
                };
                if let Some(id) = self.pods.id(uid) {
                    let Evaluated { attempt, class, begun, refusals } = pod;
                    let chosen = Chosen { attempt, id, node, owner, class, begun, refusals, plan };
                    if self.plans(&chosen) {
                        self.chosen.push(chosen);
                    } else {
                        self.queue.retry(uid, now);
                    }
                } else {
                    self.queue.done(uid, now);
                }
                None
            }
            Decision::Incomplete { .. } => {
                self.queue.retry(uid, now);
                None
            }
            Decision::Unschedulable(diagnosis) => {
                if diagnosis.preemption.is_some() {
                    self.metrics.preemption_attempts.inc();
                }
                if diagnosis.preemption == Some(Preemption::Possible) {
                    self.contenders.push_back(Box::new(Contender { pod, diagnosis }));
                    return None;
                }
                self.unschedulable(now, &pod, &diagnosis)
            }
        }
    }

    /// The pod waits for something to happen, and the cluster hears why.
    pub(super) fn unschedulable(
        &mut self,
        now: Moment,
        pod: &Evaluated,
        diagnosis: &Diagnosis,
    ) -> Option<Action> {
        let uid = pod.attempt.pod.uid;
        // As kube-scheduler clears it where no eviction helps.
        let unhelpful = matches!(diagnosis.preemption, Some(Preemption::Unhelpful { .. }));
        let withdraw = unhelpful && self.nominations.node(uid).is_some();
        if withdraw {
            self.nominations.withdraw(uid);
        }
        let promised = self.nominations.node(uid).is_some();
        self.queue.unschedulable(uid, to_blame(&pod.class, diagnosis), promised, now);
        self.say_unschedulable(now, pod, diagnosis, withdraw)
    }

    pub(super) fn say_unschedulable(
        &mut self,
        now: Moment,
        pod: &Evaluated,
        diagnosis: &Diagnosis,
        withdraw: bool,
    ) -> Option<Action> {
        let took = now.saturating_sub(pod.begun);
        let profile = &pod.class.policy.profile;
        self.metrics.attempt("unschedulable", profile, took);
        let uid = pod.attempt.pod.uid;
        let message = diagnosis.to_string();
        self.pods.failed(uid, profile, message, withdraw, now).map(Action::Report)
    }
}

/// The plugins whose events may help the pod.
pub(super) fn to_blame(class: &PodRequest, diagnosis: &Diagnosis) -> PluginSet {
    // What is unsupported only an update of the pod can help, as with a gate.
    if !class.unsupported.is_empty() {
        // A volume may become another.
        let volume = |what: &Unsupported| matches!(what, Unsupported::Volume(_));
        let volume = class.unsupported.iter().any(volume).then_some(Plugin::VolumeBinding);
        return [Plugin::SchedulingGates].into_iter().chain(volume).collect();
    }
    let mut plugins = diagnosis.plugins;
    if plugins.contains(Plugin::InterPodAffinity) && class.identity.affinity.is_empty() {
        plugins.remove(Plugin::InterPodAffinity);
        plugins.insert(Plugin::InterPodAntiAffinity);
    }
    plugins
}

fn evaluation(answer: Option<Answer>) -> Option<Evaluation> {
    match answer {
        Some(Answer::Evaluations(evaluations)) => evaluations.into_iter().next(),
        _ => None,
    }
}

/// One report for each target: a target that nobody speaks of is as good as silent.
fn complete(targets: &[Target], response: &Response) -> Vec<ShardReport> {
    let spoken = |target: &Target| {
        let report = response.shards.iter().find(|report| report.shard == target.shard);
        report.cloned().unwrap_or_else(|| ShardReport {
            shard: target.shard.clone(),
            incarnation: 0,
            changes: 0,
            events: EventSet::EMPTY,
            keeps_domains_free: false,
            last_token: 0,
            pools: false,
            refusal: Some(Refusal::Unreachable("nobody reported".to_owned())),
        })
    };
    targets.iter().map(spoken).collect()
}
