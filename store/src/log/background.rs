//! Syncs that nobody waits for: they bound what a loss of power takes of class buffered.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use super::error::LogError;
use super::writer::{Log, Position, SyncPoint};

/// A thread that syncs what it is offered, one point at a time. It ends with this value.
///
/// A sync that fails poisons the log, as every sync does: the next append or write says so.
#[derive(Debug)]
pub struct BackgroundSync {
    points: SyncSender<SyncPoint>,
    offered: Position,
}

impl BackgroundSync {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (points, incoming) = sync_channel::<SyncPoint>(1);
        thread::Builder::new().name("log-sync".to_owned()).spawn(move || {
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
        Ok(Self { points, offered: Position::default() })
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
        if self.points.try_send(point).is_ok() {
            self.offered = position;
        }
    }
}
