//! Clients that hardly read: what is held for them is bounded, nobody waits for them, and they go
//! on from where they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::certificates::Pair;
use crate::cluster::{Cluster, PROTOBUF};
use crate::frames::{Frames, list};

/// Changes of one object; more than are kept for a namespace.
const CHANGES: usize = 800;
/// What it carries. All that a watch is told is more than sockets on the way hold.
const SIZE: usize = 64 * 1024;
/// Clients that read a byte a second, and others that read nothing.
const SLOW: usize = 12;
/// What may be held for one of them: an answer's piece and what sockets take.
const HELD: usize = 8 << 20;
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

/// A client that chooses itself when it reads, by HTTP/1.1, with a small buffer.
struct Raw(tokio_rustls::client::TlsStream<tokio::net::TcpStream>);

impl Raw {
    async fn watch(cluster: &Cluster, pair: &Pair, path: &str) -> Self {
        let config = cluster.certificates.client_config(Some(pair), false);
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(cluster.app.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream =
            TlsConnector::from(Arc::clone(&config)).connect(name, stream).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    async fn byte(&mut self) -> u8 {
        self.0.read_u8().await.unwrap()
    }

    /// All that is left, to the end of the answer or the connection.
    async fn rest(mut self) -> Vec<u8> {
        let (mut all, mut some) = (Vec::new(), vec![0; 64 * 1024]);
        while !all.ends_with(b"\r\n0\r\n\r\n") {
            let read = tokio::time::timeout(Duration::from_mins(1), self.0.read(&mut some));
            match read.await.expect("the watch ends") {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend_from_slice(&some[..count]),
            }
        }
        all
    }
}

/// Lines of a body that was sent in chunks; what comes after the last whole one is not there.
fn lines(mut chunked: &[u8]) -> Vec<Value> {
    let mut body = Vec::new();
    while let Some(end) = chunked.windows(2).position(|window| window == b"\r\n") {
        let length =
            usize::from_str_radix(std::str::from_utf8(&chunked[..end]).unwrap(), 16).unwrap();
        let rest = &chunked[end + 2..];
        if length == 0 {
            break;
        }
        body.extend_from_slice(&rest[..length.min(rest.len())]);
        chunked = rest.get(length + 2..).unwrap_or_default();
    }
    let whole = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = std::str::from_utf8(&body[..whole]).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn version(event: &Value) -> u64 {
    event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Memory of this process: the front door and the store.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn who_reads_a_byte_a_second_holds_up_nobody() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    let map = |number: usize| json!({"metadata": {"name": "c"}, "data": {"n": number.to_string(), "k": "x".repeat(SIZE)}});
    direct.write(Method::POST, MAPS, &map(0)).await;
    let mut door = cluster.door(&admin).await;
    let (status, bytes) = door.read(MAPS, PROTOBUF).await;
    assert_eq!(status, StatusCode::OK);
    let start = list(&bytes).version;
    let path = format!("{MAPS}?watch=1&timeoutSeconds=600&resourceVersion={start}");
    let answers = cluster.answers("watch");

    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(Raw::watch(&cluster, &admin, &path).await);
    }
    let mut silent = Vec::new();
    for _ in 0..SLOW {
        let mut client = cluster.door(&admin).await;
        let answer = client.open(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        silent.push((client, answer));
    }
    let mut fast = Frames::new(door.open(&path).await.into_body());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.answers("watch") - answers, 2 * SLOW as u64 + 1, "the cache has answered");

    let written = Arc::new(AtomicBool::new(false));
    let reading: Vec<_> = slow
        .into_iter()
        .map(|mut raw| {
            let written = written.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !written.load(Ordering::Relaxed) {
                    read.push(raw.byte().await);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                (read, raw)
            })
        })
        .collect();
    let before = resident();
    let (mut longest, mut delayed) = (0, Duration::ZERO);
    for number in 1..=CHANGES {
        direct.write(Method::PUT, &format!("{MAPS}/c"), &map(number)).await;
        let since = Instant::now();
        let event = fast.next(Duration::from_secs(20)).await.expect("an event for who reads");
        assert_eq!(event.kind, "MODIFIED");
        delayed = delayed.max(since.elapsed());
        longest = longest.max(resident().saturating_sub(before));
    }
    written.store(true, Ordering::Relaxed);
    // The events that are kept, shared by all, here and in the store; and a little for each client.
    let shared = 3 * CHANGES * SIZE;
    let bound = shared + 2 * SLOW * HELD;
    let unbounded = 2 * SLOW * CHANGES * SIZE;
    println!(
        "{} slow watches: {} MiB more at most, of which events {} MiB; unread for them {} MiB; \
         others were told within {delayed:?}",
        2 * SLOW,
        longest >> 20,
        shared >> 20,
        unbounded >> 20
    );
    assert!(longest < bound && bound * 3 < unbounded, "{longest} of {bound}");
    assert!(delayed < Duration::from_secs(10), "{delayed:?}");

    // Each is told some events without a gap, and then its watch ends: it has read too slowly.
    let mut last = Vec::new();
    for reading in reading {
        let (mut read, raw) = reading.await.unwrap();
        read.extend(raw.rest().await);
        let head = read.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(read.starts_with(b"HTTP/1.1 200"));
        assert!(read.ends_with(b"\r\n0\r\n\r\n"), "a regular end");
        let events = lines(&read[head..]);
        for (place, event) in events.iter().enumerate() {
            assert_eq!(event["type"], "MODIFIED");
            assert_eq!(event["object"]["data"]["n"], (place + 1).to_string(), "no gap, in order");
        }
        assert!(!events.is_empty() && events.len() < CHANGES, "{} events", events.len());
        last.push((events.len(), events.last().map_or(start, version)));
    }
    drop(silent);
    // From where it was, its client goes on: nothing is missing, nothing comes twice.
    let (told, from) = last[0];
    let path = format!("{MAPS}?watch=1&timeoutSeconds=600&resourceVersion={from}");
    let mut rest = Frames::new(door.open(&path).await.into_body());
    for number in told + 1..=CHANGES {
        let event =
            rest.next(Duration::from_secs(20)).await.expect("the events that it has missed");
        let digits = number.to_string();
        let length = u8::try_from(digits.len()).unwrap();
        let entry = [b"\n\x01n\x12", &[length][..], digits.as_bytes()].concat();
        let has = event.bytes.windows(entry.len()).any(|window| window == entry);
        assert!(has, "event {number}");
    }
}
