//! One connection without TLS.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use hashbrown::HashMap;
use mio::event::Source;
use mio::net::TcpStream;

use super::frame::{self, Head};
use super::hpack::{Encoder, Method};
use crate::error::{Error, io};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest window there is: what the server may send is bounded by the socket alone.
const WINDOW: u32 = (1 << 31) - 1;
/// Bytes after which a window is filled up again.
const REFILL: u32 = 1 << 29;
/// What a read takes at most. It should stay in the core's own cache.
const INPUT: usize = 256 << 10;
/// Reads of one connection before others get their turn.
const READS: usize = 8;
/// Bytes of a gRPC message's head.
const GRPC_HEAD: usize = 5;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What came in.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A message of the call with this tag.
    Message(usize, &'a [u8]),
    /// The call with this tag is over.
    End(usize),
}

struct Stream {
    tag: usize,
    /// The part of a message that has come so far, with its head.
    partial: Vec<u8>,
    /// Bytes since its window was last filled.
    received: u32,
}

/// A connection.
pub(crate) struct Connection {
    socket: TcpStream,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    filled: usize,
    streams: HashMap<u32, Stream>,
    /// Buffers for partial messages, to be used again.
    spare: Vec<Vec<u8>>,
    next_stream: u32,
    encoder: Encoder,
    settings: Settings,
    /// What may be sent on the connection.
    window: i64,
    received: u32,
    /// Calls that wait for room.
    waiting: VecDeque<(Method, usize, Vec<u8>)>,
}

/// What the server asks of us.
#[derive(Clone, Copy, Debug)]
struct Settings {
    table: u32,
    streams: usize,
    window: i64,
    frame: usize,
}

impl Settings {
    fn read(&mut self, payload: &[u8]) {
        let (entries, _) = payload.as_chunks::<6>();
        for [a, b, v0, v1, v2, v3] in entries {
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            match u16::from_be_bytes([*a, *b]) {
                frame::HEADER_TABLE_SIZE => self.table = value,
                frame::MAX_CONCURRENT_STREAMS => self.streams = value as usize,
                frame::INITIAL_WINDOW_SIZE => self.window = i64::from(value),
                frame::MAX_FRAME_SIZE => self.frame = value as usize,
                _ => {}
            }
        }
    }
}

