//! Keys and values.

/// Bytes of values are cut out of a pool of this size.
const POOL: usize = 1 << 20;
/// All keys lie here.
pub(crate) const PREFIX: &[u8] = b"/registry/bench/";
/// Bytes of a key.
pub(crate) const KEY: usize = 48;

/// A generator of numbers that only a seed decides (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }
}

/// What is stored.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    /// Keys are dealt to so many prefixes, one after the other.
    prefixes: usize,
    shape: Shape,
    pool: Vec<u8>,
}

/// What values look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Random bytes, so that nothing compresses or is alike by chance.
    Random,
    /// A node's Lease as a kubelet renews it: two timestamps change, all else stays.
    Lease,
}

impl Space {
    pub(crate) fn new(prefixes: usize, shape: Shape) -> Self {
        let mut random = Random::new(7);
        let pool = (0..POOL / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        Self { prefixes: prefixes.max(1), shape, pool }
    }

    /// Writes key number `index`: [`KEY`] bytes.
    pub(crate) fn key(&self, index: usize, out: &mut [u8; KEY]) {
        out[..PREFIX.len()].copy_from_slice(PREFIX);
        digits(index % self.prefixes, &mut out[16..24]);
        out[24] = b'/';
        digits(index, &mut out[25..]);
    }

    /// The range of a prefix: its start and its end.
    pub(crate) fn range(&self, prefix: usize) -> (Vec<u8>, Vec<u8>) {
        let mut key = [0; KEY];
        self.key(prefix, &mut key);
        let start = key[..25].to_vec();
        let mut end = start.clone();
        end[24] += 1;
        (start, end)
    }

    /// The value of key `index` at its `turn`-th update: what differs is written to `head`, the rest
    /// is given. `stamp` stands in the first eight bytes of random values.
    pub(crate) fn value(
        &self,
        index: usize,
        turn: u64,
        stamp: u64,
        size: usize,
        head: &mut Vec<u8>,
    ) -> &[u8] {
        head.clear();
        match self.shape {
            Shape::Random => {
                head.extend_from_slice(&stamp.to_le_bytes());
                let size = size.saturating_sub(head.len()).min(POOL / 2);
                let mixed = Random::new(index as u64 ^ turn << 32).next();
                let at = usize::try_from(mixed % (POOL as u64 / 2)).unwrap_or(0);
                &self.pool[at..at + size]
            }
            Shape::Lease => {
                lease(index, turn, head);
                let size = size.saturating_sub(head.len()).min(POOL);
                &self.pool[..size]
            }
        }
    }
}

/// About what kube-apiserver stores for a node's Lease: metadata that stays, and the times of
/// renewal in `spec.renewTime` and in `managedFields`.
fn lease(index: usize, turn: u64, out: &mut Vec<u8>) {
    let mut node = [b'0'; 8];
    digits(index, &mut node);
    let mut seconds = [b'0'; 10];
    digits(usize::try_from(1_790_000_000 + turn * 10).unwrap_or(0), &mut seconds);
    let mut micros = [b'0'; 6];
    let mixed = Random::new(turn ^ index as u64).next() % 1_000_000;
    digits(usize::try_from(mixed).unwrap_or(0), &mut micros);
    for part in [
        b"k8s\0\n\x1f\n\x16coordination.k8s.io/v1\x12\x05Lease\x12".as_slice(),
        b"\n\x0fkube-node-lease\x12node-",
        &node,
        b"\"$8b0e5a2c-7a3e-4d4f-9c55-0000",
        &node,
        b"kubelet\x12\x06Update\x1a\x16coordination.k8s.io/v1\"",
        &seconds,
        b"FieldsV1:{\"f:metadata\":{\"f:ownerReferences\":{\".\":{},\"k:{\\\"uid\\\"}\":{}}},\"f:spec\":",
        b"{\"f:holderIdentity\":{},\"f:leaseDurationSeconds\":{},\"f:renewTime\":{}}}node-",
        &node,
        &seconds,
        b".",
        &micros,
        b"\x1a\0\"\0",
    ] {
        out.extend_from_slice(part);
    }
}

/// Decimal digits of a number, with zeros before them; higher digits are left out.
fn digits(number: usize, out: &mut [u8]) {
    let mut rest = number;
    for digit in out.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_lies_in_the_range_of_its_prefix_alone() {
        let space = Space::new(7, Shape::Random);
        let mut key = [0; KEY];
        space.key(100, &mut key);
        assert_eq!(&key, b"/registry/bench/00000002/00000000000000000000100");
        for prefix in 0..7 {
            let (start, end) = space.range(prefix);
            assert_eq!(
                key.as_slice() >= start.as_slice() && key.as_slice() < end.as_slice(),
                prefix == 2
            );
        }
    }

    #[test]
    fn values_have_their_size() {
        for shape in [Shape::Random, Shape::Lease] {
            let space = Space::new(1, shape);
            let mut head = Vec::new();
            let body = space.value(3, 9, 1, 1024, &mut head);
            assert_eq!(head.len() + body.len(), 1024);
        }
        let mut lease_value = Vec::new();
        lease(1, 1, &mut lease_value);
        assert!((300..450).contains(&lease_value.len()), "{}", lease_value.len());
    }
}
