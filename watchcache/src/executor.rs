//! Futures that run within one task beside its main one: the streams of a connection, or the parts
//! of a client. As tasks of their own they would hand a request from one to the next, and tokio
//! wakes another thread wherever two of them are ready at once. For a request that comes alone that
//! costs several times what the futures do. Here what is woken while the task is at work is polled
//! before it rests, and nobody is woken for it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::FutureExt;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

/// Rounds of what is woken meanwhile, until other tasks have their turn.
const ROUNDS: usize = 8;

type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Shared {
    task: AtomicWaker,
    /// The task is at work, and sees by itself what is woken.
    working: AtomicBool,
    /// The main future was woken.
    main: AtomicBool,
    /// The parts that were woken, by their places.
    woken: Mutex<Vec<usize>>,
    /// Parts that were not polled yet.
    begun: Mutex<Vec<Part>>,
}

impl Shared {
    /// Whether there is something to poll. Who wakes says what before it looks whether the task is
    /// at work; the task looks here after it has said that it is not. So one of them sees it.
    fn is_due(&self) -> bool {
        self.main.load(Ordering::SeqCst)
            || !self.woken.lock().is_empty()
            || !self.begun.lock().is_empty()
    }

    fn tell(&self) {
        if !self.working.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// Wakes the main future.
struct Main(Arc<Shared>);

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.main.store(true, Ordering::SeqCst);
        self.0.tell();
    }
}

/// Wakes a part.
struct Slot {
    shared: Arc<Shared>,
    /// Another part may have come to it when this one has ended: it is polled once for nothing.
    place: usize,
    woken: AtomicBool,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.shared.woken.lock().push(self.place);
            self.shared.tell();
        }
    }
}

/// Gives parts to the task.
#[derive(Clone)]
pub struct Executor(Arc<Shared>);

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Executor").finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        // What one part does wrong ends that part alone, as a task. And what it has read does not
        // count for the others: tokio would have all of them wait for their next turn.
        let future = tokio::task::unconstrained(AssertUnwindSafe(future).catch_unwind());
        self.0.begun.lock().push(Box::pin(future.map(drop)));
        self.0.tell();
    }
}

/// The parts of a task.
pub struct Parts {
    shared: Arc<Shared>,
    main: Waker,
    all: Slab<(Part, Arc<Slot>)>,
    /// Room for the places of those that are polled.
    turn: Vec<usize>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("parts", &self.all.len()).finish_non_exhaustive()
    }
}

/// An executor, and what runs the parts that it is given.
#[must_use]
pub fn executor() -> (Executor, Parts) {
    let shared = Arc::new(Shared::default());
    let main = Arc::new(Main(shared.clone())).into();
    let parts = Parts { shared: shared.clone(), main, all: Slab::new(), turn: Vec::new() };
    (Executor(shared), parts)
}

