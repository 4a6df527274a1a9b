//! Key ranges as etcd writes them.

use bytes::Bytes;

/// A set of keys: one key, or all from `start` up to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// The one key.
    One(Bytes),
    /// `start <= key < end`; no key at all if `end <= start`.
    Until(Bytes, Bytes),
    /// `start <= key`.
    From(Bytes),
}

impl KeyRange {
    /// From a request's `key` and `range_end`: an empty end means the one key, a single zero byte
    /// every key from `key` on (etcd `api/etcdserverpb/rpc.proto`, `RangeRequest`).
    #[must_use]
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::One(key),
            [0] => Self::From(key),
            _ => Self::Until(key, range_end),
        }
    }

    /// The least key that may be in the range.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        match self {
            Self::One(key) | Self::Until(key, _) | Self::From(key) => key,
        }
    }

    /// The end, excluded; `None` where there is none. Not for [`KeyRange::One`].
    #[must_use]
    pub fn end(&self) -> Option<&Bytes> {
        match self {
            Self::Until(_, end) => Some(end),
            Self::One(_) | Self::From(_) => None,
        }
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one.as_ref() == key,
            Self::Until(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    /// The prefix, if the range is exactly the keys with that prefix.
    #[must_use]
    pub fn as_prefix(&self) -> Option<&Bytes> {
        match self {
            Self::Until(start, end) if prefix_end(start).as_deref() == Some(end.as_ref()) => {
                Some(start)
            }
            _ => None,
        }
    }
}

/// The least key above all keys that start with `prefix`; `None` if there is no such key.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_etcd_reads_them() {
        let range = |k: &'static [u8], e: &'static [u8]| {
            KeyRange::new(Bytes::from_static(k), Bytes::from_static(e))
        };
        assert!(range(b"a", b"").contains(b"a"));
        assert!(!range(b"a", b"").contains(b"ab"));
        assert!(range(b"a", b"\0").contains(b"zzz"));
        assert!(range(b"a/", b"a0").contains(b"a/x"));
        assert_eq!(range(b"a/", b"a0").as_prefix().map(Bytes::as_ref), Some(&b"a/"[..]));
        assert_eq!(range(b"a\xff", b"b").as_prefix().map(Bytes::as_ref), Some(&b"a\xff"[..]));
        assert_eq!(range(b"a", b"c").as_prefix(), None);
        assert!(!range(b"b", b"a").contains(b"b"));
        assert_eq!(prefix_end(b"\xff\xff"), None);
    }
}
