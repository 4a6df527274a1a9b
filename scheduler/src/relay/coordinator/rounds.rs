//! What the next message says: reservations of the last pods, and a question about the next ones.

use std::sync::Arc;

use super::pools::{CLASSES, PODS};
use super::{Action, BATCH, Chosen, Coordinator, Evaluated, IDLE, Question, Round, Surveyed};
use crate::core::nominate::Nominee;
use crate::core::pod::{PodRequest, PodUid};
use crate::core::queue::Moment;
use crate::core::survey::Survey;
use crate::protocol::{Operation, Reservation};

impl Coordinator {
    pub(super) fn next_round(&mut self, now: Moment, term: u64) -> Option<Action> {
        let reserve = self.takeable_choices(now);
        let (mut question, surveys) = self.next_question(now, reserve.len());
        let told = self.shards.take_outbox();
        let idle = now >= self.last_round + IDLE && self.shards.up() > 0;
        if reserve.is_empty() && question.is_none() && told.is_empty() && !idle {
            return None;
        }
        let id = self.id();
        // Grows with the round, and with the term: a term is a revision of the store, of which
        // there is at least one for each million rounds.
        let token = (term << 20).wrapping_add(id);
        let with_reservation = |chosen: Chosen| {
            let reservation = chosen.reservation(token);
            (chosen, reservation)
        };
        let reserve: Vec<_> = reserve.into_iter().map(with_reservation).collect();
        let mut operations: Vec<Operation> = told.iter().map(|(_, o)| o.clone()).collect();
        operations.extend(reserve.iter().map(|(_, r)| Operation::Reserve(r.clone())));
        let surveying =
            surveys.is_empty() && question.as_ref().is_some_and(|q| self.needs_survey(q));
        let before = operations.len();
        let survey = surveys.first().cloned();
        match &mut question {
            None => {}
            Some(Question::Evaluate(pods)) => {
                self.ask_evaluation(pods, &reserve, surveying, survey, &mut operations);
            }
            Some(Question::Pool(pooled)) => {
                self.ask_pool(pooled, surveying, &surveys, &mut operations);
            }
            Some(Question::Preempt(contender)) => {
                self.ask_preemption(contender, &reserve, survey, &mut operations);
            }
        }
        let twice = operations.len() > before + 1;
        let promised = twice && matches!(question, Some(Question::Evaluate(_)));
        let mut targets = self.shards.up_targets();
        if question.is_none() && !idle {
            targets.retain(|target| {
                told.iter().any(|(name, _)| *name == target.shard)
                    || reserve.iter().any(|(chosen, _)| chosen.owner == target.shard)
            });
        }
        let request = self.request(term, targets.clone(), operations);
        self.last_round = now;
        let joins = self.joins;
        let round =
            Round { id, targets, told, reserve, question, surveys, surveying, promised, joins };
        self.round = Some(round);
        Some(Action::Exchange { id, request })
    }

    /// One operation, or two for a pod that is promised a node: that node first.
    fn ask_evaluation(
        &mut self,
        pods: &[Evaluated],
        reserve: &[(Chosen, Reservation)],
        surveying: bool,
        survey: Option<Arc<Survey>>,
        operations: &mut Vec<Operation>,
    ) {
        let Some(first) = pods.first() else { return };
        let class = first.class.clone();
        let nominees = self.nominees(&class, first.attempt.pod.uid, reserve);
        if surveying {
            // Beside nominees single nodes count.
            let full = self.odd_hostnames || !nominees.is_empty();
            operations.push(Operation::Survey { class, full });
            return;
        }
        let seed = self.lots;
        if let Some(only) = self.promised_alone(first) {
            let (survey, nominees) = (survey.clone(), nominees.clone());
            operations.push(Operation::Evaluate { class: only, seed, count: 1, survey, nominees });
        }
        let count = u32::try_from(pods.len()).unwrap_or(u32::MAX);
        operations.push(Operation::Evaluate { class, seed, count, survey, nominees });
    }