impl Parts {
    /// Runs a future as the main one until it ends, and the parts for as long. `rest` is called
    /// each time when nothing is left to do for now, with how many parts were woken at once.
    pub async fn run<F: Future>(
        &mut self,
        mut main: Pin<&mut F>,
        mut rest: impl FnMut(&mut Context<'_>, usize),
    ) -> F::Output {
        self.shared.main.store(true, Ordering::SeqCst);
        std::future::poll_fn(|context| {
            self.shared.task.register(context.waker());
            self.shared.working.store(true, Ordering::SeqCst);
            let polled = self.rounds(&mut main, &mut rest);
            self.shared.working.store(false, Ordering::SeqCst);
            if polled.is_pending() && self.shared.is_due() {
                context.waker().wake_by_ref();
            }
            polled
        })
        .await
    }

    fn rounds<F: Future>(
        &mut self,
        main: &mut Pin<&mut F>,
        rest: &mut impl FnMut(&mut Context<'_>, usize),
    ) -> Poll<F::Output> {
        let waker = self.main.clone();
        let mut context = Context::from_waker(&waker);
        let mut polled = 0;
        for _ in 0..ROUNDS {
            if self.shared.main.swap(false, Ordering::SeqCst) {
                let output = main.as_mut().poll(&mut context);
                if output.is_ready() {
                    return output;
                }
            }
            polled = polled.max(self.poll_parts());
            if !self.shared.is_due() {
                break;
            }
        }
        rest(&mut context, polled);
        Poll::Pending
    }

    /// Polls the parts that were woken; how many.
    fn poll_parts(&mut self) -> usize {
        let begun = std::mem::take(&mut *self.shared.begun.lock());
        for part in begun {
            let entry = self.all.vacant_entry();
            let (shared, place) = (self.shared.clone(), entry.key());
            let slot = Slot { shared, place, woken: AtomicBool::new(true) };
            entry.insert((part, Arc::new(slot)));
            self.turn.push(place);
        }
        self.turn.append(&mut self.shared.woken.lock());
        let count = self.turn.len();
        for place in self.turn.drain(..) {
            let Some((part, slot)) = self.all.get_mut(place) else { continue };
            slot.woken.store(false, Ordering::SeqCst);
            let waker = Waker::from(slot.clone());
            if part.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                drop(self.all.remove(place));
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use hyper::rt::Executor as _;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Counts how often its task is polled.
    async fn counted<F: Future>(future: F, polls: &AtomicUsize) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            future.as_mut().poll(context)
        })
        .await
    }

    async fn run<F: Future>(parts: &mut Parts, main: F) -> F::Output {
        parts.run(std::pin::pin!(main), |_, _| {}).await
    }

    #[tokio::test]
    async fn what_is_woken_within_wakes_nobody() {
        let (executor, mut parts) = executor();
        let polls = AtomicUsize::new(0);
        // A request that goes through three parts and back.
        let main = async {
            let (sender, receiver) = oneshot::channel();
            let mut way = receiver;
            for _ in 0..3 {
                let (next, answer) = oneshot::channel();
                executor.execute(async move { next.send(way.await.unwrap() + 1).unwrap() });
                way = answer;
            }
            sender.send(1).unwrap();
            way.await.unwrap()
        };
        assert_eq!(counted(run(&mut parts, main), &polls).await, 4);
        assert_eq!(polls.into_inner(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_woken_from_elsewhere_is_missed() {
        const PARTS: usize = 50;
        const WORDS: usize = 400;
        let (executor, mut parts) = executor();
        let (told, mut heard) = mpsc::unbounded_channel();
        let mut speakers = Vec::new();
        for _ in 0..PARTS {
            let (word, mut words) = mpsc::channel(1);
            let told = told.clone();
            executor.execute(async move {
                while let Some(word) = words.recv().await {
                    told.send(word).unwrap();
                }
            });
            speakers.push(tokio::spawn(async move {
                for said in 0..WORDS {
                    word.send(said).await.unwrap();
                    if said % 7 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }));
        }
        drop(told);
        let main = async {
            let mut sum = 0;
            while let Some(word) = heard.recv().await {
                sum += word;
            }
            sum
        };
        let sum = tokio::time::timeout(Duration::from_secs(30), run(&mut parts, main)).await;
        assert_eq!(sum.unwrap(), PARTS * WORDS * (WORDS - 1) / 2);
        for speaker in speakers {
            speaker.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_part_that_panics_ends_alone() {
        let (executor, mut parts) = executor();
        let (sender, receiver) = oneshot::channel();
        executor.execute(async { panic!("on purpose") });
        executor.execute(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            sender.send(7).unwrap();
        });
        assert_eq!(run(&mut parts, receiver).await, Ok(7));
        assert!(parts.all.is_empty());
    }

    #[tokio::test]
    async fn who_wakes_itself_lets_others_run() {
        let (executor, mut parts) = executor();
        executor.execute(std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        let other = tokio::spawn(tokio::time::sleep(Duration::from_millis(5)));
        let ended = tokio::time::timeout(Duration::from_secs(30), run(&mut parts, other)).await;
        ended.unwrap().unwrap();
    }

    #[tokio::test]
    async fn parts_go_with_the_task() {
        let (executor, mut parts) = executor();
        let (held, mut gone) = oneshot::channel::<()>();
        executor.execute(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        run(&mut parts, tokio::task::yield_now()).await;
        assert!(gone.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop((parts, executor));
        assert!(gone.await.is_err());
    }
}
