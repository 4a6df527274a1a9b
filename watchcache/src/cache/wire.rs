//! The bytes of Kubernetes' protobuf, as far as answers are made of them.
//!
//! A stored value is `k8s\0` and a `runtime.Unknown` whose `raw` is the object's message
//! (`k8s.io/apimachinery/pkg/runtime/serializer/protobuf`). kube-apiserver stores it without
//! `metadata.resourceVersion` and puts the revision there when it answers. Its encoder writes a
//! string field also when it is empty, so the field is there, and only its value changes.

use bytes::{BufMut, Bytes};

use super::kinds::Kind;

const MAGIC: &[u8] = b"k8s\0";
/// `contentEncoding` and `contentType`, both empty.
const UNKNOWN_END: &[u8] = &[0x1a, 0, 0x22, 0];
/// An empty `resourceVersion`.
const NO_VERSION: &[u8] = &[0x32, 0];

/// A value that is not what this module can make answers of: of another version, encrypted, or
/// written by another encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored value is not a {kind} as kube-apiserver writes it: {problem}")]
pub struct Unsupported {
    /// What was expected.
    pub kind: &'static str,
    /// What is wrong.
    pub problem: &'static str,
}

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Of a length of its own.
    Bytes(&'a [u8]),
    /// Of a fixed length.
    Fixed,
}

/// One field of a message and where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) value: Value<'a>,
}

/// Reads a message field by field; ends at what is no message.
pub(super) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// The next field; none at the end; an error where the bytes are no message.
    pub(super) fn next(&mut self) -> Result<Option<Field<'a>>, ()> {
        if self.at == self.message.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(drop)?;
                let from = self.at;
                self.skip(length)?;
                Value::Bytes(self.message.get(from..self.at).ok_or(())?)
            }
            5 => self.skip(4)?,
            _ => return Err(()),
        };
        Ok(Some(Field { number: tag >> 3, start, end: self.at, value }))
    }

    fn skip(&mut self, count: usize) -> Result<Value<'a>, ()> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.message.len()).ok_or(())?;
        self.at = end;
        Ok(Value::Fixed)
    }

    fn varint(&mut self) -> Result<u64, ()> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.message.get(self.at).ok_or(())?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(())
    }
}

/// The value at a path of field numbers; none where it is not there.
pub(super) fn find<'a>(message: &'a [u8], path: &[u64]) -> Option<Value<'a>> {
    let (number, deeper) = path.split_first()?;
    let mut fields = Fields::of(message);
    let mut found = None;
    while let Ok(Some(field)) = fields.next() {
        if field.number == *number {
            found = Some(field.value);
        }
    }
    match (found?, deeper) {
        (value, []) => Some(value),
        (Value::Bytes(inner), deeper) => find(inner, deeper),
        _ => None,
    }
}

/// An object's message as it is stored: without a resource version, but with a place for it.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Box<[u8]>,
    /// Where `ObjectMeta` lies, and in it the empty resource version.
    metadata: u32,
    version: u32,
    end: u32,
}

/// Where an object's labels lie in its message: most often they are looked at only to see that
/// they are what they were.
#[derive(Clone, Copy, Debug, Default)]
pub struct Labels {
    from: u32,
    to: u32,
}

impl Labels {
    /// Keys and values.
    pub fn of(self, message: &Message) -> impl Iterator<Item = (&str, &str)> {
        let mut fields = Fields::of(message.part(self.from as usize, self.to as usize));
        // Each was read once without an error.
        let entries = std::iter::from_fn(move || fields.next().ok().flatten());
        entries.filter_map(|field| match (field.number, field.value) {
            (11, Value::Bytes(entry)) => label(entry).ok(),
            _ => None,
        })
    }
}

/// Reads a stored value: the message, and its labels.
pub fn read(kind: &Kind, value: &[u8]) -> Result<(Message, Labels), Unsupported> {
    let wrong = |problem| Unsupported { kind: kind.name, problem };
    message(kind, raw(kind, value).map_err(wrong)?)
}

