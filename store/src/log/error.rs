//! What goes wrong at start, and what goes wrong later.

use std::{io, path::PathBuf, sync::Arc};

/// Why a data directory can't be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory.
    #[error("data directory {dir} is in use by another process{}", owner.as_ref().map(|o| format!(" (pid {o})")).unwrap_or_default())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// What the holder wrote into the lock file.
        owner: Option<String>,
    },
    /// The directory holds the data of another program.
    #[error("data directory {dir} holds {found}, which is not ours: choose an empty directory")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        found: String,
    },
    /// The directory or a file in it can't be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is damaged in a place where an unfinished write can't be the reason.
    #[error("{file} is corrupt at offset {offset}: {what}; restore the data directory from a copy")]
    Corrupt {
        /// The file's name in the directory.
        file: String,
        /// Offset of the damaged part in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file that must be there is not.
    #[error("{file} is missing: the log goes on behind it; restore the data directory from a copy")]
    Missing {
        /// The file's name in the directory.
        file: String,
    },
    /// A file was written by a version of the store with another format.
    #[error("{file} has format version {found}; this version of the store reads up to {known}")]
    Version {
        /// The file's name in the directory.
        file: String,
        /// Its version.
        found: u32,
        /// The newest version this store reads.
        known: u32,
    },
    /// The log was read, but can't be written.
    #[error(transparent)]
    Write(#[from] LogError),
}

impl OpenError {
    pub(super) fn io(action: &'static str, path: impl Into<String>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    pub(super) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, what: what.into() }
    }
}

/// Why the open log can't go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A write failed and was undone; what was appended is still in the buffer, so that the same
    /// call may be tried again.
    #[error("{action} {file}: {source}")]
    Write {
        /// What was tried.
        action: &'static str,
        /// On what file.
        file: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// A sync failed, or a failed write could not be undone: what is on disk is no longer known.
    /// The process must stop and start from what is there.
    #[error("the log is poisoned, nothing more can be made durable: {cause}")]
    Poisoned {
        /// What happened first.
        cause: Arc<str>,
    },
    /// A record is larger than the format allows.
    #[error("a record of {size} bytes is over the log's limit of {limit}")]
    TooLarge {
        /// Its encoded size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A transaction's revision is not above the one before.
    #[error("revision {revision} appended after {last}")]
    Order {
        /// The revision given.
        revision: i64,
        /// The last one appended.
        last: i64,
    },
}

impl LogError {
    pub(super) fn write(action: &'static str, file: &str, source: io::Error) -> Self {
        Self::Write { action, file: file.to_owned(), source: Arc::new(source) }
    }
}
