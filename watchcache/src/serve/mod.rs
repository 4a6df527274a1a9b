//! The listening side: accepts connections, sets TLS and HTTP up, hands requests to the router.

mod connection;
mod gather;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use tls::FrontTls;

use crate::router::Router;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 4096;
/// A TCP peer that is gone without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a server needs.
#[derive(Clone, Debug)]
pub struct Server {
    /// Answers requests.
    pub router: Arc<Router>,
    /// TLS.
    pub tls: Arc<FrontTls>,
    /// Concurrent HTTP/2 streams of one client connection.
    pub max_streams: u32,
    /// Cancelled when connections take no new requests.
    pub drain: CancellationToken,
    /// Cancelled when connections are cut off.
    pub cut: CancellationToken,
    /// Every open connection.
    pub connections: TaskTracker,
}

/// Binds an address; the port may be asked as 0.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Server {
    /// Accepts connections until `drain` is cancelled.
    pub async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => self.admit(stream, address),
                Err(error) => {
                    // Out of file descriptors, or a connection that ended in the backlog.
                    warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, address: SocketAddr) {
        let metrics = self.router.metrics();
        let max = self.router.current().limits.max_connections;
        let Some(permit) = metrics.connections.take(max) else {
            metrics.connections_refused.inc();
            return;
        };
        if let Err(error) = prepare(&stream) {
            debug!(%error, client = %address, "socket");
            return;
        }
        let server = self.clone();
        self.connections.spawn(async move {
            server.connection(stream, address).await;
            drop(permit);
        });
    }
}

/// Sends at once, and notices a peer that is gone without a word.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