/// Reads an object's message, and its labels.
pub(super) fn message(kind: &Kind, raw: &[u8]) -> Result<(Message, Labels), Unsupported> {
    let wrong = |problem| Unsupported { kind: kind.name, problem };
    let no_message = || wrong("not a message");
    let mut fields = Fields::of(raw);
    let Ok(Some(Field { number: 1, end, value: Value::Bytes(metadata), .. })) = fields.next()
    else {
        return Err(wrong("metadata is not the first field"));
    };
    let mut labels: Option<(usize, usize)> = None;
    let mut version = None;
    let mut of_metadata = Fields::of(metadata);
    while let Some(field) = of_metadata.next().map_err(|()| no_message())? {
        match (field.number, field.value) {
            (6, Value::Bytes([])) if version.is_none() => version = Some(field),
            (6, _) => return Err(wrong("it has a resource version")),
            (11, Value::Bytes(entry)) => {
                label(entry).map_err(|()| no_message())?;
                let from = labels.map_or(field.start, |(from, _)| from);
                labels = Some((from, field.end));
            }
            _ => {}
        }
    }
    let version = version.ok_or_else(|| wrong("it has no resource version"))?;
    while fields.next().map_err(|()| no_message())?.is_some() {}
    let begin = end - metadata.len();
    let place = |at: usize| u32::try_from(at).map_err(|_| wrong("too large"));
    let message = Message {
        metadata: place(begin)?,
        version: place(begin + version.start)?,
        end: place(end)?,
        bytes: raw.into(),
    };
    let labels = match labels {
        Some((from, to)) => Labels { from: place(begin + from)?, to: place(begin + to)? },
        None => Labels::default(),
    };
    Ok((message, labels))
}

/// The message within its envelope.
fn raw<'a>(kind: &Kind, value: &'a [u8]) -> Result<&'a [u8], &'static str> {
    let no_envelope = |()| "not in protobuf";
    let unknown = value.strip_prefix(MAGIC).ok_or("not in protobuf, or encrypted")?;
    let mut raw = None;
    let mut fields = Fields::of(unknown);
    while let Some(field) = fields.next().map_err(no_envelope)? {
        match (field.number, field.value) {
            (1, Value::Bytes(meta)) => {
                if text_of(meta, 1).map_err(no_envelope)? != kind.api_version
                    || text_of(meta, 2).map_err(no_envelope)? != kind.name
                {
                    return Err("of another kind or version");
                }
            }
            (2, Value::Bytes(message)) if raw.is_none() => raw = Some(message),
            (3 | 4, Value::Bytes([])) => {}
            _ => return Err("an unknown field of its envelope"),
        }
    }
    raw.ok_or("an empty envelope")
}

/// The text of a string field; empty where it is not there.
fn text_of(message: &[u8], number: u64) -> Result<&str, ()> {
    let mut fields = Fields::of(message);
    let mut text = "";
    while let Some(field) = fields.next()? {
        if let (true, Value::Bytes(bytes)) = (field.number == number, field.value) {
            text = std::str::from_utf8(bytes).map_err(drop)?;
        }
    }
    Ok(text)
}

