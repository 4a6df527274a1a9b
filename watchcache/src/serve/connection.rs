//! One client connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use megacluster_service::linger::Linger;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::Server;
use super::gather::gather;
use crate::authn::PeerCertificates;
use crate::executor::executor;
use crate::router::Client;

/// A client that takes longer for TLS is cut off.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A client that takes longer to send a request's head is cut off. An idle HTTP/1.1 connection
/// waits for a head too.
const HEADER_DEADLINE: Duration = Duration::from_secs(90);
/// An HTTP/2 connection without a request is closed after this long, or twice as long: as
/// kube-apiserver's (`k8s.io/apiserver/pkg/server/secure_serving.go`).
const IDLE: Duration = Duration::from_secs(90);
/// Bytes of a request's head; kube-apiserver's own bound is 1 MiB, most of it never used.
const MAX_HEADER_BYTES: u32 = 128 * 1024;
/// Headers of an HTTP/1.1 request.
const MAX_HEADERS: usize = 256;
/// An HTTP/2 client that does not answer a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(15);
/// Bytes that one stream holds for a client which reads slowly.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of request bodies that one stream and one connection hold.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

type Stream = Linger<TlsStream<TcpStream>>;

impl Server {
    pub(super) async fn connection(self, stream: TcpStream, address: SocketAddr) {
        let acceptor = self.tls.acceptor(self.router.client_ca());
        let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream));
        let handshake = tokio::select! {
            () = self.drain.cancelled() => return,
            handshake = handshake => handshake,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(%error, client = %address, "TLS handshake");
                self.router.metrics().handshake_errors.inc();
                return;
            }
            Err(_) => {
                debug!(client = %address, "TLS handshake: deadline");
                self.router.metrics().handshake_errors.inc();
                return;
            }
        };
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let http2 = session.alpn_protocol() == Some(b"h2");
        let certificates = PeerCertificates::new(
            chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        );
        let leave = self.drain.child_token();
        let client = Arc::new(Client::new(address.ip(), certificates, http2, leave));
        let cut = self.cut.clone();
        let served = async {
            let stream = Linger::new(stream);
            if http2 { self.http2(stream, client).await } else { self.http1(stream, client).await }
        };
        tokio::select! {
            () = cut.cancelled() => {}
            served = served => if let Err(error) = served {
                debug!(%error, client = %address, "client connection");
            },
        }
    }

    async fn http2(self, stream: Stream, client: Arc<Client>) -> hyper::Result<()> {
        let (stream, sender) = gather(stream);
        let (executor, mut streams) = executor();
        let router = self.router;
        let served = client.clone();
        let service = service_fn(move |request| {
            let (router, client) = (router.clone(), served.clone());
            // Boxed: the way to an answer takes kilobytes, which a watch must not hold while it
            // lives.
            Box::pin(async move { Ok::<_, Infallible>(router.serve(client, request).await) })
        });
        let mut connection = std::pin::pin!(
            http2::Builder::new(executor)
                .timer(TokioTimer::new())
                .max_concurrent_streams(self.max_streams)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(MAX_HEADER_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_DEADLINE)
                .serve_connection(TokioIo::new(stream), service)
        );
        tokio::select! {
            served = sender.drive(connection.as_mut(), &mut streams) => return served,
            () = client.leave.cancelled() => {}
            () = idle(&client) => {}
        }
        Pin::as_mut(&mut connection).graceful_shutdown();
        tokio::select! {
            served = sender.drive(connection.as_mut(), &mut streams) => served,
            // A client that never said a word of HTTP/2 does not end by itself.
            () = idle(&client) => Ok(()),
        }
    }

    async fn http1(self, stream: Stream, client: Arc<Client>) -> hyper::Result<()> {
        let leave = client.leave.clone();
        let router = self.router;
        let service = service_fn(move |request| {
            let (router, client) = (router.clone(), client.clone());
            async move { Ok::<_, Infallible>(router.serve(client, request).await) }
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEADER_BYTES as usize)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        tokio::select! {
            served = &mut connection => return served,
            () = leave.cancelled() => {}
        }
        Pin::as_mut(&mut connection).graceful_shutdown();
        connection.await
    }
}

/// Waits until an HTTP/2 connection has nothing to do for `IDLE`.
async fn idle(client: &Arc<Client>) {
    // The connection's own and its service's.
    const AT_REST: usize = 2;
    let mut seen = u64::MAX;
    loop {
        let requests = client.requests.load(Ordering::Relaxed);
        if requests == seen && Arc::strong_count(client) <= AT_REST {
            return;
        }
        seen = requests;
        tokio::time::sleep(IDLE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn client() -> Arc<Client> {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let certificates = PeerCertificates::default();
        Arc::new(Client::new(address, certificates, true, CancellationToken::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_at_rest_is_idle() {
        let client = client();
        let service = client.clone();
        let start = Instant::now();
        idle(&client).await;
        assert_eq!(start.elapsed(), IDLE);

        // A watch holds the client; a request now and then changes the count.
        let watch = service.clone();
        let busy = service.clone();
        tokio::spawn(async move {
            tokio::time::sleep(IDLE * 5).await;
            drop(watch);
            for _ in 0..5 {
                busy.requests.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(IDLE / 2).await;
            }
        });
        let start = Instant::now();
        idle(&client).await;
        assert!(start.elapsed() > IDLE * 7 && start.elapsed() < IDLE * 10);
    }
}
