//! Drain: one token that every task of a process watches.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The process's wish to stop. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::trigger`] starts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that the first SIGTERM or SIGINT starts. A second signal ends the process at
    /// once with status 130, for a person whose drain hangs. Needs a Tokio runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let trigger = shutdown.clone();
        tokio::spawn(async move {
            let first = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = first, "draining");
            trigger.trigger();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            error!("second signal: stopping without drain");
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// The token that is cancelled when the process shall stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts the drain.
    pub fn trigger(&self) {
        self.token.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_token() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        assert!(!other.token().is_cancelled());
        shutdown.trigger();
        assert!(other.token().is_cancelled());
    }
}
