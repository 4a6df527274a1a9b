//! A cache of hot resources, made of what is stored: it answers GET, LIST and WATCH in protobuf
//! as kube-apiserver 1.36 would, byte for byte, for clients whose certificate the front door has
//! proven. What it can't answer exactly goes on to a kube-apiserver, and is counted.
//!
//! The way of a read: [`plan`] (is it one that the cache knows?) → [`Access`] (may the client?
//! kube-apiserver says) → [`Shard`] (is what is known new enough? the store says) → [`table`]
//! (which objects, which events?) → [`stream`] and [`wire`] (their bytes). The core ([`table`],
//! [`feed`], [`wire`], [`selector`], [`query`]) has no clock and no sockets.

mod access;
mod etcd;
pub mod feed;
pub mod query;
pub mod selector;
mod shard;
mod store;
pub mod stream;
pub mod table;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

pub use access::{Access, Attributes};
pub use query::{Pass, Plan, plan};
pub use shard::Shard;
pub use store::{Store, StoreError};
pub use stream::Pieces;

use self::query::{Freshness, From};
use self::stream::Wants;
use self::table::{NoStart, Table};
use crate::api::RequestInfo;
use crate::authn::Identity;
use crate::upstream::Pool;

const OBJECT: &str = "application/vnd.kubernetes.protobuf";
const STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// A watch from a revision that the shard is about to learn of waits this long for it.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The kinds that can be cached.
pub const KINDS: [&wire::Kind; 1] = [&wire::PODS];

/// An answer.
pub struct Answer {
    /// Its content type.
    pub content_type: &'static str,
    /// How many bytes it has, where that is known.
    pub length: Option<usize>,
    /// The bytes.
    pub pieces: Pieces,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Caches of some resources.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Arc<Shard>>,
    access: Access,
}

impl Cache {
    /// Begins to follow the store for these resources, under kube-apiserver's `--etcd-prefix`.
    #[must_use]
    pub fn start(
        kinds: &[&'static wire::Kind],
        prefix: &str,
        store: &Store,
        token: &CancellationToken,
    ) -> Self {
        let shards: Vec<_> = kinds.iter().map(|kind| Arc::new(Shard::new(kind, prefix))).collect();
        for shard in &shards {
            tokio::spawn(shard.clone().run(store.clone(), token.clone()));
        }
        Self { shards, access: Access::default() }
    }

    /// The shard of the resource that a request is about.
    #[must_use]
    pub fn shard(&self, info: &RequestInfo<'_>) -> Option<&Arc<Shard>> {
        if !info.is_resource || !info.group.is_empty() {
            return None;
        }
        self.shards.iter().find(|shard| shard.kind.resource == info.resource)
    }

    /// Answers, or says why the request goes on to a kube-apiserver.
    pub async fn answer(
        &self,
        shard: &Shard,
        pool: &Pool,
        who: &Identity,
        what: &Attributes<'_>,
        plan: &Plan,
    ) -> Result<Answer, Pass> {
        if !self.access.knows_version(pool).await {
            return Err("version");
        }
        if !self.access.allows(pool, who, what).await {
            return Err("access");
        }
        match plan {
            Plan::Get { key, freshness } => {
                fresh(shard, *freshness).await?;
                let object = shard.read(|table| table.get(key)).ok_or("not-ready")?;
                let object = object.ok_or("not-found")?;
                let bytes = wire::object(shard.kind, &object.message, object.revision);
                Ok(whole(bytes))
            }
            Plan::List { filter, freshness } => {
                fresh(shard, *freshness).await?;
                let read = |table: &Table| (table.list(filter), table.revision());
                let (objects, revision) = shard.read(read).ok_or("not-ready")?;
                let (pieces, length) = stream::list(shard.kind, objects, revision);
                Ok(Answer { content_type: OBJECT, length: Some(length), pieces })
            }
            Plan::Watch { filter, from, bookmarks, timeout } => {
                let (after, marked) = match from {
                    From::After(revision) => {
                        let known = fresh(shard, Freshness::NotOlderThan(*revision));
                        // A revision from the future goes on, as one from the past does.
                        let _ = tokio::time::timeout(CATCH_UP, known).await;
                        (Some(*revision), false)
                    }
                    From::State { freshness, marked } => {
                        fresh(shard, *freshness).await?;
                        (None, *marked)
                    }
                };
                let start = shard.begin(|table| table.watch(filter, after)).ok_or("not-ready")?;
                let start = start.map_err(|reason| match reason {
                    NoStart::TooOld => "too-old",
                    NoStart::TooNew => "too-new",
                })?;
                let wants = Wants { bookmarks: *bookmarks, marked, timeout: *timeout };
                let pieces = stream::watch(shard.kind, filter.clone(), start, wants);
                Ok(Answer { content_type: STREAM, length: None, pieces })
            }
        }
    }
}

async fn fresh(shard: &Shard, freshness: Freshness) -> Result<(), Pass> {
    if shard.is_fresh(freshness).await { Ok(()) } else { Err("stale") }
}

fn whole(bytes: Bytes) -> Answer {
    let length = Some(bytes.len());
    let pieces = futures::stream::iter([bytes]).boxed();
    Answer { content_type: OBJECT, length, pieces }
}
