//! Reading a range in parts, all at one revision.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Mvcc;
use crate::core::{KeyRange, KeyValue};

/// A part of a range.
#[derive(Debug, Default)]
pub struct Page {
    /// Keys in key order.
    pub kvs: Vec<KeyValue>,
    /// The key to go on from; `None` after the last part.
    pub next: Option<Bytes>,
}

/// The pinned revisions, and how often each is.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<BTreeMap<i64, usize>>>);

/// Keeps the versions of a revision readable by [`Mvcc::page`], whatever is compacted meanwhile,
/// until it is dropped, on any thread. It holds back memory: who has one must be bounded in time.
#[derive(Debug)]
pub struct Pin {
    revision: i64,
    pins: Pins,
}

impl Pin {
    /// The pinned revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.revision) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.revision);
            }
        }
    }
}

impl Pins {
    pub(super) fn lowest(&self) -> Option<i64> {
        self.0.lock().first_key_value().map(|(revision, _)| *revision)
    }
}

impl Mvcc {
    /// Pins a revision that [`Mvcc::resolve`] gave.
    #[must_use]
    pub fn pin(&self, revision: i64) -> Pin {
        *self.pins.0.lock().entry(revision).or_default() += 1;
        Pin { revision, pins: self.pins.clone() }
    }

    /// A part of what `range` holds at revision `at`, which is pinned or not compacted: from key
    /// `from` on, or from the beginning, until the versions' bytes on the wire reach `max_bytes`.
    /// There is at least one key in each part but an empty range's.
    #[must_use]
    pub fn page(&self, range: &KeyRange, at: i64, from: Option<&Bytes>, max_bytes: usize) -> Page {
        let rest = match (range, from) {
            (KeyRange::Until(_, end), Some(from)) => KeyRange::Until(from.clone(), end.clone()),
            (KeyRange::From(_), Some(from)) => KeyRange::From(from.clone()),
            (range, _) => range.clone(),
        };
        let mut page = Page::default();
        let mut bytes = 0;
        self.each(&rest, at, |kv| {
            if bytes >= max_bytes && !page.kvs.is_empty() {
                page.next = Some(Bytes::copy_from_slice(kv.key()));
                return ControlFlow::Break(());
            }
            bytes += kv.encoded().len();
            page.kvs.push(kv.clone());
            ControlFlow::Continue(())
        });
        page
    }
}
