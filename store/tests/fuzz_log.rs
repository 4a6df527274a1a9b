//! Damaged logs: whatever happened to the files, a start gives a right prefix of what was written, or
//! an error that names a file. It never panics and never gives what nobody wrote.
//!
//! Small logs are damaged at every byte; after that seeds decide, for `FUZZ_SECONDS` (a few, if the
//! environment does not say). `SEED` repeats one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]
#![allow(dead_code, reason = "the disk is shared with another test")]

#[path = "model/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::Disk;
use megacluster_store::core::{Fields, KeyValue};
use megacluster_store::log::{
    Class, Log, LogConfig, OpenError, Record, SnapshotItem, SnapshotMeta,
};

type Files = BTreeMap<String, Vec<u8>>;

/// A generator of numbers that only a seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap()
    }
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 500, snapshot_bytes: u64::MAX, ..LogConfig::default() }
}

fn version(random: &mut Random, revision: i64) -> KeyValue {
    let key = format!("/key/{}", random.below(6));
    if random.below(4) == 0 {
        return KeyValue::tombstone(key.as_bytes(), revision);
    }
    // Zeros, as a lost sector has, and what looks like the beginning of a block.
    let fill = [b'v', 0, 0xB1][random.below(3)];
    let value = vec![fill; random.below(90)];
    KeyValue::new(Fields {
        key: key.as_bytes(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        value: &value,
        lease: 0,
    })
}

/// A log of a few segments, often behind a snapshot, left by a crash after all was synced.
fn write(random: &mut Random) -> Files {
    let disk = Arc::new(Disk::default());
    let (mut log, recovered) = Log::open_on(disk.clone(), config()).unwrap();
    let mut revision = recovered.start_revision;
    let snapshot_at = random.below(20);
    for step in 0..12 + random.below(20) {
        if step == snapshot_at {
            let meta = SnapshotMeta { revision, compact_revision: 0 };
            let mut writer = log.begin_snapshot(meta).unwrap();
            writer.lease(7, 60).unwrap();
            for n in 0..random.below(8) {
                let key = format!("/key/{n}");
                let fields = Fields {
                    key: key.as_bytes(),
                    create_revision: revision,
                    mod_revision: revision,
                    version: 1,
                    value: b"v",
                    lease: 7,
                };
                writer.key(&KeyValue::new(fields)).unwrap();
            }
            let done = writer.finish().unwrap();
            done.truncate_behind().unwrap();
        }
        let record = match random.below(10) {
            0 => Record::LeaseGrant { id: 9, ttl: 60 },
            1 => Record::LeaseRevoke { id: 9 },
            2 => Record::Compact { revision: revision - 1 },
            _ => {
                revision += 1;
                let ops = (0..=random.below(3)).map(|_| version(random, revision)).collect();
                Record::Txn { revision, ops }
            }
        };
        log.append(Class::Fsync, &record).unwrap();
        if random.below(3) > 0 {
            log.sync().unwrap();
        }
    }
    log.sync().unwrap();
    disk.content()
}

/// What a start finds.
#[derive(Debug, PartialEq)]
struct Found {
    snapshot: Vec<SnapshotItem>,
    records: Vec<Record>,
    revision: i64,
}

fn start(files: &Files) -> Result<Found, OpenError> {
    let (_, recovered) = Log::open_on(Arc::new(Disk::with(files)), config())?;
    let snapshot = recovered.snapshot.into_iter().flatten().collect::<Result<_, _>>()?;
    let records = recovered.records.collect::<Result<_, _>>()?;
    Ok(Found { snapshot, records, revision: recovered.start_revision })
}

/// Starts on damaged files and holds what is found against what was written.
fn check(good: &Found, damaged: &Files, what: impl Fn() -> String) {
    match start(damaged) {
        Ok(found) => {
            assert_eq!(found.snapshot, good.snapshot, "{}", what());
            let prefix = good.records.get(..found.records.len());
            assert_eq!(Some(found.records.as_slice()), prefix, "{}", what());
            assert!(found.revision <= good.revision, "{}", what());
        }
        Err(error) => {
            let text = error.to_string();
            let named = text.contains("log-0") || text.contains("snapshot-0");
            assert!(named, "{}: an error without a file: {text}", what());
            if let OpenError::Corrupt { .. } = error {
                assert!(text.contains("corrupt at offset"), "{text}");
            }
        }
    }
}

fn is_last(files: &Files, name: &str) -> bool {
    files.keys().rfind(|n| n.starts_with("log-")).is_some_and(|last| last == name)
}

#[test]
fn every_byte_flipped_and_every_length() {
    for seed in 0..6 {
        let mut random = Random(seed);
        let files = write(&mut random);
        let good = start(&files).unwrap();
        for (name, content) in &files {
            for at in 0..content.len() {
                let mut damaged = files.clone();
                let bit = 1 << random.below(8);
                damaged.get_mut(name).unwrap()[at] ^= bit;
                check(&good, &damaged, || format!("seed {seed}: {name} at {at} ^ {bit}"));
                // Nothing but the end of the last segment may go without an error.
                let cut = content[..at].to_vec();
                damaged.insert(name.clone(), cut);
                check(&good, &damaged, || format!("seed {seed}: {name} cut at {at}"));
                if !is_last(&files, name) {
                    assert!(start(&damaged).is_err(), "seed {seed}: {name} cut at {at}: not seen");
                }
            }
        }
    }
}

/// One change as a bad disk, a bad copy or a bad administrator makes it.
fn damage(random: &mut Random, files: &mut Files) -> String {
    let names: Vec<String> = files.keys().cloned().collect();
    let name = names[random.below(names.len())].clone();
    let other = names[random.below(names.len())].clone();
    let from = files[&other].clone();
    let content = files.get_mut(&name).unwrap();
    let at = random.below(content.len() + 1);
    let len = random.below(content.len() - at + 1);
    match random.below(9) {
        0 => content.truncate(at),
        1 => content
            .extend((0..random.below(600)).map(|n| [0, 0xB1, 0xFF, n.to_le_bytes()[0]][n % 4])),
        2 => content[at..at + len].fill(0),
        3 => drop(content.drain(at..at + len)),
        4 => {
            let copy = content[at..at + len].to_vec();
            content.splice(at..at, copy);
        }
        5 => {
            let start = random.below(from.len() + 1);
            let end = start + random.below(from.len() - start + 1);
            content.splice(at..at + len, from[start..end].iter().copied());
        }
        6 => {
            files.insert(name.clone(), from);
        }
        7 => {
            files.remove(&name);
        }
        _ => {
            for _ in 0..=random.below(4) {
                if !content.is_empty() {
                    let at = random.below(content.len());
                    content[at] = random.below(256).to_le_bytes()[0];
                }
            }
        }
    }
    format!("{name}, {other}, {at}, {len}")
}

#[test]
fn any_damage_gives_a_prefix_or_an_error() {
    let environment = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = environment("FUZZ_SECONDS").unwrap_or(3);
    let asked = environment("SEED");
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = asked.unwrap_or_else(|| u64::from(std::process::id()) << 32);
    let mut count = 0_u64;
    for seed in first.. {
        let mut random = Random(seed);
        let files = write(&mut random);
        let good = start(&files).unwrap();
        for round in 0..40 {
            let mut damaged = files.clone();
            let mut what = Vec::new();
            for _ in 0..=random.below(3) {
                if !damaged.is_empty() {
                    what.push(damage(&mut random, &mut damaged));
                }
            }
            // A snapshot and all behind it gone, or the log of a new store: nothing says so.
            let gone =
                !damaged.keys().any(|name| name.starts_with("log-") || name.starts_with("snap"));
            if !gone {
                check(&good, &damaged, || format!("SEED={seed} round {round}: {what:?}"));
            }
            count += 1;
        }
        if Instant::now() > end || asked.is_some() {
            break;
        }
    }
    println!("{count} damaged logs, SEED from {first}");
}
