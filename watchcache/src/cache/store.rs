//! The way to the store.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A connection takes no longer.
const CONNECT: Duration = Duration::from_secs(5);
/// A store that does not answer a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes that may be on their way: of a watch, and in all. With HTTP/2's own 64 KiB a busy store
/// would wait for us after every few dozen events.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// The store can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection.
    #[error("the store can't be reached: {0:?}")]
    Connect(#[from] tonic::transport::Error),
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
    /// Connects to the endpoint that is next. `executor` runs the parts of the connection.
    pub async fn connect<E>(&self, executor: E) -> Result<Channel, StoreError>
    where
        E: Executor<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync + 'static,
    {
        let count = self.endpoints.len().max(1);
        let place = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let url = self.endpoints.get(place).ok_or(StoreError::NoEndpoint)?;
        let mut endpoint = Endpoint::from_shared(url.clone())?
            .executor(executor)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(true);
        if url.starts_with("https://") {
            let mut tls = ClientTlsConfig::new();
            if let Some(ca) = &self.ca {
                tls = tls.ca_certificate(Certificate::from_pem(read(ca).await?));
            }
            if let Some((certificate, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect().await?)
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, StoreError> {
    tokio::fs::read(path).await.map_err(|source| StoreError::Read { path: path.clone(), source })
}
