//! The parts that a cached resource is divided into over processes, and where the objects are found
//! that a read needs. Pods are divided by their node, so that a kubelet's reads are those of one
//! part; what has no indexed field, by its key.
//!
//! Objects alone are divided: each process hears of every event, since etcd's watch can't be asked
//! for those of a part.

use super::filter::Filter;
use super::query::{From, Plan};
use super::ranges::fnv1a;

/// Parts that a resource may have.
pub const MOST: u8 = 64;

/// How many parts there are, and which of them are held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    count: u8,
    /// A bit for each.
    held: u64,
}

impl Default for Parts {
    /// All in one.
    fn default() -> Self {
        Self { count: 1, held: 1 }
    }
}

/// Where the objects are that a read needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the table, all of them; or none is needed.
    Table,
    /// In the store, under one key.
    Key,
    /// In the store, all of them.
    Store,
    /// With a peer that holds this part.
    Part(u8),
}

impl Parts {
    /// So many parts, of which these are held; none where that makes no sense.
    #[must_use]
    pub fn new(count: u8, held: &[u8]) -> Option<Self> {
        let fits = (1..=MOST).contains(&count) && held.iter().all(|part| *part < count);
        let held =
            held.iter().fold(0, |bits, part| bits | 1_u64.checked_shl((*part).into()).unwrap_or(0));
        (fits && held != 0).then_some(Self { count, held })
    }

    /// Whether all of them are held.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.held.count_ones() == u32::from(self.count)
    }

    /// Whether a part is held.
    #[must_use]
    pub fn holds(self, part: u8) -> bool {
        self.held.checked_shr(part.into()).unwrap_or(0) & 1 == 1
    }

    /// The part of what is divided by this text: FNV-1a in 64 bits, finished by `SplitMix64`'s
    /// last steps (FNV's own low bits are those of the last letters), modulo the number of parts.
    /// All processes must agree on it, also those of another version.
    #[must_use]
    pub fn of(self, text: &str) -> u8 {
        let part = mix(fnv1a(text.as_bytes())) % u64::from(self.count.max(1));
        // Less than the number of parts.
        u8::try_from(part).unwrap_or(0)
    }

    /// Where the objects are that a plan needs. `by_index` is whether the indexed field divides
    /// the resource, else the key does.
    #[must_use]
    pub fn source(self, by_index: bool, plan: &Plan) -> Source {
        if self.is_whole() {
            return Source::Table;
        }
        match plan {
            Plan::Get { key, .. } => self.of_key(by_index, key),
            Plan::List { filter, window, .. } => {
                self.of_filter(by_index, filter, window.is_whole())
            }
            Plan::Watch { filter, from: From::State { .. }, .. } => {
                self.of_filter(by_index, filter, true)
            }
            // Events are all here.
            Plan::Watch { .. } => Source::Table,
        }
    }

    fn of_key(self, by_index: bool, key: &str) -> Source {
        if !by_index && self.holds(self.of(key)) { Source::Table } else { Source::Key }
    }

    /// `whole` is whether it is the whole list, as of now.
    fn of_filter(self, by_index: bool, filter: &Filter, whole: bool) -> Source {
        let index = filter.index.as_deref().filter(|_| by_index && whole);
        match (index.map(|value| self.of(value)), &filter.key) {
            (Some(part), _) if self.holds(part) => Source::Table,
            (_, Some(key)) => self.of_key(by_index, key),
            (Some(part), None) => Source::Part(part),
            (None, None) => Source::Store,
        }
    }
}

