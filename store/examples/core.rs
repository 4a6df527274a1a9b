//! Figures of the store's core, without network: what a key and an old version cost in memory, how
//! long housekeeping stops the sequencer, what a request costs there, and how long recovery takes.
//!
//! `cargo run --release -p megacluster-store --example core [-- KEYS [PART...]]`; parts are `cost`,
//! `key`, `history`, `stall` and `recovery`. Each measurement is a process of its own.

use std::error::Error;
use std::fs;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use megacluster_store::core::{Command, Engine, EngineConfig, KeyValue, State};
use megacluster_store::log::{Class, DurabilityRules, Log, LogConfig, SnapshotMeta};
use megacluster_store::metrics::Metrics;
use megacluster_store::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use megacluster_store::pb::etcdserverpb::request_op::Request;
use megacluster_store::pb::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use megacluster_store::sequencer;
use prometheus_client::registry::Registry;

type Outcome = Result<(), Box<dyn Error>>;

const PARTS: [&str; 5] = ["cost", "key", "history", "stall", "recovery"];
/// Requests of a batch, and events of a slice of housekeeping, as in the sequencer.
const BATCH: usize = 256;
const SLICE: usize = 512;

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let keys: usize = arguments.next().map_or(Ok(1_000_000), |keys| keys.parse())?;
    let mut parts: Vec<String> = arguments.collect();
    if let [part, case] = parts.as_slice()
        && let Some(case) = case.strip_prefix("case=")
    {
        return run(part, case, keys);
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    for part in &parts {
        let cases: &[&str] = match part.as_str() {
            "key" => &["1024", "64"],
            "recovery" => &["snapshot", "log"],
            _ => &["all"],
        };
        for case in cases {
            let mut child = Process::new(std::env::current_exe()?);
            child.args([&keys.to_string(), part, &format!("case={case}")]);
            if !child.status()?.success() {
                return Err(format!("{part} {case} failed").into());
            }
        }
    }
    Ok(())
}

fn run(part: &str, case: &str, keys: usize) -> Outcome {
    match part {
        "cost" => cost(keys.min(200_000)),
        "key" => memory_of_keys(keys, case.parse()?),
        "history" => memory_of_history(keys / 5),
        "stall" => stall(keys),
        "recovery" => recovery(keys, case == "snapshot"),
        _ => Err(format!("no part {part}").into()),
    }
}

/// 48 bytes.
fn key(n: usize) -> Bytes {
    format!("/registry/leases/kube-node-lease/node-{n:010}").into()
}