impl Connection {
    /// Connects, and waits for the server's settings.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Error> {
        let connect = || io(format!("connect to {address}"));
        let mut socket = std::net::TcpStream::connect(address).map_err(connect())?;
        socket.set_nodelay(true).map_err(connect())?;
        socket.set_read_timeout(Some(HANDSHAKE)).map_err(connect())?;
        let mut hello = PREFACE.to_vec();
        let ours = [(frame::ENABLE_PUSH, 0), (frame::INITIAL_WINDOW_SIZE, WINDOW)];
        frame::settings(&mut hello, &ours);
        frame::window_update(&mut hello, 0, WINDOW - 65_535);
        socket.write_all(&hello).map_err(connect())?;
        let mut input = vec![0; INPUT];
        let mut filled = 0;
        let first = loop {
            let read = socket.read(&mut input[filled..]).map_err(connect())?;
            if read == 0 {
                return Err(Error::Peer("closed the connection at once".into()));
            }
            filled += read;
            if let Some(head) = Head::read(&input[..filled])
                && filled >= frame::HEAD + head.length
            {
                break head;
            }
        };
        if first.kind != frame::SETTINGS {
            return Err(Error::Peer("does not begin with its settings".into()));
        }
        let mut settings =
            Settings { table: 4096, streams: usize::MAX, window: 65_535, frame: 16_384 };
        let end = frame::HEAD + first.length;
        settings.read(&input[frame::HEAD..end]);
        input.copy_within(end..filled, 0);
        let mut out = Vec::with_capacity(1 << 20);
        Head { length: 0, kind: frame::SETTINGS, flags: frame::ACK, stream: 0 }.write(&mut out);
        socket.set_nonblocking(true).map_err(connect())?;
        Ok(Self {
            socket: TcpStream::from_std(socket),
            out,
            written: 0,
            input,
            filled: filled - end,
            streams: HashMap::new(),
            spare: Vec::new(),
            next_stream: 1,
            encoder: Encoder::new(address.to_string(), settings.table),
            settings,
            window: 65_535,
            received: 0,
            waiting: VecDeque::new(),
        })
    }

    /// What to register for readiness.
    pub(crate) fn source(&mut self) -> &mut impl Source {
        &mut self.socket
    }

    /// Begins a unary call. It leaves with the next [`Connection::flush`].
    pub(crate) fn call(&mut self, method: Method, tag: usize, message: &[u8]) {
        let length = GRPC_HEAD + message.len();
        let room = self.window >= i64::try_from(length).unwrap_or(i64::MAX)
            && self.streams.len() < self.settings.streams;
        if room && self.waiting.is_empty() {
            let stream = self.begin(method, tag);
            self.data(stream, message, frame::END_STREAM);
        } else {
            self.waiting.push_back((method, tag, message.to_vec()));
        }
    }

    /// Begins a call that sends many messages; the stream's number is for [`Connection::send`].
    pub(crate) fn begin(&mut self, method: Method, tag: usize) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let start = self.out.len();
        Head { length: 0, kind: frame::HEADERS, flags: frame::END_HEADERS, stream }
            .write(&mut self.out);
        self.encoder.block(method, &mut self.out);
        // Fewer than 256 bytes: only the last byte of the length is set.
        let length = self.out.len() - start - frame::HEAD;
        self.out[start + 2] = u8::try_from(length).unwrap_or(u8::MAX);
        let partial = self.spare.pop().unwrap_or_default();
        self.streams.insert(stream, Stream { tag, partial, received: 0 });
        stream
    }

    /// Sends one more message on a stream. Only as much as the windows take at the start: for small
    /// messages on few streams.
    pub(crate) fn send(&mut self, stream: u32, message: &[u8]) {
        self.data(stream, message, 0);
    }

    fn data(&mut self, stream: u32, message: &[u8], flags: u8) {
        let total = GRPC_HEAD + message.len();
        self.window -= i64::try_from(total).unwrap_or(0);
        let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
        let mut rest = message;
        let mut room = self.settings.frame;
        let mut prefix = GRPC_HEAD;
        loop {
            let take = rest.len().min(room - prefix);
            let last = take == rest.len();
            Head {
                length: prefix + take,
                kind: frame::DATA,
                flags: if last { flags } else { 0 },
                stream,
            }
            .write(&mut self.out);
            if prefix > 0 {
                self.out.push(0);
                self.out.extend_from_slice(&length);
            }
            self.out.extend_from_slice(&rest[..take]);
            if last {
                return;
            }
            rest = &rest[take..];
            room = self.settings.frame;
            prefix = 0;
        }
    }

    fn wake(&mut self) {
        while let Some((_, _, message)) = self.waiting.front() {
            let length = i64::try_from(GRPC_HEAD + message.len()).unwrap_or(i64::MAX);
            if self.window < length || self.streams.len() >= self.settings.streams {
                return;
            }
            if let Some((method, tag, message)) = self.waiting.pop_front() {
                let stream = self.begin(method, tag);
                self.data(stream, &message, frame::END_STREAM);
            }
        }
    }

    /// The largest message of a unary call that can be sent.
    pub(crate) fn largest(&self) -> usize {
        // The connection's window begins at 65,535 bytes, and some servers never raise it.
        usize::try_from(self.settings.window).unwrap_or(0).min(65_535) - GRPC_HEAD
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(0) => return Err(Error::Peer("closed the connection".into())),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io("write")(error)),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Whether [`Connection::flush`] has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.out.is_empty()
    }

    /// Reads what is there and tells what it was. True if there may be more: then call again, the
    /// socket will not become ready by itself.
    pub(crate) fn receive(&mut self, mut tell: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        for _ in 0..READS {
            let room = self.input.len() - self.filled;
            match self.socket.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err(Error::Peer("closed the connection".into())),
                Ok(n) => {
                    self.filled += n;
                    self.parse(&mut tell)?;
                    if n < room {
                        // The socket is empty (epoll(7), on edge-triggered streams).
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io("read")(error)),
            }
        }
        Ok(true)
    }

    fn parse(&mut self, tell: &mut impl FnMut(Event<'_>)) -> Result<(), Error> {
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        let mut result = Ok(());
        while let Some(head) = Head::read(&input[at..self.filled]) {
            let end = at + frame::HEAD + head.length;
            if end > self.filled {
                if frame::HEAD + head.length > input.len() {
                    result = Err(Error::Peer("sent a frame larger than allowed".into()));
                }
                break;
            }
            result = self.frame(head, &input[at + frame::HEAD..end], tell);
            if result.is_err() {
                break;
            }
            at = end;
        }
        input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.input = input;
        result
    }

    fn frame(
        &mut self,
        head: Head,
        payload: &[u8],
        tell: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let word = |payload: &[u8]| payload.first_chunk().map_or(0, |w| u32::from_be_bytes(*w));
        match head.kind {
            frame::DATA => {
                self.arrived(head, payload, tell);
                if head.flags & frame::END_STREAM != 0 {
                    self.end(head.stream, tell);
                }
            }
            // What stands in it is not needed; see the module.
            frame::HEADERS if head.flags & frame::END_STREAM != 0 => self.end(head.stream, tell),
            frame::RST_STREAM => self.end(head.stream, tell),
            frame::SETTINGS if head.flags & frame::ACK == 0 => {
                let table = self.settings.table;
                self.settings.read(payload);
                if self.settings.table < table {
                    return Err(Error::Peer("makes its header table smaller in the end".into()));
                }
                Head { length: 0, kind: frame::SETTINGS, flags: frame::ACK, stream: 0 }
                    .write(&mut self.out);
                self.wake();
            }
            frame::PING if head.flags & frame::ACK == 0 => {
                Head { length: payload.len(), flags: frame::ACK, ..head }.write(&mut self.out);
                self.out.extend_from_slice(payload);
            }
            frame::GOAWAY => {
                let reason = payload.get(8..).map(String::from_utf8_lossy).unwrap_or_default();
                let code = payload.get(4..).map_or(0, word);
                return Err(Error::Peer(format!("goes away: code {code} {reason}")));
            }
            // A unary request fits the window that each stream begins with.
            frame::WINDOW_UPDATE if head.stream == 0 => {
                self.window += i64::from(word(payload));
                self.wake();
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, number: u32, tell: &mut impl FnMut(Event<'_>)) {
        if let Some(mut stream) = self.streams.remove(&number) {
            stream.partial.clear();
            self.spare.push(stream.partial);
            tell(Event::End(stream.tag));
            self.wake();
        }
    }

    fn arrived(&mut self, head: Head, payload: &[u8], tell: &mut impl FnMut(Event<'_>)) {
        // A frame has at most 16,384 bytes.
        let bytes = u32::try_from(head.length).unwrap_or(0);
        self.received += bytes;
        if self.received >= REFILL {
            frame::window_update(&mut self.out, 0, self.received);
            self.received = 0;
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else { return };
        stream.received += bytes;
        if stream.received >= REFILL {
            frame::window_update(&mut self.out, head.stream, stream.received);
            stream.received = 0;
        }
        let mut rest = payload;
        if head.flags & frame::PADDED != 0 {
            let padding = usize::from(payload.first().copied().unwrap_or(0));
            let end = payload.len().saturating_sub(padding).max(1);
            rest = payload.get(1..end).unwrap_or_default();
        }
        if !stream.partial.is_empty() {
            rest = stream.resume(rest, tell);
        }
        while let Some(length) = message_length(rest) {
            let Some(message) = rest.get(GRPC_HEAD..GRPC_HEAD + length) else { break };
            tell(Event::Message(stream.tag, message));
            rest = &rest[GRPC_HEAD + length..];
        }
        stream.partial.extend_from_slice(rest);
    }
}

impl Stream {
    /// Adds to a message that has begun; gives what belongs to the next.
    fn resume<'a>(&mut self, bytes: &'a [u8], tell: &mut impl FnMut(Event<'_>)) -> &'a [u8] {
        let mut rest = bytes;
        if self.partial.len() < GRPC_HEAD {
            let take = rest.len().min(GRPC_HEAD - self.partial.len());
            self.partial.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
        }
        let Some(length) = message_length(&self.partial) else { return rest };
        let missing = GRPC_HEAD + length - self.partial.len();
        let take = rest.len().min(missing);
        self.partial.extend_from_slice(&rest[..take]);
        if take == missing {
            tell(Event::Message(self.tag, &self.partial[GRPC_HEAD..]));
            self.partial.clear();
        }
        &rest[take..]
    }
}

fn message_length(bytes: &[u8]) -> Option<usize> {
    let [_, l0, l1, l2, l3] = *bytes.first_chunk::<GRPC_HEAD>()?;
    Some(u32::from_be_bytes([l0, l1, l2, l3]) as usize)
}
