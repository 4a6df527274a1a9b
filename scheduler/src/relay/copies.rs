//! The copies of one shard as a relay reaches them: processes of one name that each keep all of the
//! shard's tables full. One of them is asked; another one takes its place at once when it is gone,
//! and when it is silent for a good part of the time that a message has.
//!
//! A copy that has not been asked yet refuses in the way of a shard that has restarted, and hears
//! the reservations first: those under way, and the binds of the last minute, by which its watch
//! may lag behind. So a change of copies needs no more of the leader than a restart does.
//!
//! The others are greeted once a second, so that the connection to them is there when it is needed,
//! and so that they refuse an older leader as the copy in use does.
//!
//! A new leader knows of no reservations. It asks all copies for the last one that they were told of,
//! and takes the one that holds the last leader's.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use crate::protocol::transport::Peer;
use crate::protocol::{Refusal, Request, Response, ShardReport};

/// With less time than this left nobody else is asked.
const WORTHWHILE: Duration = Duration::from_millis(20);
/// A new leader waits this long for the other copies once one has answered.
const OTHERS: Duration = Duration::from_millis(500);
/// The part of a message's time after which the others are asked as well, if the copy in use is still
/// silent. It may merely be slow, and another one has to hear all reservations first.
const HEDGE: u32 = 4;
/// Copies that aren't in use are greeted this often, if the one in use is asked as often.
const GREET: Duration = Duration::from_millis(900);

/// All copies of a shard; the first is preferred where nothing speaks for another.
#[derive(Debug)]
pub struct Copies {
    peers: Vec<Peer>,
    active: AtomicUsize,
    greeted: Mutex<Option<Instant>>,
}

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

/// The best of some answers by copy; of equal ones the one of `active`, then the first.
fn best(answers: Vec<(usize, Response)>, active: usize) -> Option<(usize, Response)> {
    answers
        .into_iter()
        .max_by_key(|(copy, answer)| (rank_of(answer), *copy == active, Reverse(*copy)))
}

impl Copies {
    /// Copies in the order of preference; at least one.
    #[must_use]
    pub fn new(peers: Vec<Peer>) -> Self {
        Self { peers, active: AtomicUsize::new(0), greeted: Mutex::default() }
    }

    /// Adds one more.
    pub fn push(&mut self, peer: Peer) {
        self.peers.push(peer);
    }

    /// Asks the copy in use, and others where that one can't answer.
    pub async fn exchange(&self, request: &Request) -> Response {
        let active = self.active.load(Ordering::Relaxed);
        if let [only] = self.peers.as_slice() {
            return only.exchange(request).await;
        }
        let unknown = request.targets.iter().any(|target| target.incarnation == 0);
        let answers = if unknown {
            self.ask_all(request).await
        } else {
            self.greet_others(active, request);
            match self.ask_in_turn(active, request).await {
                Ok(answer) => return answer,
                Err(answers) => answers,
            }
        };
        let Some((copy, answer)) = best(answers, active) else {
            let refusal = Refusal::Unreachable("no copy answered".to_owned());
            return Response::refused(&request.targets, &refusal);
        };
        if rank_of(&answer).0 >= 2 {
            self.turn(active, copy, request);
        }
        answer
    }

