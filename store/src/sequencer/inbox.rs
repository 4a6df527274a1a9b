//! Where the sequencer tells a watch stream that there is news.

use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::watch::Mark;

/// Marks kept one by one for a stream. Beyond, it keeps one revision for each of its watches.
const RECENT: usize = 4096;

/// The marks of one stream. A stream that does not read costs nothing more however long it sleeps.
#[derive(Debug)]
pub struct Inbox {
    stream: u64,
    news: Mutex<News>,
    wake: Notify,
    closed: AtomicBool,
}

/// What a stream was not told yet.
#[derive(Debug, Default)]
pub struct News {
    /// Marks in the order of batches.
    pub recent: Vec<Mark>,
    /// Watches that have news from a revision on, somewhere in the history: the stream fell behind.
    pub behind: HashMap<i64, i64>,
}

impl News {
    fn add(&mut self, mark: Mark) {
        if self.behind.is_empty() && self.recent.len() < RECENT {
            self.recent.push(mark);
            return;
        }
        for mark in self.recent.drain(..).chain([mark]) {
            self.behind.entry(mark.watch.id).or_insert(mark.revision);
        }
    }

    fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.behind.is_empty()
    }
}

impl Inbox {
    /// An inbox for stream number `stream`, which must be unique in the process.
    #[must_use]
    pub fn new(stream: u64) -> Self {
        Self { stream, news: Mutex::default(), wake: Notify::new(), closed: AtomicBool::new(false) }
    }

    /// The stream's number.
    #[must_use]
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Notes news for a watch of this stream. `None` if the stream is gone, else whether it must be
    /// woken.
    pub(super) fn mark(&self, mark: Mark) -> Option<bool> {
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        let mut news = self.news.lock();
        let first = news.is_empty();
        news.add(mark);
        Some(first)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Waits for news.
    pub async fn news(&self) {
        self.wake.notified().await;
    }

    /// Takes all news.
    #[must_use]
    pub fn take(&self) -> News {
        std::mem::take(&mut self.news.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::watch::WatchKey;

    #[test]
    fn a_stream_that_sleeps_keeps_one_revision_for_each_watch() {
        let inbox = Inbox::new(7);
        let mark =
            |id, revision| Mark { watch: WatchKey { stream: 7, id }, revision, last: revision };
        assert_eq!(inbox.mark(mark(1, 10)), Some(true));
        assert_eq!(inbox.mark(mark(1, 11)), Some(false));
        assert_eq!(inbox.take().recent, [mark(1, 10), mark(1, 11)]);
        let mut revision = 11;
        for _ in 0..3 * RECENT {
            revision += 1;
            assert!(inbox.mark(mark(revision % 3, revision)).is_some());
        }
        let news = inbox.take();
        assert!(news.recent.is_empty());
        let mut behind: Vec<(i64, i64)> = news.behind.into_iter().collect();
        behind.sort_unstable();
        assert_eq!(behind, [(0, 12), (1, 13), (2, 14)]);
        assert_eq!(inbox.mark(mark(1, revision)), Some(true));
        inbox.close();
        assert_eq!(inbox.mark(mark(1, revision)), None);
    }
}
