//! The server's side.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::reload::Reloading;
use super::{TlsError, pem};

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// None is asked for.
    #[default]
    None,
    /// One that is shown must be good; none is fine.
    Optional,
    /// A good one must be shown.
    Required,
}

/// Files of a server, all PEM.
#[derive(Clone, Debug)]
pub struct ServerTlsFiles {
    /// The certificate and its intermediates.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// CAs that clients' certificates are verified against.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
}

/// A server's TLS. Clones share the current configuration.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<Reloading<Arc<ServerConfig>>>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files. `alpn` lists the protocols offered, the preferred first.
    pub fn new(files: ServerTlsFiles, alpn: &[&[u8]]) -> Result<Self, TlsError> {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let mut paths = vec![files.cert.clone(), files.key.clone()];
        paths.extend(files.client_ca.clone());
        let config = Reloading::new(paths, move || build(&files, &alpn).map(Arc::new))?;
        Ok(Self { config })
    }

    /// Reads the files again while the process runs. Needs a Tokio runtime.
    pub fn watch(&self, token: CancellationToken) {
        self.config.watch(token);
    }

    /// The current configuration.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        (*self.config.get()).clone()
    }

    /// An acceptor of the current configuration: take one for each connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config())
    }
}

fn build(files: &ServerTlsFiles, alpn: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let rustls_error = |source| TlsError::Rustls { path: files.cert.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(rustls_error)?;
    let builder = match (files.client_auth, &files.client_ca) {
        (ClientAuth::None, _) => builder.with_no_client_auth(),
        (_, None) => return Err(TlsError::NoClientCa),
        (auth, Some(path)) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(pem::roots(path)?), provider);
            let verifier = match auth {
                ClientAuth::Required => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier
                .build()
                .map_err(|source| TlsError::Verifier { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(pem::certificates(&files.cert)?, pem::private_key(&files.key)?)
        .map_err(rustls_error)?;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}
