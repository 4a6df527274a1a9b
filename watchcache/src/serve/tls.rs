//! The server's TLS: client certificates are asked for and proven, but judged later, request by
//! request, as kube-apiserver does (`tls.RequestClientCert`,
//! `k8s.io/apiserver/pkg/server/secure_serving.go`). A certificate that is not accepted so gives
//! 401 with a Status object instead of a broken handshake, and a CA that is replaced counts for
//! connections that are open already.

use std::sync::Arc;

use arc_swap::ArcSwap;
use megacluster_service::tls::{ClientAuth, ServerTls, ServerTlsFiles, TlsError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::authn::ClientCa;

/// The protocols spoken, the preferred first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The front door's TLS.
#[derive(Debug)]
pub struct FrontTls {
    certificate: ServerTls,
    current: ArcSwap<(u64, Arc<ServerConfig>)>,
}

impl FrontTls {
    /// Reads the serving certificate's files. `ca` may change later.
    pub fn new(files: ServerTlsFiles, ca: &ClientCa) -> Result<Self, TlsError> {
        let path = files.cert.clone();
        let files = ServerTlsFiles { client_ca: None, client_auth: ClientAuth::None, ..files };
        let certificate = ServerTls::new(files, &ALPN)?;
        let config = build(&certificate, ca).map_err(|source| TlsError::Rustls { path, source })?;
        let current = ArcSwap::from_pointee((ca.generation(), config));
        Ok(Self { certificate, current })
    }

    /// Reads the files again while the process runs.
    pub fn watch(&self, token: CancellationToken) {
        self.certificate.watch(token);
    }

    /// An acceptor for one connection.
    #[must_use]
    pub fn acceptor(&self, ca: &ClientCa) -> TlsAcceptor {
        let current = self.current.load();
        if current.0 != ca.generation() {
            // The names of the CAs told to clients have changed.
            if let Ok(config) = build(&self.certificate, ca) {
                self.current.store(Arc::new((ca.generation(), config)));
            }
        }
        TlsAcceptor::from(self.current.load().1.clone())
    }
}

fn build(certificate: &ServerTls, ca: &ClientCa) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = if ca.is_configured() {
        builder.with_client_cert_verifier(Arc::new(Prover { names: ca.names(), algorithms }))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::new(Current(certificate.clone())));
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Serves the certificate that is current when a client says hello.
#[derive(Debug)]
struct Current(ServerTls);

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.config().cert_resolver.resolve(hello)
    }
}

/// Checks that a client holds its certificate's key, and nothing else.
#[derive(Debug)]
struct Prover {
    names: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Prover {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.names
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // `authn::PeerCertificates` judges the chain before any request is passed on.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
