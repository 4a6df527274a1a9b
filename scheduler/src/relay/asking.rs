//! Which copies of a shard are asked about one message, and whose answer counts. Without I/O: the
//! relay's connections and the simulation both act by it.
//!
//! A copy that a leader knows is asked alone. Others are asked as well when it can't answer, and when
//! it is silent for a good part of the time that the message has: it may merely be slow, and another
//! one has to hear all reservations first. A new leader asks all.

use std::cmp::Reverse;
use std::time::Duration;

use crate::protocol::{Refusal, Request, Response, ShardReport};

/// With less time than this left nobody else is asked.
const WORTHWHILE: Duration = Duration::from_millis(20);
/// A new leader waits this long for the other copies once one has answered.
const OTHERS: Duration = Duration::from_millis(500);
/// The part of a message's time after which the others are asked as well, if the copy in use is still
/// silent.
const HEDGE: u32 = 4;

/// How good an answer is: the greatest is taken. An answer that settles it for all copies comes
/// first, then one that carried the request out, then a copy that could, the one with the last
/// leader's reservations before others.
fn rank(report: &ShardReport) -> (u8, u64) {
    match &report.refusal {
        Some(
            Refusal::StaleTerm { .. } | Refusal::StaleMembership { .. } | Refusal::Malformed(_),
        ) => (4, 0),
        None => (3, 0),
        Some(Refusal::NewIncarnation) => (2, report.last_token),
        Some(Refusal::NotSynced) => (1, 0),
        Some(Refusal::Unreachable(_)) => (0, 0),
    }
}

fn rank_of(response: &Response) -> (u8, u64) {
    response.shards.first().map_or((0, 0), rank)
}

/// It could carry out what it is asked, or hear the reservations.
fn is_ready(response: &Response) -> bool {
    rank_of(response).0 >= 2
}

/// Nobody else need be asked.
fn settles(response: &Response) -> bool {
    rank_of(response).0 >= 3
}

/// The best of some answers by copy; of equal ones the one of `active`, then the first.
fn best(answers: Vec<(usize, Response)>, active: usize) -> Option<(usize, Response)> {
    answers
        .into_iter()
        .max_by_key(|(copy, answer)| (rank_of(answer), *copy == active, Reverse(*copy)))
}

/// What came of it.
#[derive(Debug)]
pub struct Asked {
    /// The answer; none where no copy was asked.
    pub answer: Option<Response>,
    /// The copy to ask from now on.
    pub copy: usize,
}

/// One message on its way to the copies of a shard. Times count from when it was sent.
#[derive(Debug)]
pub struct Asking {
    copies: usize,
    active: usize,
    /// The leader knows none of them yet.
    anew: bool,
    deadline: Duration,
    /// Copies that were asked and have not answered.
    silent: Vec<usize>,
    answers: Vec<(usize, Response)>,
    /// Not asked yet.
    next: Vec<usize>,
    /// The others are asked as well, or need not be.
    widened: bool,
    /// When those that are silent are waited for no longer.
    until: Option<Duration>,
    asked: Option<Asked>,
}

impl Asking {
    /// A message for the shard that `request` is to, of which copy number `active` is in use.
    #[must_use]
    pub fn new(copies: usize, active: usize, request: &Request) -> Self {
        let anew = request.targets.iter().any(|target| target.incarnation == 0);
        let next = if anew { (0..copies).collect() } else { vec![active] };
        Self {
            copies,
            active,
            anew,
            deadline: request.deadline,
            silent: Vec::new(),
            answers: Vec::new(),
            next,
            widened: anew,
            until: None,
            asked: None,
        }
    }

    /// The copies to ask now, with the time that each has to answer.
    pub fn next(&mut self, elapsed: Duration) -> Vec<(usize, Duration)> {
        self.silent.extend(&self.next);
        let left = self.deadline.saturating_sub(elapsed);
        std::mem::take(&mut self.next).into_iter().map(|copy| (copy, left)).collect()
    }

