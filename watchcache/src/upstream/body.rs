//! The body of a request on its way to a backend: bounded, streamed, and for a small one kept
//! until the backend answers, so that a request which a backend refused can go to another.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::headers::strip_identity;

/// A body up to this size can be sent again.
const MAX_KEPT: usize = 64 * 1024;

/// A body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("the request's body is larger than allowed")]
    TooLarge,
    /// The client broke off.
    #[error("the client broke off: {0}")]
    Client(Box<dyn std::error::Error + Send + Sync>),
    /// The request is being sent to another backend.
    #[error("the request goes to another backend")]
    Superseded,
}

/// The client's body, from which the bodies of one or more attempts are made.
#[derive(Debug)]
pub struct RequestSource<B = Incoming> {
    shared: Option<Arc<Mutex<Shared<B>>>>,
    hint: SizeHint,
}

#[derive(Debug)]
struct Shared<B> {
    client: B,
    ended: bool,
    /// Bytes that may still come.
    left: u64,
    too_large: bool,
    /// What has come, as long as all of it is here.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    whole: bool,
    /// The attempt that may read.
    attempt: u32,
}

/// The body of one attempt.
#[derive(Debug, Default)]
pub enum RequestBody<B = Incoming> {
    /// There is none.
    #[default]
    Empty,
    /// What the client sends.
    Client(Attempt<B>),
    /// The front door's own, to be sent.
    Own(Option<Bytes>),
}

impl<B> RequestBody<B> {
    /// A body of the front door's own.
    #[must_use]
    pub fn own(bytes: Bytes) -> Self {
        Self::Own(Some(bytes))
    }
}

/// A reader of a [`RequestSource`].
#[derive(Debug)]
pub struct Attempt<B> {
    shared: Arc<Mutex<Shared<B>>>,
    hint: SizeHint,
    number: u32,
    next: usize,
    ended: bool,
}

impl<B> RequestSource<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self { shared: None, hint: SizeHint::with_exact(0) }
    }

    /// Takes a client's body of which at most `max` bytes go on.
    #[must_use]
    pub fn new(client: B, max: u64) -> Self {
        let hint = client.size_hint();
        if client.is_end_stream() {
            return Self { shared: None, hint };
        }
        let shared = Shared {
            client,
            ended: false,
            left: max,
            too_large: false,
            kept: VecDeque::new(),
            kept_bytes: 0,
            whole: true,
            attempt: 0,
        };
        Self { shared: Some(Arc::new(Mutex::new(shared))), hint }
    }

    /// A body for another attempt; the one before gives nothing more. None where what has been
    /// read is not kept.
    #[must_use]
    pub fn attempt(&self) -> Option<RequestBody<B>> {
        let Some(shared) = &self.shared else { return Some(RequestBody::Empty) };
        let mut source = shared.lock();
        if !source.whole {
            return None;
        }
        source.attempt += 1;
        Some(RequestBody::Client(Attempt {
            shared: shared.clone(),
            hint: self.hint,
            number: source.attempt,
            next: 0,
            ended: false,
        }))
    }

    /// Whether the client sent more than allowed.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.lock().too_large)
    }
}

impl<B> Shared<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll(
        &mut self,
        attempt: &mut AttemptPlace,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if attempt.number != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = self.kept.get(attempt.next) {
            attempt.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match std::task::ready!(Pin::new(&mut self.client).poll_frame(context)) {
            None => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.ended = true;
                self.whole = false;
                return Poll::Ready(Some(Err(BodyError::Client(error.into()))));
            }
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => Poll::Ready(Some(self.take_in(data, attempt).map(Frame::data))),
            Err(frame) => {
                self.whole = false;
                let Ok(mut trailers) = frame.into_trailers() else { return Poll::Ready(None) };
                strip_identity(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn take_in(&mut self, data: Bytes, attempt: &mut AttemptPlace) -> Result<Bytes, BodyError> {
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            self.too_large = true;
            self.whole = false;
            self.ended = true;
            return Err(BodyError::TooLarge);
        };
        self.left = left;
        if self.whole {
            self.kept_bytes += data.len();
            if self.kept_bytes <= MAX_KEPT {
                self.kept.push_back(data.clone());
                attempt.next += 1;
            } else {
                self.whole = false;
                self.kept = VecDeque::new();
                attempt.next = 0;
            }
        }
        Ok(data)
    }
}

struct AttemptPlace {
    number: u32,
    next: usize,
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let attempt = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Own(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Client(attempt) => attempt,
        };
        let mut place = AttemptPlace { number: attempt.number, next: attempt.next };
        let frame = attempt.shared.lock().poll(&mut place, context);
        attempt.next = place.next;
        attempt.ended |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(attempt) => attempt.ended,
            Self::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(attempt) => attempt.hint,
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;

    type Client =
        StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::io::Error>>>>;

    fn client(chunks: &[usize]) -> Client {
        let frames: Vec<_> = chunks
            .iter()
            .enumerate()
            .map(|(index, size)| {
                Ok(Frame::data(Bytes::from(vec![u8::try_from(index % 251).unwrap(); *size])))
            })
            .collect();
        StreamBody::new(futures::stream::iter(frames))
    }

    fn read(body: RequestBody<Client>, frames: usize) -> (RequestBody<Client>, Vec<u8>, bool) {
        futures::executor::block_on(async {
            let mut body = body;
            let mut bytes = Vec::new();
            for _ in 0..frames {
                match body.frame().await {
                    None => return (body, bytes, true),
                    Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                    Some(Err(_)) => return (body, bytes, false),
                }
            }
            (body, bytes, false)
        })
    }

    proptest! {
        /// However far the first attempt got, the second sends the same bytes, or there is none.
        #[test]
        fn attempts_send_the_same(
            chunks in proptest::collection::vec(1usize..20_000, 1..8),
            first in 0usize..10,
        ) {
            let expected: Vec<u8> = chunks
                .iter()
                .enumerate()
                .flat_map(|(index, size)| vec![u8::try_from(index % 251).unwrap(); *size])
                .collect();
            let source = RequestSource::new(client(&chunks), u64::MAX);
            let (old, sent, _) = read(source.attempt().unwrap(), first);
            prop_assert!(expected.starts_with(&sent));
            match source.attempt() {
                None => prop_assert!(sent.len() > MAX_KEPT),
                Some(body) => {
                    let (_, bytes, ended) = read(body, 100);
                    prop_assert!(ended);
                    prop_assert_eq!(bytes, expected);
                    let (_, late, ended) = read(old, 100);
                    prop_assert!(late.is_empty() && !ended);
                }
            }
        }

        #[test]
        fn no_more_than_the_bound_goes_on(
            chunks in proptest::collection::vec(1usize..100, 1..20),
            max in 0u64..1_000,
        ) {
            let total: usize = chunks.iter().sum();
            let source = RequestSource::new(client(&chunks), max);
            let (_, bytes, ended) = read(source.attempt().unwrap(), 100);
            prop_assert!(bytes.len() as u64 <= max);
            prop_assert_eq!(ended, total as u64 <= max);
            prop_assert_eq!(source.is_too_large(), total as u64 > max);
        }
    }
}
