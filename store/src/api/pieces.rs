//! A large answer to Range on its way: one message, encoded piece by piece as the client takes it,
//! from versions that the store shares with it. gRPC wants the message's length before its first
//! byte, and no more than that.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::direct::put_prefix;
use crate::core::KeyValue;
use crate::pb::etcdserverpb::RangeResponse;

/// `kvs` in `RangeResponse`, of which `header` comes before them and all others behind.
const KVS: u32 = 2;
/// A piece ends with the version that fills it so far.
const PIECE: usize = 64 * 1024;

/// What is left of an answer.
#[derive(Debug)]
pub(crate) struct Pieces {
    len: usize,
    head: Option<Bytes>,
    kvs: std::vec::IntoIter<KeyValue>,
    tail: Option<Bytes>,
}

impl Pieces {
    pub(super) fn new(response: RangeResponse) -> Self {
        let RangeResponse { header, kvs, more, count } = response;
        let head = RangeResponse { header, ..RangeResponse::default() };
        let tail = RangeResponse { more, count, ..RangeResponse::default() };
        let size =
            head.encoded_len() + kvs.iter().map(field_len).sum::<usize>() + tail.encoded_len();
        let mut start = BytesMut::new();
        put_prefix(size, &mut start);
        let len = start.len() + size;
        head.encode_raw(&mut start);
        Self {
            len,
            head: Some(start.freeze()),
            kvs: kvs.into_iter(),
            tail: Some(tail.encode_to_vec().into()),
        }
    }

    /// Bytes of the whole, gRPC's prefix included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn field_len(kv: &KeyValue) -> usize {
    let len = kv.encoded_len();
    key_len(KVS) + encoded_len_varint(len as u64) + len
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        let mut piece = BytesMut::new();
        while piece.len() < PIECE
            && let Some(kv) = self.kvs.next()
        {
            if piece.is_empty() {
                let some =
                    PIECE.min(self.kvs.len().saturating_add(1).saturating_mul(field_len(&kv)));
                piece.reserve(some.max(field_len(&kv)));
            }
            encode_key(KVS, WireType::LengthDelimited, &mut piece);
            encode_varint(kv.encoded_len() as u64, &mut piece);
            piece.put_slice(kv.encoded());
        }
        if piece.is_empty() {
            return self.tail.take().filter(|tail| !tail.is_empty());
        }
        Some(piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::Fields;
    use crate::pb::etcdserverpb::ResponseHeader;

    fn kv(n: usize, size: usize) -> KeyValue {
        let (key, value) = (format!("key-{n}"), vec![b'v'; size]);
        let revision = i64::try_from(n).unwrap() + 2;
        KeyValue::new(Fields {
            key: key.as_bytes(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: &value,
            lease: 0,
        })
    }

    proptest! {
        /// The pieces together are what the message is as a whole, and none is much larger than
        /// what it holds must be.
        #[test]
        fn pieces_make_the_message(
            sizes in prop::collection::vec(0_usize..40_000, 0..60),
            more: bool,
            count in 0_i64..3,
            revision in 0_i64..3,
        ) {
            let response = RangeResponse {
                header: (revision > 0).then(|| ResponseHeader { revision, ..Default::default() }),
                kvs: sizes.iter().enumerate().map(|(n, size)| kv(n, *size)).collect(),
                more,
                count,
            };
            let whole = response.encode_to_vec();
            let pieces = Pieces::new(response);
            prop_assert_eq!(pieces.len(), whole.len() + 5);
            let mut joined = Vec::new();
            for piece in pieces {
                prop_assert!(!piece.is_empty() && piece.len() < PIECE + 41_000);
                joined.extend_from_slice(&piece);
            }
            prop_assert_eq!(&joined[..5], [&[0][..], &u32::try_from(whole.len()).unwrap().to_be_bytes()].concat());
            prop_assert_eq!(&joined[5..], whole);
        }
    }
}
