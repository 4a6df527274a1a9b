//! A connection's bytes between the socket and the HTTP/2 codec: one read(2) and one write(2) for
//! all that came and goes in a turn, where the codec alone would make one for every 8 KiB read and
//! one for every message written. An idle connection holds no buffer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::LocalKey;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes of one read. A short one tells tokio that the socket is empty, which saves the next.
const READ: usize = 64 * 1024;
/// Bytes of output above which the codec has to wait, and nothing more is read: who does not take
/// answers may not ask.
const WAITING: usize = 256 * 1024;
/// Bytes read in one turn.
const TURN: usize = 4 * READ;

type Shared = LocalKey<RefCell<BytesMut>>;

thread_local! {
    /// What a read goes to. A connection has it while its codec takes what was read.
    static INPUT: RefCell<BytesMut> = RefCell::default();
    /// What answers go to. A connection has it until its socket took all of them.
    static OUTPUT: RefCell<BytesMut> = RefCell::default();
}

/// An empty buffer with room for [`READ`].
fn borrow(from: &'static Shared) -> BytesMut {
    let mut buffer = from.take();
    buffer.reserve(READ);
    buffer
}

/// A buffer for the next connection that needs one.
fn give_back(to: &'static Shared, mut buffer: BytesMut) {
    buffer.clear();
    if buffer.try_reclaim(READ) {
        to.set(buffer);
    }
}

/// The socket and what waits on both sides of it.
#[derive(Debug)]
struct Socket<S> {
    stream: S,
    input: BytesMut,
    /// The input's buffer is that of the thread.
    lent: bool,
    output: BytesMut,
    /// Bytes read so far; tells whether the peer gave a sign of life.
    read: u64,
    /// Bytes that may still be read in this turn.
    allowance: usize,
    /// More was asked for than this turn may read.
    stopped: bool,
}

/// A socket that writes when it is told to: [`AsyncWrite::poll_flush`] does nothing, so that the
/// codec's flush after each frame costs nothing, and [`Io::write_out`] does it all. Clones share it;
/// one goes to the codec.
#[derive(Debug)]
pub(super) struct Io<S>(Arc<Mutex<Socket<S>>>);

