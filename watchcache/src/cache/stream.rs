//! Answers as they are sent: a list in pieces, a watch as its events come.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::feed::{Event, Feed, Found};
use super::filter::Filter;
use super::form::Form;
use super::kinds::Kind;
use super::shard::Taken;
use super::table::{Object, Start};
use super::turns::Turn;
use super::wire::{ListMeta, Unsupported};

/// Bytes of an answer made at a time.
const PIECE: usize = 64 * 1024;
/// Bytes around an object in an event, about.
const AROUND: usize = 256;
/// Events read at a time.
const BATCH: usize = 64;
/// Bookmarks come about this often (`k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go`,
/// `defaultBookmarkFrequency`).
const BOOKMARK: Duration = Duration::from_mins(1);
/// Without `timeoutSeconds` a watch ends after this long or up to twice as long, as with
/// kube-apiserver's `--min-request-timeout`.
const MIN_TIMEOUT: Duration = Duration::from_mins(30);

/// The bytes of an answer; an error where an object can't be shown in the form that was asked for.
pub type Pieces = BoxStream<'static, Result<Bytes, Unsupported>>;

/// What an answer holds until it is sent.
#[derive(Debug, Default)]
pub struct Held {
    /// A turn, if its objects are many.
    pub turn: Option<Turn>,
    /// Room for objects that no table holds.
    pub room: Taken,
}

/// A list, and how many bytes it has where that is known.
#[must_use]
pub fn list(
    kind: &'static Kind,
    form: Form,
    objects: Vec<Arc<Object>>,
    meta: &ListMeta,
    held: Held,
) -> (Pieces, Option<usize>) {
    let mut begun = Vec::with_capacity(PIECE);
    let length = form.begin_list(&mut begun, kind, meta, objects.iter().map(|one| &**one));
    let end: Option<Arc<[u8]>> = form.list_end(kind, meta).map(Arc::from);
    let state = (Some((begun, true)), objects.into_iter());
    let pieces = stream::unfold(state, move |(begun, mut objects)| {
        let end = end.clone();
        async move {
            let (mut piece, mut first) = begun?;
            for object in objects.by_ref() {
                if let Err(error) = form.put_item(&mut piece, kind, &object, first) {
                    return Some((Err(error), (None, objects)));
                }
                first = false;
                if piece.len() >= PIECE {
                    let next = Some((Vec::with_capacity(PIECE), false));
                    return Some((Ok(piece.into()), (next, objects)));
                }
            }
            form.end_list(&mut piece, kind, first, end.as_deref());
            Some((Ok(piece.into()), (None, objects)))
        }
    });
    // It is the reader's turn until it has read all.
    let pieces = pieces.inspect(move |_| {
        let _held = &held;
    });
    (pieces.boxed(), length)
}

/// What a watch wants beside its events.
#[derive(Debug)]
pub struct Wants {
    /// Its connection.
    pub connection: usize,
    /// Its form.
    pub form: Form,
    /// A bookmark now and then.
    pub bookmarks: bool,
    /// A bookmark after the initial events.
    pub marked: bool,
    /// Its end.
    pub timeout: Option<Duration>,
    /// What is held until the objects that there are were told.
    pub held: Option<Box<Held>>,
}

struct Watch {
    kind: &'static Kind,
    form: Form,
    filter: Filter,
    feed: Arc<Feed>,
    changes: watch::Receiver<()>,
    /// All events up to this revision were told, or are in `objects` and `events`.
    cursor: u64,
    objects: std::vec::IntoIter<Arc<Object>>,
    events: std::vec::IntoIter<Arc<Event>>,
    held: Option<Box<Held>>,
    marked: bool,
    /// When the next bookmark is due, where there are any.
    bookmark: Option<Instant>,
    /// A bookmark is due once nothing else is.
    due: bool,
    /// There may be something to tell that no change of the feed tells of.
    unread: bool,
    end: Instant,
    alarm: Alarm,
}

/// Wakes a watch for its bookmarks and its end. A crowd is woken for each event; that a timer is
/// looked at each time too would cost as much as the event.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// Who is woken.
    armed: Option<Waker>,
}

