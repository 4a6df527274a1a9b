//! The bytes of Kubernetes' protobuf, as far as answers are made of them.
//!
//! A stored value is `k8s\0` and a `runtime.Unknown` whose `raw` is the object's message
//! (`k8s.io/apimachinery/pkg/runtime/serializer/protobuf`). kube-apiserver stores it without
//! `metadata.resourceVersion` and puts the revision there when it answers. Its encoder writes a
//! string field also when it is empty, so the field is there, and only its value changes.

use bytes::{BufMut, Bytes, BytesMut};

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
enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

/// One field of a message and where it lies.
#[derive(Clone, Copy, Debug)]
struct Field<'a> {
    number: u64,
    start: usize,
    end: usize,
    value: Value<'a>,
}

/// Reads a message field by field; ends at what is no message.
struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// The next field; none at the end; an error where the bytes are no message.
    fn next(&mut self) -> Result<Option<Field<'a>>, ()> {
        if self.at == self.message.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => {
                self.varint()?;
                Value::Number
            }
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
        Ok(Value::Number)
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

/// An object's message, cut where its resource version goes.
#[derive(Clone, Debug)]
pub struct Message {
    /// `ObjectMeta` before the resource version's value, and after it.
    before: Bytes,
    after: Bytes,
    /// The object's fields after its metadata.
    rest: Bytes,
}

/// What selectors look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `metadata.labels`, in the order of their keys.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// `spec.nodeName` of a Pod; empty where it has none.
    pub node: Box<str>,
}

/// The kinds that can be cached.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The resource in the path, and in the keys of the store.
    pub resource: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// Of one object.
    pub name: &'static str,
    /// Of a list.
    pub list: &'static str,
    /// An object that is empty but for its metadata, from its second field on, as
    /// kube-apiserver's encoder writes it: bookmarks carry one.
    pub empty: &'static [u8],
}

/// Pods.
pub const PODS: Kind = Kind {
    resource: "pods",
    version: "v1",
    name: "Pod",
    list: "PodList",
    empty: &[
        // spec: strings restartPolicy, dnsPolicy, serviceAccountName, serviceAccount, nodeName,
        // hostname, subdomain, schedulerName, priorityClassName and the flags hostNetwork,
        // hostPID, hostIPC.
        0x12, 0x1c, 0x1a, 0, 0x32, 0, 0x42, 0, 0x4a, 0, 0x52, 0, 0x58, 0, 0x60, 0, 0x68, 0, 0x82, 1,
        0, 0x8a, 1, 0, 0x9a, 1, 0, 0xc2, 1, 0,
        // status: strings phase, message, reason, hostIP, podIP, qosClass, nominatedNodeName,
        // resize and the number observedGeneration.
        0x1a, 0x13, 0x0a, 0, 0x1a, 0, 0x22, 0, 0x2a, 0, 0x32, 0, 0x4a, 0, 0x5a, 0, 0x72, 0, 0x88, 1,
        0,
    ],
};

/// Reads a stored value.
pub fn read(kind: &Kind, value: &Bytes) -> Result<(Message, Seen), Unsupported> {
    let wrong = |problem| Unsupported { kind: kind.name, problem };
    let raw = raw(kind, value).map_err(wrong)?;
    let no_message = || wrong("not a message");
    let mut fields = Fields::of(&raw);
    let Ok(Some(Field { number: 1, end, value: Value::Bytes(metadata), .. })) = fields.next()
    else {
        return Err(wrong("metadata is not the first field"));
    };
    let mut seen = Seen::default();
    let mut version = None;
    let mut of_metadata = Fields::of(metadata);
    while let Some(field) = of_metadata.next().map_err(|()| no_message())? {
        match (field.number, field.value) {
            (6, Value::Bytes([])) if version.is_none() => version = Some(field),
            (6, _) => return Err(wrong("it has a resource version")),
            (11, Value::Bytes(entry)) => seen.labels.push(label(entry).map_err(|()| no_message())?),
            _ => {}
        }
    }
    seen.labels.sort_unstable();
    let version = version.ok_or_else(|| wrong("it has no resource version"))?;
    while let Some(field) = fields.next().map_err(|()| no_message())? {
        if let (2, Value::Bytes(spec), "pods") = (field.number, field.value, kind.resource) {
            seen.node = text_of(spec, 10).map_err(|()| no_message())?.into();
        }
    }
    let message = Message {
        before: raw.slice_ref(metadata.get(..version.start).unwrap_or_default()),
        after: raw.slice_ref(metadata.get(version.end..).unwrap_or_default()),
        rest: raw.slice(end..),
    };
    Ok((message, seen))
}

