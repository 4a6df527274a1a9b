//! Unary load: so many clients, each with one request under way, as fast as they are answered
//! (closed loop) or at a fixed rate (open loop).
//!
//! At a fixed rate a latency counts from the moment at which the request was due, not from when a
//! client was free to send it, so that a server that stalls can't hide it (no coordinated omission).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::error::{Error, io};
use crate::h2::{Connection, Event, Method};
use crate::histogram::Histogram;
use crate::pb::{self, Answer, Value};
use crate::proc::{self, Usage};
use crate::space::{KEY, PREFIX, Random, Space};

/// How long after its end a load waits for its last answers.
const DRAIN: Duration = Duration::from_secs(10);
/// Below this, the wait for the next request of an open loop is spent polling.
const SPIN: Duration = Duration::from_millis(1);
/// Puts of one transaction while keys are filled in; etcd takes up to 128.
const FILL: usize = 100;
/// The tag of calls that no client waits for.
const ASIDE: usize = usize::MAX;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Put a random key.
    Put,
    /// Get a random key.
    Get,
    /// Put a key if its revision is the expected one, as kube-apiserver updates an object.
    Cas,
    /// Eight updates by compare-and-put, one get of an object, one get of a key that is not there:
    /// about what node heartbeats make of an apiserver's traffic.
    Mix,
}

/// A load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) pid: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    /// At a fixed rate: the most requests under way.
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    pub(crate) value: usize,
    /// Requests per second; `None` is a closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// Compact at the newest revision this often.
    pub(crate) compact_every: Option<Duration>,
    /// Write all keys first, in large transactions.
    pub(crate) fill: bool,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Default)]
pub(crate) struct Outcome {
    /// Answers within the measured time.
    pub(crate) ops: u64,
    /// Calls without an answer, compares that failed, keys not found.
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
    pub(crate) latency: Histogram,
    pub(crate) before: Usage,
    pub(crate) after: Usage,
    /// Writes acknowledged over the whole run, warm-up and drain included.
    pub(crate) writes: u64,
}

/// One client.
#[derive(Clone, Copy, Debug)]
struct Client {
    connection: usize,
    key: usize,
    kind: Kind,
    due: u64,
    turn: u64,
    answer: Option<Answer>,
}

pub(crate) struct Load<'a> {
    plan: &'a Plan,
    space: &'a Space,
    poll: Poll,
    connections: Vec<Connection>,
    clients: Vec<Client>,
    /// Of each key, as far as known.
    revisions: Vec<i64>,
    newest: i64,
    random: Random,
    message: Vec<u8>,
    head: Vec<u8>,
    /// The moment from which nanoseconds count.
    epoch: Instant,
    /// Connections that have more to read than one turn allows.
    more: Vec<usize>,
    ended: Vec<usize>,
    outcome: Outcome,
    measuring: bool,
    under_way: usize,
}

impl<'a> Load<'a> {
    /// Connects.
    pub(crate) fn new(plan: &'a Plan, space: &'a Space, epoch: Instant) -> Result<Self, Error> {
        let poll = Poll::new().map_err(io("epoll"))?;
        let mut connections = Vec::new();
        for index in 0..plan.connections.max(1) {
            let mut connection = Connection::open(plan.target)?;
            poll.registry()
                .register(
                    connection.source(),
                    Token(index),
                    Interest::READABLE | Interest::WRITABLE,
                )
                .map_err(io("epoll"))?;
            connections.push(connection);
        }
        let client = |index: usize| Client {
            connection: index % connections.len(),
            key: index % plan.keys,
            kind: plan.kind,
            due: 0,
            turn: 0,
            answer: None,
        };
        let clients = (0..plan.clients.max(1)).map(client).collect();
        if plan.kind != Kind::Put && plan.keys < plan.clients {
            return Err(Error::Usage("each client needs a key of its own".into()));
        }
        Ok(Self {
            plan,
            space,
            poll,
            clients,
            // A server may have sent what we have read already, or nothing: look at all once.
            more: (0..connections.len()).collect(),
            connections,
            revisions: vec![0; plan.keys],
            newest: 0,
            random: Random::new(plan.seed),
            message: Vec::new(),
            head: Vec::new(),
            epoch,
            ended: Vec::new(),
            outcome: Outcome::default(),
            measuring: false,
            under_way: 0,
        })
    }

    fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }

    /// Writes every key once.
    fn fill(&mut self) -> Result<(), Error> {
        let each = pb::txn_put_length(KEY, self.plan.value.max(512));
        // A transaction for each connection at a time stands in a client's place meanwhile.
        let writer = Client { kind: Kind::Cas, ..self.clients[0] };
        let clients = std::mem::replace(&mut self.clients, vec![writer; self.connections.len()]);
        let batch = (self.connections[0].largest() / each).clamp(1, FILL);
        let mut next = 0;
        let mut parts: Vec<(usize, usize)> = vec![(0, 0); self.connections.len()];
        self.ended = (0..self.connections.len()).collect();
        let deadline = Instant::now() + Duration::from_mins(15);
        loop {
            for slot in std::mem::take(&mut self.ended) {
                let (from, to) = parts[slot];
                if from < to {
                    let Some(answer) = self.clients[slot].answer.take() else {
                        return Err(Error::Peer("did not take the keys".into()));
                    };
                    self.under_way -= 1;
                    self.revisions[from..to].fill(answer.revision);
                    self.newest = self.newest.max(answer.revision);
                }
                let to = (next + batch).min(self.plan.keys);
                parts[slot] = (next, to);
                if next == to {
                    continue;
                }
                self.message.clear();
                let mut key = [0; KEY];
                for index in next..to {
                    self.space.key(index, &mut key);
                    let body = self.space.value(index, 0, 0, self.plan.value, &mut self.head);
                    pb::txn_put(&mut self.message, &key, &Value { head: &self.head, body });
                }
                self.connections[slot].call(Method::Txn, slot, &self.message);
                self.under_way += 1;
                next = to;
            }
            if self.under_way == 0 {
                self.clients = clients;
                return Ok(());
            }
            self.turn(Some(Duration::from_secs(1)))?;
            if Instant::now() > deadline {
                return Err(Error::Peer("too slow to be filled".into()));
            }
        }
    }

    /// Runs the load. `measured` is told when the measured time begins and ends.
    pub(crate) fn run(mut self, mut measured: impl FnMut(bool)) -> Result<Outcome, Error> {
        if self.plan.fill || self.plan.kind != Kind::Put {
            self.fill()?;
        }
        let start = self.now();
        let begin = start + nanos(self.plan.warmup);
        let end = begin + nanos(self.plan.duration);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a second's part"
        )]
        let interval = self.plan.rate.map(|rate| ((1e9 / rate) as u64).max(1));
        let mut due = start;
        let mut free: VecDeque<usize> = (0..self.clients.len()).collect();
        let mut compact = self.plan.compact_every.map(|every| start + nanos(every));
        loop {
            let now = self.now();
            if !self.measuring && now >= begin {
                self.measuring = true;
                self.outcome.before = self.usage()?;
                measured(true);
            }
            if now >= end {
                break;
            }
            if let (Some(at), Some(every)) = (compact, self.plan.compact_every)
                && now >= at
            {
                self.message.clear();
                pb::compact(&mut self.message, self.newest);
                self.connections[0].call(Method::Compact, ASIDE, &self.message);
                compact = Some(at + nanos(every));
            }
            let mut wait = Duration::from_millis(10);
            match interval {
                None => {
                    while let Some(client) = free.pop_front() {
                        self.issue(client, now);
                    }
                }
                Some(interval) => {
                    while due <= now
                        && let Some(client) = free.pop_front()
                    {
                        self.issue(client, due);
                        due += interval;
                    }
                    let next = Duration::from_nanos(due.saturating_sub(now));
                    if !free.is_empty() {
                        wait = wait.min(next.saturating_sub(SPIN));
                    }
                }
            }
            self.turn(Some(wait))?;
            let now = self.now();
            for client in std::mem::take(&mut self.ended) {
                self.finish(client, now);
                free.push_back(client);
            }
        }
        measured(false);
        self.outcome.after = self.usage()?;
        self.outcome.seconds = self.plan.duration.as_secs_f64();
        self.drain()?;
        Ok(self.outcome)
    }

    /// Waits for what is under way: at a fixed rate a late answer is what the load is about.
    fn drain(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + DRAIN;
        let ops = self.outcome.ops;
        while self.under_way > 0 && Instant::now() < deadline {
            self.turn(Some(Duration::from_millis(10)))?;
            let now = self.now();
            for client in std::mem::take(&mut self.ended) {
                self.finish(client, now);
            }
        }
        self.outcome.ops = ops;
        self.outcome.errors += self.under_way as u64;
        Ok(())
    }

    fn usage(&self) -> Result<Usage, Error> {
        self.plan.pid.map_or(Ok(Usage::default()), proc::usage)
    }

    /// Sends a client's next request.
    fn issue(&mut self, index: usize, due: u64) {
        let clients = self.clients.len();
        let client = &mut self.clients[index];
        let any = self.random.below(self.plan.keys);
        client.kind = match self.plan.kind {
            Kind::Mix => match self.random.below(10) {
                0 => Kind::Get,
                1 => Kind::Mix,
                _ => Kind::Cas,
            },
            kind => kind,
        };
        // A compare holds if nobody else writes the key: each client has every so-many-th.
        let own = any - any % clients + index;
        client.key = match client.kind {
            Kind::Cas if own < self.plan.keys => own,
            Kind::Cas => index,
            _ => any,
        };
        client.due = due;
        client.turn += 1;
        client.answer = None;
        let mut key = [0; KEY];
        self.space.key(client.key, &mut key);
        self.message.clear();
        let size = self.plan.value;
        let method = match client.kind {
            Kind::Get => {
                pb::range(&mut self.message, &key, b"");
                Method::Range
            }
            Kind::Mix => {
                pb::range(&mut self.message, &PREFIX[..PREFIX.len() - 1], b"");
                Method::Range
            }
            Kind::Put => {
                let body = self.space.value(client.key, client.turn, due, size, &mut self.head);
                pb::put(&mut self.message, &key, &Value { head: &self.head, body });
                Method::Put
            }
            Kind::Cas => {
                let body = self.space.value(client.key, client.turn, due, size, &mut self.head);
                let value = Value { head: &self.head, body };
                let revision = self.revisions[client.key];
                pb::compare_and_put(&mut self.message, &key, revision, &value);
                Method::Txn
            }
        };
        self.connections[client.connection].call(method, index, &self.message);
        self.under_way += 1;
    }

    /// Looks at a client's answer.
    fn finish(&mut self, index: usize, now: u64) {
        self.under_way -= 1;
        let client = self.clients[index];
        let good = match (client.answer, client.kind) {
            (None, _) => false,
            (Some(answer), Kind::Put) => {
                self.newest = self.newest.max(answer.revision);
                self.outcome.writes += 1;
                answer.revision > 0
            }
            (Some(answer), Kind::Get) => answer.kvs == 1,
            (Some(answer), Kind::Mix) => answer.kvs == 0 && answer.revision > 0,
            (Some(answer), Kind::Cas) => {
                self.newest = self.newest.max(answer.revision);
                let revision = if answer.succeeded { answer.revision } else { answer.mod_revision };
                self.revisions[client.key] = revision;
                self.outcome.writes += u64::from(answer.succeeded);
                answer.succeeded
            }
        };
        if !self.measuring {
            return;
        }
        if good {
            self.outcome.ops += 1;
            self.outcome.latency.record(now.saturating_sub(client.due));
        } else {
            self.outcome.errors += 1;
        }
    }

    /// Sends and receives what can be, waiting up to `wait` for it.
    fn turn(&mut self, wait: Option<Duration>) -> Result<(), Error> {
        for connection in &mut self.connections {
            if connection.is_dirty() {
                connection.flush()?;
            }
        }
        let wait = if self.more.is_empty() { wait } else { Some(Duration::ZERO) };
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, wait) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            other => other.map_err(io("epoll"))?,
        }
        let mut ready = std::mem::take(&mut self.more);
        for event in &events {
            let index = event.token().0;
            if event.is_readable() && !ready.contains(&index) {
                ready.push(index);
            }
        }
        let (clients, ended) = (&mut self.clients, &mut self.ended);
        for index in ready {
            let more = self.connections[index].receive(|event| match event {
                Event::Message(ASIDE, _) | Event::End(ASIDE) => {}
                Event::Message(tag, message) => {
                    if let Some(client) = clients.get_mut(tag) {
                        client.answer = Some(match client.kind {
                            Kind::Get | Kind::Mix => pb::range_answer(message),
                            Kind::Put | Kind::Cas => pb::write_answer(message),
                        });
                    }
                }
                Event::End(tag) => ended.push(tag),
            })?;
            if more {
                self.more.push(index);
            }
        }
        Ok(())
    }
}

/// Nanoseconds as a number; enough for centuries.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
