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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::asking::{Asked, Asking};
use crate::protocol::transport::Peer;
use crate::protocol::{Refusal, Request, Response};

/// Copies that aren't in use are greeted this often, if the one in use is asked as often.
const GREET: Duration = Duration::from_millis(900);

/// All copies of a shard; the first is preferred where nothing speaks for another.
#[derive(Debug)]
pub struct Copies {
    peers: Vec<Peer>,
    active: AtomicUsize,
    greeted: Mutex<Option<Instant>>,
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
        if request.targets.iter().all(|target| target.incarnation != 0) {
            self.greet_others(active, request);
        }
        let Asked { answer, copy } = self.ask_by_turns(active, request).await;
        self.turn(active, copy, request);
        answer.unwrap_or_else(|| {
            let refusal = Refusal::Unreachable("no copy answered".to_owned());
            Response::refused(&request.targets, &refusal)
        })
    }

    async fn ask_by_turns(&self, active: usize, request: &Request) -> Asked {
        let begun = Instant::now();
        let mut asking = Asking::new(self.peers.len(), active, request);
        let mut flying = FuturesUnordered::new();
        loop {
            flying.extend(asking.next(begun.elapsed()).into_iter().map(
                |(copy, left)| async move {
                    let answer = if left >= request.deadline {
                        self.ask(copy, request).await
                    } else {
                        self.ask(copy, &Request { deadline: left, ..request.clone() }).await
                    };
                    (copy, answer)
                },
            ));
            let wake = asking.wake();
            tokio::select! {
                biased;
                Some((copy, answer)) = flying.next() => {
                    asking.answered(begun.elapsed(), copy, answer);
                }
                () = tokio::time::sleep_until(begun + wake.unwrap_or_default()), if wake.is_some() => {
                    asking.woken(begun.elapsed());
                }
                else => return Asked { answer: None, copy: active },
            }
            if let Some(asked) = asking.take() {
                return asked;
            }
        }
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
