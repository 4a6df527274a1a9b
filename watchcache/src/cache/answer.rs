//! From a plan to an answer: whether what is known is new enough, where the objects are, and what
//! is sent of them.

use std::time::Duration;

use futures::StreamExt;

use super::filter::Filter;
use super::form::{Asked, Form};
use super::gzip;
use super::kinds::Kind;
use super::page;
use super::query::{Freshness, From, Pass, Plan};
use super::stream::{self, Held, Wants};
use super::table::{OutOfReach, Page, Start, Window};
use super::wire::ListMeta;
use super::{Answer, Bounds, Cache, Pieces, Shard, Source, Subject, Unanswered, Wanted};

/// A watch from a revision that the shard is about to learn of waits this long for it.
const CATCH_UP: Duration = Duration::from_secs(1);

impl Answer {
    /// One that may be compressed, where its client accepts that and it is long enough.
    async fn compressible(
        content_type: &'static str,
        (pieces, length): (Pieces, Option<usize>),
        from_store: bool,
        accepted: bool,
    ) -> Self {
        if !accepted {
            return Self { content_type, length, gzip: false, from_store, pieces };
        }
        let (pieces, gzip) = gzip::worth_it(pieces, length).await;
        let length = length.filter(|_| !gzip);
        Self { content_type, length, gzip, from_store, pieces }
    }
}

/// One read, on its way to an answer.
pub(super) struct Reading<'a> {
    pub(super) cache: &'a Cache,
    pub(super) shard: &'a Shard,
    pub(super) who: &'a Subject,
    pub(super) bounds: Bounds,
    pub(super) connection: usize,
}

