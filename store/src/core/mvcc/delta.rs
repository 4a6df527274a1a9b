//! What changed between two versions of a key, as bytes: an old version is kept as its difference
//! from the one after it.
//!
//! A delta is a list of steps over the newer version: copy so many bytes, pass over so many, put in
//! these. What is left at the end is copied.

use prost::encoding::{decode_varint, encode_varint};

/// Bytes that must agree for the two versions to be in step again after a difference.
const ANCHOR: usize = 4;
/// How far the two may be apart there.
const REACH: usize = 24;
/// More steps than this are not worth it, and bound what a search costs.
const MAX_STEPS: usize = 64;
/// The largest delta.
const MAX_LEN: usize = 4096;

/// Appends to `out` what makes `old` out of `new`. False if it is not worth it: then `out` is as
/// before.
pub(super) fn diff(new: &[u8], old: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let limit = start + (old.len() / 2).min(MAX_LEN);
    let (mut i, mut j) = (0, 0);
    for _ in 0..MAX_STEPS {
        let same = common_prefix(&new[i..], &old[j..]);
        (i, j) = (i + same, j + same);
        if i == new.len() && j == old.len() {
            return true;
        }
        let (skip, insert) = in_step(&new[i..], &old[j..]);
        encode_varint(same as u64, out);
        encode_varint(skip as u64, out);
        encode_varint(insert as u64, out);
        if out.len() + insert > limit {
            break;
        }
        out.extend_from_slice(&old[j..j + insert]);
        (i, j) = (i + skip, j + insert);
    }
    out.truncate(start);
    false
}

/// Makes the older version, in `out`. False if the delta does not fit, which then holds nothing.
pub(super) fn apply(new: &[u8], mut delta: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut rest = new;
    while !delta.is_empty() {
        let mut number = || usize::try_from(decode_varint(&mut delta).ok()?).ok();
        let (Some(copy), Some(skip), Some(insert)) = (number(), number(), number()) else {
            return false;
        };
        let (Some((copied, after)), Some((inserted, steps))) =
            (rest.split_at_checked(copy), delta.split_at_checked(insert))
        else {
            return false;
        };
        let Some(after) = after.get(skip..) else { return false };
        out.extend_from_slice(copied);
        out.extend_from_slice(inserted);
        (rest, delta) = (after, steps);
    }
    out.extend_from_slice(rest);
    true
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const WORD: usize = 16;
    let words = a.chunks_exact(WORD).zip(b.chunks_exact(WORD));
    let mut same = words.take_while(|(a, b)| a == b).count() * WORD;
    same += a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count();
    same
}

/// How many bytes of each to pass over until the two agree again.
fn in_step(new: &[u8], old: &[u8]) -> (usize, usize) {
    let found = if may_agree(new, old) { search(new, old) } else { None };
    found.unwrap_or_else(|| {
        let tail = new.iter().rev().zip(old.iter().rev()).take_while(|(a, b)| a == b).count();
        (new.len() - tail, old.len() - tail)
    })
}

/// False if no anchor within reach is in both: values that have nothing in common are not searched
/// pair by pair.
fn may_agree(new: &[u8], old: &[u8]) -> bool {
    let (Some(new), Some(old)) = (anchors(new), anchors(old)) else { return true };
    new.iter().any(|a| old.iter().fold(0, |found, b| found | u32::from(a == b)) != 0)
}

/// All anchors within reach, if none of them is near the end. The last is repeated, so that their
/// number is one that a processor likes.
fn anchors(bytes: &[u8]) -> Option<[u32; (REACH + 1).next_multiple_of(8)]> {
    let bytes: &[u8; REACH + ANCHOR] = bytes.first_chunk()?;
    Some(std::array::from_fn(|n| {
        let at = n.min(REACH);
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }))
}

/// The nearest place within reach where the two agree again.
fn search(new: &[u8], old: &[u8]) -> Option<(usize, usize)> {
    let agree = |skip: usize, insert: usize| {
        let (Some(a), Some(b)) = (new.get(skip..), old.get(insert..)) else { return false };
        match (a.first_chunk::<ANCHOR>(), b.first_chunk::<ANCHOR>()) {
            (Some(a), Some(b)) => a == b,
            // Near the end, all that is left must agree.
            _ => a == b,
        }
    };
    for far in 1..=REACH {
        if agree(far, far) {
            return Some((far, far));
        }
        for near in (0..far).rev() {
            if agree(far, near) {
                return Some((far, near));
            }
            if agree(near, far) {
                return Some((near, far));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(new: &[u8], old: &[u8]) -> Option<usize> {
        let mut delta = vec![7];
        if !diff(new, old, &mut delta) {
            assert_eq!(delta, [7]);
            return None;
        }
        let mut made = b"left over".to_vec();
        assert!(apply(new, &delta[1..], &mut made));
        assert_eq!(made, old);
        Some(delta.len() - 1)
    }

    proptest! {
        #[test]
        fn the_older_version_is_made_again(
            base in prop::collection::vec(0..4u8, 0..200),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..9usize, prop::collection::vec(any::<u8>(), 0..9)), 0..6),
        ) {
            let mut other = base.clone();
            for (at, cut, put) in edits {
                let at = at.index(other.len() + 1);
                let end = (at + cut).min(other.len());
                other.splice(at..end, put);
            }
            round_trip(&base, &other);
            round_trip(&other, &base);
        }

        #[test]
        fn nothing_that_a_search_finds_is_missed(
            // Of few letters they agree often, of many never.
            new in prop_oneof![prop::collection::vec(0..3u8, 0..60), prop::collection::vec(any::<u8>(), 0..60)],
            old in prop_oneof![prop::collection::vec(0..3u8, 0..60), prop::collection::vec(any::<u8>(), 0..60)],
            shared in prop::collection::vec(any::<u8>(), 0..8),
            at in prop::array::uniform2(any::<prop::sample::Index>()),
        ) {
            let with = |bytes: &[u8], at: prop::sample::Index| {
                let mut bytes = bytes.to_vec();
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, shared.iter().copied());
                bytes
            };
            let (new, old) = (with(&new, at[0]), with(&old, at[1]));
            let same = common_prefix(&new, &old);
            let (new, old) = (&new[same..], &old[same..]);
            let tail = new.iter().rev().zip(old.iter().rev()).take_while(|(a, b)| a == b).count();
            let whole = (new.len() - tail, old.len() - tail);
            prop_assert_eq!(in_step(new, old), search(new, old).unwrap_or(whole));
        }

        #[test]
        fn a_wild_delta_is_refused_or_does_no_harm(
            new in prop::collection::vec(any::<u8>(), 0..50),
            delta in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            apply(&new, &delta, &mut Vec::new());
        }
    }

    #[test]
    fn a_renewal_is_small() {
        let mut old = vec![0; 400];
        for (n, byte) in old.iter_mut().enumerate() {
            *byte = u8::try_from(n * 7 % 251).unwrap();
        }
        let mut new = old.clone();
        new[40..43].copy_from_slice(b"new");
        new[200] = 1;
        // A number that became one byte longer.
        new.splice(300..304, *b"12345");
        assert!(round_trip(&new, &old).unwrap() < 25);
        assert_eq!(round_trip(&[1; 100], &[2; 100]), None);
        assert_eq!(round_trip(b"same", b"same"), Some(0));
    }
}