/// Looks random, so that nothing is gained by what is alike.
fn noise(seed: usize, size: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9E37_79B9_7F4A_7C15;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// About what a node's Lease is, with the two times that each renewal changes.
fn lease(node: usize, renewal: usize) -> Vec<u8> {
    let mut object = noise(node, 420);
    let at = 1_700_000_000 + renewal * 10;
    object[150..154].copy_from_slice(&at.to_le_bytes()[..4]);
    object[400..404].copy_from_slice(&at.to_le_bytes()[..4]);
    let micros = (node * 7919 + renewal * 104_729) % 1_000_000;
    object[405..409].copy_from_slice(&(micros * 1000).to_le_bytes()[..4]);
    object
}

fn put(key: Bytes, value: Vec<u8>) -> Command {
    Command::Put(PutRequest { key, value: value.into(), ..PutRequest::default() })
}

fn engine() -> Engine {
    let rules = DurabilityRules::new(Class::Buffered, []).unwrap_or_default();
    let config = EngineConfig { rules, lease_class: Class::Buffered, quota: 0 };
    Engine::new(State::new(1), config)
}

/// What the sequencer does after each batch, but for the log.
fn finish(engine: &mut Engine) {
    engine.take_records();
    engine.publish();
    engine.mvcc().show();
    engine.mvcc_mut().collect(SLICE);
}

fn apply(engine: &mut Engine, commands: impl Iterator<Item = Command>) -> Outcome {
    for (n, command) in (1..).zip(commands) {
        engine.apply(command, 0)?;
        if n % BATCH == 0 {
            finish(engine);
        }
    }
    finish(engine);
    while engine.mvcc_mut().collect(SLICE) {}
    Ok(())
}

/// Resident bytes of this process.
fn resident() -> Result<usize, Box<dyn Error>> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).ok_or("no resident size")?;
    Ok(pages.parse::<usize>()? * 4096)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(a: usize, b: usize) -> f64 {
    a as f64 / b as f64
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn micros(spent: Duration, operations: usize) -> f64 {
    spent.as_secs_f64() * 1e6 / operations as f64
}

// ---- what a request costs ----------------------------------------------------------------------

fn cost(keys: usize) -> Outcome {
    let mut engine = engine();
    apply(&mut engine, (0..keys).map(|n| put(key(n), noise(n, 1024))))?;
    // Not in the order of the keys: every one is cold.
    let order: Vec<usize> = (0..keys).map(|n| n * 7919 % keys).collect();
    let puts: Vec<Command> = order.iter().map(|n| put(key(*n), noise(*n, 1024))).collect();
    let gets: Vec<Command> = order
        .iter()
        .map(|n| Command::Range(RangeRequest { key: key(*n), limit: 1, ..RangeRequest::default() }))
        .collect();
    let base = engine.mvcc().revision() + i64::try_from(keys)?;
    let swaps: Vec<Command> = (1..)
        .zip(&order)
        .map(|(at, n)| {
            let put = PutRequest {
                key: key(*n),
                value: noise(*n + at, 1024).into(),
                ..PutRequest::default()
            };
            // The puts gave revisions in this same order.
            let known = base - i64::try_from(keys).unwrap_or(0) + i64::try_from(at).unwrap_or(0);
            let compare = Compare {
                target: CompareTarget::Mod.into(),
                result: CompareResult::Equal.into(),
                key: key(*n),
                target_union: Some(TargetUnion::ModRevision(known)),
                ..Compare::default()
            };
            let get = RangeRequest { key: key(*n), ..RangeRequest::default() };
            Command::Txn(TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
                failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
            })
        })
        .collect();
    for (name, commands) in [("put", puts), ("compare-and-put", swaps), ("get", gets)] {
        let (mut applying, mut after) = (Duration::ZERO, Duration::ZERO);
        let mut commands = commands.into_iter().peekable();
        while commands.peek().is_some() {
            let began = Instant::now();
            // Answers live until the batch is durable.
            let mut answers = Vec::with_capacity(BATCH);
            let batch: Vec<Command> = commands.by_ref().take(BATCH).collect();
            engine.prefetch(batch.iter());
            for command in batch {
                answers.push(engine.apply(command, 0)?);
            }
            applying += began.elapsed();
            let began = Instant::now();
            finish(&mut engine);
            after += began.elapsed();
        }
        println!(
            "{name}: {:.2} us to apply, {:.2} us to publish and pack, {keys} cold keys of 1 KiB",
            micros(applying, keys),
            micros(after, keys)
        );
    }
    Ok(())
}

// ---- memory ------------------------------------------------------------------------------------

fn memory_of_keys(keys: usize, size: usize) -> Outcome {
    let mut engine = engine();
    let before = resident()?;
    // As they come, not in order.
    apply(&mut engine, (0..keys).map(|n| put(key(n * 7919 % keys), noise(n, size))))?;
    let own = 48 + size;
    let held = ratio(resident()? - before, keys);
    println!(
        "live key of 48 + {size} bytes: {held:.0} resident bytes, {:.0} beyond its own, with its \
         event in the history; the quota counts {:.0}",
        held - ratio(own, 1),
        ratio(engine.mvcc().bytes(), keys)
    );
    engine.apply(Command::Compact(engine.mvcc().revision()), 0)?;
    engine.mvcc_mut().release();
    while engine.mvcc_mut().collect(SLICE) {}
    Ok(())
}

fn memory_of_history(leases: usize) -> Outcome {
    const RENEWALS: usize = 30;
    let mut engine = engine();
    apply(&mut engine, (0..leases).map(|n| put(key(n), lease(n, 0))))?;
    let (before, counted) = (resident()?, engine.mvcc().bytes());
    for renewal in 1..=RENEWALS {
        apply(&mut engine, (0..leases).map(|n| put(key(n), lease(n, renewal))))?;
    }
    let old = leases * RENEWALS;
    println!(
        "old version of a lease of 420 bytes: {:.0} resident bytes ({leases} leases, {RENEWALS} \
         old versions of each); the quota counts {:.0}",
        ratio(resident()?.saturating_sub(before), old),
        ratio(engine.mvcc().bytes() - counted, old)
    );
    Ok(())
}

