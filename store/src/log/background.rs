//! Syncs that nobody waits for: they bound what a loss of power takes of class buffered.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use super::error::LogError;
use super::writer::{Log, Position, SyncPoint};

/// A thread that syncs what it is offered, one point at a time. It ends with this value, whose drop
/// waits for it: what it holds of the directory is free then.
///
/// A sync that fails poisons the log, as every sync does: the next append or write says so.
#[derive(Debug)]
pub struct BackgroundSync {
    /// `None` at the end.
    points: Option<SyncSender<SyncPoint>>,
    thread: Option<JoinHandle<()>>,
    offered: Position,
}

impl Drop for BackgroundSync {
    fn drop(&mut self) {
        self.points = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of background syncs panicked");
        }
    }
}

impl BackgroundSync {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (points, incoming) = sync_channel::<SyncPoint>(1);
        let thread = thread::Builder::new().name("log-sync".to_owned()).spawn(move || {
            for point in incoming {
                match point.sync() {
                    Ok(_) => {}
                    // Said once, where the log was poisoned.
                    Err(error @ LogError::Poisoned { .. }) => {
                        tracing::debug!(%error, "background sync");
                    }
                    // The segment did not get its name; the next sync tries again.
                    Err(error) => tracing::warn!(%error, "background sync"),
                }
            }
        })?;
        Ok(Self { points: Some(points), thread: Some(thread), offered: Position::default() })
    }

    /// True if something was written that is neither synced nor on its way.
    #[must_use]
    pub fn is_due(&self, log: &Log) -> bool {
        log.written() > self.offered.max(log.synced())
    }

    /// Has everything written so far synced, unless a sync is still to begin: then offer again.
    pub fn offer(&mut self, log: &Log) {
        let point = log.sync_point();
        let position = point.position();
        if self.points.as_ref().is_some_and(|points| points.try_send(point).is_ok()) {
            self.offered = position;
        }
    }
}
