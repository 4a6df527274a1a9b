//! What many streams of a connection send at about the same time, sent together. The HTTP/2 server
//! flushes after each frame: an event to a thousand watches would be a thousand TLS records and a
//! thousand system calls. Here a flush does nothing; when the connection and its streams have
//! nothing more to do, all that has come together is sent. Where several streams had something to
//! say, others may be about to: the tasks that wake them have their turn first, once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::executor::Parts;

/// Bytes held back; with more, they are written on before others are taken.
const MOST: usize = 64 * 1024;
/// Room for them, and for what the server writes at a time.
const ROOM: usize = MOST + 32 * 1024;

thread_local! {
    /// Room for what is held back. A connection has it until its socket took all of that.
    static HELD: RefCell<Vec<u8>> = RefCell::default();
}

#[derive(Debug)]
struct State<S> {
    io: S,
    held: Vec<u8>,
    /// So many of them are written.
    written: usize,
    /// Something was written that may not be on its way.
    dirty: bool,
    /// Other tasks have had their turn since the first byte was held.
    waited: bool,
    failed: Option<io::ErrorKind>,
}

impl<S: AsyncWrite + Unpin> State<S> {
    fn intact(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Sends all that is held.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
            let Poll::Ready(count) = Pin::new(&mut self.io).poll_write(context, rest) else {
                // It may be long until the client reads.
                self.held.shrink_to_fit();
                return Poll::Pending;
            };
            let count = count?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.dirty = true;
        }
        // A connection at rest holds no buffer.
        let mut held = std::mem::take(&mut self.held);
        if (1..=ROOM).contains(&held.capacity()) {
            held.clear();
            HELD.set(held);
        }
        (self.written, self.waited) = (0, false);
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.held.capacity() == 0 {
            self.held = HELD.take();
            self.held.reserve_exact(ROOM);
        }
        self.held.extend_from_slice(bytes);
    }

    /// Makes room for more.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.intact()?;
        if self.held.len() < MOST { Poll::Ready(Ok(())) } else { self.drain(context) }
    }

    /// After the connection has done what it can for now, and so many streams at once.
    fn settle(&mut self, context: &mut Context<'_>, streams: usize) {
        if self.held.is_empty() && !self.dirty {
            return;
        }
        if streams > 1 && !std::mem::replace(&mut self.waited, true) {
            context.waker().wake_by_ref();
            return;
        }
        if let Poll::Ready(Err(error)) = self.drain(context) {
            self.failed = Some(error.kind());
            // The connection learns of it by its next read or write.
            context.waker().wake_by_ref();
        }
    }
}

/// The connection's end, as its server sees it.
#[derive(Debug)]
pub(super) struct Gather<S>(Arc<Mutex<State<S>>>);

/// What sends that on.
#[derive(Debug)]
pub(super) struct Sender<S>(Arc<Mutex<State<S>>>);

pub(super) fn gather<S>(io: S) -> (Gather<S>, Sender<S>) {
    let (held, failed) = (Vec::new(), None);
    let state = State { io, held, written: 0, dirty: false, waited: false, failed };
    let state = Arc::new(Mutex::new(state));
    (Gather(state.clone()), Sender(state))
}

impl<S: AsyncWrite + Unpin> Sender<S> {
    /// Serves a connection, and sends what it and its streams write.
    pub(super) async fn drive<F: Future>(
        &self,
        connection: Pin<&mut F>,
        streams: &mut Parts,
    ) -> F::Output {
        streams.run(connection, |context, polled| self.0.lock().settle(context, polled)).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.intact()?;
        Pin::new(&mut state.io).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        ready!(state.poll_room(context))?;
        state.hold(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        ready!(state.poll_room(context))?;
        let mut count = 0;
        for part in parts {
            state.hold(part);
            count += part.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().intact())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.intact()?;
        ready!(state.drain(context))?;
        Pin::new(&mut state.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::executor::executor;

    /// Counts writes, takes so many bytes of each, and is not ready each second time.
    #[derive(Default)]
    struct Slow {
        written: Vec<Vec<u8>>,
        most: usize,
        ready: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.ready = !self.ready;
            if !self.ready {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = bytes.len().min(self.most);
            self.written.push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_flushed_one_by_one_is_sent_at_once() {
        let (mut server, sender) = gather(Slow { most: 1 << 20, ..Slow::default() });
        let connection = std::pin::pin!(async {
            for frame in 0..100_u8 {
                server.write_all(&[frame; 9]).await.unwrap();
                server.flush().await.unwrap();
            }
            // Nothing more to do until the client says something.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        });
        sender.drive(connection, &mut executor().1).await;
        let state = sender.0.lock();
        assert_eq!(state.io.written.len(), 1);
        assert_eq!(state.io.written[0].len(), 900);
        assert_eq!(state.held.capacity(), 0);
    }

    #[tokio::test]
    async fn no_byte_is_lost_or_held_without_bound() {
        let (mut server, sender) = gather(Slow { most: 1_000, ..Slow::default() });
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let connection = std::pin::pin!(async {
            for frame in sent.chunks(700) {
                server.write_all(frame).await.unwrap();
                server.flush().await.unwrap();
                assert!(server.0.lock().held.len() < MOST + 700);
            }
            server.shutdown().await.unwrap();
        });
        sender.drive(connection, &mut executor().1).await;
        assert!(sender.0.lock().io.written.concat() == sent);
    }

    #[tokio::test]
    async fn a_broken_connection_is_told() {
        let (client, io) = tokio::io::duplex(64);
        drop(client);
        let (mut server, sender) = gather(io);
        let connection = std::pin::pin!(async {
            server.write_all(b"lost").await.unwrap();
            server.flush().await.unwrap();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            (server.write_all(b"more").await.is_err(), server.read_u8().await.is_err())
        });
        assert_eq!(sender.drive(connection, &mut executor().1).await, (true, true));
    }
}
