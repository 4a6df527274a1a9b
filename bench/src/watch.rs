//! Watch load: many watchers, a writer at a fixed rate or as fast as it can, and how long each event
//! takes from the moment its write was due until it is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::error::{Error, io};
use crate::h2::{Connection, Event, Method};
use crate::histogram::Histogram;
use crate::load::{Load, Outcome, Plan, nanos};
use crate::pb;
use crate::space::Space;

/// How long the watches may take to be made, and the last events to come.
const PATIENCE: Duration = Duration::from_mins(1);

/// Watchers, and what they watch.
#[derive(Clone, Debug)]
pub(crate) struct Watchers {
    pub(crate) target: SocketAddr,
    pub(crate) count: usize,
    /// Streams of all; each carries its part of the watches.
    pub(crate) streams: usize,
    pub(crate) connections: usize,
    /// Watcher `i` watches prefix `i` modulo this.
    pub(crate) prefixes: usize,
    pub(crate) prev_kv: bool,
    /// Further watchers, of everything, on connections of their own that never read.
    pub(crate) stalled: usize,
}

/// What the watchers saw.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Events within the measured time.
    pub(crate) events: u64,
    /// Events over the whole run.
    pub(crate) total: u64,
    /// From a write's due time to its event.
    pub(crate) latency: Histogram,
    /// Events that were due and did not come.
    pub(crate) missing: u64,
}

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    ready: AtomicBool,
    measuring: AtomicBool,
    /// Events to wait for before the end; `u64::MAX` while writes go on.
    wanted: AtomicU64,
    failed: AtomicBool,
}

/// Runs the writer's plan while the watchers read.
pub(crate) fn run(plan: &Plan, watchers: &Watchers) -> Result<(Outcome, Seen), Error> {
    let space = Space::new(watchers.prefixes, crate::space::Shape::Random);
    let epoch = Instant::now();
    let shared = Arc::new(Shared::default());
    shared.wanted.store(u64::MAX, Ordering::Release);
    // These never read; the sockets fill up.
    let stalled = (0..watchers.stalled)
        .map(|_| {
            let mut connection = Connection::open(watchers.target)?;
            let stream = connection.begin(Method::Watch, 0);
            let mut message = Vec::new();
            pb::watch(&mut message, b"/registry/bench/", b"/registry/bench0", 1, false);
            connection.send(stream, &message);
            connection.flush()?;
            Ok(connection)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let reader = {
        let (shared, watchers, space) = (shared.clone(), watchers.clone(), space.clone());
        thread::spawn(move || {
            let result = Reader::new(&watchers, &space, epoch).and_then(|r| r.run(&shared));
            shared.failed.store(result.is_err(), Ordering::Release);
            result
        })
    };
    let join = |reader: thread::JoinHandle<Result<Seen, Error>>| {
        reader.join().map_err(|_| Error::Child("the watchers' thread panicked".into()))?
    };
    let deadline = Instant::now() + PATIENCE;
    while !shared.ready.load(Ordering::Acquire) {
        if shared.failed.load(Ordering::Acquire) || Instant::now() > deadline {
            shared.wanted.store(0, Ordering::Release);
            join(reader)?;
            return Err(Error::Peer("the watches were not made in time".into()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let written = Load::new(plan, &space, epoch)?
        .run(|measuring| shared.measuring.store(measuring, Ordering::Release));
    let watching = (watchers.count / watchers.prefixes.max(1)) as u64;
    let wanted = written.as_ref().map_or(0, |outcome| outcome.writes * watching);
    shared.wanted.store(wanted, Ordering::Release);
    let mut seen = join(reader)?;
    seen.missing = wanted.saturating_sub(seen.total);
    drop(stalled);
    Ok((written?, seen))
}

struct Reader {
    poll: Poll,
    connections: Vec<Connection>,
    count: usize,
    epoch: Instant,
}

impl Reader {
    /// Connects and asks for all watches.
    fn new(watchers: &Watchers, space: &Space, epoch: Instant) -> Result<Self, Error> {
        let poll = Poll::new().map_err(io("epoll"))?;
        let streams = watchers.streams.clamp(1, watchers.count.max(1));
        let mut connections = Vec::new();
        for index in 0..watchers.connections.clamp(1, streams) {
            let mut connection = Connection::open(watchers.target)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(connection.source(), Token(index), interest)
                .map_err(io("epoll"))?;
            connections.push(connection);
        }
        let mut message = Vec::new();
        let count = connections.len();
        for stream in 0..streams {
            let connection = &mut connections[stream % count];
            let number = connection.begin(Method::Watch, stream);
            for watch in (stream..watchers.count).step_by(streams) {
                let (start, end) = space.range(watch % watchers.prefixes.max(1));
                message.clear();
                let id = i64::try_from(watch).unwrap_or(0) + 1;
                pb::watch(&mut message, &start, &end, id, watchers.prev_kv);
                connection.send(number, &message);
            }
        }
        Ok(Self { poll, connections, count: watchers.count, epoch })
    }

    /// Reads until all that is wanted was seen.
    fn run(mut self, shared: &Shared) -> Result<Seen, Error> {
        let mut seen = Seen::default();
        let mut created = 0;
        let mut events = Events::with_capacity(1024);
        let mut more: Vec<usize> = (0..self.connections.len()).collect();
        let mut deadline = None;
        loop {
            for connection in &mut self.connections {
                if connection.is_dirty() {
                    connection.flush()?;
                }
            }
            let wait = Duration::from_millis(if more.is_empty() { 10 } else { 0 });
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(io("epoll"))?,
            }
            let measuring = shared.measuring.load(Ordering::Acquire);
            let mut ready = std::mem::take(&mut more);
            for event in &events {
                let index = event.token().0;
                if event.is_readable() && !ready.contains(&index) {
                    ready.push(index);
                }
            }
            let mut canceled = false;
            for index in ready {
                let epoch = self.epoch;
                let again = self.connections[index].receive(|event| match event {
                    Event::Message(_, message) => {
                        let now = nanos(epoch.elapsed());
                        let latency = &mut seen.latency;
                        let news = pb::watch_answer(message, |value| {
                            if measuring && let Some(stamp) = value.first_chunk() {
                                let due = u64::from_le_bytes(*stamp);
                                latency.record(now.saturating_sub(due));
                            }
                        });
                        created += usize::from(news.created);
                        canceled |= news.canceled;
                        seen.total += news.events;
                        if measuring {
                            seen.events += news.events;
                        }
                    }
                    Event::End(_) => canceled = true,
                })?;
                if again {
                    more.push(index);
                }
            }
            if canceled {
                return Err(Error::Peer("ended a watch".into()));
            }
            if created == self.count {
                shared.ready.store(true, Ordering::Release);
            }
            let wanted = shared.wanted.load(Ordering::Acquire);
            if wanted != u64::MAX {
                let until = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE / 4);
                if seen.total >= wanted || Instant::now() > until {
                    return Ok(seen);
                }
            }
        }
    }
}
