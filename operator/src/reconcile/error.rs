//! What can go wrong in a reconcile, by stage. All of it is retried with backoff; an invalid spec
//! is no error but an outcome.

use crate::{build::BuildError, pki::PkiError};

/// A failed reconcile.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The management cluster could not be read.
    #[error("reading {what}: {source}")]
    Dereference {
        /// What was read.
        what: &'static str,
        /// Why it failed.
        source: CallError,
    },
    /// Keys and certificates could not be made.
    #[error("certificates: {0}")]
    Pki(#[from] PkiError),
    /// The children could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A child could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error("writing the status: {0}")]
    Status(CallError),
}

/// A child that could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {kind}/{name}: {source}")]
pub struct ApplyError {
    /// What was tried: `applying`, `removing`, `growing`.
    pub action: &'static str,
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Why it failed.
    pub source: CallError,
}

/// A call to the management cluster's API that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer within [`super::CALL_TIMEOUT`].
    #[error("no answer within {} s", super::CALL_TIMEOUT.as_secs())]
    Timeout,
    /// This process doesn't lead any more.
    #[error("leadership lost")]
    NotLeader,
    /// Refused or failed.
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

impl ReconcileError {
    /// A short, stable name for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dereference { source, .. } => source.reason("dereference"),
            Self::Pki(error) => error.reason(),
            Self::Build(_) => "build",
            Self::Apply(error) => error.source.reason("apply"),
            Self::Status(error) => error.reason("status"),
        }
    }
}

impl ReconcileError {
    /// The reason of the conditions that it makes false.
    pub(super) fn condition_reason(&self) -> &'static str {
        match self {
            Self::Pki(error) => error.reason(),
            Self::Build(_) => "BuildFailed",
            Self::Dereference { .. } | Self::Apply(_) | Self::Status(_) => {
                "ManagementClusterFailed"
            }
        }
    }
}

impl CallError {
    fn reason(&self, stage: &'static str) -> &'static str {
        match (self, stage) {
            (Self::NotLeader, _) => "not_leader",
            (Self::Timeout, "dereference") => "dereference_timeout",
            (Self::Timeout, "apply") => "apply_timeout",
            (Self::Timeout, _) => "status_timeout",
            (Self::Kube(_), stage) => stage,
        }
    }

    /// Whether the API answered with this HTTP status.
    pub(super) fn is_status(&self, code: u16) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == code)
    }
}

/// Waits for an API call at most [`super::CALL_TIMEOUT`].
pub(super) async fn bounded<T>(
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(super::CALL_TIMEOUT, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(CallError::Timeout),
    }
}
