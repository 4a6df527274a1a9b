//! Pods of several classes in one message ([`crate::core::pool`]): the next classes that count
//! nothing for each other, where every shard knows of it.

use std::sync::Arc;

use super::{Action, BATCH, Company, Coordinator, Evaluated, Question, Surveyed};
use crate::core::draw::Draw;
use crate::core::evaluate::Evaluation;
use crate::core::gather::Decision;
use crate::core::pod::PodRequest;
use crate::core::pool::{self, Asked};
use crate::core::queue::Moment;
use crate::core::survey::Survey;
use crate::protocol::{Answer, Operation};

/// Classes in one message.
pub(super) const CLASSES: usize = pool::MAX_CLASSES;
/// Pods in one message: no further class is begun beyond.
pub(super) const PODS: usize = 512;

/// Pods class by class.
#[derive(Debug)]
pub(super) struct Pooled {
    /// None is empty.
    groups: Vec<Vec<Evaluated>>,
    /// Whether the shards are surveyed for each class first.
    pub(super) surveyed: bool,
    /// What the shards were asked, and by which seed.
    asked: Arc<[Asked]>,
    seed: u64,
}

impl Pooled {
    /// How many pods there are.
    pub(super) fn len(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    pub(super) fn into_pods(self) -> Vec<Evaluated> {
        self.groups.into_iter().flatten().collect()
    }

    fn classes(&self) -> impl Iterator<Item = &Arc<PodRequest>> {
        self.groups.iter().filter_map(|pods| pods.first()).map(|first| &first.class)
    }
}

impl Coordinator {
    /// The next pods: of one class, or of several where that can be.
    pub(super) fn next_evaluation(&mut self, now: Moment, reserving: usize) -> Option<Question> {
        let first = self.next_pods(now, reserving);
        let class = Arc::clone(&first.first()?.class);
        let company = std::mem::replace(&mut self.company, Company::Others);
        if company == Company::None || !self.shards.know_pools() || !self.may_pool(&first) {
            return Some(Question::Evaluate(first));
        }
        let surveyed = self.minds(&class);
        let mut pooled = Pooled { groups: vec![first], surveyed, asked: Arc::new([]), seed: 0 };
        while pooled.groups.len() < CLASSES
            && pooled.len() < PODS
            && self.may_evaluate(now, reserving + pooled.len() + BATCH)
        {
            let next = self.next_pods(now, reserving + pooled.len());
            let Some(class) = next.first().map(|first| Arc::clone(&first.class)) else { break };
            let ignored = pooled.classes().all(|other| pool::ignore_each_other(&class, other));
            if !ignored || self.minds(&class) != surveyed || !self.may_pool(&next) {
                self.pods_again(next);
                break;
            }
            pooled.groups.push(next);
        }
        if pooled.groups.len() == 1 {
            return pooled.groups.pop().map(Question::Evaluate);
        }
        Some(Question::Pool(pooled))
    }

    /// Whether pods of a class may be decided with others.
    fn may_pool(&self, pods: &[Evaluated]) -> bool {
        let Some(first) = pods.first() else { return false };
        let class = &first.class;
        pool::suits(class, self.minds(class))
            && !self.odd_hostnames
            && self.nominations.node(first.attempt.pod.uid).is_none()
            && self.nominees(class, first.attempt.pod.uid, &[]).is_empty()
    }

    /// Whether that still holds.
    pub(super) fn may_pool_all(&self, pooled: &Pooled) -> bool {
        self.shards.know_pools() && pooled.groups.iter().all(|pods| self.may_pool(pods))
    }

    /// A survey for each class, or what is asked once they are there.
    pub(super) fn ask_pool(
        &self,
        pooled: &mut Pooled,
        surveying: bool,
        surveys: &[Arc<Survey>],
        operations: &mut Vec<Operation>,
    ) {
        if surveying {
            let survey = |class: &Arc<PodRequest>| Operation::Survey {
                class: Arc::clone(class),
                full: false,
            };
            operations.extend(pooled.classes().map(survey));
            return;
        }
        let asked = pooled.groups.iter().enumerate().filter_map(|(place, pods)| {
            Some(Asked {
                class: Arc::clone(&pods.first()?.class),
                count: u32::try_from(pods.len()).unwrap_or(u32::MAX),
                survey: surveys.get(place).cloned(),
            })
        });
        (pooled.asked, pooled.seed) = (asked.collect(), self.lots);
        operations.push(Operation::Draw { asked: Arc::clone(&pooled.asked), seed: pooled.seed });
    }

    /// The surveys for a pool are there, or aren't.
    pub(super) fn pool_surveyed(
        &mut self,
        now: Moment,
        pooled: Pooled,
        answers: impl Iterator<Item = Answer>,
        targets: Vec<Arc<str>>,
        missing: usize,
    ) {
        let survey = |answer| match answer {
            Answer::Survey(survey) => Some(Arc::from(survey)),
            _ => None,
        };
        let surveys: Option<Vec<Arc<Survey>>> = answers.map(survey).collect();
        let surveys = surveys.filter(|surveys| surveys.len() == pooled.groups.len());
        match surveys {
            Some(surveys) if missing == 0 && self.term.is_some() => {
                if surveys.iter().any(|survey| survey.odd_hostnames) {
                    self.odd_hostnames = true;
                    return self.ask_again(Question::Pool(pooled));
                }
                self.surveyed =
                    Some(Surveyed { question: Question::Pool(pooled), surveys, targets });
            }
            _ => self.one_by_one(now, pooled),
        }
    }

    /// The pool is there, or isn't.
    pub(super) fn drawn(
        &mut self,
        now: Moment,
        pooled: Pooled,
        answer: Option<Answer>,
        missing: usize,
    ) -> Vec<Action> {
        let pool = match answer {
            Some(Answer::Pool(pool)) if missing == 0 && self.term.is_some() => pool,
            _ => {
                self.one_by_one(now, pooled);
                return Vec::new();
            }
        };
        let mut actions = Vec::new();
        let mut draw = Draw::new(&pool, pooled.seed);
        let nothing = Evaluation::default();
        let mut groups = pooled.groups.into_iter();
        let mut rest = Vec::new();
        for (place, asked) in pooled.asked.iter().enumerate() {
            let Some(pods) = groups.next() else { break };
            let placements = draw.next(place, asked);
            self.company = if placements.is_empty() { Company::None } else { Company::Others };
            let mut pods = pods.into_iter();
            for (placement, pod) in placements.into_iter().zip(&mut pods) {
                actions.extend(self.evaluated(now, pod, Decision::Place(placement), &nothing));
            }
            rest.extend(pods);
            if !rest.is_empty() {
                break;
            }
        }
        self.pods_again(rest.into_iter().chain(groups.flatten()).collect::<Vec<_>>());
        actions
    }

    /// The first class alone is asked about next, in the way that every shard knows.
    fn one_by_one(&mut self, now: Moment, pooled: Pooled) {
        if self.term.is_none() {
            return self.give_back(now, Question::Pool(pooled));
        }
        self.company = Company::None;
        self.ask_again(Question::Pool(pooled));
    }
}
