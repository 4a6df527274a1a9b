//! Watches that are open. When the front door stops it ends them a few at a time, each between
//! two events: a client then sees what it sees when a watch times out, and watches again from
//! where it was, on another front door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

use super::frames::Frames;

/// Steps in which all watches are ended.
const STEPS: u32 = 20;

#[derive(Debug, Default)]
struct Watch {
    ending: AtomicBool,
    waker: AtomicWaker,
}

/// Every open watch.
#[derive(Clone, Debug, Default)]
pub struct Watches {
    open: Arc<Mutex<Slab<Arc<Watch>>>>,
}

/// One open watch, taken out when dropped.
#[derive(Debug)]
pub struct Registered {
    watches: Watches,
    key: usize,
    watch: Arc<Watch>,
    /// Who is woken for its end.
    known: Option<Waker>,
    frames: Frames,
}

impl Watches {
    /// Takes a watch in whose answer has this content type.
    #[must_use]
    pub fn register(&self, content_type: &[u8]) -> Registered {
        let watch = Arc::new(Watch::default());
        let key = self.open.lock().insert(watch.clone());
        let frames = Frames::of(content_type);
        Registered { watches: self.clone(), key, watch, known: None, frames }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all that are open, spread over `time`. Those opened meanwhile are ended at last.
    pub async fn end_all(&self, time: Duration) {
        for step in 0..STEPS {
            let share = self.len() / usize::try_from(STEPS - step).unwrap_or(1);
            let ending: Vec<_> = {
                let open = self.open.lock();
                let mut waiting: Vec<_> = open
                    .iter()
                    .map(|(_, watch)| watch.clone())
                    .filter(|watch| !watch.ending.load(Ordering::Relaxed))
                    .collect();
                if step + 1 < STEPS {
                    waiting.truncate(share.max(1));
                }
                waiting
            };
            for watch in ending {
                watch.ending.store(true, Ordering::Release);
                watch.waker.wake();
            }
            if self.is_empty() {
                return;
            }
            tokio::time::sleep(time / STEPS).await;
        }
    }
}

impl Registered {
    /// Whether the watch is to end here; else `waker` is woken when it is to end.
    pub(super) fn is_ended(&mut self, waker: &Waker) -> bool {
        if self.known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            self.watch.waker.register(waker);
            self.known = Some(waker.clone());
        }
        self.watch.ending.load(Ordering::Acquire) && self.frames.is_between()
    }

    /// Takes in what has been passed on.
    pub(super) fn passed(&mut self, data: &[u8]) {
        self.frames.passed(data);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.watches.open.lock().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_end_and_leave() {
        let watches = Watches::default();
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let mut registered = watches.register(b"application/json");
            tasks.push(tokio::spawn(std::future::poll_fn(move |context| {
                if registered.is_ended(context.waker()) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })));
        }
        let start = tokio::time::Instant::now();
        watches.end_all(Duration::from_secs(10)).await;
        for task in tasks {
            task.await.unwrap();
        }
        assert!(watches.is_empty());
        assert!(start.elapsed() >= Duration::from_secs(9));
    }

    #[tokio::test]
    async fn a_half_passed_event_is_finished_first() {
        let watches = Watches::default();
        let mut registered = watches.register(b"application/json");
        registered.passed(b"{\"type\":");
        watches.end_all(Duration::ZERO).await;
        let waker = futures::task::noop_waker();
        assert!(!registered.is_ended(&waker));
        registered.passed(b"\"ADDED\"}\n");
        assert!(registered.is_ended(&waker));
    }
}