    /// When to call [`Asking::woken`].
    #[must_use]
    pub fn wake(&self) -> Option<Duration> {
        if self.widened { self.until } else { Some(self.deadline / HEDGE) }
    }

    /// The time has come.
    pub fn woken(&mut self, elapsed: Duration) {
        if !self.widened && elapsed >= self.deadline / HEDGE {
            self.widen();
        }
        if self.until.is_some_and(|until| elapsed >= until) {
            self.take_best();
        }
    }

    /// A copy has answered, or its time is over.
    pub fn answered(&mut self, elapsed: Duration, copy: usize, answer: Response) {
        self.silent.retain(|silent| *silent != copy);
        if self.asked.is_some() {
            return;
        }
        if !self.anew && copy == self.active {
            if settles(&answer) {
                self.asked = Some(Asked { answer: Some(answer), copy });
                return;
            }
            if !self.widened && self.deadline.saturating_sub(elapsed) < WORTHWHILE {
                // No time is left for this message; the next one goes to another copy.
                let copy = (copy + 1) % self.copies.max(1);
                self.asked = Some(Asked { answer: Some(answer), copy });
                return;
            }
            self.widen();
        }
        if self.anew && is_ready(&answer) {
            self.until.get_or_insert(elapsed + OTHERS);
        }
        self.answers.push((copy, answer));
        let ready = self.answers.iter().any(|(_, answer)| is_ready(answer));
        // One that is silent is not waited for where another is ready.
        let waits = |copy: &&usize| self.anew || **copy != self.active || !ready;
        if self.next.is_empty() && !self.silent.iter().any(|copy| waits(&copy)) {
            self.take_best();
        }
    }

    /// What came of it, once that is clear.
    pub fn take(&mut self) -> Option<Asked> {
        self.asked.take()
    }

    fn widen(&mut self) {
        if !std::mem::replace(&mut self.widened, true) {
            self.next.extend((0..self.copies).filter(|copy| *copy != self.active));
        }
    }

