//! Records as bytes: a kind, then fixed little-endian numbers and length-prefixed strings.
//!
//! Besides the caller's [`Record`]s there are three of the log's own: `Start` (the revision a run
//! began at), `Reserve` (no revision above it is given out before a higher reserve) and `Stop` (a
//! clean end).

use bytes::Buf;

use super::record::Record;
use crate::core::{Fields, KeyValue};

/// A record as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Record(Record),
    /// A run began here; `compact` is the compacted revision it began with.
    Start {
        revision: i64,
        compact: i64,
    },
    /// Revisions up to and with this one may be given out without a record.
    Reserve {
        revision: i64,
    },
    /// The run ended in order. `volatile`: it held keys or history that are not in the log.
    Stop {
        revision: i64,
        volatile: bool,
    },
}

const TXN: u8 = 1;
const LEASE_GRANT: u8 = 2;
const LEASE_REVOKE: u8 = 3;
const COMPACT: u8 = 4;
const START: u8 = 5;
const RESERVE: u8 = 6;
const STOP: u8 = 7;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Appends `record` to `out`.
pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Txn { revision, ops } => {
            out.push(TXN);
            put_i64(out, *revision);
            put_len(out, ops.len());
            for kv in ops {
                let fields = kv.fields();
                if kv.is_tombstone() {
                    out.push(DELETE);
                } else {
                    out.push(PUT);
                    put_i64(out, fields.lease);
                    put_i64(out, fields.create_revision);
                    put_i64(out, fields.version);
                }
                put_bytes(out, fields.key);
                if !kv.is_tombstone() {
                    put_bytes(out, fields.value);
                }
            }
        }
        Record::LeaseGrant { id, ttl } => {
            out.push(LEASE_GRANT);
            put_i64(out, *id);
            put_i64(out, *ttl);
        }
        Record::LeaseRevoke { id } => {
            out.push(LEASE_REVOKE);
            put_i64(out, *id);
        }
        Record::Compact { revision } => {
            out.push(COMPACT);
            put_i64(out, *revision);
        }
    }
}

pub(super) fn encode_start(revision: i64, compact: i64, out: &mut Vec<u8>) {
    out.push(START);
    put_i64(out, revision);
    put_i64(out, compact);
}

pub(super) fn encode_reserve(revision: i64, out: &mut Vec<u8>) {
    out.push(RESERVE);
    put_i64(out, revision);
}

pub(super) fn encode_stop(revision: i64, volatile: bool, out: &mut Vec<u8>) {
    out.push(STOP);
    put_i64(out, revision);
    out.push(u8::from(volatile));
}

/// Takes one entry off `input`. `None` if the bytes are no entry.
pub(super) fn decode(input: &mut &[u8]) -> Option<Entry> {
    decode_with(input, true)
}

/// As [`decode`], but leaves the operations of a transaction out.
pub(super) fn skim(input: &mut &[u8]) -> Option<Entry> {
    decode_with(input, false)
}

fn decode_with(input: &mut &[u8], keep: bool) -> Option<Entry> {
    Some(match input.try_get_u8().ok()? {
        TXN => {
            let revision = input.try_get_i64_le().ok()?;
            let count = input.try_get_u32_le().ok()? as usize;
            // An operation takes five bytes at least: a wild count allocates nothing wild.
            let room = if keep { count.min(input.len() / 5) } else { 0 };
            let mut ops = Vec::with_capacity(room);
            for _ in 0..count {
                let fields = decode_op(input, revision)?;
                if keep {
                    ops.push(KeyValue::new(fields));
                }
            }
            Entry::Record(Record::Txn { revision, ops })
        }
        LEASE_GRANT => Entry::Record(Record::LeaseGrant {
            id: input.try_get_i64_le().ok()?,
            ttl: input.try_get_i64_le().ok()?,
        }),
        LEASE_REVOKE => Entry::Record(Record::LeaseRevoke { id: input.try_get_i64_le().ok()? }),
        COMPACT => Entry::Record(Record::Compact { revision: input.try_get_i64_le().ok()? }),
        START => Entry::Start {
            revision: input.try_get_i64_le().ok()?,
            compact: input.try_get_i64_le().ok()?,
        },
        RESERVE => Entry::Reserve { revision: input.try_get_i64_le().ok()? },
        STOP => Entry::Stop {
            revision: input.try_get_i64_le().ok()?,
            volatile: input.try_get_u8().ok()? != 0,
        },
        _ => return None,
    })
}

fn decode_op<'a>(input: &mut &'a [u8], mod_revision: i64) -> Option<Fields<'a>> {
    let mut fields = Fields { mod_revision, ..Fields::default() };
    match input.try_get_u8().ok()? {
        PUT => {
            fields.lease = input.try_get_i64_le().ok()?;
            fields.create_revision = input.try_get_i64_le().ok()?;
            fields.version = input.try_get_i64_le().ok()?;
            fields.key = get_bytes(input)?;
            fields.value = get_bytes(input)?;
            if fields.version == 0 {
                return None;
            }
        }
        DELETE => fields.key = get_bytes(input)?,
        _ => return None,
    }
    Some(fields)
}

pub(super) fn put_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// A length. The writer's record limit keeps every length in 32 bits; a longer one saturates, and
/// the record is then refused for its size.
pub(super) fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn get_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = input.try_get_u32_le().ok()? as usize;
    let (bytes, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..40)
    }

    fn op(mod_revision: i64) -> impl Strategy<Value = KeyValue> {
        let put = (bytes(), bytes(), any::<i64>(), any::<i64>(), 1..i64::MAX).prop_map(
            move |(key, value, lease, create_revision, version)| {
                let (key, value) = (key.as_slice(), value.as_slice());
                KeyValue::new(Fields { key, create_revision, mod_revision, version, value, lease })
            },
        );
        prop_oneof![put, bytes().prop_map(move |key| KeyValue::tombstone(&key, mod_revision))]
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            any::<i64>()
                .prop_flat_map(|revision| (
                    Just(revision),
                    prop::collection::vec(op(revision), 0..5)
                ))
                .prop_map(|(revision, ops)| Record::Txn { revision, ops }),
            (any::<i64>(), any::<i64>()).prop_map(|(id, ttl)| Record::LeaseGrant { id, ttl }),
            any::<i64>().prop_map(|id| Record::LeaseRevoke { id }),
            any::<i64>().prop_map(|revision| Record::Compact { revision }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(records in prop::collection::vec(record(), 0..10)) {
            let mut out = Vec::new();
            for record in &records {
                encode(record, &mut out);
            }
            let mut input = out.as_slice();
            let mut decoded = Vec::new();
            let mut skimmed = input;
            while !input.is_empty() {
                match (decode(&mut input), skim(&mut skimmed)) {
                    (Some(Entry::Record(record)), Some(_)) => decoded.push(record),
                    other => panic!("{other:?}"),
                }
                prop_assert_eq!(input, skimmed);
            }
            prop_assert_eq!(decoded, records);
        }

        #[test]
        fn any_bytes_are_refused_or_decoded_without_panic(
            raw in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut input = raw.as_slice();
            while !input.is_empty() && decode(&mut input).is_some() {}
        }
    }
}
