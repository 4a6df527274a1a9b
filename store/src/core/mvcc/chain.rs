//! The older versions of a key.
//!
//! The newest of them are whole. Those that no watcher at the tip needs any more are *packed*: each
//! as its difference from the version after it, and one in so many whole, so that none is more than
//! a few steps away.

use std::collections::VecDeque;

use super::delta;
use crate::core::KeyValue;
use crate::core::prefetch::{prefetch, prefetch_at};

/// Packed versions between two whole ones.
const GROUP: u8 = 32;
/// What a whole version costs beside its bytes: its head, the allocator's share, the places that
/// point to it here and in the history.
const WHOLE: usize = 48;
/// What a packed version costs beside its delta: its place in the history.
const PACKED: usize = 18;
/// What a group and a chain cost.
const FIXED: usize = 64;

/// The bytes that a whole version accounts for.
pub(super) fn size(kv: &KeyValue) -> usize {
    kv.encoded().len() + WHOLE
}

/// A run of versions: deltas, and the version after them.
#[derive(Debug, Default)]
struct Group {
    /// Revision of the first; meaningless while there is none.
    oldest: i64,
    /// Deltas, oldest first, each followed by its length in two bytes.
    deltas: Vec<u8>,
    count: u8,
    /// The last version of the run; in the open group what follows it in the chain.
    last: Option<KeyValue>,
}

impl Group {
    fn bytes(&self) -> usize {
        let deltas = self.deltas.len() + usize::from(self.count) * PACKED;
        deltas + self.last.as_ref().map_or(0, |kv| size(kv) + FIXED)
    }

    /// The place of the delta that ends at `end`.
    fn delta(&self, end: usize) -> Option<(usize, &[u8])> {
        let (rest, length) = self.deltas.get(..end)?.split_last_chunk::<2>()?;
        let from = rest.len().checked_sub(usize::from(u16::from_le_bytes(*length)))?;
        Some((from, &rest[from..]))
    }

    /// Gives versions from `after` back to the oldest, until `visit` says that it is enough; it
    /// gets each one's bytes and the place where its delta begins. True if `visit` said so.
    fn back(&self, after: &KeyValue, mut visit: impl FnMut(&[u8], usize) -> bool) -> bool {
        let (mut newer, mut older) = (Vec::new(), Vec::new());
        let mut end = self.deltas.len();
        while let Some((from, delta)) = self.delta(end) {
            let base = if end == self.deltas.len() { after.encoded() } else { &newer };
            if !delta::apply(base, delta, &mut older) {
                return false;
            }
            if visit(&older, from) {
                return true;
            }
            std::mem::swap(&mut newer, &mut older);
            end = from;
        }
        false
    }
}

/// The chain, oldest version first: packed groups, the open group, whole versions.
#[derive(Debug, Default)]
pub(super) struct Chain {
    sealed: VecDeque<Group>,
    open: Group,
    whole: VecDeque<KeyValue>,
}

impl Chain {
    pub(super) fn push(&mut self, kv: KeyValue) {
        self.whole.push_back(kv);
    }

    /// Begins to bring the chain itself.
    pub(super) fn prefetch(&self) {
        for line in 0..size_of::<Self>().div_ceil(64) {
            prefetch_at(std::ptr::from_ref(self).cast(), line * 64);
        }
    }

    /// Begins to bring what a push or a pack writes to.
    pub(super) fn prefetch_ends(&self) {
        if let Some(kv) = self.whole.front() {
            prefetch(kv);
        }
        if let Some(group) = self.sealed.back() {
            prefetch(group);
        }
    }