/// The finaliser of `SplitMix64`: each bit of the input moves about half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::query::Freshness;
    use super::super::selector::LabelSelector;
    use super::super::table::Window;
    use super::*;

    #[test]
    fn nonsense_is_no_division() {
        for (count, held) in
            [(0, &[][..]), (1, &[]), (1, &[1]), (2, &[2]), (65, &[0]), (2, &[0, 200])]
        {
            assert_eq!(Parts::new(count, held), None, "{count} {held:?}");
        }
        assert_eq!(Parts::new(1, &[0]), Some(Parts::default()));
        assert!(Parts::new(64, &(0..64).collect::<Vec<_>>()).unwrap().is_whole());
        let some = Parts::new(64, &[63, 0, 0]).unwrap();
        assert!(some.holds(63) && some.holds(0) && !some.holds(1) && !some.holds(64));
        assert!(!some.is_whole());
    }

    /// Other versions divide alike, so the numbers must not change.
    #[test]
    fn texts_have_their_parts() {
        let of = |count, text: &str| Parts::new(count, &[0]).unwrap().of(text);
        let parts = ["", "node-0", "node-1", "kube-system/coredns"].map(|text| of(64, text));
        assert_eq!(parts, EXPECTED);
        let mut sizes = [0; 4];
        for number in 0..10_000 {
            sizes[usize::from(of(4, &format!("node-{number}")))] += 1;
        }
        assert!(sizes.iter().all(|size| (2_300..2_700).contains(size)), "{sizes:?}");
        assert_eq!(of(1, "anything"), 0);
    }

    const EXPECTED: [u8; 4] = [48, 20, 61, 46];

    fn list(filter: Filter, window: Window) -> Plan {
        Plan::List { filter, freshness: Freshness::Latest, window }
    }

    fn watch(filter: Filter, from: From) -> Plan {
        Plan::Watch { filter, from, bookmarks: false, timeout: None }
    }

    #[test]
    fn a_read_finds_its_objects() {
        let whole = Parts::new(2, &[0, 1]).unwrap();
        let name = |part: u8| {
            (0..99).map(|n| format!("a/n{n}")).find(|name| whole.of(name) == part).unwrap()
        };
        let (own, other) = (name(0), name(1));
        let half = Parts::new(2, &[0]).unwrap();
        let state = From::State { freshness: Freshness::Any, marked: true };
        let index = |value: &str| Filter { index: Some(value.to_owned()), ..Filter::default() };
        let key = |key: &str| Filter { key: Some(key.to_owned()), ..Filter::default() };
        let get = |key: &str| Plan::Get { key: key.to_owned(), freshness: Freshness::Latest };
        let labels = LabelSelector::parse("a=b").unwrap();
        let now = Window { by_index: true, ..Window::default() };
        let paged = Window { limit: 5, ..Window::default() };
        let both = Filter { key: Some(other.clone()), ..index(&own) };
        // Divided by the indexed field, and by the key.
        for (plan, by_index, by_key) in [
            (get(&own), Source::Key, Source::Table),
            (get(&other), Source::Key, Source::Key),
            (list(Filter::default(), now.clone()), Source::Store, Source::Store),
            (
                list(Filter { labels, ..Filter::default() }, now.clone()),
                Source::Store,
                Source::Store,
            ),
            (list(key(&own), now.clone()), Source::Key, Source::Table),
            (list(key(&other), now.clone()), Source::Key, Source::Key),
            (list(index(&own), now.clone()), Source::Table, Source::Store),
            (list(index(&other), now.clone()), Source::Part(1), Source::Store),
            (list(index(&own), paged.clone()), Source::Store, Source::Store),
            (list(index(&other), paged), Source::Store, Source::Store),
            (list(both, now), Source::Table, Source::Key),
            (watch(index(&other), state), Source::Part(1), Source::Store),
            (watch(index(&own), state), Source::Table, Source::Store),
            (watch(index(&other), From::After(5)), Source::Table, Source::Table),
            (watch(Filter::default(), state), Source::Store, Source::Store),
            (watch(Filter::default(), From::After(5)), Source::Table, Source::Table),
            (watch(key(&other), state), Source::Key, Source::Key),
        ] {
            assert_eq!(half.source(true, &plan), by_index, "{plan:?}");
            assert_eq!(half.source(false, &plan), by_key, "{plan:?}");
            assert_eq!(whole.source(true, &plan), Source::Table);
            assert_eq!(Parts::default().source(false, &plan), Source::Table);
        }
    }
}
