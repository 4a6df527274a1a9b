use http::Request;
use proptest::prelude::*;

use super::*;

/// Gives an answer in pieces of so many bytes; what is left over.
fn answer(bytes: &[u8], piece: usize) -> Result<(Response<Bytes>, bool, usize), Malformed> {
    let (mut answer, mut read) = (Answer::default(), BytesMut::new());
    let mut complete = answer.take(&mut read)?;
    for piece in bytes.chunks(piece.max(1)) {
        read.extend_from_slice(piece);
        complete = answer.take(&mut read)?;
    }
    if !complete {
        answer.ends()?;
    }
    let keeps = answer.keeps();
    Ok((answer.into_response(), keeps, read.len()))
}

fn body(text: &str) -> Result<(String, bool), Malformed> {
    let whole = answer(text.as_bytes(), usize::MAX)?;
    for piece in 1..20 {
        let (response, keeps, rest) = answer(text.as_bytes(), piece)?;
        assert_eq!((response.body(), keeps, rest), (whole.0.body(), whole.1, whole.2), "{piece}");
        assert_eq!(response.status(), whole.0.status());
        assert_eq!(response.headers(), whole.0.headers());
    }
    Ok((String::from_utf8_lossy(whole.0.body()).into_owned(), whole.1))
}

#[allow(clippy::unnecessary_wraps, reason = "it is compared with a result")]
fn kept(text: &str) -> Result<(String, bool), Malformed> {
    Ok((text.to_owned(), true))
}

#[test]
fn a_request_has_its_length_and_its_headers() {
    let request = |method: &str, body: &[u8]| {
        let request = Request::builder()
            .method(method)
            .uri("https://host:6443/a/b?c=d")
            .header("Host", "host:6443")
            .header("content-length", "77");
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let none = ("", &HeaderMap::new());
        String::from_utf8(super::request(&head, none, body)).expect("text")
    };
    let head = "/a/b?c=d HTTP/1.1\r\nhost: host:6443\r\n";
    assert_eq!(request("POST", b"{}"), format!("POST {head}content-length: 2\r\n\r\n{{}}"));
    assert_eq!(request("POST", b""), format!("POST {head}content-length: 0\r\n\r\n"));
    assert_eq!(request("GET", b""), format!("GET {head}\r\n"));
}

#[test]
fn what_requests_have_in_common_is_beside_their_own() {
    let request = Request::put("/c").header("a", "own").body(()).expect("a request");
    let common = Request::get("/").header("a", "common").header("b", "both").body(());
    let common = common.expect("a request");
    let (head, ()) = request.into_parts();
    let sent = super::request(&head, ("/prefix", common.headers()), b"x");
    let text = "PUT /prefix/c HTTP/1.1\r\na: own\r\nb: both\r\ncontent-length: 1\r\n\r\nx";
    assert_eq!(String::from_utf8_lossy(&sent), text);
}

#[test]
fn an_answer_ends_where_it_says() {
    assert_eq!(body("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"), kept("{}"));
    assert_eq!(body("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), kept(""));
    assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n"), kept(""));
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na";
    assert_eq!(body(twice), kept("a"));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n";
    let chunks = "3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n";
    assert_eq!(body(&format!("{chunked}{chunks}\r\n")), kept("abc0123456789"));
    assert_eq!(body(&format!("{chunked}{chunks}a: b\r\nc:d\r\n\r\n")), kept("abc0123456789"));
    let first = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    assert_eq!(body(&format!("{first}{chunked}0\r\n\r\n")), kept(""));
}

#[test]
fn a_connection_is_not_kept_where_it_must_not_be() {
    let once = |text: &str| Ok((text.to_owned(), false));
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nto the end"), once("to the end"));
    assert_eq!(body("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na"), once("a"));
    let close = "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 1\r\n\r\na";
    assert_eq!(body(close), once("a"));
    let both =
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(body(both), once(""));
}

#[test]
fn what_comes_too_much_is_left() {
    let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabcd";
    assert_eq!(answer(text, 1000).expect("an answer").2, 3);
    let text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nbcd";
    assert_eq!(answer(text, 1000).expect("an answer").2, 3);
}

#[test]
fn what_is_no_answer_is_refused() {
    let refused = |text: &str| body(text).expect_err(text);
    assert_eq!(refused("HTP/1.1 200 OK\r\n\r\n"), Malformed::Head);
    assert_eq!(refused("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Malformed::Head);
    assert_eq!(refused("HTTP/1.1 099 x\r\n\r\n"), Malformed::Head);
    let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(HEAD));
    assert_eq!(answer(long.as_bytes(), long.len()).expect_err("too long"), Malformed::TooLong);
    for length in ["-1", "+1", "1x", "", " ", "99999999999999999999999", "1\r\ncontent-length: 2"] {
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nab");
        assert_eq!(refused(&text), Malformed::Length, "{length}");
    }
    assert_eq!(refused("HTTP/1.1 200 OK\r\ncontent-length: 67108865\r\n\r\n"), Malformed::TooLong);
    for coding in ["gzip", "gzip, chunked", "chunked, chunked", "chunked\r\ntransfer-encoding: x"] {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n");
        assert_eq!(refused(&text), Malformed::Length, "{coding}");
    }
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunks in [";\r\n", "x\r\n", "\r\n", "1\na", "1;a\nb", "1\r\nab\r\n", "1\r\na\n", "0\r\n\n"]
    {
        assert_eq!(refused(&format!("{chunked}{chunks}")), Malformed::Chunk, "{chunks:?}");
    }
    for chunks in ["fffffffffffffffffffff\r\n", "4000001\r\n", &"0".repeat(300)] {
        assert_eq!(refused(&format!("{chunked}{chunks}")), Malformed::TooLong, "{chunks:?}");
    }
    for beside in
        [format!("1;{}", "x".repeat(BESIDE + 1)), format!("0\r\n{}", "a:b\r\n".repeat(BESIDE))]
    {
        let text = format!("{chunked}{beside}");
        assert_eq!(answer(text.as_bytes(), text.len()).expect_err("long"), Malformed::TooLong);
    }
}

#[test]
fn an_answer_that_is_cut_off_is_none() {
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\na: b\r\n\r\n",
    ] {
        for end in 0..text.len() {
            let cut = answer(&text.as_bytes()[..end], 7);
            assert_eq!(cut.expect_err("cut off"), Malformed::Ended, "{end} bytes of {text:?}");
        }
        answer(text.as_bytes(), 7).expect("an answer");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_alike_in_any_pieces(
        head in prop::sample::select(vec![
            "", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 20",
        ]),
        parts in prop::collection::vec(prop::sample::select(vec![
            "0", "1", "a", "\r\n", "\r", "\n", ";", ":", " ", "10", "é",
        ]), 0..40),
        piece in 1..9usize,
    ) {
        let text = format!("{head}{}", parts.concat());
        let outcome = |piece| answer(text.as_bytes(), piece)
            .map(|(response, keeps, rest)| (response.into_body(), keeps, rest));
        prop_assert_eq!(outcome(usize::MAX), outcome(piece));
    }

    #[test]
    fn what_was_cut_into_chunks_is_put_together(
        content in prop::collection::vec(any::<u8>(), 0..300),
        size in 1..50usize,
        piece in 1..50usize,
    ) {
        let mut text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for chunk in content.chunks(size) {
            text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        let (response, keeps, rest) = answer(&text, piece).expect("an answer");
        prop_assert_eq!(response.body().as_ref(), content.as_slice());
        prop_assert!(keeps && rest == 0);
    }
}
