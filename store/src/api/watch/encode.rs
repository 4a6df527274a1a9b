//! Answers as they go over the wire: gRPC's head, then `etcdserverpb.WatchResponse`.

use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{self, encode_key, encoded_len_varint, key_len};

use crate::core::Event;
use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::event::EventType;

/// Fields of `WatchResponse` and `mvccpb.Event`.
const EVENTS: u32 = 11;
const TYPE: u32 = 1;
const KV: u32 = 2;
const PREV_KV: u32 = 3;

/// A message of so many bytes begins.
fn head(out: &mut BytesMut, length: usize) {
    out.reserve(5 + length);
    out.put_u8(0);
    // A message never comes near 4 GiB: see `core::watch::cursor` for its bounds.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Writes an answer without events.
pub(super) fn answer(out: &mut BytesMut, response: &WatchResponse) {
    head(out, response.encoded_len());
    response.encode_raw(out);
}

/// Writes an answer with events: what `response` says, then them. What a key held before is told
/// for events above `prev_kv_above`, if at all.
pub(super) fn events(
    out: &mut BytesMut,
    response: &WatchResponse,
    events: &[&Event],
    prev_kv_above: Option<i64>,
) {
    let body: usize = events.iter().map(|event| field_length(event, prev_kv_above)).sum();
    head(out, response.encoded_len() + body);
    response.encode_raw(out);
    for event in events {
        encode_key(EVENTS, encoding::WireType::LengthDelimited, out);
        encoding::encode_varint(length(event, prev_kv_above) as u64, out);
        if event.kv.is_tombstone() {
            encoding::int32::encode(TYPE, &EventType::Delete.into(), out);
        }
        encoding::message::encode(KV, &event.kv, out);
        if let Some(prev) = prev(event, prev_kv_above) {
            encoding::message::encode(PREV_KV, prev, out);
        }
    }
}

/// Bytes of an event with its tag and length.
pub(super) fn field_length(event: &Event, prev_kv_above: Option<i64>) -> usize {
    let length = length(event, prev_kv_above);
    key_len(EVENTS) + encoded_len_varint(length as u64) + length
}

fn length(event: &Event, prev_kv_above: Option<i64>) -> usize {
    let kind = if event.kv.is_tombstone() { 2 } else { 0 };
    let prev = prev(event, prev_kv_above);
    kind + encoding::message::encoded_len(KV, &event.kv)
        + prev.map_or(0, |prev| encoding::message::encoded_len(PREV_KV, prev))
}

fn prev(event: &Event, prev_kv_above: Option<i64>) -> Option<&crate::core::KeyValue> {
    let above = prev_kv_above?;
    event.prev.as_ref().filter(|_| event.kv.mod_revision() > above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Fields, KeyValue};
    use crate::pb::etcdserverpb::ResponseHeader;
    use crate::pb::mvccpb;

    #[test]
    fn answers_are_those_that_prost_would_write() {
        let kv = |version, value: &str| {
            let (key, value) = (b"/a/1".as_slice(), value.as_bytes());
            KeyValue::new(Fields { key, version, mod_revision: 70, value, ..Fields::default() })
        };
        let put = Event { kv: kv(2, "new"), prev: Some(kv(1, "old")) };
        let delete = Event { kv: KeyValue::tombstone(b"/a/1", 71), prev: Some(kv(2, "new")) };
        let base = WatchResponse {
            header: Some(ResponseHeader { revision: 300, ..ResponseHeader::default() }),
            watch_id: 5,
            ..WatchResponse::default()
        };
        for above in [None, Some(0), Some(70), Some(71)] {
            let mut out = BytesMut::new();
            events(&mut out, &base, &[&put, &delete], above);
            let message = |event: &Event, kind: EventType| mvccpb::Event {
                r#type: kind.into(),
                kv: Some(event.kv.clone()),
                prev_kv: prev(event, above).cloned(),
            };
            let events = vec![message(&put, EventType::Put), message(&delete, EventType::Delete)];
            let wanted = WatchResponse { events, ..base.clone() }.encode_to_vec();
            assert_eq!(
                out[..5],
                [&[0][..], &u32::try_from(wanted.len()).unwrap().to_be_bytes()].concat()
            );
            assert_eq!(out[5..], wanted);
        }
        let mut out = BytesMut::new();
        answer(&mut out, &base);
        assert_eq!(out[5..], base.encode_to_vec());
    }
}
