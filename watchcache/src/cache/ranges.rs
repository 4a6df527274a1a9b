//! `shardSelector` (KEP-5866): the objects whose UID or namespace has a hash in some ranges, for
//! controllers that share their work. As `k8s.io/apiserver/pkg/sharding` reads it, which takes an
//! expression in CEL of which little is allowed; what is written in another way goes on.

use super::table::Object;
use super::wire::{self, Value};

/// The whole space ends here: one more than the largest hash.
const END: &str = "10000000000000000";
/// More ranges than this go on.
const MOST: usize = 256;

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Uid,
    Namespace,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Uid => "object.metadata.uid",
            Self::Namespace => "object.metadata.namespace",
        }
    }
}

/// Ranges of hashes, in one of which an object's is to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    key: Key,
    /// From, and up to but without; never empty.
    ranges: Vec<(u64, u128)>,
}

impl Ranges {
    /// Reads `shardRange(object.metadata.uid, '0x…', '0x…') || …`; none for anything else, and for
    /// what kube-apiserver would refuse.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (mut key, mut ranges) = (None, Vec::new());
        for call in text.split("||") {
            let (of, from, to) = call_of(call)?;
            if *key.get_or_insert(of) != of || ranges.len() == MOST || u128::from(from) >= to {
                return None;
            }
            ranges.push((from, to));
        }
        Some(Self { key: key?, ranges })
    }

    /// Whether an object's hash lies in one of them.
    #[must_use]
    pub fn hold(&self, object: &Object) -> bool {
        let hash = match self.key {
            // `metadata.uid`.
            Key::Uid => match wire::find(object.message.bytes(), &[1, 5]) {
                Some(Value::Bytes(uid)) => fnv1a(uid),
                _ => fnv1a(b""),
            },
            Key::Namespace => fnv1a(object.namespace().unwrap_or_default().as_bytes()),
        };
        self.ranges.iter().any(|(from, to)| *from <= hash && u128::from(hash) < *to)
    }
}

/// As kube-apiserver says in a list what was asked for.
impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, (from, to)) in self.ranges.iter().enumerate() {
            let or = if place == 0 { "" } else { " || " };
            write!(f, "{or}shardRange({}, '0x{from:016x}', '0x{to:016x}')", self.key.name())?;
        }
        Ok(())
    }
}

fn call_of(text: &str) -> Option<(Key, u64, u128)> {
    let inside = blank(blank(text).strip_prefix("shardRange")?).strip_prefix('(')?;
    let mut arguments = inside.strip_suffix(')')?.split(',').map(blank);
    let key = match arguments.next()? {
        name if name == Key::Uid.name() => Key::Uid,
        name if name == Key::Namespace.name() => Key::Namespace,
        _ => return None,
    };
    let (from, to) = (hash_of(arguments.next()?)?, hash_of(arguments.next()?)?);
    arguments.next().is_none().then_some(())?;
    Some((key, u64::try_from(from).ok()?, to))
}

/// Without the blanks that CEL takes for such.
fn blank(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r'])
}

/// `'0x…'` with 16 small digits, or the end of all.
fn hash_of(text: &str) -> Option<u128> {
    let quoted = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    let digits = quoted('\'').or_else(|| quoted('"'))?.strip_prefix("0x")?;
    let small = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if !small || (digits.len() != 16 && digits != END) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok()
}

/// FNV-1a of 64 bits, as Go's `hash/fnv`.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &str =
        "shardRange(object.metadata.uid, '0x0000000000000000', '0x10000000000000000')";

    /// The cases of `k8s.io/apiserver/pkg/sharding/parser_test.go`.
    #[test]
    fn what_kube_apiserver_takes() {
        for (text, seen) in [
            (ALL, ALL),
            (
                "shardRange(object.metadata.namespace,\"0x00000000000000aa\",'0x00000000000000ff')",
                "shardRange(object.metadata.namespace, '0x00000000000000aa', '0x00000000000000ff')",
            ),
            (
                "  shardRange ( object.metadata.uid ,  '0x0000000000000000' ,  '0x8000000000000000' )  ",
                "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')",
            ),
            (
                "shardRange(object.metadata.uid, '0x0000000000000000', '0x0000000000000005')||\
                 shardRange(object.metadata.uid, '0x0000000000000005', '0xffffffffffffffff')",
                "shardRange(object.metadata.uid, '0x0000000000000000', '0x0000000000000005') || \
                 shardRange(object.metadata.uid, '0x0000000000000005', '0xffffffffffffffff')",
            ),
        ] {
            assert_eq!(Ranges::parse(text).map(|ranges| ranges.to_string()).as_deref(), Some(seen));
        }
    }

    #[test]
    fn the_rest_goes_on() {
        for text in [
            "",
            "||",
            "shardRange(object.metadata.uid, '0000000000000000', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x0', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x000000000000000g', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x000000000000000A', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x20000000000000000')",
            "shardRange(object.metadata.uid, '0x10000000000000000', '0x10000000000000000')",
            "shardRange(object.metadata.uid, '0x8000000000000000', '0x8000000000000000')",
            "shardRange(object.metadata.uid, 0, 8)",
            "shardRange(object.metadata.uid, '0x0000000000000000')",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000', '')",
            "shardRange(object.metadata.name, '0x0000000000000000', '0x8000000000000000')",
            "(shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000'))",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000\")",
            "hash(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000') || \
             shardRange(object.metadata.namespace, '0x0000000000000000', '0x8000000000000000')",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000') && \
             shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')",
        ] {
            assert_eq!(Ranges::parse(text), None, "{text}");
        }
        let many = |count| vec![ALL; count].join("||");
        assert!(Ranges::parse(&many(MOST)).is_some() && Ranges::parse(&many(MOST + 1)).is_none());
    }

    /// As `k8s.io/apimachinery/pkg/sharding/hash_test.go` knows them.
    #[test]
    fn hashes_are_those_of_go() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(shardRange|[(),'\"|]|object\\.metadata\\.uid|0x0{15}|\\PC){0,12}") {
            if let Some(ranges) = Ranges::parse(&text) {
                prop_assert_eq!(Ranges::parse(&ranges.to_string()), Some(ranges));
            }
        }
    }
}
