//! Connections to the apiserver for short requests: kept, given up, and closed by the other end.

#![allow(clippy::expect_used, reason = "a test states its expectation by unwrapping")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use megacluster_scheduler::relay::connections::Requests;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a server does with each request on a connection.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answers,
    /// By another address.
    Redirects,
    /// In chunks, one by one.
    AnswersInPieces,
    AnswersAndCloses,
    Nothing,
}

async fn serve(mut stream: TcpStream, does: Does) {
    let mut read = vec![0; 4096];
    let mut text = String::new();
    while let Ok(count) = stream.read(&mut read).await
        && count > 0
    {
        text.push_str(&String::from_utf8_lossy(&read[..count]));
        if !text.ends_with("\r\n\r\n") || does == Does::Nothing {
            continue;
        }
        assert!(text.starts_with("GET /path?a=b HTTP/1.1\r\n"), "{text}");
        assert!(text.to_lowercase().contains("\r\nhost: 127.0.0.1:"), "{text}");
        text.clear();
        let answer: &[&[u8]] = match does {
            Does::Redirects => &[b"HTTP/1.1 307 Go\r\nlocation: /a\r\ncontent-length: 0\r\n\r\n"],
            Does::AnswersInPieces => &[
                b"HTTP/1.1 200 OK\r\ntransfer-",
                b"encoding: chunked\r\n\r\n1\r\n{\r",
                b"\n01\r\n}\r\n0\r\n\r",
                b"\n",
            ],
            _ => &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"],
        };
        for piece in answer {
            if stream.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if does == Does::AnswersAndCloses {
            return;
        }
    }
}

/// A client, and how many connections it has made so far.
async fn server(does: Does) -> (Requests, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("address");
    let count = Arc::new(AtomicUsize::new(0));
    let accepted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, does));
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().expect("URI"));
    (Requests::new(config).expect("client"), count)
}

async fn get(client: &Requests) -> bool {
    let request = Request::get("/path?a=b").body(Vec::new()).expect("a request");
    let answer = client.send(request);
    let answer = tokio::time::timeout(Duration::from_millis(500), answer).await;
    answer.is_ok_and(|answer| answer.expect("an answer") == "{}".as_bytes())
}

#[tokio::test]
async fn a_connection_is_used_again_and_again() {
    let (client, connections) = server(Does::Answers).await;
    for _ in 0..20 {
        assert!(get(&client).await);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_at_once_have_a_connection_each() {
    let (client, connections) = server(Does::Answers).await;
    for _ in 0..5 {
        let all = futures::future::join_all((0..10).map(|_| get(&client))).await;
        assert_eq!(all, vec![true; 10]);
    }
    assert!(connections.load(Ordering::SeqCst) <= 10);
}

#[tokio::test]
async fn a_closed_connection_fails_no_request() {
    let (client, connections) = server(Does::AnswersAndCloses).await;
    for round in 1..=10 {
        assert!(get(&client).await);
        // The other end has closed it by now.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(connections.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_takes_its_connection_along() {
    let (client, connections) = server(Does::Nothing).await;
    assert!(!get(&client).await);
    assert!(!get(&client).await);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_answer_may_come_in_pieces() {
    let (client, connections) = server(Does::AnswersInPieces).await;
    for _ in 0..5 {
        assert!(get(&client).await);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_redirection_is_no_success() {
    let (client, _) = server(Does::Redirects).await;
    let request = Request::get("/path?a=b").body(Vec::new()).expect("a request");
    let refused = client.send(request).await.expect_err("no success");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 307));
}
