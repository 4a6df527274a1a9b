//! Who asks: client certificates are verified here, tokens by the kube-apiserver.

mod certificate;
mod client_ca;
mod credentials;
mod identity;
mod known_tokens;
mod proxy_ca;

pub use certificate::{PeerCertificates, Verdict};
pub use client_ca::{ClientCa, ClientCaError};
pub use credentials::{Credentials, decide};
pub use identity::{Identity, IdentityError};
pub use known_tokens::{KnownTokens, TokenHash};
pub use proxy_ca::{ProxyCa, named};
