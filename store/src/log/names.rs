//! Names of the files.

const SEGMENT: &str = "log-";
const SNAPSHOT: &str = "snapshot-";
const TEMPORARY: &str = ".tmp";

pub(super) fn segment(sequence: u64) -> String {
    format!("{SEGMENT}{sequence:020}")
}

pub(super) fn snapshot(sequence: u64) -> String {
    format!("{SNAPSHOT}{sequence:020}")
}

pub(super) fn temporary(name: &str) -> String {
    format!("{name}{TEMPORARY}")
}

pub(super) fn parse_segment(name: &str) -> Option<u64> {
    parse(name, SEGMENT)
}

pub(super) fn parse_snapshot(name: &str) -> Option<u64> {
    parse(name, SNAPSHOT)
}

/// True for a file of ours that never got its name.
pub(super) fn is_temporary(name: &str) -> bool {
    name.strip_suffix(TEMPORARY)
        .is_some_and(|name| parse_segment(name).is_some() || parse_snapshot(name).is_some())
}

fn parse(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(parse_segment(&segment(7)), Some(7));
        assert_eq!(parse_snapshot(&snapshot(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_segment(&snapshot(7)), None);
        assert_eq!(parse_segment("log-7"), None);
        assert_eq!(parse_segment("log-+0000000000000000007"), None);
        assert!(is_temporary(&temporary(&segment(7))));
        assert!(!is_temporary("notes.tmp"));
    }
}
