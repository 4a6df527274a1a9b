//! One single-threaded runtime for each core: a connection lives on one of them for good, so that
//! its tasks never cross threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// A runtime and how many connections it has.
#[derive(Debug)]
struct Worker {
    handle: Handle,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// The runtimes.
#[derive(Debug)]
pub(super) struct Runtimes {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

/// A connection's place on a runtime; dropped with the connection.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runtimes {
    /// Starts `count` runtimes, at least one.
    pub(super) fn start(count: usize) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let mut workers = Vec::new();
        for number in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stopped = stop.clone();
            let thread = thread::Builder::new()
                .name(format!("io-{number}"))
                .spawn(move || runtime.block_on(stopped.cancelled()))?;
            let connections = Arc::new(AtomicUsize::new(0));
            workers.push(Worker { handle, connections, thread: Some(thread) });
        }
        Ok(Self { workers, stop })
    }

    /// Runs a connection on the runtime that has the fewest.
    pub(super) fn spawn<F>(&self, connection: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let least = self.workers.iter().min_by_key(|w| w.connections.load(Ordering::Relaxed));
        let Some(worker) = least else { return };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let place = Place { connections: worker.connections.clone() };
        worker.handle.spawn(connection(place));
    }

    /// Connections on all runtimes.
    pub(super) fn connections(&self) -> usize {
        self.workers.iter().map(|w| w.connections.load(Ordering::Relaxed)).sum()
    }

    /// Tells all runtimes to end, with whatever still runs on them.
    pub(super) fn cancel(&self) {
        self.stop.cancel();
    }

    /// Waits for their end.
    pub(super) fn join(mut self) {
        self.cancel();
        for worker in &mut self.workers {
            if worker.thread.take().is_some_and(|thread| thread.join().is_err()) {
                error!("a runtime's thread panicked");
            }
        }
    }
}