    /// The pods that one of this class has to yield to on the nodes that they are promised.
    pub(super) fn nominees(
        &self,
        class: &PodRequest,
        uid: PodUid,
        reserve: &[(Chosen, Reservation)],
    ) -> Arc<[Nominee]> {
        let reserving =
            |uid: PodUid| reserve.iter().any(|(chosen, _)| chosen.attempt.pod.uid == uid);
        self.nominations.of_at_least(class.priority, |other| {
            other != uid && self.pods.is_waiting(other) && !reserving(other)
        })
    }

    /// The pod's class on the node that it is promised, and nowhere else (`evaluateNominatedNode`).
    fn promised_alone(&self, pod: &Evaluated) -> Option<Arc<PodRequest>> {
        let node = self.nominations.node(pod.attempt.pod.uid)?;
        if pod.class.pinned.as_ref().is_some_and(|pinned| !pinned.contains(node)) {
            return None;
        }
        let mut class = PodRequest::clone(&pod.class);
        class.pinned = Some(vec![node.clone()]);
        Some(Arc::new(class))
    }

    fn takeable_choices(&mut self, now: Moment) -> Vec<Chosen> {
        let mut takeable = Vec::new();
        for chosen in std::mem::take(&mut self.chosen) {
            if self.shards.is_up(&chosen.owner) && self.pods.is_waiting(chosen.attempt.pod.uid) {
                takeable.push(chosen);
            } else {
                self.abandon(now, &chosen);
            }
        }
        takeable
    }

    /// The question whose survey is there, or the next one.
    fn next_question(
        &mut self,
        now: Moment,
        reserving: usize,
    ) -> (Option<Question>, Vec<Arc<Survey>>) {
        if let Some(Surveyed { question, surveys, targets }) = self.surveyed.take() {
            let up = self.shards.up_targets();
            if up.iter().all(|target| targets.contains(&target.shard))
                && self.suits(&question, &surveys)
            {
                return (Some(question), surveys);
            }
            // A shard has come since, and its pods aren't in the survey; or a pod was promised a
            // node.
            self.ask_again(question);
        }
        if !self.contenders.is_empty() && self.may_evaluate(now, reserving) {
            return (self.contenders.pop_front().map(Question::Preempt), Vec::new());
        }
        (self.next_evaluation(now, reserving), Vec::new())
    }

    pub(super) fn ask_again(&mut self, question: Question) {
        match question {
            Question::Evaluate(pods) => self.pods_again(pods),
            Question::Pool(pooled) => self.pods_again(pooled.into_pods()),
            Question::Preempt(contender) => self.contenders.push_front(contender),
        }
    }

    /// These pods are the next ones.
    pub(super) fn pods_again(
        &mut self,
        pods: impl IntoIterator<IntoIter: DoubleEndedIterator<Item = Evaluated>>,
    ) {
        for pod in pods.into_iter().rev() {
            self.again.push_front(pod);
        }
    }

    fn suits(&self, question: &Question, surveys: &[Arc<Survey>]) -> bool {
        let pods = match question {
            Question::Evaluate(pods) => pods,
            Question::Pool(pooled) => return self.may_pool_all(pooled),
            Question::Preempt(_) => return true,
        };
        let Some(first) = pods.first() else { return true };
        surveys.iter().all(|survey| survey.full)
            || self.nominees(&first.class, first.attempt.pod.uid, &[]).is_empty()
    }

    fn needs_survey(&self, question: &Question) -> bool {
        match question {
            Question::Evaluate(pods) => pods.first().is_some_and(|first| self.minds(&first.class)),
            Question::Pool(pooled) => pooled.surveyed,
            Question::Preempt(_) => true,
        }
    }

    /// Whether a class needs a survey.
    pub(super) fn minds(&self, class: &Arc<PodRequest>) -> bool {
        class.minds_others() || self.minded.contains_key(&Arc::as_ptr(class).addr())
    }

