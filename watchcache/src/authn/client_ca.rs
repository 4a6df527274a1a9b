//! The CAs that client certificates are verified against, replaceable while the process runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DistinguishedName, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

/// The CA file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// Not PEM, or not certificates.
    #[error("{0}")]
    Pem(String),
    /// No certificate in it.
    #[error("no CERTIFICATE block")]
    Empty,
    /// rustls can't make a verifier of it.
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The current client CAs.
#[derive(Debug)]
pub struct ClientCa {
    verifier: ArcSwap<Option<Arc<dyn ClientCertVerifier>>>,
    generation: AtomicU64,
}

impl ClientCa {
    /// No client CA: certificates say nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { verifier: ArcSwap::from_pointee(None), generation: AtomicU64::new(0) }
    }

    /// The CAs of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ClientCaError> {
        let ca = Self::none();
        ca.replace(pem)?;
        Ok(ca)
    }

    /// Puts other CAs in force; on an error the old ones stay.
    pub fn replace(&self, pem: &[u8]) -> Result<(), ClientCaError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| ClientCaError::Pem(error.to_string()))?;
            roots.add(certificate).map_err(|error| ClientCaError::Pem(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(ClientCaError::Empty);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        self.verifier.store(Arc::new(Some(verifier)));
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Changes with each replacement.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The CAs' names, told to clients so that they can choose a certificate.
    #[must_use]
    pub fn names(&self) -> Vec<DistinguishedName> {
        self.verifier
            .load()
            .as_ref()
            .as_ref()
            .map(|verifier| verifier.root_hint_subjects().to_vec())
            .unwrap_or_default()
    }

    /// Whether there is a CA at all.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.verifier.load().is_some()
    }

    /// Verifies a chain for client authentication; the error is for a person.
    pub(super) fn verify(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Arc<str>> {
        match self.verifier.load().as_ref() {
            None => Ok(()),
            Some(verifier) => verifier
                .verify_client_cert(own, intermediates, now)
                .map(|_| ())
                .map_err(|error| error.to_string().into()),
        }
    }
}
