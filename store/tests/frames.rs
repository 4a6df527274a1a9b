//! What clients must not send, byte for byte: each gets the error of RFC 9113, and nobody else
//! notices.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states its expectation so")]

mod support;
mod wire;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::Store;
use wire::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST, SETTINGS,
    WINDOW_UPDATE, frame, get, headers, message, put,
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";

async fn plain_store() -> Store {
    Store::start(&[
        "--durability=buffered",
        "--listen-client-urls=https://127.0.0.1:0,http://127.0.0.1:0",
    ])
    .await
}

fn plain(store: &Store) -> std::net::SocketAddr {
    store.server.client_addresses()[1]
}

/// A stranger's call still works.
async fn assert_alive(store: &Store) {
    let mut other = Client::connect(plain(store)).await;
    other.call(1, PUT, &put("alive", b"v")).await.assert_ok();
    other.call(3, RANGE, &get("alive")).await.assert_ok();
}

/// Requests on one stream as they go over the wire.
fn call(stream: u32, path: &str, body: &[u8]) -> Vec<u8> {
    let mut out = frame(HEADERS, END_HEADERS, stream, &headers(path, &[]));
    out.extend(frame(DATA, END_STREAM, stream, &message(body)));
    out
}

#[tokio::test]
async fn broken_frames_end_the_connection_with_their_error() {
    let store = plain_store().await;
    let open = frame(HEADERS, END_HEADERS, 1, &headers(PUT, &[]));
    let after_open = |more: Vec<u8>| [open.clone(), more].concat();
    let window = |stream: u32, n: u32| frame(WINDOW_UPDATE, 0, stream, &n.to_be_bytes());
    let setting = |id: u8, value: u32| {
        let [a, b, c, d] = value.to_be_bytes();
        frame(SETTINGS, 0, 0, &[0, id, a, b, c, d])
    };
    let mut too_long = frame(DATA, 0, 1, &[]);
    too_long[..3].copy_from_slice(&[0xff, 0xff, 0xff]);
    for (what, bytes, codes) in [
        ("a short ping", frame(PING, 0, 0, &[0; 7]), vec![FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8]), vec![PROTOCOL_ERROR]),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5]), vec![FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), vec![PROTOCOL_ERROR]),
        ("a window of 2^31", setting(4, 1 << 31), vec![FLOW_CONTROL_ERROR, PROTOCOL_ERROR]),
        ("frames of 2^24", setting(5, 1 << 24), vec![PROTOCOL_ERROR]),
        ("push of 2", setting(2, 2), vec![PROTOCOL_ERROR]),
        (
            "a short update",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            vec![FRAME_SIZE_ERROR, PROTOCOL_ERROR],
        ),
        ("an update of nothing", window(0, 0), vec![PROTOCOL_ERROR]),
        ("an update too far", window(0, 0x7fff_ffff), vec![FLOW_CONTROL_ERROR]),
        ("an update of an idle stream", window(9, 1), vec![PROTOCOL_ERROR]),
        ("data on an idle stream", frame(DATA, 0, 5, b"x"), vec![PROTOCOL_ERROR]),
        ("data on no stream", frame(DATA, 0, 0, b"x"), vec![PROTOCOL_ERROR]),
        ("an endless frame", after_open(too_long), vec![FRAME_SIZE_ERROR]),
        ("a reset of an idle stream", frame(RST, 0, 7, &[0; 4]), vec![PROTOCOL_ERROR]),
        (
            "an even stream",
            frame(HEADERS, END_HEADERS, 2, &headers(PUT, &[])),
            vec![PROTOCOL_ERROR],
        ),
        (
            "padding beyond the frame",
            after_open(frame(DATA, 8, 1, &[200, 1])),
            vec![PROTOCOL_ERROR],
        ),
        (
            "headers that are none",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 40]),
            vec![COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            // A stream's error by the RFC, which lets a server end the connection for it.
            "a name in capitals",
            frame(HEADERS, END_HEADERS, 1, &headers(PUT, &[("Te", "x")])),
            vec![COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            "an index of nothing",
            frame(HEADERS, END_HEADERS, 1, &[0x80]),
            vec![COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            vec![PROTOCOL_ERROR],
        ),
        (
            "a frame among continuations",
            [frame(HEADERS, 0, 1, &headers(PUT, &[])), frame(PING, 0, 0, &[0; 8])].concat(),
            vec![PROTOCOL_ERROR],
        ),
        ("a push by a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), vec![PROTOCOL_ERROR]),
        (
            "a stream out of order",
            [call(5, PUT, &put("k", b"v")), call(3, PUT, &put("k", b"v"))].concat(),
            vec![PROTOCOL_ERROR, STREAM_CLOSED],
        ),
    ] {
        let mut client = Client::connect(plain(&store)).await;
        client.send(&bytes).await;
        let code = client.goaway().await;
        assert!(code.is_some_and(|code| codes.contains(&code)), "{what}: {code:?}");
    }
    assert_alive(&store).await;
    store.server.finish().await;
}

#[tokio::test]
async fn what_is_wrong_on_a_stream_ends_that_stream() {
    let store = plain_store().await;
    // A pseudo header behind others and twice, one that is unknown, one of HTTP/1.
    let mut bad: Vec<Vec<u8>> = [(":path", "/x"), (":new", "x"), ("connection", "close")]
        .map(|pair| headers(PUT, &[pair]))
        .to_vec();
    // No method.
    bad.push(headers(PUT, &[])[1..].to_vec());
    for (n, block) in bad.iter().enumerate() {
        // The RFC lets a server end the connection for such a stream.
        let mut client = Client::connect(plain(&store)).await;
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, block)).await;
        let answer = client.end_of(1).await;
        assert!(answer.is_refusal() || client.goaways == [PROTOCOL_ERROR], "{n}: {answer:?}");
    }
    let mut client = Client::connect(plain(&store)).await;
    client.call(101, PUT, &put("k", b"v")).await.assert_ok();
    // An update of nothing on a stream.
    client.send(&frame(HEADERS, END_HEADERS, 103, &headers(PUT, &[]))).await;
    client.send(&frame(WINDOW_UPDATE, 0, 103, &[0; 4])).await;
    let answer = client.end_of(103).await;
    let refused = answer.reset == Some(PROTOCOL_ERROR) || client.goaways == [PROTOCOL_ERROR];
    assert!(refused, "{answer:?}");
    let mut client = Client::connect(plain(&store)).await;
    // Headers too many for the list: refused, and the connection goes on.
    let long = "x".repeat(1000);
    let many: Vec<(&str, &str)> = (0..20).map(|_| ("x-long", long.as_str())).collect();
    let block = headers(PUT, &many);
    client.send(&frame(HEADERS, END_STREAM, 105, &block[..10_000])).await;
    client.send(&frame(CONTINUATION, END_HEADERS, 105, &block[10_000..])).await;
    let answer = client.answer(105).await;
    assert!(answer.is_refusal(), "{answer:?}");
    client.call(107, RANGE, &get("k")).await.assert_ok();
    assert_alive(&store).await;
    store.server.finish().await;
}

