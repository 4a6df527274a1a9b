//! Large answers by gzip, at kube-apiserver's level and from its size on, for clients that accept it
//! (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/writers.go`). Watches never are.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream::{self, StreamExt};
use http::{HeaderMap, header};

use super::stream::Pieces;
use super::wire::Unsupported;

/// An answer of more bytes is compressed (`defaultGzipThresholdBytes`).
const THRESHOLD: usize = 128 * 1024;
/// `defaultGzipContentEncodingLevel`.
const LEVEL: u32 = 1;
/// Compressed bytes sent at a time, about.
const PIECE: usize = 32 * 1024;

/// Whether a client accepts it, as `negotiateContentEncoding` reads that: a token alone, without a
/// weight, in the first header of that name.
#[must_use]
pub fn is_accepted(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|value| value.split(',').any(|token| token.trim() == "gzip"))
}

/// An answer's bytes, compressed where they are long enough, and whether they are.
pub async fn worth_it(pieces: Pieces, length: Option<usize>) -> (Pieces, bool) {
    if let Some(length) = length {
        return if length > THRESHOLD { (compressed(pieces), true) } else { (pieces, false) };
    }
    // It may have ended by the time it is known to be short.
    let mut pieces = pieces.fuse();
    let (mut begun, mut length) = (Vec::new(), 0);
    while let Some(piece) = pieces.next().await {
        // An answer that breaks off does so before the client, too.
        let broken = piece.is_err();
        length += piece.as_ref().map_or(0, Bytes::len);
        begun.push(piece);
        if broken || length > THRESHOLD {
            break;
        }
    }
    let all = stream::iter(begun).chain(pieces).boxed();
    if length > THRESHOLD { (compressed(all), true) } else { (all, false) }
}

fn compressed(pieces: Pieces) -> Pieces {
    let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
    stream::unfold(Some((pieces, encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        // Memory has room, as long as there is a process.
        let failed = |_| Unsupported { kind: "an answer", problem: "its compression" };
        while let Some(piece) = pieces.next().await {
            let written = match piece {
                Ok(piece) => encoder.write_all(&piece).map_err(failed),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                return Some((Err(error), None));
            }
            if encoder.get_ref().len() >= PIECE {
                let piece = std::mem::take(encoder.get_mut());
                return Some((Ok(Bytes::from(piece)), Some((pieces, encoder))));
            }
        }
        Some((encoder.finish().map(Bytes::from).map_err(failed), None))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http::HeaderValue;

    use super::*;

    fn accepts(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        is_accepted(&headers)
    }

    #[test]
    fn who_accepts_it() {
        assert!(!is_accepted(&HeaderMap::new()));
        for yes in ["gzip", "deflate, gzip", " gzip ,br"] {
            assert!(accepts(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=1", "GZIP", "*", "x-gzip"] {
            assert!(!accepts(no), "{no}");
        }
    }

    fn answer(length: usize) -> Pieces {
        let whole = Bytes::from(b"0123456789 ".repeat(length / 11 + 1)).slice(..length);
        let pieces: Vec<_> = whole.chunks(50_000).map(|piece| Ok(whole.slice_ref(piece))).collect();
        // As an answer's own bytes come, which must not be asked for again after their end.
        let next =
            |mut pieces: std::vec::IntoIter<_>| async move { Some((pieces.next()?, pieces)) };
        stream::unfold(pieces.into_iter(), next).boxed()
    }

    async fn whole(pieces: Pieces) -> Vec<u8> {
        let pieces: Vec<_> = pieces.collect().await;
        pieces.into_iter().flat_map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn long_answers_are_compressed_and_come_back() {
        for (length, expected) in
            [(0, false), (THRESHOLD, false), (THRESHOLD + 1, true), (3_000_000, true)]
        {
            for known in [Some(length), None] {
                let (pieces, gzip) = worth_it(answer(length), known).await;
                assert_eq!(gzip, expected, "{length}");
                let sent = whole(pieces).await;
                let mut seen = Vec::new();
                if gzip {
                    assert!(sent.len() < length / 2);
                    flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut seen).unwrap();
                } else {
                    seen.extend(sent);
                }
                assert_eq!(seen, whole(answer(length)).await);
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_still_does() {
        let broken = Unsupported { kind: "Pod", problem: "a test" };
        for before in [0, 2 * THRESHOLD] {
            let pieces = answer(before).chain(stream::iter([Err(broken)])).boxed();
            let (pieces, _) = worth_it(pieces, None).await;
            assert!(pieces.collect::<Vec<_>>().await.last().is_some_and(Result::is_err));
        }
    }
}
