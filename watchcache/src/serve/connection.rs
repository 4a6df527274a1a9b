//! One client connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::Server;
use crate::authn::PeerCertificates;
use crate::router::Client;

/// A client that takes longer for TLS is cut off.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A client that takes longer to send a request's head is cut off. An idle HTTP/1.1 connection
/// waits for a head too.
const HEADER_DEADLINE: Duration = Duration::from_secs(90);
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

type Stream = TokioIo<TlsStream<TcpStream>>;

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
        let client = Arc::new(Client {
            address: address.ip(),
            certificates: PeerCertificates::new(
                chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            ),
            http2,
            leave: self.drain.child_token(),
        });
        let cut = self.cut.clone();
        let served = async {
            let stream = TokioIo::new(stream);
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
        let leave = client.leave.clone();
        let router = self.router;
        let service = service_fn(move |request| {
            let (router, client) = (router.clone(), client.clone());
            async move { Ok::<_, Infallible>(router.serve(client, request).await) }
        });
        let mut connection = std::pin::pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(self.max_streams)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(MAX_HEADER_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_DEADLINE)
                .serve_connection(stream, service)
        );
        tokio::select! {
            served = &mut connection => return served,
            () = leave.cancelled() => {}
        }
        Pin::as_mut(&mut connection).graceful_shutdown();
        connection.await
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
                .serve_connection(stream, service)
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