#[tokio::test]
async fn unusual_but_right_is_taken() {
    let store = plain_store().await;
    let mut client = Client::connect(plain(&store)).await;
    // Frames of a kind that nobody knows, priorities, settings that nobody knows.
    client.send(&frame(0xee, 0xff, 0, b"grease")).await;
    client.send(&frame(2, 0, 1, &[0, 0, 0, 0, 7])).await;
    client.send(&frame(SETTINGS, 0, 0, &[0xfa, 0xfa, 0, 0, 0, 1])).await;
    // A message in single bytes, with padding, and trailers behind it.
    client.send(&frame(HEADERS, END_HEADERS, 1, &headers(PUT, &[]))).await;
    for byte in message(&put("k", b"value")) {
        client.send(&frame(DATA, 8, 1, &[2, byte, 0, 0])).await;
    }
    let trailer = b"\x00\x05x-end\x03yes";
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, trailer)).await;
    client.answer(1).await.assert_ok();
    // Headers cut into pieces, the end of the stream on a frame of its own.
    let block = headers(RANGE, &[]);
    client.send(&frame(HEADERS, 0, 3, &block[..7])).await;
    client.send(&frame(CONTINUATION, 0, 3, &block[7..9])).await;
    client.send(&frame(CONTINUATION, END_HEADERS, 3, &block[9..])).await;
    client.send(&frame(DATA, 0, 3, &message(&get("k")))).await;
    client.send(&frame(DATA, END_STREAM, 3, &[])).await;
    let answer = client.answer(3).await;
    answer.assert_ok();
    assert!(answer.data.windows(5).any(|part| part == b"value"));
    store.server.finish().await;
}

