//! What can go wrong.

use std::io;

/// Why a measurement ended without a figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The server spoke otherwise than HTTP/2 and gRPC allow, or ended the connection.
    #[error("the server: {0}")]
    Peer(String),
    /// The arguments can't be served.
    #[error("{0}")]
    Usage(String),
    /// A program that was started failed.
    #[error("{0}")]
    Child(String),
}

/// Turns the system's error into ours with what was tried.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}