fn label(entry: &[u8]) -> Result<(&str, &str), ()> {
    let mut fields = Fields::of(entry);
    let (mut key, mut value) = ("", "");
    while let Some(field) = fields.next()? {
        match (field.number, field.value) {
            (1, Value::Bytes(bytes)) => key = std::str::from_utf8(bytes).map_err(drop)?,
            (2, Value::Bytes(bytes)) => value = std::str::from_utf8(bytes).map_err(drop)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Bytes of a varint.
fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let [low, ..] = value.to_le_bytes();
        if value < 0x80 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
        value >>= 7;
    }
}

/// Bytes of a field of one tag byte, a length and content.
fn field_len(content: usize) -> usize {
    1 + varint_len(content) + content
}

pub(super) fn put_field(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.put_u8(tag);
    put_varint(out, content.len());
    out.put_slice(content);
}

impl Message {
    /// A message of its parts: `ObjectMeta` before and after the resource version, and the rest.
    pub(super) fn of(before: &[u8], after: &[u8], rest: &[u8]) -> Self {
        let metadata = before.len() + NO_VERSION.len() + after.len();
        let mut bytes = Vec::new();
        bytes.put_u8(0x0a);
        put_varint(&mut bytes, metadata);
        let begin = bytes.len();
        for part in [before, NO_VERSION, after, rest] {
            bytes.put_slice(part);
        }
        let place = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            metadata: place(begin),
            version: place(begin + before.len()),
            end: place(begin + metadata),
            bytes: bytes[..].into(),
        }
    }

    fn part(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    /// All of it, without a resource version.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As much of it as is shown.
    #[must_use]
    pub fn shown(&self, whole: bool) -> Shown<'_> {
        Shown { message: self, whole }
    }
}

/// An object's message, or its metadata alone.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    message: &'a Message,
    whole: bool,
}

impl<'a> Shown<'a> {
    /// `ObjectMeta` before the resource version.
    pub(super) fn before(self) -> &'a [u8] {
        self.message.part(self.message.metadata as usize, self.message.version as usize)
    }

    /// `ObjectMeta` after the resource version.
    pub(super) fn after(self) -> &'a [u8] {
        let from = self.message.version as usize + NO_VERSION.len();
        self.message.part(from, self.message.end as usize)
    }

    /// The object's fields after its metadata.
    fn rest(self) -> &'a [u8] {
        let to = if self.whole { self.message.bytes.len() } else { self.message.end as usize };
        self.message.part(self.message.end as usize, to)
    }

    /// What is shown, without a resource version.
    pub(super) fn bytes(self) -> &'a [u8] {
        let to = if self.whole { self.message.bytes.len() } else { self.message.end as usize };
        self.message.part(0, to)
    }

    fn metadata_len(self, digits: usize) -> usize {
        self.before().len() + field_len(digits) + self.after().len()
    }

    /// Bytes of the object's message with a version of so many digits.
    fn len(self, digits: usize) -> usize {
        field_len(self.metadata_len(digits)) + self.rest().len()
    }

    fn put(self, out: &mut Vec<u8>, version: &str) {
        out.put_u8(0x0a);
        put_varint(out, self.metadata_len(version.len()));
        out.put_slice(self.before());
        put_field(out, 0x32, version.as_bytes());
        out.put_slice(self.after());
        out.put_slice(self.rest());
    }
}

fn type_meta_len(kind: &Kind, name: &str) -> usize {
    field_len(field_len(kind.api_version.len()) + field_len(name.len()))
}

/// Begins an envelope around a message of so many bytes.
fn put_envelope(out: &mut Vec<u8>, kind: &Kind, name: &str, message: usize) {
    out.put_slice(MAGIC);
    out.put_u8(0x0a);
    put_varint(out, field_len(kind.api_version.len()) + field_len(name.len()));
    put_field(out, 0x0a, kind.api_version.as_bytes());
    put_field(out, 0x12, name.as_bytes());
    out.put_u8(0x12);
    put_varint(out, message);
}

fn envelope_len(kind: &Kind, name: &str, message: usize) -> usize {
    MAGIC.len() + type_meta_len(kind, name) + field_len(message) + UNKNOWN_END.len()
}

/// An object as the answer to GET.
#[must_use]
pub fn object(kind: &Kind, message: Shown<'_>, version: u64) -> Bytes {
    let version = version.to_string();
    let length = message.len(version.len());
    let mut out = Vec::with_capacity(envelope_len(kind, kind.name, length));
    put_envelope(&mut out, kind, kind.name, length);
    message.put(&mut out, &version);
    out.put_slice(UNKNOWN_END);
    out.into()
}

/// Bytes of one item of a list.
#[must_use]
pub fn item_len(message: Shown<'_>, version: u64) -> usize {
    field_len(message.len(version.to_string().len()))
}