impl<S> Clone for Io<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// A socket of which `input` was read already.
    pub(super) fn new(stream: S, input: BytesMut) -> Self {
        let read = input.len() as u64;
        Self(Arc::new(Mutex::new(Socket {
            stream,
            input,
            lent: false,
            output: BytesMut::new(),
            read,
            allowance: TURN,
            stopped: false,
        })))
    }

    /// Begins a turn. The codec takes in all that a client sent before it gives the first request
    /// of it; a client that asks faster than it is answered would fill the memory.
    pub(super) fn begin_turn(&self, may_read: bool) {
        let mut socket = self.0.lock();
        socket.allowance = if may_read { TURN } else { 0 };
        socket.stopped = false;
    }

    /// Whether this turn left something unread, or did not look.
    pub(super) fn stopped(&self) -> bool {
        self.0.lock().stopped
    }

    /// Bytes that came in so far.
    pub(super) fn received(&self) -> u64 {
        self.0.lock().read
    }

    /// Writes what waits, as far as the socket takes it. Pending while something is left. To be
    /// called when the codec took what it wants for now.
    pub(super) fn write_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.lock();
        socket.let_scratch_go();
        socket.flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.output.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(n);
        }
        give_back(&OUTPUT, std::mem::take(&mut self.output));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// What the codec leaves for later goes to a buffer of its own, no larger than it needs.
    fn let_scratch_go(&mut self) {
        if std::mem::take(&mut self.lent) {
            let left = BytesMut::from(self.input.as_ref());
            give_back(&INPUT, std::mem::replace(&mut self.input, left));
        }
    }

    /// Ready if the output may grow.
    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.len() < WAITING {
            return Poll::Ready(Ok(()));
        }
        // A part may have gone, which is as good as all of it.
        match self.flush(cx) {
            Poll::Pending if self.output.len() >= WAITING => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.output.capacity() == 0 {
            self.output = borrow(&OUTPUT);
        }
        self.output.extend_from_slice(bytes);
    }

    fn read(&mut self, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            ready!(self.room(cx))?;
            if self.allowance == 0 {
                self.stopped = true;
                return Poll::Pending;
            }
            let mut input = borrow(&INPUT);
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut input) {
                Poll::Ready(Ok(n)) => {
                    self.read += n as u64;
                    self.allowance = self.allowance.saturating_sub(n);
                }
                nothing => {
                    give_back(&INPUT, input);
                    return nothing.map_ok(|_| ());
                }
            }
            (self.input, self.lent) = (input, true);
        }
        let n = self.input.len().min(to.remaining());
        to.put_slice(&self.input[..n]);
        self.input.advance(n);
        if self.input.is_empty() {
            let input = std::mem::take(&mut self.input);
            if std::mem::take(&mut self.lent) {
                give_back(&INPUT, input);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.lock().read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.0.lock();
        ready!(socket.room(cx))?;
        socket.write(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.0.lock();
        ready!(socket.room(cx))?;
        for buf in bufs {
            socket.write(buf);
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.lock();
        ready!(socket.flush(cx))?;
        Pin::new(&mut socket.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(&vec![b'y'; 100_000]).await.unwrap();
        let mut io = Io::new(ours, BytesMut::from(&b"xx"[..]));
        let mut all = vec![0; 100_002];
        // In small pieces, as a codec asks.
        for piece in all.chunks_mut(777) {
            io.read_exact(piece).await.unwrap();
        }
        assert!(all.starts_with(b"xxyy") && all[2..].iter().all(|b| *b == b'y'));
        assert_eq!(io.received(), 100_002);
    }

    #[tokio::test]
    async fn output_waits_for_the_flush_and_is_bounded() {
        let (ours, mut theirs) = duplex(1000);
        let mut io = Io::new(ours, BytesMut::new());
        io.write_all(b"abc").await.unwrap();
        io.flush().await.unwrap();
        let mut buf = [0; 3];
        assert!(futures::poll!(Box::pin(theirs.read(&mut buf))).is_pending());
        poll_fn(|cx| io.write_out(cx)).await.unwrap();
        theirs.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"abc");

        // A peer that does not read stops both directions.
        let mut written = 0;
        let piece = [b'z'; 10_000];
        while let std::task::Poll::Ready(n) = futures::poll!(Box::pin(io.write(&piece))) {
            written += n.unwrap();
        }
        assert!((WAITING..WAITING + 3 * piece.len()).contains(&written), "{written}");
        theirs.write_all(b"more").await.unwrap();
        assert!(futures::poll!(Box::pin(io.read(&mut buf))).is_pending());
        let mut back = vec![0; written];
        let read = theirs.read_exact(&mut back);
        let (read, flushed) = tokio::join!(read, poll_fn(|cx| io.write_out(cx)));
        read.unwrap();
        flushed.unwrap();
        io.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"mor");
    }

    #[tokio::test]
    async fn a_turn_reads_so_much_and_no_more() {
        let (ours, mut theirs) = duplex(4 * TURN);
        theirs.write_all(&vec![b'y'; 4 * TURN]).await.unwrap();
        let mut io = Io::new(ours, BytesMut::new());
        let mut all = vec![0; 4 * TURN];
        let mut last = 0;
        for turn in 1..=2 {
            io.begin_turn(true);
            let mut read = 0;
            while let std::task::Poll::Ready(n) = futures::poll!(Box::pin(io.read(&mut all))) {
                read += n.unwrap();
            }
            assert!((TURN..TURN + READ).contains(&read), "turn {turn}: {read}");
            assert!(io.stopped());
            last = io.received();
        }
        io.begin_turn(false);
        assert!(futures::poll!(Box::pin(io.read(&mut all))).is_pending());
        assert!(io.stopped());
        assert_eq!(io.received(), last);
    }
}
