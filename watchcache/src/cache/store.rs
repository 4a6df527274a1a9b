//! The way to the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper::rt::Executor;
use megacluster_service::tls::{ClientTls, ClientTlsFiles, TlsError};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::call::{CallError, Caller, Frames};
use super::etcd::Etcd;

/// A connection takes no longer.
const CONNECT: Duration = Duration::from_secs(5);

/// The store can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address.
    #[error("the store's address {0} is none")]
    Address(String),
    /// The connection.
    #[error("the store can't be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// It takes too long.
    #[error("the store can't be reached in {CONNECT:?}")]
    Deadline,
    /// It does not speak HTTP/2.
    #[error("the store can't be reached: {0}")]
    Http2(#[from] CallError),
    /// None was given.
    #[error("no address of the store")]
    NoEndpoint,
}

/// Where the store is, and who asks it. The files are read for each connection.
#[derive(Clone, Debug)]
pub struct Store {
    /// URLs, tried one after the other.
    pub endpoints: Vec<String>,
    /// CA of its certificates.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The endpoint that is next.
    pub next: Arc<AtomicUsize>,
}

impl Store {
    /// Connects to the endpoint that is next. `executor` is given what reads and writes the
    /// connection's frames.
    pub(super) async fn connect<E>(&self, executor: &E) -> Result<Etcd, StoreError>
    where
        E: Executor<Frames>,
    {
        let count = self.endpoints.len().max(1);
        let place = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let url = self.endpoints.get(place).ok_or(StoreError::NoEndpoint)?;
        let address = || StoreError::Address(url.clone());
        let uri: Uri = url.parse().map_err(|_| address())?;
        let secure = uri.scheme_str() == Some("https");
        // An address of IPv6 is in brackets.
        let host = uri.host().ok_or_else(address)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let connect = async {
            let tls = if secure { Some(self.tls().await?) } else { None };
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let caller = match tls {
                None => Caller::start(stream, uri, executor).await?,
                Some(tls) => {
                    let name = ServerName::try_from(host.clone()).map_err(|_| address())?;
                    let stream = TlsConnector::from(tls).connect(name, stream).await?;
                    Caller::start(stream, uri, executor).await?
                }
            };
            Ok(Etcd::new(caller))
        };
        tokio::time::timeout(CONNECT, connect).await.unwrap_or(Err(StoreError::Deadline))
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, StoreError> {
        let (cert, key) = self.identity.clone().unzip();
        let files = ClientTlsFiles { ca: self.ca.clone(), cert, key };
        let read = tokio::task::spawn_blocking(move || ClientTls::new(files, &[b"h2"]));
        Ok(read.await.map_err(std::io::Error::other)??.config())
    }
}
