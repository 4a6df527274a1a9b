//! Reading on another thread, so that checksums and decoding go on while the state is rebuilt.

use std::sync::mpsc::{Receiver, sync_channel};
use std::{io, thread};

use super::error::OpenError;

/// Items handed over at a time, and how many such chunks may wait.
const CHUNK: usize = 512;
const CHUNKS: usize = 8;

/// What the other thread read.
#[derive(Debug)]
struct Ahead<T> {
    /// `None` is sent behind the last chunk.
    chunks: Receiver<Option<Vec<T>>>,
    chunk: std::vec::IntoIter<T>,
    ended: bool,
}

/// Gives what `items` gives, read on a thread of its own.
pub fn read_ahead<T: Send + 'static>(
    items: impl Iterator<Item = Result<T, OpenError>> + Send + 'static,
) -> Result<impl Iterator<Item = Result<T, OpenError>>, OpenError> {
    let (sender, chunks) = sync_channel(CHUNKS);
    let read = move || {
        let mut items = items.peekable();
        while items.peek().is_some() {
            let chunk: Vec<_> = items.by_ref().take(CHUNK).collect();
            if sender.send(Some(chunk)).is_err() {
                // Nobody wants the rest.
                return;
            }
        }
        let _ = sender.send(None);
    };
    let builder = thread::Builder::new().name("recovery".to_owned());
    builder.spawn(read).map_err(|e| OpenError::io("start", "the thread that reads", e))?;
    Ok(Ahead { chunks, chunk: Vec::new().into_iter(), ended: false })
}

impl<T> Iterator for Ahead<Result<T, OpenError>> {
    type Item = Result<T, OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some(item) = self.chunk.next() {
                return Some(item);
            }
            match self.chunks.recv() {
                Ok(Some(chunk)) => self.chunk = chunk.into_iter(),
                Ok(None) => self.ended = true,
                Err(_) => {
                    // It did not come to its end: what was read is not all there is.
                    self.ended = true;
                    let cause = io::Error::other("it ended early");
                    return Some(Err(OpenError::io("join", "the thread that reads", cause)));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_items_come_in_order() {
        for count in [0, 1, CHUNK, 3 * CHUNK + 1] {
            let found: Result<Vec<usize>, _> = read_ahead((0..count).map(Ok)).unwrap().collect();
            assert_eq!(found.unwrap(), (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reader_that_dies_is_an_error_and_not_an_end() {
        let items = (0..CHUNK + 5).map(|n| {
            assert!(n < CHUNK + 3, "a fault of the test's");
            Ok(n)
        });
        let found: Vec<_> = read_ahead(items).unwrap().collect();
        assert_eq!(found.len(), CHUNK + 1);
        assert!(found.last().unwrap().is_err());
    }

    #[test]
    fn one_who_stops_reading_leaves_no_thread_waiting() {
        let mut items = read_ahead((0..100_000).map(Ok)).unwrap();
        assert_eq!(items.next().unwrap().unwrap(), 0);
        drop(items);
    }
}
