//! HTTP/1.1 as far as a client of the apiserver needs it, without I/O: a request as bytes, and an
//! answer out of bytes, whichever pieces they come in (RFC 9112).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

/// Bytes of an answer's head.
const HEAD: usize = 64 << 10;
/// Lines of an answer's head.
const HEADERS: usize = 100;
/// Bytes of an answer. The largest are lists of the pods on one node.
const BODY: usize = 64 << 20;
/// What may stand in a chunked answer beside its content, for each chunk.
const BESIDE: usize = 16 << 10;

/// What came is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Its head can't be read.
    #[error("the head of an answer can't be read")]
    Head,
    /// It says twice, or in an unknown way, how long it is.
    #[error("an answer of unknown length")]
    Length,
    /// Its chunks can't be told apart.
    #[error("an answer's chunks can't be read")]
    Chunk,
    /// It is longer than any should be.
    #[error("an answer is too long")]
    TooLong,
    /// The connection ended before the answer did.
    #[error("the connection ended before the answer did")]
    Ended,
}

/// A request as it is sent. `common`: what all requests of a client have in front of their path, and
/// what headers.
#[must_use]
pub fn request(head: &Parts, common: (&str, &HeaderMap), body: &[u8]) -> Vec<u8> {
    let (prefix, common) = common;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let headers = || {
        let own = head.headers.iter().filter(|(name, _)| **name != CONTENT_LENGTH);
        own.chain(common.iter().filter(|(name, _)| !head.headers.contains_key(*name)))
    };
    let lines: usize = headers().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let length = prefix.len() + path.len() + lines + body.len() + 64;
    let mut out = Vec::with_capacity(length);
    for part in [head.method.as_str(), " ", prefix, path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut line = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    for (name, value) in headers() {
        line(name.as_str(), value.as_bytes());
    }
    if !body.is_empty() || !matches!(head.method, Method::GET | Method::DELETE) {
        line("content-length", body.len().to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

/// An answer as it comes in.
#[derive(Debug, Default)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: BytesMut,
    next: Next,
    /// Another request may follow on the connection.
    keeps: bool,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Head,
    /// So many bytes.
    Exactly(usize),
    Chunk(Chunk),
    /// All until the connection ends.
    ToTheEnd,
    Nothing,
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// In a chunk's size, of so many digits.
    Size {
        size: usize,
        digits: u8,
    },
    /// Behind the size, up to the end of its line.
    Extension {
        size: usize,
        count: usize,
    },
    /// The end of a line after which so many bytes follow.
    Begin {
        size: usize,
    },
    /// In the content.
    Content {
        left: usize,
    },
    /// The end of the line that the content is.
    Return,
    Feed,
    /// In a line behind the last chunk: whether it is empty so far.
    Trailer {
        empty: bool,
        count: usize,
    },
    /// The end of such a line.
    TrailerEnd {
        last: bool,
        count: usize,
    },
}

const SIZE: Chunk = Chunk::Size { size: 0, digits: 0 };

impl Answer {
    /// Takes what belongs to the answer. Whether it is complete.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<bool, Malformed> {
        loop {
            match self.next {
                Next::Head => {
                    if !self.head(read)? {
                        return Ok(false);
                    }
                }
                Next::Exactly(left) => {
                    let count = left.min(read.len());
                    self.content(read, count)?;
                    if count < left {
                        self.next = Next::Exactly(left - count);
                        return Ok(false);
                    }
                    self.next = Next::Nothing;
                }
                Next::Chunk(chunk) => {
                    if read.is_empty() {
                        return Ok(false);
                    }
                    self.next = self.chunk(chunk, read)?;
                }
                Next::ToTheEnd => {
                    let count = read.len();
                    self.content(read, count)?;
                    return Ok(false);
                }
                Next::Nothing => return Ok(true),
            }
        }
    }

    /// The connection has ended. An error where the answer had not.
    pub fn ends(&mut self) -> Result<(), Malformed> {
        match self.next {
            Next::Nothing | Next::ToTheEnd => {
                self.keeps = false;
                Ok(())
            }
            _ => Err(Malformed::Ended),
        }
    }

    /// Whether another request may follow on the connection.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Its status, once its head was taken.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(self.body.freeze());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    /// Reads the head, if it is all there.
    fn head(&mut self, read: &mut BytesMut) -> Result<bool, Malformed> {
        let mut lines = [httparse::EMPTY_HEADER; HEADERS];
        let mut head = httparse::Response::new(&mut lines);
        let length = match head.parse(read).map_err(|_| Malformed::Head)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if read.len() > HEAD => return Err(Malformed::TooLong),
            httparse::Status::Partial => return Ok(false),
        };
        let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(Malformed::Head)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Malformed::Head);
        }
        if status.is_informational() {
            read.advance(length);
            return Ok(true);
        }
        self.status = status;
        for line in head.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes());
            let value = HeaderValue::from_bytes(line.value);
            let (Ok(name), Ok(value)) = (name, value) else { return Err(Malformed::Head) };
            self.headers.append(name, value);
        }
        self.keeps = head.version == Some(1) && !names(&self.headers, &CONNECTION, "close");
        read.advance(length);
        self.next = self.follows()?;
        Ok(true)
    }

    /// What follows the head.
    fn follows(&mut self) -> Result<Next, Malformed> {
        if matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Next::Nothing);
        }
        let mut length = None;
        for value in self.headers.get_all(CONTENT_LENGTH) {
            let digits = value.as_bytes();
            let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let value = value.to_str().ok().filter(|_| all).and_then(|text| text.parse().ok());
            let value: usize = value.ok_or(Malformed::Length)?;
            if length.is_some_and(|other| other != value) {
                return Err(Malformed::Length);
            }
            length = Some(value);
        }
        let codings: Vec<_> = self.headers.get_all(TRANSFER_ENCODING).iter().collect();
        match (codings.as_slice(), length) {
            ([], None) => {
                self.keeps = false;
                Ok(Next::ToTheEnd)
            }
            ([], Some(length)) if length > BODY => Err(Malformed::TooLong),
            ([], Some(length)) => {
                self.body.reserve(length.min(HEAD));
                Ok(Next::Exactly(length))
            }
            ([one], length) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => {
                // With both, somebody on the way may have taken the other.
                self.keeps &= length.is_none();
                Ok(Next::Chunk(SIZE))
            }
            _ => Err(Malformed::Length),
        }
    }

    fn content(&mut self, read: &mut BytesMut, count: usize) -> Result<(), Malformed> {
        if self.body.len() + count > BODY {
            return Err(Malformed::TooLong);
        }
        self.body.extend_from_slice(read.get(..count).unwrap_or_default());
        read.advance(count);
        Ok(())
    }

    /// Takes one byte of what is between the content, or as much content as there is.
    fn chunk(&mut self, chunk: Chunk, read: &mut BytesMut) -> Result<Next, Malformed> {
        if let Chunk::Content { left } = chunk {
            let count = left.min(read.len());
            self.content(read, count)?;
            let left = left - count;
            return Ok(Next::Chunk(if left == 0 {
                Chunk::Return
            } else {
                Chunk::Content { left }
            }));
        }
        chunk.after(read.get_u8())
    }
}