impl Reading<'_> {
    pub(super) async fn answer(&self, wanted: &Wanted) -> Result<Answer, Unanswered> {
        let (form, gzip) = (wanted.form, wanted.gzip);
        let source = self.shard.source(&wanted.plan);
        if matches!(source, Source::Part(_)) {
            return Err("part".into());
        }
        match &wanted.plan {
            Plan::Get { key, freshness } => self.get(key, *freshness, source, (form, gzip)).await,
            Plan::List { filter, freshness, window } => {
                self.list((filter, window), *freshness, source, (form, gzip)).await
            }
            Plan::Watch { filter, from, bookmarks, timeout } => {
                let (start, held, marked) = match from {
                    From::After(revision) => (self.after(filter, *revision).await?, None, false),
                    From::State { freshness, marked } => {
                        let (start, held) = self.state(filter, *freshness, source).await?;
                        (start, Some(held), *marked)
                    }
                };
                let (bookmarks, timeout) = (*bookmarks, *timeout);
                let (connection, held) = (self.connection, held.map(Box::new));
                let wants = Wants { connection, form, bookmarks, marked, timeout, held };
                let pieces = stream::watch(self.shard.kind, filter.clone(), start, wants);
                let pieces = self.shard.unless_refused(form, pieces)?;
                let content_type = form.content_type(Asked::Watch);
                let from_store = source != Source::Table;
                Ok(Answer { content_type, length: None, gzip: false, from_store, pieces })
            }
        }
    }

    async fn get(
        &self,
        key: &str,
        freshness: Freshness,
        source: Source,
        (form, gzip): (Form, bool),
    ) -> Result<Answer, Unanswered> {
        let (shard, from_store) = (self.shard, source != Source::Table);
        let object = if from_store {
            let one = Filter { key: Some(key.to_owned()), ..Filter::default() };
            let (all, room) = (Window::default(), &self.cache.room);
            shard.fetch(&one, &all, freshness, room).await?.0.objects.pop()
        } else {
            fresh(shard, freshness).await?;
            shard.read(|table| table.get(key)).ok_or("not-ready")?
        };
        let object = object.ok_or("not-found")?;
        let bytes = form.object(shard.kind, &object).map_err(|_| "content-type")?;
        let length = Some(bytes.len());
        let pieces = (futures::stream::iter([Ok(bytes)]).boxed(), length);
        let content_type = form.content_type(Asked::Get);
        Ok(Answer::compressible(content_type, pieces, from_store, gzip).await)
    }

    async fn list(
        &self,
        (filter, window): (&Filter, &Window),
        freshness: Freshness,
        source: Source,
        (form, gzip): (Form, bool),
    ) -> Result<Answer, Unanswered> {
        let (shard, from_store) = (self.shard, source != Source::Table);
        let (page, held) = if from_store {
            self.fetch((filter, window), freshness).await?
        } else {
            fresh(shard, freshness).await?;
            let held = self.expensive((filter, window))?;
            let page = shard.read(|table| table.page(filter, window)).ok_or("not-ready")?;
            (page.map_err(out_of_reach)?, held)
        };
        let meta = list_meta(shard.kind, &page, filter, form);
        let (pieces, length) = stream::list(shard.kind, form, page.objects, &meta, held);
        let pieces = (shard.unless_refused(form, pieces)?, length);
        let content_type = form.content_type(Asked::List);
        Ok(Answer::compressible(content_type, pieces, from_store, gzip).await)
    }

    /// A watch from a revision on.
    async fn after(&self, filter: &Filter, revision: u64) -> Result<Start, Unanswered> {
        let known = fresh(self.shard, Freshness::NotOlderThan(revision));
        // A revision from the future goes on, as one from the past does.
        let known = tokio::time::timeout(CATCH_UP, known).await;
        if self.shard.kind.custom && !matches!(known, Ok(Ok(()))) {
            return Err("stale".into());
        }
        self.begin(filter, Some(revision))
    }

    /// A watch from what there is.
    async fn state(
        &self,
        filter: &Filter,
        freshness: Freshness,
        source: Source,
    ) -> Result<(Start, Held), Unanswered> {
        if source == Source::Table {
            fresh(self.shard, freshness).await?;
            let held = self.expensive((filter, &Window::default()))?;
            return Ok((self.begin(filter, None)?, held));
        }
        let (page, held) = self.fetch((filter, &Window::default()), freshness).await?;
        // What came after that is among the events here, or will be.
        fresh(self.shard, Freshness::NotOlderThan(page.revision)).await?;
        let start = self.begin(filter, Some(page.revision))?;
        Ok((Start { objects: page.objects, ..start }, held))
    }

    fn begin(&self, filter: &Filter, after: Option<u64>) -> Result<Start, Unanswered> {
        let start = self.shard.begin(|table| table.watch(filter, after)).ok_or("not-ready")?;
        Ok(start.map_err(out_of_reach)?)
    }

    /// Takes a turn for what looks at many objects of the table.
    fn expensive(&self, (filter, window): (&Filter, &Window)) -> Result<Held, Unanswered> {
        let expensive = self.shard.read(|table| table.is_expensive(filter, window));
        let expensive = expensive.ok_or("not-ready")?;
        Ok(Held { turn: self.turn(expensive)?, ..Held::default() })
    }

    fn turn(&self, expensive: bool) -> Result<Option<super::turns::Turn>, Unanswered> {
        let take = || self.cache.turns.take(self.who, self.bounds);
        Ok(expensive.then(take).transpose()?)
    }

    /// Reads from the store, where all but small pages are expensive.
    async fn fetch(
        &self,
        (filter, window): (&Filter, &Window),
        freshness: Freshness,
    ) -> Result<(Page, Held), Unanswered> {
        let turn = self.turn(!window.is_small(filter))?;
        let read = self.shard.fetch(filter, window, freshness, &self.cache.room);
        let (page, room) = read.await?;
        Ok((page, Held { turn, room }))
    }
}

async fn fresh(shard: &Shard, freshness: Freshness) -> Result<(), Pass> {
    if shard.is_fresh(freshness).await { Ok(()) } else { Err("stale") }
}

fn out_of_reach(reason: OutOfReach) -> Pass {
    match reason {
        OutOfReach::TooOld => "too-old",
        OutOfReach::TooNew => "too-new",
    }
}

/// What a page says of itself; kube-apiserver continues after the last object it has given.
fn list_meta(kind: &Kind, page: &Page, filter: &Filter, form: Form) -> ListMeta {
    let namespace = filter.namespace.as_deref();
    let last = page.objects.last().filter(|_| page.more);
    let next = last.map(|last| page::encode(kind.cached, page.revision, &last.key, namespace));
    // What is made of a list of objects does not say it.
    let ranges = filter.ranges.as_ref().filter(|_| !form.metadata && form.table.is_none());
    ListMeta {
        version: page.revision,
        next: next.unwrap_or_default(),
        remaining: page.remaining,
        ranges: ranges.map(ToString::to_string),
    }
}
