use super::super::{form, kinds};
use super::*;

/// The parts of a file that `tests/oracle/run` writes, each after four bytes of length.
fn parts(file: &str) -> Vec<Vec<u8>> {
    let file = std::env::var_os(file).unwrap_or_else(|| panic!("{file} names the file"));
    let bytes = std::fs::read(file).unwrap();
    let mut rest = &bytes[..];
    let mut parts = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (part, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        parts.push(part.to_vec());
        rest = after;
    }
    parts
}

fn named(name: &[u8]) -> &'static kinds::Kind {
    let (resource, group) = std::str::from_utf8(name).unwrap().split_once('.').unwrap();
    kinds::find(group, resource).unwrap()
}

/// Random objects, and the rows that Kubernetes' own printers make of them.
#[test]
#[ignore = "needs cases that tests/oracle writes"]
fn as_gos_own_printers() {
    let parts = parts("TABLE_CASES");
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    let mut refused = seen.clone();
    for case in parts.chunks_exact(4) {
        let [name, stored, now, expected] = case else { unreachable!() };
        let kind = named(name);
        let (message, _) = wire::read(kind, stored).unwrap();
        let now = rows::Now(std::str::from_utf8(now).unwrap().parse().unwrap());
        let mut row = Vec::new();
        let (kinds, what) = ((kind, &*form::PARTIAL), (&message, 1_234_567));
        let made = rows::put_row(&mut row, kinds, what, rows::Include::Metadata, now);
        // What Go makes nothing of goes on.
        assert_eq!(made.is_err(), expected.is_empty(), "{}: {made:?}", kind.resource);
        if made.is_err() {
            *refused.entry(kind.resource).or_default() += 1;
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            text(&row),
            text(expected),
            "{}: {}",
            kind.resource,
            text(&object(kind, message.shown(true), 1).unwrap())
        );
        *seen.entry(kind.resource).or_default() += 1;
    }
    println!("{seen:?}: rows as in Go; neither makes any of {refused:?}");
    assert_eq!(seen.len(), kinds::all().len());
}

/// Random objects of every resource, and the JSON that Go's own codec makes of them:
/// `tests/oracle/run` writes them (`kinds cases`) and runs this.
#[test]
#[ignore = "needs cases that tests/oracle writes"]
fn as_gos_own_codec() {
    let parts = parts("JSON_CASES");
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    for case in parts.chunks_exact(3) {
        let [name, stored, expected] = case else { unreachable!() };
        let kind = named(name);
        let name = std::str::from_utf8(name).unwrap();
        let (message, _) = wire::read(kind, stored).unwrap();
        let json = object(kind, message.shown(true), 1_234_567);
        let json = json.unwrap_or_else(|error| {
            panic!("{name}: {error}: {}", String::from_utf8_lossy(expected))
        });
        assert_eq!(String::from_utf8_lossy(&json), String::from_utf8_lossy(expected), "{name}");
        assert_eq!(json, expected[..], "{name}");
        *seen.entry(name).or_default() += 1;
    }
    assert_eq!(seen.len(), kinds::all().len());
    println!("{} objects of {} resources as in Go", seen.values().sum::<usize>(), seen.len());
}
