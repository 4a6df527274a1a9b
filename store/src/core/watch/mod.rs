//! Watches: cursors on the shared history.
//!
//! The sequencer keeps an index of who watches what. When it publishes a batch it *marks* each
//! watcher that an event concerns: it notes, in the watcher's stream, the first revision the
//! watcher has not been told of. A mark is one number for each watcher, however far behind it is;
//! the events themselves stay in [`History`](super::history::History), from where the stream's own
//! task reads them at its own pace.

mod cursor;
mod index;

pub use cursor::{Chunk, Cursor, Filter};
pub use index::{Mark, WatchIndex, WatchKey};
