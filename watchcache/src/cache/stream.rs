//! Answers as they are sent: a list in pieces, a watch as its events come.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};

use super::feed::{Event, Feed, Found, Told};
use super::filter::Filter;
use super::kinds::Kind;
use super::table::{Object, Start};
use super::wire::{self, ListMeta};

/// Bytes of an answer made at a time.
const PIECE: usize = 64 * 1024;
/// Events read at a time.
const BATCH: usize = 64;
/// Bookmarks come about this often (`k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go`,
/// `defaultBookmarkFrequency`).
const BOOKMARK: Duration = Duration::from_mins(1);
/// Without `timeoutSeconds` a watch ends after this long or up to twice as long, as with
/// kube-apiserver's `--min-request-timeout`.
const MIN_TIMEOUT: Duration = Duration::from_mins(30);

/// The bytes of an answer.
pub type Pieces = BoxStream<'static, Bytes>;

/// A list, and how many bytes it has.
#[must_use]
pub fn list(kind: &'static Kind, objects: Vec<Arc<Object>>, meta: &ListMeta) -> (Pieces, usize) {
    let items = objects.iter().map(|one| wire::item_len(&one.message, one.revision)).sum();
    let mut begun = BytesMut::with_capacity(PIECE);
    let length = wire::begin_list(&mut begun, kind, meta, items);
    let state = (Some(begun), objects.into_iter());
    let pieces = stream::unfold(state, |(begun, mut objects)| async move {
        let mut piece = begun?;
        for object in objects.by_ref() {
            wire::put_item(&mut piece, &object.message, object.revision);
            if piece.len() >= PIECE {
                return Some((piece.freeze(), (Some(BytesMut::with_capacity(PIECE)), objects)));
            }
        }
        wire::end_list(&mut piece);
        Some((piece.freeze(), (None, objects)))
    });
    (pieces.boxed(), length)
}

/// What a watch wants beside its events.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// A bookmark now and then.
    pub bookmarks: bool,
    /// A bookmark after the initial events.
    pub marked: bool,
    /// Its end.
    pub timeout: Option<Duration>,
}

struct Watch {
    kind: &'static Kind,
    filter: Filter,
    feed: Arc<Feed>,
    changes: watch::Receiver<()>,
    /// All events up to this revision were told, or are in `objects` and `events`.
    cursor: u64,
    objects: std::vec::IntoIter<Arc<Object>>,
    events: std::vec::IntoIter<Arc<Event>>,
    marked: bool,
    bookmarks: Option<Interval>,
    /// A bookmark is due once nothing else is.
    due: bool,
    end: std::pin::Pin<Box<Sleep>>,
}

/// A watch.
#[must_use]
pub fn watch(kind: &'static Kind, filter: Filter, start: Start, wants: Wants) -> Pieces {
    let bookmarks = wants.bookmarks.then(|| {
        let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    });
    let timeout =
        wants.timeout.unwrap_or_else(|| MIN_TIMEOUT.mul_f64(rand::random_range(1.0..2.0)));
    let watch = Watch {
        kind,
        filter,
        changes: start.feed.changes(),
        feed: start.feed,
        cursor: start.revision,
        objects: start.objects.into_iter(),
        events: start.events.into_iter(),
        marked: wants.marked,
        bookmarks,
        due: false,
        end: Box::pin(tokio::time::sleep(timeout)),
    };
    stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        Some((piece, watch))
    })
    .boxed()
}

impl Watch {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut piece = BytesMut::new();
            self.begin(&mut piece);
            if !piece.is_empty() {
                return Some(piece.freeze());
            }
            self.changes.borrow_and_update();
            let Found::Events(events, reached) = self.feed.read(self.cursor, BATCH) else {
                return None;
            };
            let news = !events.is_empty();
            for event in &events {
                self.put(&mut piece, event);
            }
            self.cursor = reached.max(self.cursor);
            if !news && std::mem::take(&mut self.due) {
                wire::put_bookmark(&mut piece, self.kind, self.cursor, false);
            }
            if !piece.is_empty() {
                return Some(piece.freeze());
            }
            if news {
                continue;
            }
            let tick = async {
                match &mut self.bookmarks {
                    Some(bookmarks) => drop(bookmarks.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut self.end => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = tick => self.due = true,
            }
        }
    }

    /// What comes before the events of the feed.
    fn begin(&mut self, piece: &mut BytesMut) {
        for object in self.objects.by_ref() {
            wire::put_event(piece, self.kind, "ADDED", &object.message, object.revision);
            if piece.len() >= PIECE {
                return;
            }
        }
        while let Some(event) = self.events.next() {
            self.put(piece, &event);
            if piece.len() >= PIECE {
                return;
            }
        }
        if std::mem::take(&mut self.marked) {
            wire::put_bookmark(piece, self.kind, self.cursor, true);
        }
    }

    fn put(&self, piece: &mut BytesMut, event: &Event) {
        let (what, object) = match event.told(&self.filter) {
            None => return,
            Some(Told::Added(object)) => ("ADDED", object),
            Some(Told::Modified(object)) => ("MODIFIED", object),
            Some(Told::Deleted(object)) => ("DELETED", object),
        };
        wire::put_event(piece, self.kind, what, &object.message, event.revision);
    }
}
