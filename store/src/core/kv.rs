//! One version of one key: its bytes on the wire, made once and shared by all who read it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};
use triomphe::ThinArc;

use super::prefetch::{prefetch, prefetch_at};

const KEY: u8 = 0x0A;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2A;
const LEASE: u8 = 0x30;

/// The fields of a [`KeyValue`], named as in `mvccpb.KeyValue`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// The key, never empty in the store.
    pub key: &'a [u8],
    /// Revision at which this life of the key began; 0 in a tombstone.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Puts since the key was created, from 1; 0 in a tombstone.
    pub version: i64,
    /// The value; empty is a value like any other.
    pub value: &'a [u8],
    /// The lease the key lives by; 0 for none.
    pub lease: i64,
}

impl Fields<'_> {
    /// Bytes of the wire form.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let bytes =
            |b: &[u8]| if b.is_empty() { 0 } else { 1 + varint_len(b.len() as u64) + b.len() };
        let int = |n: i64| if n == 0 { 0 } else { 1 + varint_len(n.cast_unsigned()) };
        bytes(self.key)
            + int(self.create_revision)
            + int(self.mod_revision)
            + int(self.version)
            + bytes(self.value)
            + int(self.lease)
    }

    /// Appends the wire form: fields in the order of their tags, zero and empty ones left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        put_bytes(out, KEY, self.key);
        put_int(out, CREATE, self.create_revision);
        put_int(out, MOD, self.mod_revision);
        put_int(out, VERSION, self.version);
        put_bytes(out, VALUE, self.value);
        put_int(out, LEASE, self.lease);
    }
}

fn varint_len(n: u64) -> usize {
    encoding::encoded_len_varint(n)
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        encoding::encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }
}

fn put_int(out: &mut Vec<u8>, tag: u8, n: i64) {
    if n != 0 {
        out.push(tag);
        encoding::encode_varint(n.cast_unsigned(), out);
    }
}

/// One version of a key: one piece of memory that holds `mvccpb.KeyValue` as it goes over the wire.
/// A clone shares it. A field is read by walking over those before it, a few nanoseconds.
#[derive(Clone)]
pub struct KeyValue(ThinArc<(), u8>);

impl KeyValue {
    /// A version with these fields.
    #[must_use]
    pub fn new(fields: Fields<'_>) -> Self {
        Self::with(fields, &mut Vec::new())
    }

    /// The same, made in `scratch`, whose content is lost and whose room is used again.
    #[must_use]
    pub fn with(fields: Fields<'_>, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        fields.encode(scratch);
        Self(ThinArc::from_header_and_slice((), scratch))
    }

    /// A version whose wire form another one gave.
    #[must_use]
    pub(super) fn from_encoded(encoded: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice((), encoded))
    }

    /// What a delete at `revision` leaves in a watch event: the key and the revision, no more.
    #[must_use]
    pub fn tombstone(key: &[u8], revision: i64) -> Self {
        Self::new(Fields { key, mod_revision: revision, ..Fields::default() })
    }

    /// The wire form.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.0.slice
    }

    /// Begins to bring what a reader of the key, the numbers and the value's beginning needs.
    pub(super) fn prefetch(&self) {
        let head = self.0.as_ptr().cast();
        for line in 0..3 {
            prefetch_at(head, line * 64);
        }
    }

    /// Begins to bring the end of the value; the beginning should be there.
    pub(super) fn prefetch_end(&self) {
        if let Some(last) = self.encoded().last() {
            prefetch(last);
        }
    }

    /// The wire form as bytes that share this version's memory.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        struct Owner(KeyValue);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.encoded()
            }
        }
        Bytes::from_owner(Owner(self.clone()))
    }

    /// The key, never empty in the store.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        Reader(self.encoded()).bytes(KEY)
    }

    /// Revision at which this life of the key began; 0 in a tombstone.
    #[must_use]
    pub fn create_revision(&self) -> i64 {
        let mut reader = Reader(self.encoded());
        reader.bytes(KEY);
        reader.int(CREATE)
    }

    /// Revision of this version.
    #[must_use]
    pub fn mod_revision(&self) -> i64 {
        let mut reader = Reader(self.encoded());
        reader.bytes(KEY);
        reader.int(CREATE);
        reader.int(MOD)
    }

    /// Puts since the key was created, from 1; 0 in a tombstone.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.fields().version
    }

    /// The value; empty is a value like any other.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.fields().value
    }

    /// The lease the key lives by; 0 for none.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.fields().lease
    }

    /// All fields.
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        let mut reader = Reader(self.encoded());
        Fields {
            key: reader.bytes(KEY),
            create_revision: reader.int(CREATE),
            mod_revision: reader.int(MOD),
            version: reader.int(VERSION),
            value: reader.bytes(VALUE),
            lease: reader.int(LEASE),
        }
    }

    /// True for the result of [`KeyValue::tombstone`].
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.version() == 0
    }

    /// The same version without its value (`keys_only`).
    #[must_use]
    pub fn without_value(&self) -> Self {
        Self::new(Fields { value: &[], ..self.fields() })
    }
}