    /// Begins to bring what tells whether a pack goes on after the first version.
    pub(super) fn prefetch_next(&self) {
        if let Some(kv) = self.whole.get(2) {
            kv.prefetch();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.open.count == 0 && self.whole.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        let sealed: usize = self.sealed.iter().map(Group::bytes).sum();
        FIXED + sealed + self.open.bytes() + self.whole.iter().map(size).sum::<usize>()
    }

    /// The oldest version that is not in the open or a sealed group.
    fn front<'a>(&'a self, latest: &'a KeyValue) -> &'a KeyValue {
        self.whole.front().unwrap_or(latest)
    }

    /// The newest version at or below a revision; `latest` comes after the chain and is above it.
    pub(super) fn at(&self, latest: &KeyValue, revision: i64) -> Option<KeyValue> {
        let above = self.whole.partition_point(|kv| kv.mod_revision() <= revision);
        if let Some(at) = above.checked_sub(1) {
            return self.whole.get(at).cloned();
        }
        let found = |group: &Group, after: &KeyValue| {
            let mut found = None;
            group.back(after, |bytes, _| {
                let kv = KeyValue::from_encoded(bytes);
                let enough = kv.mod_revision() <= revision;
                if enough {
                    found = Some(kv);
                }
                enough
            });
            found
        };
        if self.open.count > 0 && self.open.oldest <= revision {
            return found(&self.open, self.front(latest));
        }
        let above = self.sealed.partition_point(|group| group.oldest <= revision);
        let group = self.sealed.get(above.checked_sub(1)?)?;
        let last = group.last.as_ref()?;
        if last.mod_revision() <= revision { Some(last.clone()) } else { found(group, last) }
    }

    /// All versions, oldest first.
    #[cfg(test)]
    fn all(&self, latest: &KeyValue) -> Vec<KeyValue> {
        let mut all: Vec<KeyValue> = self.whole.iter().rev().cloned().collect();
        self.open.back(self.front(latest), |bytes, _| {
            all.push(KeyValue::from_encoded(bytes));
            false
        });
        for group in self.sealed.iter().rev() {
            let Some(last) = &group.last else { continue };
            all.push(last.clone());
            group.back(last, |bytes, _| {
                all.push(KeyValue::from_encoded(bytes));
                false
            });
        }
        all.reverse();
        all
    }

    /// Packs whole versions whose successor is at or below `revision`. Gives by how much the bytes
    /// changed.
    pub(super) fn pack(&mut self, latest: &KeyValue, revision: i64) -> isize {
        let mut change = 0;
        while let Some(kv) = self.whole.front()
            && self.whole.get(1).unwrap_or(latest).mod_revision() <= revision
        {
            let before = signed(self.open.bytes()) + signed(size(kv));
            let Some(kv) = self.whole.pop_front() else { break };
            if self.open.count < GROUP && self.open.add(&kv, self.whole.front().unwrap_or(latest)) {
                change += signed(self.open.bytes()) - before;
                continue;
            }
            // Not to be packed: it ends a group, whole.
            let mut group = std::mem::take(&mut self.open);
            if group.count == 0 {
                group.oldest = kv.mod_revision();
            }
            group.last = Some(kv);
            group.deltas.shrink_to_fit();
            change += signed(group.bytes()) + signed(self.open.bytes()) - before;
            self.sealed.push_back(group);
        }
        if self.whole.is_empty() {
            self.whole = VecDeque::new();
        }
        change
    }

    /// Drops versions that nobody can reach after a compaction, in `budget` steps at most. Gives
    /// the bytes freed, and whether that was all.
    pub(super) fn trim(
        &mut self,
        latest: &KeyValue,
        compacted: i64,
        mut budget: usize,
    ) -> (usize, bool) {
        let mut freed = 0;
        while !self.sealed.is_empty() {
            let next = match self.sealed.get(1) {
                Some(group) => group.oldest,
                None if self.open.count > 0 => self.open.oldest,
                None => self.front(latest).mod_revision(),
            };
            if next > compacted {
                return (freed + self.trim_first_group(compacted), true);
            }
            if budget == 0 {
                return (freed, false);
            }
            budget -= 1;
            freed += self.sealed.pop_front().map_or(0, |group| group.bytes());
        }
        if self.open.count > 0 {
            let front = self.front(latest).clone();
            if front.mod_revision() > compacted {
                if self.open.oldest <= compacted {
                    freed += self.open.cut(&front, compacted);
                }
                return (freed, true);
            }
            freed += std::mem::take(&mut self.open).bytes();
        }
        let below = self.whole.partition_point(|kv| kv.mod_revision() <= compacted);
        let keep_one = latest.mod_revision() > compacted
            && below
                .checked_sub(1)
                .and_then(|at| self.whole.get(at))
                .is_some_and(|kv| !kv.is_tombstone());
        let gone = below - usize::from(keep_one);
        for kv in self.whole.drain(..gone.min(budget)) {
            freed += size(&kv);
        }
        (freed, gone <= budget)
    }

    /// The first group ends above the compaction, or has its last version as the newest below.
    fn trim_first_group(&mut self, compacted: i64) -> usize {
        let Some(group) = self.sealed.front_mut() else { return 0 };
        let Some(last) = group.last.clone() else { return 0 };
        if group.oldest > compacted {
            return 0;
        }
        if last.mod_revision() > compacted {
            return group.cut(&last, compacted);
        }
        if last.is_tombstone() {
            return self.sealed.pop_front().map_or(0, |group| group.bytes());
        }
        let before = group.bytes();
        group.deltas = Vec::new();
        group.count = 0;
        group.oldest = last.mod_revision();
        before - group.bytes()
    }
}

impl Group {
    /// Adds a version as its difference from `after`. False if that is not worth it.
    fn add(&mut self, kv: &KeyValue, after: &KeyValue) -> bool {
        let start = self.deltas.len();
        // Grown in small steps: there are as many of these as keys.
        if self.deltas.capacity() - start < 32 {
            self.deltas.reserve_exact(64 + start / 4);
        }
        if !delta::diff(after.encoded(), kv.encoded(), &mut self.deltas) {
            return false;
        }
        let mut made = Vec::with_capacity(kv.encoded().len());
        let length = u16::try_from(self.deltas.len() - start);
        let is_same =
            delta::apply(after.encoded(), &self.deltas[start..], &mut made) && made == kv.encoded();
        match length {
            Ok(length) if is_same => {
                if self.count == 0 {
                    self.oldest = kv.mod_revision();
                }
                self.deltas.extend_from_slice(&length.to_le_bytes());
                self.count += 1;
                true
            }
            _ => {
                self.deltas.truncate(start);
                false
            }
        }
    }

