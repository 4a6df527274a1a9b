//! Answers in protobuf, as far as two of them may differ.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// One field of a message with a length: its tag byte, what it holds, and what comes after it.
fn field(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (tag, mut rest) = bytes.split_first().unwrap();
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let (byte, after) = rest.split_first().unwrap();
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (content, rest) = rest.split_at(length);
    (*tag, content, rest)
}

/// A list as it was answered.
pub(crate) struct List {
    pub(crate) version: u64,
    pub(crate) items: Vec<Vec<u8>>,
    /// `continue`, without the revision in it, and the whole of it.
    pub(crate) next: Option<(String, String)>,
    /// The rest of the metadata: `remainingItemCount`, if it is there.
    pub(crate) rest: Vec<u8>,
    pub(crate) kind: Vec<u8>,
}

pub(crate) fn list(answer: &[u8]) -> List {
    let (0x0a, kind, rest) = field(answer.strip_prefix(b"k8s\0").unwrap()) else { panic!() };
    let (0x12, message, end) = field(rest) else { panic!() };
    assert_eq!(end, [0x1a, 0, 0x22, 0]);
    let (0x0a, metadata, mut rest) = field(message) else { panic!() };
    let version = metadata.strip_prefix(&[0x0a, 0]).unwrap();
    let (0x12, digits, after) = field(version) else { panic!("{metadata:?}") };
    let (0x1a, token, metadata) = field(after) else { panic!("{metadata:?}") };
    let version: u64 = std::str::from_utf8(digits).unwrap().parse().unwrap();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (0x12, item, after) = field(rest) else { panic!() };
        items.push(item.to_vec());
        rest = after;
    }
    let next = (!token.is_empty()).then(|| {
        let json = URL_SAFE_NO_PAD.decode(token).unwrap();
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains(&format!("\"rv\":{version},")), "{text}");
        (text.replace(&version.to_string(), ""), String::from_utf8(token.to_vec()).unwrap())
    });
    List { version, items, next, rest: metadata.to_vec(), kind: kind.to_vec() }
}

/// The events of a watch, frame by frame.
pub(crate) struct Frames {
    body: Incoming,
    read: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: String,
    pub(crate) bytes: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, read: Vec::new() }
    }

    /// The next event; none at the end of the watch or where none comes in time.
    pub(crate) async fn next(&mut self, patience: Duration) -> Option<Frame> {
        loop {
            if let Some((length, rest)) = self.read.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(event) = rest.get(..length) {
                    let (0x0a, kind, _) = field(event) else { panic!() };
                    let kind = String::from_utf8(kind.to_vec()).unwrap();
                    let frame = Frame { kind, bytes: event.to_vec() };
                    self.read.drain(..4 + length);
                    return Some(frame);
                }
            }
            let frame = tokio::time::timeout(patience, self.body.frame()).await.ok()??;
            self.read.extend(frame.unwrap().into_data().unwrap());
        }
    }
}
