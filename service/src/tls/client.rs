//! The client's side.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use tokio_util::sync::CancellationToken;

use super::reload::Reloading;
use super::{TlsError, pem};

/// Files of a client, all PEM.
#[derive(Clone, Debug, Default)]
pub struct ClientTlsFiles {
    /// CAs that the server's certificate is verified against; without them no server is trusted.
    pub ca: Option<PathBuf>,
    /// The client's certificate, where the server asks for one.
    pub cert: Option<PathBuf>,
    /// The certificate's key.
    pub key: Option<PathBuf>,
}

/// A client's TLS. Clones share the current configuration.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<Reloading<Arc<ClientConfig>>>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files. `alpn` lists the protocols offered, the preferred first.
    pub fn new(files: ClientTlsFiles, alpn: &[&[u8]]) -> Result<Self, TlsError> {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let paths = [&files.ca, &files.cert, &files.key].into_iter().flatten().cloned().collect();
        let config = Reloading::new(paths, move || build(&files, &alpn).map(Arc::new))?;
        Ok(Self { config })
    }

    /// Reads the files again while the process runs. Needs a Tokio runtime.
    pub fn watch(&self, token: CancellationToken) {
        self.config.watch(token);
    }

    /// The current configuration: take it for each connection.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        (*self.config.get()).clone()
    }
}

fn build(files: &ClientTlsFiles, alpn: &[Vec<u8>]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let path = || files.cert.clone().or_else(|| files.ca.clone()).unwrap_or_default();
    let roots = match &files.ca {
        Some(ca) => pem::roots(ca)?,
        None => RootCertStore::empty(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Rustls { path: path(), source })?
        .with_root_certificates(roots);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(pem::certificates(cert)?, pem::private_key(key)?)
            .map_err(|source| TlsError::Rustls { path: cert.clone(), source })?,
        (None, None) => builder.with_no_client_auth(),
        (Some(given), None) | (None, Some(given)) => {
            return Err(TlsError::Half { given: given.clone() });
        }
    };
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}
