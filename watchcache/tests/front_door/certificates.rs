//! Certificates of a test cluster, as files and as rustls's types.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::Pki;

/// A client certificate and its key.
pub(crate) type Pair = (CertificateDer<'static>, String);

pub(crate) struct Certificates {
    dir: tempfile::TempDir,
    server_ca: Pki,
    pub(crate) client_ca: Pki,
    proxy_ca: Pki,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
            server_ca: Pki::new("server-ca"),
            client_ca: Pki::new("client-ca"),
            proxy_ca: Pki::new("front-proxy-ca"),
        };
        this.write("ca.pem", this.server_ca.ca_pem());
        this.write("client-ca.pem", this.client_ca.ca_pem());
        this.write("proxy-ca.pem", this.proxy_ca.ca_pem());
        this.write_pair("server", &this.server_ca.server(&["localhost", "127.0.0.1"]));
        this.write_pair("proxy", &this.proxy_ca.client("front-proxy-client", &[]));
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn write_pair(&self, name: &str, (certificate, key): &Pair) {
        self.write(&format!("{name}.crt"), &pem(certificate));
        self.write(&format!("{name}.key"), key);
    }

    /// A front proxy's certificate.
    #[allow(dead_code, reason = "not all tests need it")]
    pub(crate) fn proxy(&self, name: &str) -> Pair {
        self.proxy_ca.client(name, &[])
    }

    /// A backend trusts the front-proxy CA and takes clients without a certificate.
    pub(crate) fn backend_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.proxy_ca.ca_pem().as_bytes()).unwrap())
            .unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap();
        let (certificate, key) = self.server_ca.server(&["localhost", "127.0.0.1"]);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    pub(crate) fn client_config(&self, pair: Option<&Pair>, http2: bool) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.server_ca.ca_pem().as_bytes()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![certificate.clone()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Arc::new(config)
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}
