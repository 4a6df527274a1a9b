//! The sequencer's thread.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::batch::Delivery;
use super::commit::Committer;
use super::snapshot::{Outcome, Snapshot};
use super::{Ask, Asked, Handle, Health, Inbox, Message, QUEUE, Shared};
use crate::core::{Batch, Command, Engine, EngineConfig, Error, Reply, State};
use crate::heap::Growth;
use crate::log::{Log, LogConfig, OpenError};
use crate::metrics::Metrics;

/// Requests of one batch.
const BATCH: usize = 2048;
/// A batch is closed early when it has read so many keys or written so many times 128 bytes: the
/// first reply waits for the last request.
const BATCH_WORK: usize = 64 * 1024;
/// Messages that are looked at before the first of them is applied, so that what their requests read
/// is on its way.
const LOOK_AHEAD: usize = 16;
/// Leases that expire in one go, before requests get their turn.
const EXPIRE: usize = 256;
/// Events whose garbage is freed between two batches.
const COLLECT: usize = 128;

/// A pause after a slice of housekeeping if nothing waits. A thread that never sleeps keeps those that
/// bring it requests from its core until the scheduler's next tick, which is 4 ms.
const BREATH: Duration = Duration::from_micros(20);
/// How long running watches may lag behind a compaction before they are cancelled.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// How often a full disk is tried again, and the longest sleep.
const RETRY: Duration = Duration::from_secs(1);

/// What the sequencer is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Sizes of the log, and the durability of keys.
    pub log: LogConfig,
    /// Durability and quota.
    pub engine: EngineConfig,
}

/// A started sequencer.
#[derive(Debug)]
pub struct Running {
    /// How requests reach it.
    pub handle: Handle,
    thread: JoinHandle<()>,
}

impl Running {
    /// Lets all requests that were sent be answered, closes the log and waits for the end.
    pub fn stop(self) {
        let _ = self.handle.queue.send(Message::Stop);
        if self.thread.join().is_err() {
            error!("the sequencer's thread panicked");
        }
    }
}

type Answer = (oneshot::Sender<Result<Reply, Error>>, Result<Reply, Error>);

struct Sequencer {
    engine: Engine,
    committer: Committer,
    queue: Receiver<Message>,
    /// Taken off the queue and looked at, not yet applied.
    ahead: VecDeque<Message>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    inboxes: HashMap<u64, Arc<Inbox>>,
    answers: Vec<Answer>,
    deliveries: Vec<Delivery>,
    /// Requests of the running batch, and what they cost so far.
    asked: usize,
    work: usize,
    snapshot: Option<Snapshot>,
    release_at: Option<Instant>,
    retry_at: Option<Instant>,
    start: Instant,
    growth: Growth,
    stopping: bool,
}

/// Recovers the state from the data directory and starts the thread.
pub fn start(config: Config, metrics: Arc<Metrics>) -> Result<Running, OpenError> {
    let began = Instant::now();
    let (log, recovered) = Log::open(&config.data_dir, config.log)?;
    let state = State::recover(recovered)?;
    info!(
        revision = state.mvcc.revision(),
        compacted = state.mvcc.compacted(),
        keys = state.mvcc.keys(),
        leases = state.leases.len(),
        took_ms = began.elapsed().as_millis(),
        "recovered"
    );
    let shared = Arc::new(Shared::new(state.mvcc.history()));
    let (sender, queue) = sync_channel(QUEUE);
    let handle = Handle { queue: sender, shared: shared.clone() };
    let sequencer = Sequencer {
        engine: Engine::new(state, config.engine),
        committer: Committer::new(log),
        queue,
        ahead: VecDeque::with_capacity(LOOK_AHEAD),
        shared,
        metrics,
        inboxes: HashMap::new(),
        answers: Vec::new(),
        deliveries: Vec::new(),
        asked: 0,
        work: 0,
        snapshot: None,
        release_at: None,
        retry_at: None,
        start: Instant::now(),
        growth: Growth::default(),
        stopping: false,
    };
    sequencer.report();
    let thread = thread::Builder::new()
        .name("sequencer".to_owned())
        .spawn(move || sequencer.run())
        .map_err(|source| OpenError::Io {
            action: "start",
            path: "the sequencer's thread".to_owned(),
            source,
        })?;
    Ok(Running { handle, thread })
}

