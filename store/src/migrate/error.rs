//! Why a migration stopped. All but a difference found at the end may be run again.

use std::path::PathBuf;

use tonic::Status;

use super::digest::Sum;
use crate::log::{LogError, OpenError};

/// Why an import or an export stopped.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Flags that don't fit.
    #[error("{0}")]
    Flags(String),
    /// A file of certificates, or of ours.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No endpoint answers.
    #[error("connect to {endpoint}: {source}")]
    Connect {
        /// The last endpoint that was tried.
        endpoint: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// A request failed, several times where that may help.
    #[error("{what}: {} ({:?})", status.message(), status.code())]
    Request {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// The source no longer has the revision that was being read.
    #[error("{what}: revision {revision} has been compacted at the source")]
    Compacted {
        /// What was asked for.
        what: &'static str,
        /// The revision.
        revision: i64,
    },
    /// An answer that etcd doesn't give.
    #[error("{0}")]
    Protocol(String),
    /// The data directory can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The data directory can't be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data directory holds something else.
    #[error("{} is neither empty nor an import that was begun here", .0.display())]
    NotEmpty(PathBuf),
    /// The data directory's import is not of this source.
    #[error(
        "{} holds an import from cluster {found:x}, and these endpoints are of cluster {asked:x}",
        dir.display()
    )]
    OtherCluster {
        /// The data directory.
        dir: PathBuf,
        /// Whose import it is.
        found: u64,
        /// Whose endpoints were given.
        asked: u64,
    },
    /// The source is at a lower revision than what was imported from it.
    #[error(
        "the source is at revision {source_revision}, below revision {imported} that was imported from it"
    )]
    WentBack {
        /// The source's revision.
        source_revision: i64,
        /// The import's revision.
        imported: i64,
    },
    /// The import's own file is not readable.
    #[error("{}: {reason}: remove the directory and import anew", path.display())]
    Progress {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store was started on an import that is not finished.
    #[error(
        "{} holds an import that is not finished: run `megacluster-store import` again, or remove the directory",
        .0.display()
    )]
    Unfinished(PathBuf),
    /// An export's target holds keys that no export wrote.
    #[error("the target holds keys that no export wrote: export to an empty etcd")]
    Foreign,
    /// The target's revision is too far below.
    #[error(
        "the target is {needed} revisions below the source, and --max-bump is {limit}: take a snapshot and restore it with `etcdutl snapshot restore`, which keeps revisions"
    )]
    TooFar {
        /// Revisions between.
        needed: i64,
        /// What is allowed.
        limit: i64,
    },
    /// The source changed during the last export.
    #[error(
        "the source went from revision {from} to {to} during a final export: stop its writers and run it again"
    )]
    Moved {
        /// When it was read.
        from: i64,
        /// Now.
        to: i64,
    },
    /// Both sides were read and are not the same.
    #[error("NOT THE SAME: the source has {theirs}, the copy {ours}")]
    Different {
        /// The source.
        theirs: Sum,
        /// The copy.
        ours: Sum,
    },
}

impl MigrateError {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