impl Chunk {
    /// What follows a byte.
    fn after(self, byte: u8) -> Result<Next, Malformed> {
        let bounded =
            |count: usize| if count < BESIDE { Ok(count + 1) } else { Err(Malformed::TooLong) };
        let next = match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default() as usize;
                let size = size.checked_mul(16).map(|size| size + digit);
                let size = size.filter(|size| *size <= BODY).ok_or(Malformed::TooLong)?;
                // Zeros in front are bounded, too.
                let digits = digits.checked_add(1).ok_or(Malformed::TooLong)?;
                Self::Size { size, digits }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(Malformed::Chunk),
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => Self::Begin { size },
            (Self::Size { size, .. }, b';' | b' ' | b'\t') => Self::Extension { size, count: 0 },
            (Self::Extension { size, count }, byte) if byte != b'\n' => {
                Self::Extension { size, count: bounded(count)? }
            }
            (Self::Begin { size: 0 }, b'\n') => Self::Trailer { empty: true, count: 0 },
            (Self::Begin { size }, b'\n') => Self::Content { left: size },
            (Self::Return, b'\r') => Self::Feed,
            (Self::Feed, b'\n') => SIZE,
            (Self::Trailer { empty, count }, b'\r') => Self::TrailerEnd { last: empty, count },
            (Self::Trailer { count, .. }, byte) if byte != b'\n' => {
                Self::Trailer { empty: false, count: bounded(count)? }
            }
            (Self::TrailerEnd { last: true, .. }, b'\n') => return Ok(Next::Nothing),
            (Self::TrailerEnd { last: false, count }, b'\n') => {
                Self::Trailer { empty: true, count }
            }
            _ => return Err(Malformed::Chunk),
        };
        Ok(Next::Chunk(next))
    }
}

/// Whether a header that lists words has this one.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