    pub(super) fn may_evaluate(&self, now: Moment, reserving: usize) -> bool {
        let known = self.directory.is_complete() && self.budgets_known;
        let known = known && self.storage.is_complete();
        if self.config.await_directory && !known {
            return false;
        }
        let up = self.shards.up();
        let gathering = up < self.shards.len() && now < self.gather_until;
        let acting = self.binds.len() + self.evictions.len() + reserving;
        let full = acting >= self.config.max_binds;
        !(self.draining || up == 0 || gathering || full)
    }

    /// The next pods, all of one class.
    pub(super) fn next_pods(&mut self, now: Moment, reserving: usize) -> Vec<Evaluated> {
        let mut pods: Vec<Evaluated> = Vec::new();
        while pods.len() < BATCH && self.may_evaluate(now, reserving + pods.len()) {
            let like = pods.first().map(|first| first.attempt.pod.uid);
            let Some(next) = self.next_pod(like, now) else { break };
            let promised = |pod: &Evaluated| self.nominations.node(pod.attempt.pod.uid).is_some();
            let same = |first: &Evaluated| {
                // The next sees what becomes of the claims of the one before.
                !promised(first)
                    && first.class.volumes.late.is_none()
                    && !promised(&next)
                    && (Arc::ptr_eq(&first.class, &next.class) || first.class == next.class)
            };
            if !pods.first().is_none_or(same) {
                self.again.push_front(next);
                break;
            }
            pods.push(next);
        }
        pods
    }

    /// Takes the pods of the next round from the queue beforehand, while the shards work on the last
    /// one. What comes meanwhile waits for a round more.
    pub fn prepare(&mut self, now: Moment) {
        let Some(round) = &self.round else { return };
        let asked = match &round.question {
            Some(Question::Evaluate(pods)) => pods.len(),
            Some(Question::Pool(pooled)) => pooled.len(),
            Some(Question::Preempt(_)) | None => 0,
        };
        let reserving = round.reserve.len() + asked;
        let waits = !self.again.is_empty() || !self.contenders.is_empty() || round.surveying;
        if self.term.is_none() || waits {
            return;
        }
        let (most, classes) = if self.shards.know_pools() { (PODS, CLASSES) } else { (BATCH, 1) };
        // A class that is begun beside others has room for all of its pods, as it would have alone.
        let room = |this: &Self| this.may_evaluate(now, reserving + this.again.len() + BATCH);
        // Of the present class: its first pod, and how many there are.
        let (mut like, mut alike, mut begun) = (None, 0, 0);
        while self.again.len() < most && self.may_evaluate(now, reserving + self.again.len()) {
            let more = like.filter(|_| alike < BATCH);
            let attempt = match more.and_then(|first| self.queue.pop_like(first, now)) {
                None if begun == classes || (begun > 0 && !room(self)) => return,
                None => {
                    (like, alike, begun) = (None, 0, begun + 1);
                    self.queue.pop(now)
                }
                attempt => attempt,
            };
            let Some(attempt) = attempt else { return };
            like.get_or_insert(attempt.pod.uid);
            alike += 1;
            let class = attempt.pod.request.clone();
            self.again.push_back(Evaluated { attempt, class, begun: now, refusals: 0 });
        }
    }

    /// The next pod, one that asks for the same as `like` first.
    fn next_pod(&mut self, like: Option<PodUid>, now: Moment) -> Option<Evaluated> {
        loop {
            let mut next = if let Some(again) = self.again.pop_front() {
                again
            } else {
                let alike = like.and_then(|first| self.queue.pop_like(first, now));
                let attempt = alike.or_else(|| self.queue.pop(now))?;
                let class = attempt.pod.request.clone();
                Evaluated { attempt, class, begun: now, refusals: 0 }
            };
            next.class = self.resolve(&next.attempt.pod.request);
            let uid = next.attempt.pod.uid;
            let acting = self.binds.contains_key(&uid) || self.mounting.contains_key(&uid);
            let free = !acting && !self.evictions.contains_key(&uid);
            if self.pods.is_waiting(uid) && free {
                return Some(next);
            }
            self.queue.done(uid, now);
        }
    }
}
