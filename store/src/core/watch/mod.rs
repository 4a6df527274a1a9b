//! Watches: cursors on the shared history.
//!
//! The sequencer keeps an index of who watches what. When it publishes a batch it *marks* each
//! watcher that an event concerns: it notes, in the watcher's stream, from where to where in the
//! batch they lie, so that the stream's task looks at nothing else. A stream that falls behind keeps
//! one number for each of its watchers, the first revision it was not told of, however far that is;
//! the events themselves stay in [`History`](super::history::History), from where the stream's own
//! task reads them at its own pace.

mod cursor;
mod index;

pub use cursor::{Cursor, Filter, Picked};
pub use index::{Mark, WatchIndex, WatchKey};