/// The message within its envelope.
fn raw(kind: &Kind, value: &Bytes) -> Result<Bytes, &'static str> {
    let no_envelope = |()| "not in protobuf";
    let unknown = value.strip_prefix(MAGIC).ok_or("not in protobuf, or encrypted")?;
    let mut raw = None;
    let mut fields = Fields::of(unknown);
    while let Some(field) = fields.next().map_err(no_envelope)? {
        match (field.number, field.value) {
            (1, Value::Bytes(meta)) => {
                if text_of(meta, 1).map_err(no_envelope)? != kind.version
                    || text_of(meta, 2).map_err(no_envelope)? != kind.name
                {
                    return Err("of another kind or version");
                }
            }
            (2, Value::Bytes(message)) if raw.is_none() => raw = Some(value.slice_ref(message)),
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

fn label(entry: &[u8]) -> Result<(Box<str>, Box<str>), ()> {
    Ok((text_of(entry, 1)?.into(), text_of(entry, 2)?.into()))
}

/// Bytes of a varint.
fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
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

fn put_field(out: &mut BytesMut, tag: u8, content: &[u8]) {
    out.put_u8(tag);
    put_varint(out, content.len());
    out.put_slice(content);
}

impl Message {
    fn metadata_len(&self, digits: usize) -> usize {
        self.before.len() + field_len(digits) + self.after.len()
    }

    /// Bytes of the object's message with a version of so many digits.
    fn len(&self, digits: usize) -> usize {
        field_len(self.metadata_len(digits)) + self.rest.len()
    }

    fn put(&self, out: &mut BytesMut, version: &str) {
        out.put_u8(0x0a);
        put_varint(out, self.metadata_len(version.len()));
        out.put_slice(&self.before);
        put_field(out, 0x32, version.as_bytes());
        out.put_slice(&self.after);
        out.put_slice(&self.rest);
    }

    /// Bytes of stored content that it keeps.
    #[must_use]
    pub fn size(&self) -> usize {
        self.before.len() + NO_VERSION.len() + self.after.len() + self.rest.len()
    }
}

fn type_meta_len(kind: &Kind, name: &str) -> usize {
    field_len(field_len(kind.version.len()) + field_len(name.len()))
}

/// Begins an envelope around a message of so many bytes.
fn put_envelope(out: &mut BytesMut, kind: &Kind, name: &str, message: usize) {
    out.put_slice(MAGIC);
    out.put_u8(0x0a);
    put_varint(out, field_len(kind.version.len()) + field_len(name.len()));
    put_field(out, 0x0a, kind.version.as_bytes());
    put_field(out, 0x12, name.as_bytes());
    out.put_u8(0x12);
    put_varint(out, message);
}

fn envelope_len(kind: &Kind, name: &str, message: usize) -> usize {
    MAGIC.len() + type_meta_len(kind, name) + field_len(message) + UNKNOWN_END.len()
}

/// An object as the answer to GET.
#[must_use]
pub fn object(kind: &Kind, message: &Message, version: u64) -> Bytes {
    let version = version.to_string();
    let length = message.len(version.len());
    let mut out = BytesMut::with_capacity(envelope_len(kind, kind.name, length));
    put_envelope(&mut out, kind, kind.name, length);
    message.put(&mut out, &version);
    out.put_slice(UNKNOWN_END);
    out.freeze()
}

/// Bytes of one item of a list.
#[must_use]
pub fn item_len(message: &Message, version: u64) -> usize {
    field_len(message.len(version.to_string().len()))
}

/// Adds one item of a list.
pub fn put_item(out: &mut BytesMut, message: &Message, version: u64) {
    let version = version.to_string();
    out.put_u8(0x12);
    put_varint(out, message.len(version.len()));
    message.put(out, &version);
}

/// Begins a list whose items have so many bytes, and says how many bytes all of it has.
pub fn begin_list(out: &mut BytesMut, kind: &Kind, version: u64, items: usize) -> usize {
    let version = version.to_string();
    // ListMeta: selfLink, resourceVersion, continue.
    let metadata = field_len(0) + field_len(version.len()) + field_len(0);
    let message = field_len(metadata) + items;
    put_envelope(out, kind, kind.list, message);
    out.put_u8(0x0a);
    put_varint(out, metadata);
    put_field(out, 0x0a, &[]);
    put_field(out, 0x12, version.as_bytes());
    put_field(out, 0x1a, &[]);
    envelope_len(kind, kind.list, message)
}

/// Ends a list.
pub fn end_list(out: &mut BytesMut) {
    out.put_slice(UNKNOWN_END);
}

/// Adds a frame of a watch: four bytes of length and a `WatchEvent`.
pub fn put_event(out: &mut BytesMut, kind: &Kind, what: &str, message: &Message, version: u64) {
    let version = version.to_string();
    let length = message.len(version.len());
    put_frame(out, kind, what, length);
    message.put(out, &version);
    out.put_slice(UNKNOWN_END);
}

fn put_frame(out: &mut BytesMut, kind: &Kind, what: &str, message: usize) {
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

/// Adds a bookmark: an empty object with a resource version, and with the annotation
/// `k8s.io/initial-events-end` where the initial events end.
pub fn put_bookmark(out: &mut BytesMut, kind: &Kind, version: u64, initial_events_end: bool) {
    // ObjectMeta: name, generateName, namespace, selfLink, uid; resourceVersion; generation 0 and
    // an empty creationTimestamp; annotations.
    let mut after = BytesMut::new();
    after.put_slice(&[0x38, 0, 0x42, 0]);
    if initial_events_end {
        let (key, value) = (b"k8s.io/initial-events-end", b"true");
        after.put_u8(0x62);
        put_varint(&mut after, field_len(key.len()) + field_len(value.len()));
        put_field(&mut after, 0x0a, key);
        put_field(&mut after, 0x12, value);
    }
    let message = Message {
        before: Bytes::from_static(&[0x0a, 0, 0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0]),
        after: after.freeze(),
        rest: Bytes::from_static(kind.empty),
    };
    put_event(out, kind, "BOOKMARK", &message, version);
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
