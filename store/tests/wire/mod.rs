//! A client that says exactly what a test tells it to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use megacluster_store::pb::etcdserverpb::{PutRequest, RangeRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header as a literal that enters no table, without Huffman.
fn literal(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    for text in [name, value] {
        let mut length = text.len();
        if length < 127 {
            out.push(u8::try_from(length).unwrap());
        } else {
            out.push(127);
            length -= 127;
            while length >= 128 {
                out.push(u8::try_from(length % 128).unwrap() | 128);
                length /= 128;
            }
            out.push(u8::try_from(length).unwrap());
        }
        out.extend(text.as_bytes());
    }
}

/// The headers of a gRPC request: POST, http, and the rest as literals.
pub(crate) fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0x83, 0x86];
    literal(&mut out, ":path", path);
    literal(&mut out, ":authority", "test");
    if !more.iter().any(|(name, _)| *name == "content-type") {
        literal(&mut out, "content-type", "application/grpc");
    }
    for (name, value) in more {
        literal(&mut out, name, value);
    }
    out
}

/// A gRPC message with its prefix.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

pub(crate) fn put(key: &'static str, value: &[u8]) -> Vec<u8> {
    PutRequest { key: key.into(), value: value.to_vec().into(), ..Default::default() }
        .encode_to_vec()
}

pub(crate) fn get(key: &'static str) -> Vec<u8> {
    RangeRequest { key: key.into(), ..Default::default() }.encode_to_vec()
}

/// What came back on a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Blocks of headers and trailers.
    pub(crate) blocks: usize,
    pub(crate) data: Vec<u8>,
    pub(crate) reset: Option<u32>,
    pub(crate) ended: bool,
}

impl Answer {
    pub(crate) fn assert_ok(&self) {
        let whole = self.ended && self.blocks == 2 && !self.data.is_empty();
        assert!(whole && self.reset.is_none(), "{self:?}");
    }

    /// True for an answer of headers alone, or a reset.
    pub(crate) fn is_refusal(&self) -> bool {
        self.reset.is_some() || self.ended && self.blocks == 1 && self.data.is_empty()
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    answers: HashMap<u32, Answer>,
    pub(crate) goaways: Vec<u32>,
}

impl Client {
    /// Connects, with the preface and empty settings.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut client =
            Self { stream, read: Vec::new(), answers: HashMap::new(), goaways: Vec::new() };
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        client
    }

    /// Throws bytes at the server, cut in two, and looks whether the connection ends or lives.
    pub(crate) async fn throw(address: SocketAddr, bytes: &[u8], cut: usize) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let sent = async {
            stream.write_all(&bytes[..cut]).await?;
            tokio::task::yield_now().await;
            stream.write_all(&bytes[cut..]).await?;
            stream.shutdown().await
        };
        // The server may hang up in the middle.
        if sent.await.is_ok() {
            let mut sink = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut sink)).await.unwrap();
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes).await, "the server hung up");
    }

    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        timeout(SOON, self.stream.write_all(bytes)).await.unwrap().is_ok()
    }

    /// False if the server does not take it all in this time.
    pub(crate) async fn send_within(&mut self, bytes: &[u8], time: Duration) -> bool {
        timeout(time, self.stream.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
    }

    pub(crate) async fn call(&mut self, stream: u32, path: &str, body: &[u8]) -> Answer {
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers(path, &[]));
        let body = message(body);
        let pieces = body.chunks(16_000).count();
        for (n, piece) in body.chunks(16_000).enumerate() {
            let flags = if n + 1 == pieces { END_STREAM } else { 0 };
            bytes.extend(frame(DATA, flags, stream, piece));
        }
        self.send(&bytes).await;
        self.answer(stream).await
    }

    /// Waits until a stream ends.
    pub(crate) async fn answer(&mut self, stream: u32) -> Answer {
        let answer = self.end_of(stream).await;
        let ended = answer.ended || answer.reset.is_some();
        assert!(ended, "the server hung up: {:?}", self.goaways);
        answer
    }

    /// Waits until a stream or the connection ends.
    pub(crate) async fn end_of(&mut self, stream: u32) -> Answer {
        loop {
            let answer = self.answers.entry(stream).or_default();
            if answer.ended || answer.reset.is_some() {
                return answer.clone();
            }
            if !self.take().await {
                return self.answers.remove(&stream).unwrap_or_default();
            }
        }
    }

    /// The error of the GOAWAY that ends the connection; `None` if it ends without one.
    pub(crate) async fn goaway(&mut self) -> Option<u32> {
        while self.take().await {}
        self.goaways.last().copied()
    }

    /// Takes one frame. False at the end of the connection.
    pub(crate) async fn take(&mut self) -> bool {
        loop {
            if let Some(header) = self.read.get(..9) {
                let size = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                if self.read.len() >= 9 + size {
                    let (kind, flags) = (header[3], header[4]);
                    let id = [header[5], header[6], header[7], header[8]];
                    let payload = self.read[9..9 + size].to_vec();
                    self.read.drain(..9 + size);
                    self.frame(kind, flags, u32::from_be_bytes(id), payload).await;
                    return true;
                }
            }
            match timeout(SOON, self.stream.read_buf(&mut self.read)).await.unwrap() {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        let word = |at: usize| {
            payload.get(at..at + 4).map(|word| u32::from_be_bytes(word.try_into().unwrap()))
        };
        let answer = self.answers.entry(stream).or_default();
        match kind {
            DATA => answer.data.extend(&payload),
            HEADERS => answer.blocks += 1,
            RST => answer.reset = word(0),
            GOAWAY => self.goaways.extend(word(4)),
            SETTINGS if flags & ACK == 0 => {
                let _ = self.try_send(&frame(SETTINGS, ACK, 0, &[])).await;
                return;
            }
            PING if flags & ACK == 0 => {
                let _ = self.try_send(&frame(PING, ACK, 0, &payload)).await;
                return;
            }
            _ => return,
        }
        if (kind == DATA || kind == HEADERS) && flags & END_STREAM != 0 {
            self.answers.entry(stream).or_default().ended = true;
        }
    }
}
