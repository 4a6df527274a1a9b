//! A cache of hot resources, made of what is stored: it answers GET, LIST and WATCH in protobuf
//! and JSON as kube-apiserver 1.36 would, byte for byte, for clients whose certificate the front
//! door has proven. What it can't answer exactly goes on to a kube-apiserver, and is counted.
//!
//! The way of a read: [`plan`] (is it one that the cache knows?) → [`Access`] (may the client?
//! kube-apiserver says) → [`Shard`] (is what is known new enough? the store says) → [`table`]
//! (which objects, which events?) → [`stream`] and [`form`] (their bytes). The core ([`kinds`],
//! [`table`], [`feed`], [`filter`], [`form`], [`wire`], [`json`], [`page`], [`query`]) has no clock
//! and no sockets.

mod access;
pub mod alone;
mod custom;
mod etcd;
pub mod feed;
pub mod filter;
pub mod form;
pub mod gzip;
pub mod json;
pub mod kinds;
pub mod page;
pub mod query;
pub mod ranges;
pub mod selector;
mod shard;
mod store;
pub mod stream;
mod subject;
pub mod table;
pub mod turns;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::HeaderMap;
use tokio_util::sync::CancellationToken;

pub use access::{Access, Attributes};
pub use custom::Name;
pub use form::Form;
pub use query::{Gates, Pass, Plan, plan};
pub use shard::Shard;
pub use store::{Store, StoreError};
pub use stream::Pieces;
pub use subject::Subject;
pub use turns::{Bounds, Busy, Turns};
pub use wire::Unsupported;

use self::custom::Custom;
use self::filter::Filter;
use self::form::Asked;
use self::kinds::Kind;
use self::query::{Freshness, From};
use self::stream::Wants;
use self::table::{OutOfReach, Page, Window};
use self::wire::ListMeta;
use crate::api::RequestInfo;
use crate::authn::{Credentials, Identity};
use crate::upstream::Pool;

/// A watch from a revision that the shard is about to learn of waits this long for it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// An answer.
pub struct Answer {
    /// Its content type.
    pub content_type: &'static str,
    /// How many bytes it has, where that is known.
    pub length: Option<usize>,
    /// Whether the bytes are compressed.
    pub gzip: bool,
    /// The bytes.
    pub pieces: Pieces,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Answer {
    /// One that may be compressed, where its client accepts that and it is long enough.
    async fn compressible(
        content_type: &'static str,
        pieces: Pieces,
        length: Option<usize>,
        accepted: bool,
    ) -> Self {
        if !accepted {
            return Self { content_type, length, gzip: false, pieces };
        }
        let (pieces, gzip) = gzip::worth_it(pieces, length).await;
        Self { content_type, length: length.filter(|_| !gzip), gzip, pieces }
    }
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which objects or events.
    pub plan: Plan,
    /// In which form.
    pub form: Form,
    /// Whether the answer may be compressed.
    pub gzip: bool,
}

/// Why a request has no answer from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It goes on to a kube-apiserver.
    Pass(Pass),
    /// It is to come again later: to pass it on would only move the load.
    Busy(Busy),
}

impl std::convert::From<Pass> for Unanswered {
    fn from(reason: Pass) -> Self {
        Self::Pass(reason)
    }
}

impl std::convert::From<Busy> for Unanswered {
    fn from(bound: Busy) -> Self {
        Self::Busy(bound)
    }
}

/// A resource that is cached.
#[derive(Clone, Debug)]
pub enum Resource {
    /// One of Kubernetes' own.
    Kind(&'static Kind),
    /// A custom resource, of which the store holds a definition, or will.
    Custom(Name),
}

/// Caches of some resources.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Arc<Shard>>,
    customs: Vec<Arc<Custom>>,
    access: Access,
    turns: Turns,
    gates: Gates,
}

impl Cache {
    /// Begins to follow the store for these resources, under kube-apiserver's `--etcd-prefix`. It
    /// asks as `own` who may read them.
    #[must_use]
    pub fn start(
        resources: &[Resource],
        prefix: &str,
        store: &Store,
        own: Identity,
        turns: Turns,
        token: &CancellationToken,
    ) -> Self {
        let (mut shards, mut customs) = (Vec::new(), Vec::new());
        for resource in resources {
            match resource {
                Resource::Kind(kind) => shards.push(Arc::new(Shard::new(kind, prefix))),
                Resource::Custom(name) => customs.push(Arc::new(Custom::new(name.clone()))),
            }
        }
        for shard in &shards {
            tokio::spawn(shard.clone().run(store.clone(), token.clone()));
        }
        for custom in &customs {
            tokio::spawn(custom.clone().run(store.clone(), prefix.to_owned(), token.clone()));
        }
        Self { shards, customs, access: Access::new(own), turns, gates: Gates::default() }
    }

    /// With these gates open.
    #[must_use]
    pub fn with_gates(mut self, gates: Gates) -> Self {
        self.gates = gates;
        self
    }

