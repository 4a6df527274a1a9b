//! gRPC over HTTP/2, as far as the edge speaks it itself
//! (grpc `doc/PROTOCOL-HTTP2.md`; texts as in grpc-go's `server.go` and `rpc_util.go`).

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tonic::{Code, Status};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// A message's compression flag and length.
pub(super) const PREFIX: usize = 5;

/// Whether a request says that its body is gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match kind.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// The time a client gives its call. `Err` for one that can't be read.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    parse_timeout(value.as_bytes()).map(Some).ok_or_else(|| {
        Status::internal(format!("malformed grpc-timeout: {}", value.as_bytes().escape_ascii()))
    })
}

fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut n = 0_u64;
    for digit in digits {
        n = n * 10 + u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    Some(match unit {
        b'H' => Duration::from_hours(n),
        b'M' => Duration::from_mins(n),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The head of an answer with messages.
pub(super) fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The end of an answer that went well.
pub(super) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The end of an answer that did not.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    // A status whose text can't be a header still has its code.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// An answer that is an error and nothing else.
pub(super) fn refusal(status: &Status) -> Response<()> {
    let mut response = head();
    response.headers_mut().extend(trailers(status));
    response
}

/// The code that headers or trailers carry; success if they carry none.
pub(super) fn code(headers: &HeaderMap) -> Code {
    headers.get(GRPC_STATUS).map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

/// What grpc-go answers to a request that is not gRPC.
pub(super) fn not_grpc() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The call took longer than its client gave it.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// Gives tonic's bare "unimplemented" grpc-go's words, which say what is unknown.
pub(super) fn name_the_unknown(path: &str, headers: &mut HeaderMap) {
    let unimplemented = HeaderValue::from(Code::Unimplemented as i32);
    if headers.get(GRPC_STATUS) != Some(&unimplemented) || headers.contains_key(GRPC_MESSAGE) {
        return;
    }
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'))
    else {
        return;
    };
    let known = service == "grpc.health.v1.Health"
        || service.strip_prefix("etcdserverpb.").is_some_and(|name| {
            ["KV", "Watch", "Lease", "Maintenance", "Cluster", "Auth"].contains(&name)
        });
    let text = if known {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    };
    headers.extend(trailers(&Status::unimplemented(text)));
}

/// Gives tonic's refusal of a large message grpc-go's code and words. etcd's clients take tonic's own
/// code, `OUT_OF_RANGE`, for a revision that was compacted.
pub(super) fn name_the_large(headers: &mut HeaderMap) {
    let out_of_range = HeaderValue::from(Code::OutOfRange as i32);
    if headers.get(GRPC_STATUS) != Some(&out_of_range) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let Some(sizes) = status.message().strip_prefix("Error, decoded message length too large: ")
    else {
        return;
    };
    let numbers = sizes.split(' ').filter(|word| word.bytes().all(|b| b.is_ascii_digit()));
    let text = numbers.collect::<Vec<_>>().join(" vs. ");
    let text = format!("grpc: received message larger than max ({text})");
    headers.extend(trailers(&Status::resource_exhausted(text)));
}

/// One request message put together from the pieces it comes in.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// The only piece so far, as it came.
    whole: Bytes,
    /// All pieces, once there were two.
    joined: BytesMut,
}

/// What a message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is none, or not all of it.
    Short,
    /// Something comes behind it.
    Long,
    /// It is compressed.
    Compressed,
    /// It is larger than may be kept; its length.
    TooLarge(usize),
}

impl Assembly {
    /// Bytes that it holds.
    pub(super) fn held(&self) -> usize {
        self.joined.len()
    }

    /// Takes a piece. `Err` if the rest need not be waited for: the message is above `largest`.
    pub(super) fn push(&mut self, piece: Bytes, largest: usize) -> Result<(), Fault> {
        if piece.is_empty() {
            return Ok(());
        }
        if self.whole.is_empty() && self.joined.is_empty() {
            self.whole = piece;
        } else {
            let first = std::mem::take(&mut self.whole);
            self.joined.extend_from_slice(&first);
            self.joined.extend_from_slice(&piece);
        }
        match self.length() {
            Some(length) if length > largest => Err(Fault::TooLarge(length)),
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() { &self.whole } else { &self.joined }
    }

    /// The length that the message has by its own word.
    fn length(&self) -> Option<usize> {
        let length = self.bytes().get(1..PREFIX)?;
        length.try_into().ok().map(|length| u32::from_be_bytes(length) as usize)
    }

    /// The message, at the end of the request.
    pub(super) fn finish(self) -> Result<Bytes, Fault> {
        let length = self.length().ok_or(Fault::Short)?;
        let compressed = self.bytes().first().is_some_and(|flag| *flag != 0);
        let mut bytes = if self.joined.is_empty() { self.whole } else { self.joined.freeze() };
        bytes.advance(PREFIX);
        match bytes.len().cmp(&length) {
            std::cmp::Ordering::Less => Err(Fault::Short),
            std::cmp::Ordering::Greater => Err(Fault::Long),
            std::cmp::Ordering::Equal if compressed => Err(Fault::Compressed),
            std::cmp::Ordering::Equal => Ok(bytes),
        }
    }
}

/// The error that a message's fault is for its client. `limit` is what a message may have.
pub(super) fn fault(fault: &Fault, headers: &HeaderMap, limit: usize) -> Status {
    match fault {
        Fault::Short => Status::internal("unexpected EOF"),
        Fault::Long => Status::internal("grpc: more than one message for a unary call"),
        Fault::Compressed => match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => {
                Status::internal("grpc: compressed flag set with identity or empty encoding")
            }
            Some(encoding) => Status::unimplemented(format!(
                "grpc: Decompressor is not installed for grpc-encoding \"{}\"",
                encoding.escape_ascii()
            )),
        },
        Fault::TooLarge(size) => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({size} vs. {limit})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert!(is_grpc(&headers("content-type", good)), "{good}");
        }
        for bad in ["application/grpcx", "application/json", ""] {
            assert!(!is_grpc(&headers("content-type", bad)), "{bad}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_eight_digits_and_a_unit() {
        let parse = |value: &'static str| timeout(&headers("grpc-timeout", value)).ok().flatten();
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "3", "123456789S", "-1S", "3s", "3 S", "xS"] {
            assert!(timeout(&headers("grpc-timeout", bad)).is_err(), "{bad}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn texts_are_escaped() {
        let trailers = trailers(&Status::internal("100 % \u{e9}\n"));
        assert_eq!(trailers["grpc-status"], "13");
        assert_eq!(trailers["grpc-message"], "100%20%25%20%C3%A9%0A");
    }

    #[test]
    fn unknown_methods_are_named() {
        let named = |path| {
            let mut headers = headers("grpc-status", "12");
            name_the_unknown(path, &mut headers);
            let status = Status::from_header_map(&headers).unwrap();
            (status.code(), status.message().to_owned())
        };
        let unknown = |text: &str| (Code::Unimplemented, text.to_owned());
        assert_eq!(
            named("/etcdserverpb.KV/Fly"),
            unknown("unknown method Fly for service etcdserverpb.KV")
        );
        assert_eq!(named("/a.B/C"), unknown("unknown service a.B"));
        assert_eq!(named("nothing"), unknown(""));
    }

    #[test]
    fn large_messages_are_refused_in_grpcs_words() {
        let tonics =
            "Error, decoded message length too large: found 9 bytes, the limit is: 6 bytes";
        let mut headers = trailers(&Status::out_of_range(tonics));
        name_the_large(&mut headers);
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (9 vs. 6)");
        let mut others = trailers(&Status::out_of_range("compacted"));
        name_the_large(&mut others);
        assert_eq!(Status::from_header_map(&others).unwrap().code(), Code::OutOfRange);
    }

    #[test]
    fn faults_are_told_apart() {
        let finish = |bytes: &'static [u8]| {
            let mut message = Assembly::default();
            message.push(Bytes::from_static(bytes), 100).unwrap();
            message.finish()
        };
        assert_eq!(finish(b"\0\0\0\0\x02ab").unwrap(), "ab");
        assert_eq!(finish(b"\0\0\0\0\0").unwrap(), "");
        assert_eq!(finish(b""), Err(Fault::Short));
        assert_eq!(finish(b"\0\0\0\0"), Err(Fault::Short));
        assert_eq!(finish(b"\0\0\0\0\x03ab"), Err(Fault::Short));
        assert_eq!(finish(b"\0\0\0\0\x01ab"), Err(Fault::Long));
        assert_eq!(finish(b"\x01\0\0\0\x02ab"), Err(Fault::Compressed));
        let mut large = Assembly::default();
        let refused = large.push(Bytes::from_static(b"\0\xff\0\0\0"), 100);
        assert_eq!(refused, Err(Fault::TooLarge(0xff00_0000)));
        let gzip = fault(&Fault::Compressed, &headers("grpc-encoding", "gzip"), 100);
        assert_eq!(gzip.code(), Code::Unimplemented);
        assert!(gzip.message().ends_with("grpc-encoding \"gzip\""));
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(0_usize..310, 0..6),
        ) {
            let mut wire = vec![0];
            wire.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            wire.extend_from_slice(&body);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let mut message = Assembly::default();
            for pair in cuts.windows(2) {
                message.push(Bytes::copy_from_slice(&wire[pair[0]..pair[1]]), 1000).unwrap();
            }
            prop_assert_eq!(message.finish().unwrap(), body);
        }
    }
}