/// Adds one item of a list.
pub fn put_item(out: &mut Vec<u8>, message: Shown<'_>, version: u64) {
    let version = version.to_string();
    out.put_u8(0x12);
    put_varint(out, message.len(version.len()));
    message.put(out, &version);
}

/// What a list says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// `resourceVersion`.
    pub version: u64,
    /// `continue`; empty at the end.
    pub next: String,
    /// `remainingItemCount`.
    pub remaining: Option<usize>,
    /// The selector of `shardInfo`.
    pub ranges: Option<String>,
}

/// Begins a list whose items have so many bytes, and says how many bytes all of it has.
pub fn begin_list(out: &mut Vec<u8>, kind: &Kind, meta: &ListMeta, items: usize) -> usize {
    let version = meta.version.to_string();
    // ListMeta: selfLink, resourceVersion, continue, remainingItemCount, shardInfo.
    let metadata = field_len(0)
        + field_len(version.len())
        + field_len(meta.next.len())
        + meta.remaining.map_or(0, |count| 1 + varint_len(count))
        + meta.ranges.as_ref().map_or(0, |ranges| field_len(field_len(ranges.len())));
    let message = field_len(metadata) + items;
    put_envelope(out, kind, &kind.list, message);
    out.put_u8(0x0a);
    put_varint(out, metadata);
    put_field(out, 0x0a, &[]);
    put_field(out, 0x12, version.as_bytes());
    put_field(out, 0x1a, meta.next.as_bytes());
    if let Some(count) = meta.remaining {
        out.put_u8(0x20);
        put_varint(out, count);
    }
    if let Some(ranges) = &meta.ranges {
        out.put_u8(0x2a);
        put_varint(out, field_len(ranges.len()));
        put_field(out, 0x0a, ranges.as_bytes());
    }
    envelope_len(kind, &kind.list, message)
}

/// Ends a list.
pub fn end_list(out: &mut Vec<u8>) {
    out.put_slice(UNKNOWN_END);
}

/// Adds a frame of a watch: four bytes of length and a `WatchEvent`.
pub fn put_event(out: &mut Vec<u8>, kind: &Kind, what: &str, message: Shown<'_>, version: u64) {
    let version = version.to_string();
    let length = message.len(version.len());
    put_frame(out, kind, what, length);
    message.put(out, &version);
    out.put_slice(UNKNOWN_END);
}

fn put_frame(out: &mut Vec<u8>, kind: &Kind, what: &str, message: usize) {
    let object = envelope_len(kind, kind.name, message);
    let event = field_len(what.len()) + field_len(field_len(object));
    out.reserve(4 + event);
    // An object is far below 4 GiB: the store takes none of 2 MiB.
    out.put_u32(u32::try_from(event).unwrap_or(u32::MAX));
    put_field(out, 0x0a, what.as_bytes());
    out.put_u8(0x12);
    put_varint(out, field_len(object));
    out.put_u8(0x0a);
    put_varint(out, object);
    put_envelope(out, kind, kind.name, message);
}

/// What a bookmark carries: an empty object with a resource version, and with the annotation
/// `k8s.io/initial-events-end` where the initial events end.
pub(super) fn bookmark(kind: &Kind, initial_events_end: bool) -> Message {
    // ObjectMeta: name, generateName, namespace, selfLink, uid; resourceVersion; generation 0 and
    // an empty creationTimestamp; annotations.
    let mut after = Vec::new();
    after.put_slice(&[0x38, 0, 0x42, 0]);
    let end = initial_events_end.then_some(("k8s.io/initial-events-end", "true"));
    // In the order of keys.
    for (key, value) in kind.annotation().into_iter().chain(end) {
        after.put_u8(0x62);
        put_varint(&mut after, field_len(key.len()) + field_len(value.len()));
        put_field(&mut after, 0x0a, key.as_bytes());
        put_field(&mut after, 0x12, value.as_bytes());
    }
    let before = [0x0a, 0, 0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0];
    Message::of(&before, &after, &kind.empty)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
pub(super) mod tests;
