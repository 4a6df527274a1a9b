//! Watches files by content and swaps what is made of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{TlsError, pem};

/// How often files are read again. A Secret mounted as a volume changes by a symbolic link, which
/// file notifications see differently on each kernel and file system; reading a few kilobytes
/// does not.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);

static RELOADS: LazyLock<Counter> = LazyLock::new(Counter::default);
static ERRORS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts certificates that were replaced, to be registered by the process.
#[must_use]
pub fn reloads() -> Counter {
    RELOADS.clone()
}

/// Counts replacements that were refused since the new files can't be used.
#[must_use]
pub fn reload_errors() -> Counter {
    ERRORS.clone()
}

type Build<T> = dyn Fn() -> Result<T, TlsError> + Send + Sync;

/// A value made of files.
pub(super) struct Reloading<T> {
    files: Vec<PathBuf>,
    current: ArcSwap<T>,
    build: Box<Build<T>>,
}

impl<T: Send + Sync + 'static> Reloading<T> {
    pub(super) fn new(
        files: Vec<PathBuf>,
        build: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(build()?);
        Ok(Arc::new(Self { files, current, build: Box::new(build) }))
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    fn contents(&self) -> Result<Vec<Vec<u8>>, TlsError> {
        self.files.iter().map(|path| pem::read(path)).collect()
    }

    /// Builds anew where the contents differ from `seen`.
    fn poll(&self, seen: &mut Option<Vec<Vec<u8>>>) {
        let result = self.contents().and_then(|contents| {
            if seen.as_ref() == Some(&contents) {
                return Ok(false);
            }
            // Marked as seen first: a bad file is reported once, not at every poll.
            *seen = Some(contents);
            self.current.store(Arc::new((self.build)()?));
            Ok(true)
        });
        match result {
            Ok(false) => {}
            Ok(true) => {
                RELOADS.inc();
                info!(files = ?self.files, "certificates reloaded");
            }
            Err(error) => {
                ERRORS.inc();
                error!(%error, files = ?self.files, "certificates not reloaded: the old ones stay");
            }
        }
    }

    pub(super) fn watch(self: &Arc<Self>, token: CancellationToken) {
        let this = self.clone();
        tokio::spawn(async move {
            let mut seen = this.contents().ok();
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(POLL_INTERVAL) => this.poll(&mut seen),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_are_built_anew_and_bad_ones_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        std::fs::write(&path, "1").unwrap();
        let read = path.clone();
        let value = Reloading::new(vec![path.clone()], move || {
            String::from_utf8_lossy(&pem::read(&read)?)
                .parse::<u32>()
                .map_err(|error| TlsError::Certificate(error.to_string()))
        })
        .unwrap();
        let mut seen = value.contents().ok();
        std::fs::write(&path, "2").unwrap();
        value.poll(&mut seen);
        assert_eq!(*value.get(), 2);
        std::fs::write(&path, "bad").unwrap();
        value.poll(&mut seen);
        assert_eq!(*value.get(), 2);
        std::fs::remove_file(&path).unwrap();
        value.poll(&mut seen);
        assert_eq!(*value.get(), 2);
        std::fs::write(&path, "3").unwrap();
        value.poll(&mut seen);
        assert_eq!(*value.get(), 3);
    }
}
