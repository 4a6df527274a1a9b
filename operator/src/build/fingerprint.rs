//! A hash for annotations that is the same in every version of the operator: the standard
//! library's hashers promise no such thing, and another value would restart every pod.

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a (64 bit) over all parts, each ended by its length, as sixteen hexadecimal digits. It
/// finds changes; it keeps nobody from making two texts alike.
#[must_use]
pub(crate) fn fingerprint(parts: &[&[u8]]) -> String {
    let hash = parts.iter().fold(OFFSET_BASIS, |hash, part| {
        let length = (part.len() as u64).to_le_bytes();
        part.iter()
            .chain(&length)
            .fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn stays_the_same_in_every_version() {
        assert_eq!(fingerprint(&[]), "cbf29ce484222325");
        assert_eq!(fingerprint(&[b"a"]), "dedf9f982e43402d");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
