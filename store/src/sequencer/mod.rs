//! One thread that applies everything in one order.
//!
//! Requests come over one bounded queue. The thread takes what is there as a batch, applies it,
//! makes it durable as its strongest class asks, publishes it to the watches, and only then lets
//! the replies go. So a reply, a read and a watch event never show what a crash could take back
//! beyond its class, revisions have no gap, and one fsync serves a whole batch.

mod commit;
mod inbox;
mod run;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::oneshot;

pub use inbox::Inbox;
pub use run::{Config, Running, start};

use crate::core::{Command, Error, History, Reply};

/// Requests that may wait; more are refused with etcd's "too many requests".
const QUEUE: usize = 16 * 1024;
/// Bytes of requests that may wait.
const QUEUE_BYTES: usize = 256 << 20;

/// What goes over the queue.
enum Message {
    Ask(Ask),
    /// A stream that will watch.
    Open(Arc<Inbox>),
    /// That stream is gone, with its watches.
    Close(u64),
    /// Answer what came before, close the log and end.
    Stop,
}

struct Ask {
    command: Command,
    /// Bytes counted against [`QUEUE_BYTES`].
    size: usize,
    reply: oneshot::Sender<Result<Reply, Error>>,
}

/// What all threads may look at.
#[derive(Debug)]
pub struct Shared {
    history: Arc<History>,
    queued_bytes: AtomicUsize,
    /// The log failed for good, or is full for now; see [`Health`].
    health: AtomicI64,
    no_space: AtomicBool,
    batches: AtomicI64,
}

/// Whether writes can be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// They can.
    Good,
    /// The disk takes no more for now; writing is tried again.
    Full,
    /// The log is broken; only a restart helps.
    Broken,
}

impl Shared {
    fn new(history: Arc<History>) -> Self {
        Self {
            history,
            queued_bytes: AtomicUsize::new(0),
            health: AtomicI64::new(0),
            no_space: AtomicBool::new(false),
            batches: AtomicI64::new(0),
        }
    }

    /// Whether writes can be made durable.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::Full,
            _ => Health::Broken,
        }
    }

    fn set_health(&self, health: Health) {
        let number = match health {
            Health::Good => 0,
            Health::Full => 1,
            Health::Broken => 2,
        };
        self.health.store(number, Ordering::Release);
    }

    /// Whether etcd's NOSPACE alarm is on: the quota is exceeded or the disk is full.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.no_space.load(Ordering::Acquire) || self.health() == Health::Full
    }

    /// Batches applied so far: stands for a Raft index where etcd's API asks for one.
    #[must_use]
    pub fn batches(&self) -> i64 {
        self.batches.load(Ordering::Relaxed)
    }
}

/// How requests reach the sequencer. Clones share its queue.
#[derive(Clone)]
pub struct Handle {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Asks, and waits for the reply. `size` is about what the request holds in bytes.
    ///
    /// # Errors
    /// The command's own, [`Error::TooManyRequests`] if the queue is full, and [`Error::Stopped`].
    pub async fn ask(&self, command: Command, size: usize) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        let queued = self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed);
        if queued + size > QUEUE_BYTES {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(Error::TooManyRequests);
        }
        if let Err(error) = self.send(Message::Ask(Ask { command, size, reply })) {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(error);
        }
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Makes a stream known, before its first watch.
    pub fn open(&self, inbox: Arc<Inbox>) -> Result<(), Error> {
        self.send(Message::Open(inbox))
    }

    /// Tells that a stream is gone. If the queue is full, the sequencer finds out by itself when it
    /// has news for the stream.
    pub fn close(&self, inbox: &Inbox) {
        inbox.close();
        let _ = self.send(Message::Close(inbox.stream()));
    }

    /// The published history.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Health and alarms.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    fn send(&self, message: Message) -> Result<(), Error> {
        self.queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => Error::TooManyRequests,
            TrySendError::Disconnected(_) => Error::Stopped,
        })
    }
}
