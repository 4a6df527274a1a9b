//! Where the sequencer tells a watch stream that there is news.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The marks of one stream: at most one for each of its watches, so that a stream that does not
/// read costs nothing more however long it sleeps.
#[derive(Debug)]
pub struct Inbox {
    stream: u64,
    marks: Mutex<HashMap<i64, i64>>,
    news: Notify,
    closed: AtomicBool,
}

impl Inbox {
    /// An inbox for stream number `stream`, which must be unique in the process.
    #[must_use]
    pub fn new(stream: u64) -> Self {
        Self {
            stream,
            marks: Mutex::default(),
            news: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// The stream's number.
    #[must_use]
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Notes that watch `id` has news from `revision` on. False if the stream is gone.
    pub(super) fn mark(&self, id: i64, revision: i64) -> bool {
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        self.marks.lock().entry(id).or_insert(revision);
        true
    }

    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Waits for news.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes all marks: watch id and first revision.
    #[must_use]
    pub fn take(&self) -> HashMap<i64, i64> {
        std::mem::take(&mut self.marks.lock())
    }
}