#[tokio::test]
async fn a_closed_window_holds_up_its_stream_alone() {
    let store = plain_store().await;
    let mut client = Client::connect(plain(&store)).await;
    client.call(1, PUT, &put("k", &vec![b'x'; 50_000])).await.assert_ok();
    // No window for streams from now on.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    client.send(&call(3, RANGE, &get("k"))).await;
    client.send(&call(5, RANGE, &get("absent"))).await;
    client.send(&frame(WINDOW_UPDATE, 0, 5, &100_u32.to_be_bytes())).await;
    client.answer(5).await.assert_ok();
    // Piece by piece.
    let mut opened = 0_u32;
    while opened < 60_000 {
        client.send(&frame(WINDOW_UPDATE, 0, 3, &10_000_u32.to_be_bytes())).await;
        client.send(&frame(WINDOW_UPDATE, 0, 0, &10_000_u32.to_be_bytes())).await;
        opened += 10_000;
    }
    let answer = client.answer(3).await;
    answer.assert_ok();
    assert!(answer.data.len() > 50_000);
    assert_alive(&store).await;
    store.server.finish().await;
}

#[tokio::test]
async fn floods_hurt_only_who_sends_them() {
    let store = plain_store().await;
    // Opened and taken back at once, again and again (CVE-2023-44487).
    let mut client = Client::connect(plain(&store)).await;
    for first in (1..40_000).step_by(2000) {
        let mut bytes = Vec::new();
        for stream in (first..first + 2000).step_by(2) {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &headers(PUT, &[])));
            bytes.extend(frame(RST, 0, stream, &8_u32.to_be_bytes()));
        }
        if !client.try_send(&bytes).await {
            break;
        }
    }
    assert_eq!(client.goaway().await, Some(ENHANCE_YOUR_CALM));
    // Continuations without end (CVE-2024-27316).
    let mut client = Client::connect(plain(&store)).await;
    client.send(&frame(HEADERS, 0, 1, &headers(PUT, &[]))).await;
    let piece = frame(CONTINUATION, 0, 1, b"\x00\x01x\x05aaaaa");
    let mut sent = 0;
    while sent < 100_000 && client.try_send(&piece.repeat(1000)).await {
        sent += 1000;
    }
    assert!(client.goaway().await.is_some() || sent < 100_000);
    // Pings and settings whose answers are never read: the server stops reading, and keeps no more
    // than its bound.
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut client = Client::connect(plain(&store)).await;
        let bytes = flood.repeat(10_000);
        let mut sent = 0;
        while sent < (64 << 20) && client.send_within(&bytes, Duration::from_millis(300)).await {
            sent += bytes.len();
        }
        assert!(sent < (64 << 20), "the server took {sent} bytes from a client that reads nothing");
        assert_alive(&store).await;
    }
    store.server.finish().await;
}

/// Pipelined requests with bytes changed, lost, doubled or put in another order: whatever they
/// become, the server neither panics nor stops serving others.
#[tokio::test]
async fn mutated_connections_do_no_harm() {
    let panics = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = panics.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("io-")) {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        before(info);
    }));
    let store = plain_store().await;
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut frames: Vec<Vec<u8>> = vec![frame(SETTINGS, 0, 0, &[])];
        for n in 0..random.random_range(1..20_u32) {
            let stream = 2 * n + 1;
            let path = ["/etcdserverpb.KV/Txn", RANGE, PUT, "/etcdserverpb.Watch/Watch", "/x/y"]
                [random.random_range(0..5)];
            frames.push(frame(HEADERS, END_HEADERS, stream, &headers(path, &[])));
            frames.push(frame(DATA, END_STREAM, stream, &message(&put("fuzz", b"value"))));
            if random.random_bool(0.2) {
                frames.push(frame(RST, 0, stream, &[0, 0, 0, 8]));
            }
            if random.random_bool(0.2) {
                frames.push(frame(WINDOW_UPDATE, 0, stream, &random.random::<u32>().to_be_bytes()));
            }
        }
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..frames.len());
            let byte = random.random_range(0..frames[at].len());
            match random.random_range(0..5) {
                0 => frames[at][byte] = random.random(),
                1 => drop(frames[at].remove(byte)),
                2 => frames.insert(at, frames[at].clone()),
                3 => frames[at][byte] ^= 1 << random.random_range(0..8),
                _ => frames.swap(at, 0),
            }
            frames.retain(|frame| !frame.is_empty());
            if frames.is_empty() {
                break;
            }
        }
        let bytes = [PREFACE.to_vec(), frames.concat()].concat();
        Client::throw(plain(&store), &bytes, random.random_range(1..bytes.len())).await;
    }
    assert_alive(&store).await;
    assert_eq!(panics.load(std::sync::atomic::Ordering::SeqCst), 0);
    store.server.finish().await;
}
