//! Opens connections to backends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use megacluster_service::tls::{ClientTls, ClientTlsFiles, TlsError};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Observation;
use crate::config::BackendTls;

/// A connection that takes longer is given up: the backend is on the same network.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The deadline passed.
    #[error("no connection in {CONNECT_DEADLINE:?}")]
    Deadline,
    /// TCP or TLS failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The backend does not speak the protocol that was asked for.
    #[error("the backend does not speak {0}")]
    Protocol(&'static str),
    /// HTTP could not be set up.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The identity can't be handed on without a front-proxy client certificate.
    #[error("backendTLS.proxyClientCertFile is not configured")]
    NoProxyCertificate,
    /// As many connections to the backend as are allowed are full.
    #[error("all connections are full")]
    Full,
}

impl ConnectError {
    /// What the error says of the backend's health.
    #[must_use]
    pub fn observation(&self) -> Option<Observation> {
        match self {
            Self::Deadline => Some(Observation::Silent),
            Self::Io(_) | Self::Protocol(_) | Self::Http(_) => Some(Observation::Unreachable),
            Self::NoProxyCertificate | Self::Full => None,
        }
    }
}

/// HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// The TLS clients of one configuration. The two share nothing, also no session: a connection
/// resumed from one with a certificate would carry that certificate's identity.
#[derive(Clone, Debug)]
pub struct Connector {
    plain: ClientTls,
    proxy: Option<ClientTls>,
    server_name: Option<String>,
}

impl Connector {
    /// Reads the files and keeps reading them until `token` is cancelled.
    pub fn new(config: &BackendTls, token: &CancellationToken) -> Result<Self, TlsError> {
        let plain = ClientTlsFiles { ca: Some(config.ca_file.clone()), cert: None, key: None };
        let proxy = match (&config.proxy_client_cert_file, &config.proxy_client_key_file) {
            (Some(cert), Some(key)) => Some(ClientTlsFiles {
                cert: Some(cert.clone()),
                key: Some(key.clone()),
                ..plain.clone()
            }),
            _ => None,
        };
        let plain = ClientTls::new(plain, &[])?;
        let proxy = proxy.map(|files| ClientTls::new(files, &[])).transpose()?;
        for tls in std::iter::once(&plain).chain(&proxy) {
            tls.watch(token.clone());
        }
        Ok(Self { plain, proxy, server_name: config.server_name.clone() })
    }

    /// Whether identities can be handed on.
    #[must_use]
    pub fn has_proxy_certificate(&self) -> bool {
        self.proxy.is_some()
    }

    /// Connects to a backend of a pool at `host`, with or without the front-proxy certificate.
    pub(super) async fn connect(
        &self,
        host: &str,
        address: SocketAddr,
        with_certificate: bool,
        protocol: Protocol,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tls = if with_certificate {
            self.proxy.as_ref().ok_or(ConnectError::NoProxyCertificate)?
        } else {
            &self.plain
        };
        let mut config = (*tls.config()).clone();
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        let handshake = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        let stream = tokio::time::timeout(CONNECT_DEADLINE, handshake)
            .await
            .map_err(|_| ConnectError::Deadline)??;
        let spoken = stream.get_ref().1.alpn_protocol();
        match (protocol, spoken) {
            (Protocol::Http2, Some(b"h2")) | (Protocol::Http1, Some(b"http/1.1") | None) => {
                Ok(stream)
            }
            (Protocol::Http2, _) => Err(ConnectError::Protocol("HTTP/2")),
            (Protocol::Http1, _) => Err(ConnectError::Protocol("HTTP/1.1")),
        }
    }
}
