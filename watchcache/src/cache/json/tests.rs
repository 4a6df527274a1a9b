use super::super::kinds;
use super::*;

/// Random objects of every resource, and the JSON that Go's own codec makes of them:
/// `tests/oracle/run` writes them (`kinds cases`) and runs this.
#[test]
#[ignore = "needs cases that tests/oracle writes"]
fn as_gos_own_codec() {
    let file = std::env::var_os("JSON_CASES").expect("JSON_CASES names the file");
    let bytes = std::fs::read(file).unwrap();
    let mut rest = &bytes[..];
    let mut part = || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        rest = after;
        Some(part)
    };
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    while let (Some(name), Some(stored), Some(expected)) = (part(), part(), part()) {
        let name = std::str::from_utf8(name).unwrap();
        let (resource, group) = name.split_once('.').unwrap();
        let kind = kinds::find(group, resource).unwrap();
        let (message, _) = wire::read(kind, stored).unwrap();
        let json = object(kind, message.shown(true), 1_234_567);
        let json = json.unwrap_or_else(|error| {
            panic!("{name}: {error}: {}", String::from_utf8_lossy(expected))
        });
        assert_eq!(String::from_utf8_lossy(&json), String::from_utf8_lossy(expected), "{name}");
        assert_eq!(json, expected, "{name}");
        *seen.entry(name).or_default() += 1;
    }
    assert_eq!(seen.len(), kinds::all().len());
    println!("{} objects of {} resources as in Go", seen.values().sum::<usize>(), seen.len());
}