impl Sequencer {
    fn run(mut self) {
        while !self.stopping {
            let busy = self.housekeeping();
            let wait = if busy { BREATH } else { self.sleep() };
            if self.ahead.is_empty() {
                match self.queue.recv_timeout(wait) {
                    Ok(message) => self.ahead.push_back(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => self.stopping = true,
                }
            }
            self.gather();
            if self.committer.health() == Health::Good {
                let now = self.now();
                let expired = self.engine.expire(now, EXPIRE);
                self.metrics.count_expired(expired);
            }
            self.commit();
        }
        self.committer.close(self.engine.mvcc().revision());
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Until when nothing will happen by itself.
    fn sleep(&self) -> Duration {
        let mut sleep = RETRY;
        if self.committer.health() == Health::Good
            && let Some(deadline) = self.engine.next_deadline()
        {
            sleep = sleep.min(Duration::from_millis(deadline.saturating_sub(self.now())));
        }
        for at in [self.release_at, self.retry_at].into_iter().flatten() {
            sleep = sleep.min(at.saturating_duration_since(Instant::now()));
        }
        if self.snapshot.is_some() {
            // Its writer has no way to wake us.
            sleep = sleep.min(Duration::from_millis(10));
        }
        sleep
    }

    /// Applies the messages that are there, up to a batch.
    fn gather(&mut self) {
        let now = self.now();
        (self.asked, self.work) = (0, 0);
        let mut looked_at = 0;
        while !self.stopping && self.asked < BATCH && self.work <= BATCH_WORK {
            if looked_at == 0 {
                // That nobody can ask any more shows when there is nothing left to wait for.
                let room = LOOK_AHEAD - self.ahead.len();
                self.ahead.extend(self.queue.try_iter().take(room));
                looked_at = self.ahead.len();
                self.engine.prefetch(self.ahead.iter().flat_map(commands));
            }
            let Some(message) = self.ahead.pop_front() else { return };
            looked_at -= 1;
            self.take(message, now);
        }
    }

    fn take(&mut self, message: Message, now: u64) {
        match message {
            Message::Ask(Ask { command, size, reply }) => {
                let result = self.answer(command, size, now);
                self.answers.push((reply, result));
            }
            Message::Parcel(parcel) => {
                let (asked, mut delivery) = parcel.open();
                for Asked { tag, command, size } in asked {
                    delivery.push(tag, self.answer(command, size, now));
                }
                self.deliveries.push(delivery);
            }
            Message::Open(inbox) => {
                self.asked += 1;
                self.inboxes.insert(inbox.stream(), inbox);
            }
            Message::Close(stream) => {
                self.asked += 1;
                self.close(stream);
            }
            Message::Stop => self.stopping = true,
        }
    }

    fn answer(&mut self, command: Command, size: usize, now: u64) -> Result<Reply, Error> {
        self.shared.leave(1, size);
        let result = self.apply(command, now);
        let read = match &result {
            Ok(Reply::Range(range)) => range.kvs.len(),
            Ok(Reply::Page(page)) => page.kvs.len(),
            _ => 0,
        };
        self.asked += 1;
        self.work += read + size / 128;
        result
    }

    fn apply(&mut self, command: Command, now: u64) -> Result<Reply, Error> {
        self.metrics.count(&command);
        if writes(&command) {
            match self.committer.health() {
                Health::Good => {}
                Health::Full => return Err(Error::NoSpace),
                Health::Broken => return Err(Error::Corrupt),
            }
        }
        if let Command::Compact(revision) = command {
            let result = self.engine.apply(command, now);
            if result.is_ok() {
                info!(revision, "compacted");
                self.release_at.get_or_insert(Instant::now() + RELEASE_AFTER);
            }
            return result;
        }
        self.engine.apply(command, now)
    }

    /// Makes the batch durable, shows it and lets the answers go.
    fn commit(&mut self) {
        let was_good = self.committer.health() == Health::Good;
        let began = Instant::now();
        let applied = !self.engine.mvcc().fresh().is_empty();
        let good = was_good && self.committer.commit(&mut self.engine);
        if let Some(waited) = self.committer.take_waited() {
            self.metrics.observe_fsync(waited);
        }
        if good {
            if applied {
                self.metrics.commit.observe(began.elapsed().as_secs_f64());
                self.metrics.count_batch();
                self.show();
            }
        } else if was_good {
            self.fail();
        }
        if applied || !self.answers.is_empty() || !self.deliveries.is_empty() {
            self.report();
        }
        for delivery in self.deliveries.drain(..) {
            delivery.send();
        }
        for (reply, result) in self.answers.drain(..) {
            // Nobody waits any more: the client is gone.
            let _ = reply.send(result);
        }
    }

    fn show(&mut self) {
        let batch = self.engine.publish();
        if let Some(batch) = &batch {
            self.mark(batch);
        }
        self.engine.mvcc().show();
        if batch.is_some() {
            self.shared.batches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells the streams that the batch concerns. Before its revision is visible: a stream that
    /// sees a revision has all its marks.
    fn mark(&mut self, batch: &Batch) {
        let inboxes = &self.inboxes;
        let mut woken: Vec<&Arc<Inbox>> = Vec::new();
        let mut gone = Vec::new();
        self.engine.watches_mut().mark(batch, |mark| {
            let inbox = inboxes.get(&mark.watch.stream);
            match inbox.and_then(|inbox| Some((inbox, inbox.mark(mark)?))) {
                Some((inbox, true)) => woken.push(inbox),
                Some((_, false)) => {}
                None => gone.push(mark.watch),
            }
        });
        for inbox in woken {
            inbox.wake();
        }
        for watch in gone {
            self.engine.watches_mut().remove(watch);
        }
    }

    /// The log did not take the batch: nothing of it may be shown, and whether its writes survive a
    /// crash is not known.
    fn fail(&mut self) {
        self.engine.set_frozen(true);
        for (_, result) in &mut self.answers {
            *result = Err(Error::Timeout);
        }
        for delivery in &mut self.deliveries {
            delivery.fail(Error::Timeout);
        }
        if self.committer.health() == Health::Full {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// What is done between batches, in slices. True if there is more to do at once.
    fn housekeeping(&mut self) -> bool {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = Some(now + RETRY);
            if self.committer.retry(self.engine.mvcc().revision()) {
                self.retry_at = None;
                self.engine.set_frozen(false);
                self.show();
                self.report();
            }
        }
        if self.committer.health() != Health::Good {
            return false;
        }
        self.growth.follow(self.engine.mvcc().bytes());
        self.committer.sync_behind();
        let mut busy = self.snapshots();
        if self.snapshot.is_none() && self.release_at.is_some_and(|at| at <= now) {
            // A pinned read is short: look again when running watches had their time, too.
            let released = self.engine.mvcc_mut().release();
            self.release_at = (!released).then(|| now + RELEASE_AFTER);
        }
        // Faster than versions become old, whatever the load.
        busy |= self.engine.mvcc_mut().collect(COLLECT.max(self.asked + self.asked / 4));
        let due = self.engine.next_deadline().is_some_and(|deadline| deadline <= self.now());
        busy || due
    }

    fn snapshots(&mut self) -> bool {
        let Some(log) = self.committer.log_mut() else { return false };
        if let Some(snapshot) = &mut self.snapshot {
            let more = snapshot.advance(&self.engine);
            match snapshot.poll() {
                Outcome::Pending => return more,
                Outcome::Failed | Outcome::Done => {}
            }
            self.snapshot = None;
            return false;
        }
        if log.snapshot_due() {
            self.snapshot = Snapshot::begin(&self.engine, log);
        }
        false
    }

    fn close(&mut self, stream: u64) {
        self.inboxes.remove(&stream);
        let watches = self.engine.watches_mut();
        watches.remove_stream(stream);
    }

    fn report(&self) {
        let status = self.engine.status();
        self.shared.no_space.store(status.no_space, Ordering::Release);
        self.shared.set_health(self.committer.health());
        self.metrics.report(&status, self.inboxes.len());
    }
}

/// The requests that a message brings.
fn commands(message: &Message) -> impl Iterator<Item = &Command> {
    let (one, more) = match message {
        Message::Ask(ask) => (Some(&ask.command), None),
        Message::Parcel(parcel) => (None, Some(parcel.commands())),
        Message::Open(_) | Message::Close(_) | Message::Stop => (None, None),
    };
    one.into_iter().chain(more.into_iter().flatten())
}

fn writes(command: &Command) -> bool {
    match command {
        Command::Put(_)
        | Command::Delete(_)
        | Command::Compact(_)
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke(_) => true,
        Command::Txn(txn) => !crate::core::is_read_only(txn),
        _ => false,
    }
}
