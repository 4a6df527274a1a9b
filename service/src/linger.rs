//! A stream that closes without taking its last answer along.
//!
//! A socket that is closed while its peer still sends answers with a reset, and throws away what
//! it has not delivered yet: the peer then sees a broken connection instead of the end of an
//! answer. A client does send while it reads: window updates over HTTP/2, the rest of a body that
//! was refused. So the write side is closed first, and what comes is read and thrown away until
//! the peer has closed too, as RFC 9112, 9.6 asks for, and as Go's `net/http` does for HTTP/2 by
//! waiting a second (`goAwayTimeout`).

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A peer has this long to read the end and to close.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes thrown away at a time.
const SCRATCH: usize = 2048;

/// A stream whose shutdown waits, at most five seconds, until the peer has closed as well.
///
/// Once shutdown has begun nothing can be read from it.
#[derive(Debug)]
pub struct Linger<S> {
    stream: S,
    /// Set when the write side is closed.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    /// Wraps a stream.
    pub fn new(stream: S) -> Self {
        Self { stream, patience: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let patience = match &mut this.patience {
            Some(patience) => patience,
            none => {
                std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                none.insert(Box::pin(tokio::time::sleep(LINGER)))
            }
        };
        let mut scratch = [MaybeUninit::uninit(); SCRATCH];
        loop {
            // First, so that a peer that sends without end is not read without end.
            if patience.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                // The peer has closed, or is gone: there is no one left to wait for.
                Poll::Ready(Ok(()) | Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    const ANSWER: usize = 8 << 20;

    /// The answer of a server that stops reading and closes while its client still sends.
    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        wrap: impl Fn(TcpStream) -> S,
    ) -> io::Result<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        let mut server = wrap(listener.accept().await?.0);
        let serve = async {
            server.write_all(&vec![7; ANSWER]).await?;
            server.shutdown().await?;
            drop(server);
            io::Result::Ok(())
        };
        let client = async move {
            let (mut read, mut chunk) = (0, vec![0; 64 << 10]);
            loop {
                match client.read(&mut chunk).await? {
                    0 => return io::Result::Ok(read),
                    more => read += more,
                }
                // A word now and then, as a window update.
                client.write_all(b"more").await?;
            }
        };
        let (result, read) = tokio::join!(serve, client);
        result?;
        read
    }

    #[tokio::test]
    async fn the_end_of_an_answer_reaches_a_peer_that_still_sends() {
        for _ in 0..20 {
            assert_eq!(ask(Linger::new).await.unwrap(), ANSWER);
        }
    }

    /// What the wrapper is for: should this ever hold without it, it can go.
    #[tokio::test]
    async fn without_it_the_end_is_lost() {
        let mut lost = 0;
        for _ in 0..20 {
            lost += usize::from(!matches!(ask(|stream| stream).await, Ok(ANSWER)));
        }
        assert!(lost > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_close_is_left() {
        let (near, mut far) = tokio::io::duplex(64);
        let (start, mut near) = (Instant::now(), Linger::new(near));
        let shutdown = tokio::spawn(async move { near.shutdown().await });
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        shutdown.await.unwrap().unwrap();
        assert_eq!(start.elapsed(), LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_without_end_is_left() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (start, mut near) = (Instant::now(), Linger::new(near));
        let sending = tokio::spawn(async move {
            while far.write_all(&[0; 4096]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        near.shutdown().await.unwrap();
        assert!(start.elapsed() >= LINGER);
        drop(near);
        sending.await.unwrap();
    }
}
