//! One thread that applies everything in one order.
//!
//! Requests come over one bounded queue. The thread takes what is there as a batch, applies it,
//! makes it durable as its strongest class asks, publishes it to the watches, and only then lets
//! the replies go. So a reply, a read and a watch event never show what a crash could take back
//! beyond its class, revisions have no gap, and one fsync serves a whole batch.

mod batch;
mod commit;
mod inbox;
mod run;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::oneshot;

pub use batch::{Asked, Outbox, Replies};
pub use inbox::{Inbox, News};
pub use run::{Config, Running, start};

use self::batch::Parcel;
use crate::core::{Command, Error, History, Reply};

/// Requests that may wait; more are refused with etcd's "too many requests".
const QUEUE: usize = 16 * 1024;
/// Bytes of requests that may wait.
const QUEUE_BYTES: usize = 256 << 20;

/// What goes over the queue.
enum Message {
    Ask(Ask),
    /// Requests of one connection that came together, and are answered together.
    Parcel(Parcel),
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
    queued: AtomicUsize,
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
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            health: AtomicI64::new(0),
            no_space: AtomicBool::new(false),
            batches: AtomicI64::new(0),
        }
    }

    /// Takes requests into account that are about to be queued.
    fn admit(&self, count: usize, size: usize) -> Result<(), Error> {
        let queued = self.queued.fetch_add(count, Ordering::Relaxed) + count;
        let bytes = self.queued_bytes.fetch_add(size, Ordering::Relaxed) + size;
        if queued > QUEUE || bytes > QUEUE_BYTES {
            self.leave(count, size);
            return Err(Error::TooManyRequests);
        }
        Ok(())
    }

    /// They are in the queue no more.
    fn leave(&self, count: usize, size: usize) {
        self.queued.fetch_sub(count, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
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
        self.shared.admit(1, size)?;
        if let Err(error) = self.send(Message::Ask(Ask { command, size, reply })) {
            self.shared.leave(1, size);
            return Err(error);
        }
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Hands over requests that came together as one message. Every one of them is answered at
    /// `to`, in one delivery, also if it is refused: [`Error::TooManyRequests`] if the queue is
    /// full, [`Error::Stopped`].
    pub fn submit(&self, asked: Vec<Asked>, to: Arc<dyn Outbox>) {
        let (count, size) = (asked.len(), asked.iter().map(|asked| asked.size).sum());
        let parcel = Parcel::new(asked, to);
        if let Err(error) = self.shared.admit(count, size) {
            return parcel.refuse(error);
        }
        // A parcel that is dropped answers that the store stopped.
        if let Err(error) = self.queue.try_send(Message::Parcel(parcel)) {
            self.shared.leave(count, size);
            if let TrySendError::Full(Message::Parcel(parcel)) = error {
                parcel.refuse(Error::TooManyRequests);
            }
        }
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
