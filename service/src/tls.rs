//! TLS from PEM files that change: each side holds one current configuration, which a task
//! replaces when the files' content does. A file that can't be used leaves the old one in force.

mod client;
mod identity;
mod pem;
mod reload;
mod server;

use std::path::PathBuf;

pub use client::{ClientTls, ClientTlsFiles};
pub use identity::{PeerIdentity, peer_identity};
pub use reload::{POLL_INTERVAL, reload_errors, reloads};
pub use server::{ClientAuth, ServerTls, ServerTlsFiles};

/// TLS could not be set up from the files given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds no PEM block of the kind that is needed, or a broken one.
    #[error("{path}: {problem}", path = path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate and its key must be given together.
    #[error("a certificate needs its key, and a key its certificate: only {given} is given", given = given.display())]
    Half {
        /// The one that is given.
        given: PathBuf,
    },
    /// Client certificates are asked for, but nothing says who may issue them.
    #[error("client certificates are asked for, but no client CA is given")]
    NoClientCa,
    /// rustls refuses the material, for example a key that does not fit its certificate.
    #[error("{path}: {source}", path = path.display())]
    Rustls {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The CA certificates can't verify clients.
    #[error("{path}: {source}", path = path.display())]
    Verifier {
        /// The CA's file.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// A certificate can't be parsed.
    #[error("certificate: {0}")]
    Certificate(String),
}