// ---- stalls ------------------------------------------------------------------------------------

/// How often this thread was stopped for another.
fn preemptions() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    Ok(line.ok_or("no count of switches")?.trim().parse()?)
}

fn stall(keys: usize) -> Outcome {
    const ROUNDS: usize = 5;
    let mut engine = engine();
    for round in 0..=ROUNDS {
        apply(&mut engine, (0..keys).map(|n| put(key(n), lease(n, round))))?;
    }
    let before = resident()?;
    let revision = engine.mvcc().revision();
    engine.apply(Command::Compact(revision), 0)?;
    let (mut slices, mut longest, mut disturbed, mut over) = (0, Duration::ZERO, Duration::ZERO, 0);
    let began = Instant::now();
    let mut released = false;
    loop {
        let switches = preemptions()?;
        let start = Instant::now();
        let more = if released {
            engine.mvcc_mut().collect(SLICE)
        } else {
            released = true;
            engine.mvcc_mut().release()
        };
        let took = start.elapsed();
        slices += 1;
        if preemptions()? > switches {
            disturbed = disturbed.max(took);
        } else {
            longest = longest.max(took);
            over += usize::from(took > Duration::from_millis(1));
        }
        if !more {
            break;
        }
    }
    println!(
        "compaction of {} versions of {keys} keys: {slices} slices, the longest {:.0} us, {over} \
         over 1 ms ({:.0} us when another process had the core meanwhile), {:.1} s in all; \
         {} MiB resident before, {} after",
        keys * ROUNDS,
        longest.as_secs_f64() * 1e6,
        disturbed.as_secs_f64() * 1e6,
        began.elapsed().as_secs_f64(),
        before >> 20,
        resident()? >> 20
    );
    Ok(())
}

// ---- recovery ----------------------------------------------------------------------------------

fn recovery(keys: usize, with_snapshot: bool) -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = || LogConfig { snapshot_bytes: u64::MAX, ..LogConfig::default() };
    let (mut log, _) = Log::open(dir.path(), config())?;
    let mut engine = engine();
    let mut fill = |log: &mut Log, range: std::ops::Range<usize>| -> Outcome {
        for n in range {
            engine.apply(put(key(n), noise(n, 1024)), 0)?;
            if n % BATCH == 0 {
                for (class, record) in engine.take_records() {
                    log.append(class, &record)?;
                }
                log.write()?;
                finish(&mut engine);
            }
        }
        for (class, record) in engine.take_records() {
            log.append(class, &record)?;
        }
        log.sync()?;
        finish(&mut engine);
        Ok(())
    };
    fill(&mut log, 0..keys)?;
    if with_snapshot {
        let revision = i64::try_from(keys)? + 1;
        let mut writer = log.begin_snapshot(SnapshotMeta { revision, compact_revision: 0 })?;
        let mut lines = (0..keys).map(key).collect::<Vec<_>>();
        lines.sort();
        for key in &lines {
            let kv: Option<KeyValue> = engine.mvcc().get(key, revision);
            writer.key(&kv.ok_or("a key is gone")?)?;
        }
        let done = writer.finish()?;
        done.truncate_behind()?;
        let mut fill = |log: &mut Log, range: std::ops::Range<usize>| -> Outcome {
            for n in range {
                engine.apply(put(key(n), noise(n, 1024)), 0)?;
            }
            for (class, record) in engine.take_records() {
                log.append(class, &record)?;
            }
            log.sync()?;
            Ok(())
        };
        fill(&mut log, 0..keys / 20)?;
    }
    log.close(engine.mvcc().revision(), false)?;
    drop(engine);
    let before = resident()?;
    let began = Instant::now();
    let config = sequencer::Config {
        data_dir: dir.path().to_owned(),
        log: config(),
        engine: EngineConfig::default(),
    };
    let running = sequencer::start(config, Arc::new(Metrics::new(&mut Registry::default())))?;
    println!(
        "recovery of {keys} keys of 1 KiB from {}: {:.2} s, {} MiB resident more",
        if with_snapshot { "a snapshot and a log of a twentieth" } else { "the log alone" },
        began.elapsed().as_secs_f64(),
        resident()?.saturating_sub(before) >> 20
    );
    running.stop();
    Ok(())
}
