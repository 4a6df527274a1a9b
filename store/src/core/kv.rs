//! One version of one key, shared by all who read it.

use std::ops::Deref;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// The fields of a [`KeyValue`], named as in `mvccpb.KeyValue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fields {
    /// The key, never empty in the store.
    pub key: Bytes,
    /// Revision at which this life of the key began; 0 in a tombstone.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// Puts since the key was created, from 1; 0 in a tombstone.
    pub version: i64,
    /// The value; empty is a value like any other.
    pub value: Bytes,
    /// The lease the key lives by; 0 for none.
    pub lease: i64,
}

/// One version of a key. A clone shares it: the version chain, the history, every answer and every
/// watch event hold the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyValue(Arc<Fields>);

impl KeyValue {
    /// A version with these fields.
    #[must_use]
    pub fn new(fields: Fields) -> Self {
        Self(Arc::new(fields))
    }

    /// What a delete at `revision` leaves in a watch event: the key and the revision, no more.
    #[must_use]
    pub fn tombstone(key: Bytes, revision: i64) -> Self {
        Self::new(Fields { key, mod_revision: revision, ..Fields::default() })
    }

    /// True for the result of [`KeyValue::tombstone`].
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.0.version == 0
    }

    /// The same version without its value (`keys_only`).
    #[must_use]
    pub fn without_value(&self) -> Self {
        Self::new(Fields { value: Bytes::new(), ..self.0.as_ref().clone() })
    }
}

impl Deref for KeyValue {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

/// `mvccpb.KeyValue` on the wire; written by hand because prost can't share a message.
impl Message for KeyValue {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        let f = &*self.0;
        if !f.key.is_empty() {
            encoding::bytes::encode(1, &f.key, buf);
        }
        for (tag, number) in [(2, f.create_revision), (3, f.mod_revision), (4, f.version)] {
            if number != 0 {
                encoding::int64::encode(tag, &number, buf);
            }
        }
        if !f.value.is_empty() {
            encoding::bytes::encode(5, &f.value, buf);
        }
        if f.lease != 0 {
            encoding::int64::encode(6, &f.lease, buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let f = &*self.0;
        let bytes =
            |tag, b: &Bytes| if b.is_empty() { 0 } else { encoding::bytes::encoded_len(tag, b) };
        let int = |tag, n: i64| if n == 0 { 0 } else { encoding::int64::encoded_len(tag, &n) };
        bytes(1, &f.key)
            + int(2, f.create_revision)
            + int(3, f.mod_revision)
            + int(4, f.version)
            + bytes(5, &f.value)
            + int(6, f.lease)
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let f = Arc::make_mut(&mut self.0);
        match tag {
            1 => encoding::bytes::merge(wire_type, &mut f.key, buf, ctx),
            2 => encoding::int64::merge(wire_type, &mut f.create_revision, buf, ctx),
            3 => encoding::int64::merge(wire_type, &mut f.mod_revision, buf, ctx),
            4 => encoding::int64::merge(wire_type, &mut f.version, buf, ctx),
            5 => encoding::bytes::merge(wire_type, &mut f.value, buf, ctx),
            6 => encoding::int64::merge(wire_type, &mut f.lease, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_read_back() {
        let kv = KeyValue::new(Fields {
            key: Bytes::from_static(b"/registry/pods/a"),
            create_revision: 3,
            mod_revision: 1 << 40,
            version: 2,
            value: Bytes::from_static(b"v"),
            lease: -1,
        });
        let wire = kv.encode_to_vec();
        assert_eq!(wire.len(), kv.encoded_len());
        assert_eq!(KeyValue::decode(wire.as_slice()).unwrap(), kv);
        let short = kv.without_value();
        assert_eq!(short.value, Bytes::new());
        assert_eq!(short.mod_revision, kv.mod_revision);
        assert_eq!(KeyValue::default().encoded_len(), 0);
    }
}
