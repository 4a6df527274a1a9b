//! The process-wide rustls provider.

/// Makes ring the default provider. Call it first in `main`: a library that builds a TLS
/// configuration without naming a provider would otherwise fail. Calling it again does nothing.
pub fn install() {
    // An error means that a provider is installed already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