    /// Which gates are open.
    #[must_use]
    pub fn gates(&self) -> Gates {
        self.gates
    }

    /// The shard of the resource that a request is about; none where that is not cached at all, and
    /// why the request goes on where it is not known now.
    #[must_use]
    pub fn shard(&self, info: &RequestInfo<'_>) -> Option<Result<Arc<Shard>, Pass>> {
        if !info.is_resource {
            return None;
        }
        let same = |shard: &&Arc<Shard>| {
            shard.kind.resource == info.resource && shard.kind.group == info.group
        };
        if let Some(shard) = self.shards.iter().find(same) {
            return Some(Ok(shard.clone()));
        }
        let custom = self.customs.iter().find(|one| one.is(info.group, info.resource))?;
        Some(custom.shard(info.version).ok_or("definition"))
    }

    /// Who asks; none where that is for kube-apiserver to say.
    pub async fn subject(
        &self,
        pool: &Pool,
        credentials: &Credentials,
        headers: &HeaderMap,
    ) -> Option<Arc<Subject>> {
        match credentials {
            Credentials::Identity(identity) => Subject::of(identity).map(Arc::new),
            Credentials::Token => self.access.who(pool, subject::bearer(headers)?).await,
            Credentials::Anonymous | Credentials::Refused => None,
        }
    }

    /// Answers, and says why the client is allowed to ask; or why the request goes on to a
    /// kube-apiserver.
    pub async fn answer(
        &self,
        shard: &Shard,
        pool: &Pool,
        who: &Subject,
        what: &Attributes<'_>,
        (wanted, bounds, connection): (&Wanted, Bounds, usize),
    ) -> Result<(Answer, Arc<str>), Unanswered> {
        if !self.access.knows_version(pool).await {
            return Err("version".into());
        }
        let reason = self.access.allows(pool, who, what).await.ok_or("access")?;
        Ok((self.shown(shard, who, wanted, (bounds, connection)).await?, reason))
    }

    async fn shown(
        &self,
        shard: &Shard,
        who: &Subject,
        wanted: &Wanted,
        (bounds, connection): (Bounds, usize),
    ) -> Result<Answer, Unanswered> {
        let (form, gzip) = (wanted.form, wanted.gzip);
        let turn = |expensive: bool| expensive.then(|| self.turns.take(who, bounds)).transpose();
        match &wanted.plan {
            Plan::Get { key, freshness } => {
                fresh(shard, *freshness).await?;
                let object = shard.read(|table| table.get(key)).ok_or("not-ready")?;
                let object = object.ok_or("not-found")?;
                let bytes = form.object(shard.kind, &object).map_err(|_| "content-type")?;
                let length = Some(bytes.len());
                let pieces = futures::stream::iter([Ok(bytes)]).boxed();
                Ok(Answer::compressible(form.content_type(Asked::Get), pieces, length, gzip).await)
            }
            Plan::List { filter, freshness, window } => {
                fresh(shard, *freshness).await?;
                let expensive = shard.read(|table| table.is_expensive(filter, window));
                let turn = turn(expensive.ok_or("not-ready")?)?;
                let page = shard.read(|table| table.page(filter, window)).ok_or("not-ready")?;
                let page = page.map_err(out_of_reach)?;
                let meta = list_meta(shard.kind, &page, filter, form);
                let (pieces, length) = stream::list(shard.kind, form, page.objects, &meta, turn);
                let pieces = shard.unless_refused(form, pieces)?;
                Ok(Answer::compressible(form.content_type(Asked::List), pieces, length, gzip).await)
            }
            Plan::Watch { filter, from, bookmarks, timeout } => {
                let (after, marked, turn) = match from {
                    From::After(revision) => {
                        let known = fresh(shard, Freshness::NotOlderThan(*revision));
                        // A revision from the future goes on, as one from the past does.
                        let known = tokio::time::timeout(CATCH_UP, known).await;
                        if shard.kind.custom && !matches!(known, Ok(Ok(()))) {
                            return Err("stale".into());
                        }
                        (Some(*revision), false, None)
                    }
                    From::State { freshness, marked } => {
                        fresh(shard, *freshness).await?;
                        let all = Window::default();
                        let expensive = shard.read(|table| table.is_expensive(filter, &all));
                        (None, *marked, turn(expensive.ok_or("not-ready")?)?)
                    }
                };
                let start = shard.begin(|table| table.watch(filter, after)).ok_or("not-ready")?;
                let start = start.map_err(out_of_reach)?;
                let (bookmarks, timeout) = (*bookmarks, *timeout);
                let turn = turn.map(Box::new);
                let wants = Wants { connection, form, bookmarks, marked, timeout, turn };
                let pieces = stream::watch(shard.kind, filter.clone(), start, wants);
                let pieces = shard.unless_refused(form, pieces)?;
                let content_type = form.content_type(Asked::Watch);
                Ok(Answer { content_type, length: None, gzip: false, pieces })
            }
        }
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
