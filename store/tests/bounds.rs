//! What clients may do to the memory of a store: the real binary, looked at from outside.
//!
//! `BOUNDS_KEYS` sets how many keys of 1 KiB there are, by default 50,000; a soak takes a million.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

#[allow(dead_code, reason = "each test uses its part")]
mod process;
#[allow(dead_code, reason = "each test uses its part")]
mod wire;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use megacluster_store::pb::etcdserverpb::kv_client::KvClient;
use megacluster_store::pb::etcdserverpb::request_op::Request as Op;
use megacluster_store::pb::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};
use process::{Start, Store, everything, put};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, frame, headers,
    message,
};

const VALUE: usize = 1024;
const MIB: u64 = 1 << 20;

fn keys() -> usize {
    std::env::var("BOUNDS_KEYS").ok().and_then(|keys| keys.parse().ok()).unwrap_or(50_000)
}

/// A line of `/proc/PID/status` in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// By how much memory was above what it is now, at most, while `work` went on.
async fn growth<T>(pid: u32, work: impl Future<Output = T>) -> (T, u64) {
    // Sets the peak back to what there is now (proc(5)).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = memory(pid, "VmRSS");
    let done = work.await;
    (done, memory(pid, "VmHWM").saturating_sub(before))
}

async fn filled(dir: &Path) -> Store {
    let store = Start::new(dir, &["--durability=buffered"]).run().await;
    let mut kv = store.kv().await;
    let numbers: Vec<usize> = (0..keys()).collect();
    for some in numbers.chunks(100) {
        let puts = some.iter().map(|n| {
            let put = put(&format!("/registry/pods/{n:09}"), vec![b'v'; VALUE]);
            RequestOp { request: Some(Op::RequestPut(put)) }
        });
        let txn = TxnRequest { success: puts.collect(), ..Default::default() };
        kv.txn(txn).await.unwrap();
    }
    store
}

/// A list of everything in parts needs no memory to speak of, and one in a single message a pointer
/// for each version, of which the message is made while it is sent.
#[tokio::test]
async fn a_list_of_everything_is_no_copy_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let mut kv = KvClient::new(store.channel().await).max_decoding_message_size(usize::MAX);
    let (found, grown) = growth(store.pid(), async {
        let mut parts = kv.range_stream(everything()).await.unwrap().into_inner();
        let mut found = 0;
        while let Some(part) = parts.message().await.unwrap() {
            found += part.range_response.map_or(0, |response| response.kvs.len());
        }
        found
    })
    .await;
    println!("in parts: {found} keys, memory grew by {} KiB", grown / 1024);
    assert_eq!(found, keys());
    assert!(grown < 24 * MIB, "{grown}");

    let (found, grown) =
        growth(store.pid(), async { kv.range(everything()).await.unwrap().into_inner().kvs.len() })
            .await;
    let answer = (keys() * (VALUE + 60)) as u64;
    println!("at once: {found} keys of {answer} bytes, memory grew by {} KiB", grown / 1024);
    assert_eq!(found, keys());
    assert!(grown < 32 * keys() as u64 + 24 * MIB, "{grown}");
    store.stop();
}

/// A client that opens its windows as far as they go, asks for far more than it reads, and reads
/// nothing: its connection is bounded, and nobody else waits.
#[tokio::test]
async fn a_client_that_never_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    for (limit, asked) in [(10, 20_000), (400, 1000), (2000, 300)] {
        let ((stream, sent), grown) = growth(store.pid(), async {
            let mut stream = TcpStream::connect(store.address).await.unwrap();
            let window = 0x7fff_ffff_u32.to_be_bytes();
            let [a, b, c, d] = window;
            let mut hello = PREFACE.to_vec();
            hello.extend(frame(SETTINGS, 0, 0, &[0, 4, a, b, c, d]));
            hello.extend(frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()));
            stream.write_all(&hello).await.unwrap();
            let request = RangeRequest { limit, ..everything() }.encode_to_vec();
            let path = headers("/etcdserverpb.KV/Range", &[]);
            let mut sent = 0;
            for n in 0..asked {
                let mut call = frame(HEADERS, END_HEADERS, 2 * n + 1, &path);
                call.extend(frame(DATA, END_STREAM, 2 * n + 1, &message(&request)));
                match timeout(Duration::from_secs(1), stream.write_all(&call)).await {
                    Ok(Ok(())) => sent += 1,
                    _ => break,
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut kv = store.kv().await;
            timeout(Duration::from_secs(5), kv.put(put("k", "v"))).await.unwrap().unwrap();
            (stream, sent)
        })
        .await;
        println!("{sent} lists of {limit} KiB, not read: {} MiB", grown / MIB);
        // 64 MiB of answers, and what two thousand calls take: no more are read ahead of their answers.
        assert!(grown < 96 * MIB, "{grown}");
        drop(stream);
    }
    store.stop();
}

/// Connections that say nothing cost little, and nobody waits for them.
#[tokio::test]
async fn ten_thousand_idle_connections() {
    const CONNECTIONS: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Start::new(dir.path(), &["--durability=buffered"]).run().await;
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let (idle, grown) = growth(store.pid(), async {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(store.address).await.unwrap();
            stream.write_all(&hello).await.unwrap();
            idle.push(stream);
        }
        // Answered behind all of them.
        let mut kv = store.kv().await;
        for n in 0..100 {
            let began = Instant::now();
            kv.put(put("k", Bytes::from(n.to_string()))).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(5));
        }
        idle
    })
    .await;
    println!("{CONNECTIONS} idle connections: {} bytes each", grown / CONNECTIONS);
    // Most of it is the codec's buffers: 24 KiB.
    assert!(grown / CONNECTIONS < 32 * 1024, "{grown}");
    drop(idle);
    store.stop();
}

/// Leases and all other times go by the clock that nobody can set.
#[test]
fn no_time_of_day_is_read() {
    fn look(dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                for name in ["SystemTime", "UNIX_EPOCH", "ClockId::Realtime", "CLOCK_REALTIME"] {
                    assert!(!text.contains(name), "{}: {name}", path.display());
                }
            }
        }
    }
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}
