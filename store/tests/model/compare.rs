//! The engine's answers in the specification's terms.

use bytes::Bytes;
use megacluster_store::core::{Event, KeyValue};
use megacluster_store::pb::etcdserverpb::RangeResponse;

use crate::spec::{Change, Entry, Found};

pub(crate) fn entry(kv: &KeyValue) -> (Bytes, Entry) {
    let entry = Entry {
        value: Bytes::copy_from_slice(kv.value()),
        create: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    };
    (Bytes::copy_from_slice(kv.key()), entry)
}

pub(crate) fn change(event: &Event) -> Change {
    let (key, now) = entry(&event.kv);
    Change {
        revision: event.kv.mod_revision(),
        key,
        now: (!event.kv.is_tombstone()).then_some(now),
        before: event.prev.as_ref().map(|kv| entry(kv).1),
    }
}

pub(crate) fn same(found: &RangeResponse, wanted: &Found) {
    let kvs: Vec<_> = found.kvs.iter().map(entry).collect();
    // etcd's sort is not stable, and neither order of equals is promised.
    let mut sorted = (kvs.clone(), wanted.0.clone());
    sorted.0.sort_by(|a, b| a.0.cmp(&b.0));
    sorted.1.sort_by(|a, b| a.0.cmp(&b.0));
    if !found.more {
        assert_eq!(sorted.0, sorted.1);
    }
    assert_eq!(kvs.len(), wanted.0.len());
    assert_eq!((found.count, found.more), (wanted.1, wanted.2));
}