    /// The answer of the copy in use; all answers where it can't, or is silent for so long that
    /// another one was ready before it.
    async fn ask_in_turn(
        &self,
        active: usize,
        request: &Request,
    ) -> Result<Response, Vec<(usize, Response)>> {
        let end = Instant::now() + request.deadline;
        let mut first = std::pin::pin!(self.ask(active, request));
        let answer = tokio::time::timeout(request.deadline / HEDGE, &mut first).await.ok();
        if answer.as_ref().is_some_and(|answer| rank_of(answer).0 >= 3) {
            return answer.ok_or_else(Vec::new);
        }
        let left = end.saturating_duration_since(Instant::now());
        if let Some(answer) = answer.as_ref().filter(|_| left < WORTHWHILE) {
            // No time is left for this message; the next one goes to another copy.
            self.turn(active, (active + 1) % self.peers.len(), request);
            return Ok(answer.clone());
        }
        let hedged = answer.is_none();
        let mut answers: Vec<(usize, Response)> =
            answer.map(|answer| (active, answer)).into_iter().collect();
        let request = Request { deadline: left, ..request.clone() };
        let others = (0..self.peers.len()).filter(|copy| *copy != active);
        let mut others = std::pin::pin!(join_all(
            others.map(async |copy| (copy, self.ask(copy, &request).await))
        ));
        if !hedged {
            answers.extend(others.await);
            return Err(answers);
        }
        tokio::select! {
            biased;
            answer = &mut first => {
                if rank_of(&answer).0 >= 3 {
                    return Ok(answer);
                }
                answers.push((active, answer));
                answers.extend(others.await);
            }
            others = &mut others => {
                let ready = others.iter().any(|(_, answer)| rank_of(answer).0 >= 2);
                answers.extend(others);
                if !ready {
                    answers.push((active, first.await));
                }
            }
        }
        Err(answers)
    }

    /// Sends a message without operations to the copies that aren't in use. Whatever they answer
    /// changes nothing: whoever is asked next finds out.
    fn greet_others(&self, active: usize, request: &Request) {
        let now = Instant::now();
        {
            let mut greeted = self.greeted.lock();
            if greeted.is_some_and(|at| now < at + GREET) {
                return;
            }
            *greeted = Some(now);
        }
        for (copy, peer) in self.peers.iter().enumerate() {
            if copy == active {
                continue;
            }
            let peer = peer.clone();
            let greeting = Request {
                operations: Vec::new(),
                relays: Vec::new(),
                // One at a time for each copy.
                deadline: GREET.min(request.deadline),
                ..request.clone()
            };
            tokio::spawn(async move { drop(peer.exchange(&greeting).await) });
        }
    }

    async fn ask(&self, copy: usize, request: &Request) -> Response {
        let Some(peer) = self.peers.get(copy) else {
            let refusal = Refusal::Unreachable("no such copy".to_owned());
            return Response::refused(&request.targets, &refusal);
        };
        peer.exchange(request).await
    }

    /// All answers, or those that came soon after the first copy that can be asked.
    async fn ask_all(&self, request: &Request) -> Vec<(usize, Response)> {
        let mut flying: FuturesUnordered<_> =
            (0..self.peers.len()).map(async |copy| (copy, self.ask(copy, request).await)).collect();
        let mut answers = Vec::new();
        let mut until = None;
        loop {
            let next = match until {
                None => flying.next().await,
                Some(until) => {
                    tokio::time::timeout_at(until, flying.next()).await.unwrap_or_default()
                }
            };
            let Some(answer) = next else { return answers };
            if rank_of(&answer.1).0 >= 2 {
                until.get_or_insert_with(|| Instant::now() + OTHERS);
            }
            answers.push(answer);
        }
    }

    fn turn(&self, from: usize, to: usize, request: &Request) {
        // Another message may have turned it meanwhile: that one knows as much.
        let turned =
            self.active.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if turned && from != to {
            let shard = request.targets.first().map(|target| target.shard.as_ref());
            warn!(shard, copy = to, "another copy of the shard is asked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::EventSet;

    fn answer(refusal: Option<Refusal>, last_token: u64) -> Response {
        let report = ShardReport {
            shard: "s".into(),
            incarnation: 1,
            changes: 0,
            events: EventSet::EMPTY,
            keeps_domains_free: false,
            last_token,
            refusal,
        };
        Response { shards: vec![report], answers: Vec::new() }
    }

    fn chosen(answers: Vec<Response>, active: usize) -> Option<usize> {
        best(answers.into_iter().enumerate().collect(), active).map(|(copy, _)| copy)
    }

    #[test]
    fn a_copy_that_answers_is_taken_before_one_that_does_not() {
        let gone = || answer(Some(Refusal::Unreachable(String::new())), 0);
        let starting = || answer(Some(Refusal::NotSynced), 0);
        let new = || answer(Some(Refusal::NewIncarnation), 0);
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
}
