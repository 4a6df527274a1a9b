//! A cache of hot resources, made of what is stored: it answers GET, LIST and WATCH in protobuf
//! and JSON as kube-apiserver 1.36 would, byte for byte, for clients whose certificate the front
//! door has proven. What it can't answer exactly goes on to a kube-apiserver, and is counted.
//!
//! The way of a read: [`plan`] (is it one that the cache knows?) → [`Access`] (may the client?
//! kube-apiserver says) → [`Shard`] (is what is known new enough? the store says) → [`table`]
//! (which objects, which events?) → [`stream`] and [`form`] (their bytes). The core ([`kinds`],
//! [`table`], [`feed`], [`filter`], [`form`], [`wire`], [`json`], [`page`], [`paging`], [`parts`],
//! [`query`]) has no clock and no sockets.

mod access;
pub mod alone;
mod answer;
mod call;
mod custom;
mod etcd;
pub mod feed;
pub mod filter;
pub mod form;
pub mod gzip;
pub mod json;
pub mod kinds;
pub mod page;
pub mod paging;
pub mod parts;
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

use http::HeaderMap;
use tokio_util::sync::CancellationToken;

pub use access::{Access, Attributes};
pub use custom::Name;
pub use form::Form;
pub use parts::{Parts, Source};
pub use query::{Gates, Pass, Plan, plan};
pub use shard::{Room, Shard, Taken};
pub use store::{Store, StoreError};
pub use stream::Pieces;
pub use subject::Subject;
pub use turns::{Bounds, Busy, Turns};
pub use wire::Unsupported;

use self::answer::Reading;
use self::custom::Custom;
use self::kinds::Kind;
use crate::api::RequestInfo;
use crate::authn::{Credentials, Identity};
use crate::upstream::Pool;

/// An answer.
pub struct Answer {
    /// Its content type.
    pub content_type: &'static str,
    /// How many bytes it has, where that is known.
    pub length: Option<usize>,
    /// Whether the bytes are compressed.
    pub gzip: bool,
    /// Whether its objects were read from the store, since no table here holds them.
    pub from_store: bool,
    /// The bytes.
    pub pieces: Pieces,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("length", &self.length).finish_non_exhaustive()
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
    room: Room,
    gates: Gates,
}

impl Cache {
    /// Begins to follow the store for these parts of these resources, under kube-apiserver's
    /// `--etcd-prefix`. It asks as `own` who may read them.
    #[must_use]
    pub fn start(
        (resources, parts): (&[Resource], Parts),
        prefix: &str,
        store: &Store,
        own: Identity,
        turns: Turns,
        token: &CancellationToken,
    ) -> Self {
        let (mut shards, mut customs) = (Vec::new(), Vec::new());
        for resource in resources {
            match resource {
                Resource::Kind(kind) => {
                    shards.push(Arc::new(Shard::new(kind, prefix).of_parts(parts)));
                }
                Resource::Custom(name) => {
                    customs.push(Arc::new(Custom::new(name.clone(), parts)));
                }
            }
        }
        for shard in &shards {
            tokio::spawn(shard.clone().run(store.clone(), token.clone()));
        }
        for custom in &customs {
            tokio::spawn(custom.clone().run(store.clone(), prefix.to_owned(), token.clone()));
        }
        Self {
            shards,
            customs,
            access: Access::new(own),
            turns,
            room: Room::default(),
            gates: Gates::default(),
        }
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
        let reading = Reading { cache: self, shard, who, bounds, connection };
        Ok((reading.answer(wanted).await?, reason))
    }
}