    /// Drops the versions before the newest one at or below `compacted`, and that one too if it is
    /// a tombstone. Gives the bytes freed.
    fn cut(&mut self, after: &KeyValue, compacted: i64) -> usize {
        let mut kept = 0;
        let mut cut = None;
        self.back(after, |bytes, from| {
            let kv = KeyValue::from_encoded(bytes);
            if kv.mod_revision() > compacted {
                kept += 1;
                cut = Some((from, kv.mod_revision()));
                return false;
            }
            if !kv.is_tombstone() {
                kept += 1;
                cut = Some((from, kv.mod_revision()));
            }
            true
        });
        let before = self.bytes();
        if let Some((from, oldest)) = cut {
            self.deltas.drain(..from);
            self.oldest = oldest;
        } else {
            self.deltas.clear();
            self.oldest = after.mod_revision();
        }
        self.deltas.shrink_to_fit();
        self.count = kept;
        before - self.bytes()
    }
}

pub(super) fn signed(n: usize) -> isize {
    isize::try_from(n).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::Fields;

    /// Versions of one key, a few of them tombstones, at revisions with gaps.
    fn versions(shape: &[(u8, i64)]) -> Vec<KeyValue> {
        let mut revision = 1;
        let mut value = vec![b'x'; 120];
        let mut made = Vec::new();
        for (n, (kind, gap)) in (1..).zip(shape) {
            revision += gap;
            let fields = Fields { key: b"/a/key", mod_revision: revision, ..Fields::default() };
            let at = usize::from(*kind) % 120;
            made.push(match kind {
                0..=9 => KeyValue::new(fields),
                10..=29 => {
                    // Nothing like the one before it.
                    value = (0..120).map(|b| b ^ kind).collect();
                    KeyValue::new(Fields {
                        create_revision: 1,
                        version: n,
                        value: &value,
                        ..fields
                    })
                }
                _ => {
                    value[at] = *kind;
                    KeyValue::new(Fields {
                        create_revision: 1,
                        version: n,
                        value: &value,
                        ..fields
                    })
                }
            });
        }
        made
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_chain_is_a_list_of_versions(
            shape in prop::collection::vec((any::<u8>(), 1..4_i64), 2..150),
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..40usize), 0..6),
        ) {
            let mut all = versions(&shape);
            let latest = all.pop().unwrap();
            let mut chain = Chain::default();
            let mut bytes = signed(chain.bytes());
            for kv in &all {
                chain.push(kv.clone());
                bytes += signed(size(kv));
            }
            let mut floor = i64::MIN;
            for (at, pack, budget) in steps {
                let revision = at.get(&all).mod_revision();
                if pack {
                    bytes += chain.pack(&latest, revision);
                } else {
                    floor = floor.max(revision);
                    let (freed, done) = chain.trim(&latest, floor, budget);
                    bytes -= signed(freed);
                    if done {
                        let kept = all.iter().rposition(|kv| kv.mod_revision() <= floor);
                        let kept = kept.map_or(0, |at| at + usize::from(all[at].is_tombstone()));
                        prop_assert_eq!(chain.all(&latest), &all[kept..]);
                    }
                }
                prop_assert_eq!(bytes, signed(chain.bytes()));
                for revision in floor.max(0)..latest.mod_revision() {
                    let wanted = all.iter().rfind(|kv| kv.mod_revision() <= revision);
                    let wanted = wanted.filter(|kv| kv.mod_revision() > floor || !kv.is_tombstone());
                    let found = chain.at(&latest, revision);
                    let found = found.filter(|kv| kv.mod_revision() > floor || !kv.is_tombstone());
                    prop_assert_eq!(found.as_ref(), wanted, "at {}", revision);
                }
            }
        }
    }

    #[test]
    fn many_small_changes_take_little_room() {
        let shape: Vec<(u8, i64)> =
            (0..1000).map(|n| (30 + u8::try_from(n % 200).unwrap(), 3)).collect();
        let mut all = versions(&shape);
        let latest = all.pop().unwrap();
        let mut chain = Chain::default();
        for kv in &all {
            chain.push(kv.clone());
        }
        chain.pack(&latest, i64::MAX);
        assert!(chain.bytes() / all.len() < 60, "{}", chain.bytes() / all.len());
        assert_eq!(chain.all(&latest), all);
    }
}