    fn take_best(&mut self) {
        let best = best(std::mem::take(&mut self.answers), self.active);
        self.asked = Some(match best {
            Some((copy, answer)) => {
                let copy = if is_ready(&answer) { copy } else { self.active };
                Asked { answer: Some(answer), copy }
            }
            None => Asked { answer: None, copy: self.active },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::EventSet;
    use crate::protocol::Target;

    const SECOND: Duration = Duration::from_secs(1);

    fn answer(refusal: Option<Refusal>, last_token: u64) -> Response {
        let report = ShardReport {
            shard: "s".into(),
            incarnation: 1,
            changes: 0,
            events: EventSet::EMPTY,
            keeps_domains_free: false,
            last_token,
            pools: false,
            refusal,
        };
        Response { shards: vec![report], answers: Vec::new() }
    }

    fn gone() -> Response {
        answer(Some(Refusal::Unreachable(String::new())), 0)
    }

    fn new() -> Response {
        answer(Some(Refusal::NewIncarnation), 0)
    }

    fn chosen(answers: Vec<Response>, active: usize) -> Option<usize> {
        best(answers.into_iter().enumerate().collect(), active).map(|(copy, _)| copy)
    }

    /// A message with a second's time, and whom it goes to at first.
    fn asking(incarnation: u64, active: usize) -> (Asking, Vec<usize>) {
        let targets = vec![Target { shard: "s".into(), incarnation, changes: 0 }];
        let request = Request {
            term: 1,
            membership: 0,
            deadline: SECOND,
            targets,
            relays: Vec::new(),
            operations: Vec::new(),
        };
        let mut asking = Asking::new(2, active, &request);
        let first = copies(asking.next(Duration::ZERO));
        (asking, first)
    }

    fn copies(asked: Vec<(usize, Duration)>) -> Vec<usize> {
        asked.into_iter().map(|(copy, _)| copy).collect()
    }

    #[test]
    fn a_copy_that_answers_is_taken_before_one_that_does_not() {
        let starting = || answer(Some(Refusal::NotSynced), 0);
        assert_eq!(chosen(vec![gone(), new()], 0), Some(1));
        assert_eq!(chosen(vec![starting(), new()], 0), Some(1));
        assert_eq!(chosen(vec![gone(), starting()], 0), Some(1));
        assert_eq!(chosen(vec![new(), answer(None, 9)], 0), Some(1), "it knows this leader");
        assert_eq!(chosen(vec![new(), new()], 1), Some(1), "nothing speaks for another");
        assert_eq!(chosen(Vec::new(), 0), None);
    }

    #[test]
    fn a_new_leader_takes_the_copy_that_holds_the_last_one_s_reservations() {
        let new = |term| answer(Some(Refusal::NewIncarnation), term);
        assert_eq!(chosen(vec![new(4), new(7)], 0), Some(1));
        assert_eq!(chosen(vec![new(7), new(4)], 1), Some(0));
    }

    #[test]
    fn whoever_is_told_to_stop_asks_no_other_copy() {
        let stale = answer(Some(Refusal::StaleTerm { current: 9 }), 0);
        assert_eq!(chosen(vec![stale, answer(None, 0)], 1), Some(0));
    }

    #[test]
    fn a_copy_that_answers_is_asked_alone() {
        let (mut asking, first) = asking(1, 1);
        assert_eq!(first, [1]);
        assert_eq!(asking.wake(), Some(SECOND / HEDGE));
        asking.answered(SECOND / 10, 1, answer(None, 0));
        let asked = asking.take().unwrap();
        assert_eq!((asked.copy, asked.answer.is_some()), (1, true));
        assert!(asking.next(SECOND / 10).is_empty());
    }

    #[test]
    fn another_is_asked_at_once_where_one_is_gone() {
        let (mut asking, _) = asking(1, 0);
        asking.answered(SECOND / 10, 0, gone());
        assert!(asking.take().is_none());
        assert_eq!(asking.next(SECOND / 10), [(1, SECOND * 9 / 10)]);
        asking.answered(SECOND / 5, 1, new());
        assert_eq!(asking.take().unwrap().copy, 1);
    }

    #[test]
    fn another_is_asked_where_one_is_silent_and_the_first_that_is_ready_counts() {
        for late in [false, true] {
            let (mut asking, _) = asking(1, 0);
            asking.woken(SECOND / HEDGE);
            assert_eq!(copies(asking.next(SECOND / HEDGE)), [1]);
            assert_eq!(asking.wake(), None);
            if late {
                // It was merely slow.
                asking.answered(SECOND / 2, 0, answer(None, 0));
                assert_eq!(asking.take().unwrap().copy, 0);
            } else {
                asking.answered(SECOND / 2, 1, new());
                assert_eq!(asking.take().unwrap().copy, 1);
            }
        }
    }

    #[test]
    fn one_that_is_silent_is_waited_for_where_no_other_is_ready() {
        let (mut asking, _) = asking(1, 0);
        asking.woken(SECOND / HEDGE);
        let _ = asking.next(SECOND / HEDGE);
        asking.answered(SECOND / 2, 1, gone());
        assert!(asking.take().is_none());
        asking.answered(SECOND, 0, gone());
        let asked = asking.take().unwrap();
        assert_eq!((asked.copy, asked.answer.is_some()), (0, true), "nothing speaks for another");
    }

    #[test]
    fn without_time_left_the_next_message_goes_elsewhere() {
        let (mut asking, _) = asking(1, 1);
        asking.answered(SECOND, 1, gone());
        assert_eq!(asking.take().unwrap().copy, 0);
        assert!(asking.next(SECOND).is_empty());
    }

    #[test]
    fn a_new_leader_asks_all_and_does_not_wait_long_for_the_last() {
        let (mut asking, first) = asking(0, 0);
        assert_eq!((first, asking.wake()), (vec![0, 1], None));
        asking.answered(SECOND / 10, 1, new());
        assert!(asking.take().is_none());
        let until = asking.wake().unwrap();
        assert_eq!(until, SECOND / 10 + OTHERS);
        asking.woken(until);
        assert_eq!(asking.take().unwrap().copy, 1);
    }
}