impl Alarm {
    fn at(time: Instant) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(time)), armed: None }
    }

    fn set(&mut self, time: Instant) {
        self.sleep.as_mut().reset(time);
        self.armed = None;
    }

    /// Sees to it that the task is woken at that time. A timer never fires before it.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let waker = context.waker();
        let is_armed = self.armed.as_ref().is_some_and(|armed| armed.will_wake(waker));
        if is_armed && Instant::now() < self.sleep.deadline() {
            return Poll::Pending;
        }
        self.armed = Some(waker.clone());
        self.sleep.as_mut().poll(context)
    }
}

/// A watch.
#[must_use]
pub fn watch(kind: &'static Kind, filter: Filter, start: Start, wants: Wants) -> Pieces {
    let timeout =
        wants.timeout.unwrap_or_else(|| MIN_TIMEOUT.mul_f64(rand::random_range(1.0..2.0)));
    let now = Instant::now();
    let (end, bookmark) = (now + timeout, wants.bookmarks.then(|| now + BOOKMARK));
    let watch = Watch {
        kind,
        form: wants.form,
        filter,
        changes: start.feed.changes(wants.connection),
        feed: start.feed,
        cursor: start.revision,
        objects: start.objects.into_iter(),
        events: start.events.into_iter(),
        held: wants.held,
        marked: wants.marked,
        bookmark,
        due: false,
        unread: true,
        end,
        alarm: Alarm::at(bookmark.map_or(end, |bookmark| bookmark.min(end))),
    };
    // Boxed: it would be copied to and fro for each piece, and held twice.
    stream::unfold(Some(Box::new(watch)), |watch| async move {
        let mut watch = watch?;
        match watch.next().await? {
            Ok(piece) => Some((Ok(piece), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Watch {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Option<Result<Bytes, Unsupported>> {
        loop {
            // What the feed tells of from here on is told again.
            if std::mem::take(&mut self.unread) {
                match self.piece()? {
                    Ok(Some(piece)) => return Some(Ok(piece)),
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                }
            }
            let (news, alarm) = (&mut self.changes, &mut self.alarm);
            let mut changed = std::pin::pin!(news.changed());
            poll_fn(|context| match changed.as_mut().poll(context) {
                Poll::Ready(told) => Poll::Ready(told.ok()),
                Poll::Pending => alarm.poll(context).map(Some),
            })
            .await?;
            self.unread = true;
            // Also where the feed changes all the time.
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            if self.bookmark.is_some_and(|bookmark| now >= bookmark) {
                let next = now + BOOKMARK;
                (self.due, self.bookmark) = (true, Some(next));
                self.alarm.set(next.min(self.end));
            }
        }
    }

    /// What there is to tell now, if anything; none where what comes next is gone.
    fn piece(&mut self) -> Option<Result<Option<Bytes>, Unsupported>> {
        let mut piece = Vec::new();
        if let Err(error) = self.begin(&mut piece) {
            return Some(Err(error));
        }
        // The feed was not looked at.
        self.unread = !piece.is_empty();
        while piece.is_empty() {
            let Found::Events(events, reached) = self.feed.read(self.cursor, BATCH) else {
                return None;
            };
            self.unread = events.len() >= BATCH || self.due;
            // Rows are of the moment, and their first one tells columns.
            let alike = self.form.table.is_none();
            if let ([event], true) = (&events[..], alike && self.feed.is_crowded()) {
                self.cursor = reached.max(self.cursor);
                match self.shared(event) {
                    Ok(None) => continue,
                    told => return Some(told),
                }
            }
            for event in &events {
                if let Err(error) = self.put(&mut piece, event) {
                    return Some(Err(error));
                }
            }
            self.cursor = reached.max(self.cursor);
            if !events.is_empty() {
                continue;
            }
            self.unread = false;
            if !std::mem::take(&mut self.due) {
                return Some(Ok(None));
            }
            if let Err(error) = self.put_bookmark(&mut piece, false) {
                return Some(Err(error));
            }
        }
        Some(Ok(Some(piece.into())))
    }

    /// What comes before the events of the feed.
    fn begin(&mut self, piece: &mut Vec<u8>) -> Result<(), Unsupported> {
        // The objects of a node, say, are much alike.
        if let [first, ..] = self.objects.as_slice() {
            let size = self.objects.len() * (first.message.bytes().len() + AROUND);
            piece.reserve(size.min(PIECE + AROUND));
        }
        for object in self.objects.by_ref() {
            let what = (&object.message, object.revision);
            self.form.put_event(piece, self.kind, "ADDED", what)?;
            self.form = self.form.after_first();
            if piece.len() >= PIECE {
                return Ok(());
            }
        }
        while let Some(event) = self.events.next() {
            self.put(piece, &event)?;
            if piece.len() >= PIECE {
                return Ok(());
            }
        }
        // What they were is not held for as long as the watch lives.
        (self.objects, self.events) = (Vec::new().into_iter(), Vec::new().into_iter());
        self.held = None;
        if std::mem::take(&mut self.marked) {
            self.put_bookmark(piece, true)?;
        }
        Ok(())
    }

    fn put_bookmark(&mut self, piece: &mut Vec<u8>, marked: bool) -> Result<(), Unsupported> {
        self.form.put_bookmark(piece, self.kind, self.cursor, marked)?;
        self.form = self.form.after_first();
        Ok(())
    }

    fn put(&mut self, piece: &mut Vec<u8>, event: &Event) -> Result<(), Unsupported> {
        if self.put_in(piece, event)? {
            self.form = self.form.after_first();
        }
        Ok(())
    }

    /// Whether it is told anything of the event.
    fn put_in(&self, piece: &mut Vec<u8>, event: &Event) -> Result<bool, Unsupported> {
        let Some(told) = event.told(&self.filter) else { return Ok(false) };
        let (change, object) = told.parts();
        let what = (&object.message, event.revision);
        self.form.put_event(piece, self.kind, change.name(), what).map(|()| true)
    }

    /// An event that many are told.
    fn shared(&self, event: &Event) -> Result<Option<Bytes>, Unsupported> {
        let Some(told) = event.told(&self.filter) else { return Ok(None) };
        let (change, _) = told.parts();
        let make = || {
            let mut piece = Vec::new();
            self.put_in(&mut piece, event).map(|_| piece.into())
        };
        event.frame(self.form, change, make).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::selector::LabelSelector;
    use super::super::table::{Stored, Table};
    use super::super::{kinds, wire};
    use super::*;

    fn pod(label: &str, revision: u64) -> Stored {
        let kind = kinds::find("", "pods").unwrap();
        let value = wire::tests::stored("p", "n", &[("l", label)]);
        let (message, labels) = wire::read(kind, &value).unwrap();
        Stored { message, labels, indexed: None, revision }
    }

    /// What each of some watches is told of a pod that changes, changes its label and goes.
    async fn told(asked: &[(&str, Form)]) -> Vec<Vec<Bytes>> {
        let kind = kinds::find("", "pods").unwrap();
        let mut table = Table::new([("a/p".into(), pod("y", 1))], 1);
        let mut watches = Vec::new();
        for (labels, form) in asked {
            let filter =
                Filter { labels: LabelSelector::parse(labels).unwrap(), ..Filter::default() };
            let start = table.watch(&filter, Some(1)).unwrap();
            let wants = Wants {
                connection: watches.len(),
                form: *form,
                bookmarks: false,
                marked: false,
                timeout: Some(Duration::from_secs(5)),
                held: None,
            };
            watches.push((watch(kind, filter, start, wants), Vec::new()));
        }
        for (revision, after) in [(2, Some("y")), (3, Some("x")), (4, None)] {
            table.apply("a/p", after.map(|label| pod(label, revision)), revision);
            table.reach(revision);
            for (pieces, seen) in &mut watches {
                let next = tokio::time::timeout(Duration::from_millis(20), pieces.next());
                seen.extend(next.await.ok().flatten().map(Result::unwrap));
            }
        }
        watches.into_iter().map(|(_, seen)| seen).collect()
    }

    /// In a crowd, whose events are made once, everybody is told what they would be told alone.
    #[tokio::test(start_paused = true)]
    async fn in_a_crowd_as_alone() {
        let forms = [false, true].map(|json| Form { json, ..Form::default() });
        let partial = Form { metadata: true, ..Form::default() };
        let mut asked = vec![("", forms[0]); 9];
        for labels in ["l=x", "l!=x", "l=y", "l=z", ""] {
            asked.extend([(labels, forms[0]), (labels, forms[1]), (labels, partial)]);
        }
        for first in 0..asked.len() {
            asked.swap(0, first);
            let crowd = told(&asked).await;
            for (one, seen) in asked.iter().zip(crowd) {
                assert_eq!(told(&[*one]).await, [seen], "{one:?}");
            }
        }
    }
}