/// Reads fields in the order in which [`Fields::encode`] writes them; a field that is not there is
/// zero or empty.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn tag(&mut self, tag: u8) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if *first == tag => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else { break };
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    #[inline]
    fn int(&mut self, tag: u8) -> i64 {
        if self.tag(tag) { self.varint().cast_signed() } else { 0 }
    }

    #[inline]
    fn bytes(&mut self, tag: u8) -> &'a [u8] {
        if !self.tag(tag) {
            return &[];
        }
        let len = usize::try_from(self.varint()).unwrap_or(usize::MAX);
        let (bytes, rest) = self.0.split_at_checked(len).unwrap_or((&[], &[]));
        self.0 = rest;
        bytes
    }
}

impl Default for KeyValue {
    fn default() -> Self {
        static EMPTY: OnceLock<KeyValue> = OnceLock::new();
        EMPTY.get_or_init(|| Self::new(Fields::default())).clone()
    }
}

impl PartialEq for KeyValue {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

impl Eq for KeyValue {}

impl Hash for KeyValue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.encoded().hash(state);
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields { key, create_revision, mod_revision, version, value, lease } = self.fields();
        f.debug_struct("KeyValue")
            .field("key", &Bytes::copy_from_slice(key))
            .field("create_revision", &create_revision)
            .field("mod_revision", &mod_revision)
            .field("version", &version)
            .field("value", &Bytes::copy_from_slice(value))
            .field("lease", &lease)
            .finish()
    }
}

/// `mvccpb.KeyValue` on the wire; written by hand because prost can't share a message.
impl Message for KeyValue {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(self.encoded());
    }

    fn encoded_len(&self) -> usize {
        self.encoded().len()
    }

    /// Only clients decode versions, so it matters little that each field makes the whole anew.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut bytes = Vec::new();
        let mut number = 0;
        match tag {
            1 | 5 => encoding::bytes::merge(wire_type, &mut bytes, buf, ctx)?,
            2 | 3 | 4 | 6 => encoding::int64::merge(wire_type, &mut number, buf, ctx)?,
            _ => return encoding::skip_field(wire_type, tag, buf, ctx),
        }
        let mut fields = self.fields();
        match tag {
            1 => fields.key = &bytes,
            2 => fields.create_revision = number,
            3 => fields.mod_revision = number,
            4 => fields.version = number,
            5 => fields.value = &bytes,
            _ => fields.lease = number,
        }
        *self = Self::new(fields);
        Ok(())
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The message as prost would write it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(bytes = "vec", tag = "1")]
        key: Vec<u8>,
        #[prost(int64, tag = "2")]
        create_revision: i64,
        #[prost(int64, tag = "3")]
        mod_revision: i64,
        #[prost(int64, tag = "4")]
        version: i64,
        #[prost(bytes = "vec", tag = "5")]
        value: Vec<u8>,
        #[prost(int64, tag = "6")]
        lease: i64,
    }

    fn number() -> impl Strategy<Value = i64> {
        prop_oneof![Just(0_i64), 1..300_i64, any::<i64>()]
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..300)
    }

    proptest! {
        #[test]
        fn the_wire_form_is_that_of_prost(
            key in bytes(), value in bytes(), n in prop::array::uniform4(number()),
        ) {
            let plain = Plain {
                key, value,
                create_revision: n[0], mod_revision: n[1], version: n[2], lease: n[3],
            };
            let fields = Fields {
                key: &plain.key,
                create_revision: n[0],
                mod_revision: n[1],
                version: n[2],
                value: &plain.value,
                lease: n[3],
            };
            let kv = KeyValue::new(fields);
            let wire = plain.encode_to_vec();
            prop_assert_eq!(kv.encoded(), &wire);
            prop_assert_eq!(fields.encoded_len(), wire.len());
            prop_assert_eq!(kv.fields(), fields);
            prop_assert_eq!((kv.key(), kv.value()), (fields.key, fields.value));
            prop_assert_eq!([kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()], n);
            prop_assert_eq!(KeyValue::decode(wire.as_slice()).unwrap(), kv.clone());
            prop_assert_eq!(kv.to_bytes(), wire);
            let short = kv.without_value();
            prop_assert_eq!(short.fields(), Fields { value: &[], ..fields });
        }
    }

    #[test]
    fn an_empty_one_costs_nothing() {
        assert_eq!(KeyValue::default().encoded_len(), 0);
        assert_eq!(size_of::<Option<KeyValue>>(), 8);
        assert!(KeyValue::tombstone(b"k", 3).is_tombstone());
    }
}
