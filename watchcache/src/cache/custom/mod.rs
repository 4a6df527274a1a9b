//! Custom resources: what is stored is JSON, and how it is shown a `CustomResourceDefinition` in the
//! store says, which may change at any time.
//!
//! [`Custom`] follows one resource by generations: it reads the definition and runs a shard for each
//! version. A shard reads the definition and its objects as of one revision, and watches both by one
//! stream: when the definition changes, the generation ends with all its watches, and requests go on
//! to a kube-apiserver for a moment. A read of the latest state looks at the definition itself.

mod definition;
mod meta;
mod object;
mod schema;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioExecutor;
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::definition::{Definition, Version};
use super::call::CallError;
use super::etcd::{Etcd, KeyValue, RangeRequest};
use super::parts::Parts;
use super::shard::Shard;
use super::store::Store;

pub(super) use self::object::{Rules, begin_list, list_end, put, put_bookmark, put_event};

/// Between looks at a definition that is not there, or that can't be answered by. And for so long
/// after a change kube-apiservers answer alone: each of them hears of it in its own time.
const PAUSE: Duration = Duration::from_secs(1);

/// The groups of Kubernetes' own resources, which no definition has.
const BUILT_IN: &str = include_str!("built-in-groups.txt");

/// The name of a custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// API group.
    pub group: String,
    /// The plural name.
    pub resource: String,
}

impl Name {
    /// A name that a custom resource may have: its group has a dot, and is none of Kubernetes' own.
    #[must_use]
    pub fn new(group: &str, resource: &str) -> Option<Self> {
        let label = |label: &str| {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let named = label(resource) && group.contains('.') && group.split('.').all(label);
        let own = BUILT_IN.lines().any(|own| own == group);
        (named && !own).then(|| Self { group: group.to_owned(), resource: resource.to_owned() })
    }
}

/// One custom resource.
#[derive(Debug)]
pub(super) struct Custom {
    name: Name,
    parts: Parts,
    shards: RwLock<Vec<Arc<Shard>>>,
}

impl Custom {
    pub(super) fn new(name: Name, parts: Parts) -> Self {
        Self { name, parts, shards: RwLock::default() }
    }

    /// Whether it is this resource.
    pub(super) fn is(&self, group: &str, resource: &str) -> bool {
        self.name.group == group && self.name.resource == resource
    }

    /// The shard of a version; none where nothing is known of it, or not now.
    pub(super) fn shard(&self, version: &str) -> Option<Arc<Shard>> {
        let shards = self.shards.read();
        let shard = shards.iter().find(|shard| shard.kind.version == version)?;
        shard.want();
        Some(shard.clone())
    }

    /// Follows the store until the token is cancelled. `prefix` is kube-apiserver's
    /// `--etcd-prefix`.
    pub(super) async fn run(
        self: Arc<Self>,
        store: Store,
        prefix: String,
        token: CancellationToken,
    ) {
        let key = key_of(&prefix, &self.name);
        loop {
            let definition = tokio::select! {
                () = token.cancelled() => return,
                definition = self.definition(&store, &key) => Arc::new(definition),
            };
            let generation = token.child_token();
            let mut tasks = JoinSet::new();
            let mut shards = Vec::new();
            let stored = |version: &&Version| version.served && version.storage;
            let stored = definition.versions.iter().any(|version| stored(&version));
            for version in definition.versions.iter().filter(|version| version.served) {
                let Some(kind) = definition.kind_of(version) else {
                    warn!(resource = self.full_name(), "it has changed its shape too often");
                    continue;
                };
                let rules = Rules { definition: definition.clone(), kind };
                let followed =
                    Followed::new(key.clone(), self.name.clone(), rules, generation.clone());
                // What is stored in another version is read again only where someone asks for it.
                let patient = stored && !version.storage;
                let shard = Shard::custom(followed, &prefix, patient);
                let shard = Arc::new(shard.of_parts(self.parts));
                tasks.spawn(shard.clone().run(store.clone(), generation.clone()));
                shards.push(shard);
            }
            if !shards.is_empty() {
                info!(resource = self.full_name(), versions = shards.len(), "custom resource");
            }
            self.shards.write().clone_from(&shards);
            if shards.is_empty() {
                // Nothing hears of a change then.
                tokio::time::sleep(PAUSE).await;
                generation.cancel();
            }
            generation.cancelled().await;
            self.shards.write().clear();
            // None of them reads anything anew after this.
            while tasks.join_next().await.is_some() {}
            for shard in shards {
                shard.forget();
            }
            if token.is_cancelled() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn full_name(&self) -> String {
        format!("{}.{}", self.name.resource, self.name.group)
    }

    /// Waits for a definition by which the cache can answer.
    async fn definition(&self, store: &Store, key: &Bytes) -> Definition {
        let mut told = "";
        loop {
            let why = match self.look(store, key, &mut told).await {
                Ok(definition) => return definition,
                Err(error) => error,
            };
            warn!(resource = self.full_name(), error = %why, "cache");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look(
        &self,
        store: &Store,
        key: &Bytes,
        told: &mut &'static str,
    ) -> Result<Definition, String> {
        let connected = store.connect(&TokioExecutor::new()).await;
        let etcd = connected.map_err(|error| error.to_string())?;
        loop {
            let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
            let answer = tokio::time::timeout(PAUSE * 5, etcd.range(range)).await;
            let answer = answer.map_err(|_| "no answer".to_owned())?;
            let answer = answer.map_err(|error| error.to_string())?;
            let parsed = match answer.kvs.first() {
                None => Err("there is no definition of it"),
                Some(kv) => Definition::parse(&kv.value, &self.name.group, &self.name.resource),
            };
            match parsed {
                Ok(definition) => return Ok(definition),
                Err(why) if why != std::mem::replace(told, why) => {
                    info!(resource = self.full_name(), why, "not cached");
                }
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Where a definition is stored.
fn key_of(prefix: &str, name: &Name) -> Bytes {
    let prefix = prefix.trim_end_matches('/');
    let Name { group, resource } = name;
    format!("{prefix}/apiextensions.k8s.io/customresourcedefinitions/{resource}.{group}").into()
}

/// The definition that a shard's objects are shown by.
#[derive(Debug)]
pub(super) struct Followed {
    /// Where it is stored.
    pub(super) key: Bytes,
    name: Name,
    pub(super) rules: Rules,
    /// The revision at which it was last seen to say the same.
    seen: AtomicI64,
    /// Ends the generation.
    pub(super) changed: CancellationToken,
}

impl Followed {
    pub(super) fn new(key: Bytes, name: Name, rules: Rules, changed: CancellationToken) -> Self {
        Self { key, name, rules, seen: AtomicI64::new(0), changed }
    }

    /// Whether what is stored makes the same answers still.
    pub(super) fn holds(&self, kv: Option<&KeyValue>) -> bool {
        let Name { group, resource } = &self.name;
        let Some(kv) = kv else { return false };
        let holds = Definition::parse(&kv.value, group, resource)
            .is_ok_and(|definition| definition == *self.rules.definition);
        if holds {
            self.seen.store(kv.mod_revision, Ordering::Release);
        }
        holds
    }

    /// The store's revision, unless the definition has changed by then.
    pub(super) async fn look(&self, etcd: &Etcd) -> Result<Option<i64>, CallError> {
        // Most often it is what it was: only its revision is read.
        for keys_only in [true, false] {
            let range =
                RangeRequest { key: self.key.clone(), keys_only, ..RangeRequest::default() };
            let answer = etcd.range(range).await?;
            let kv = answer.kvs.first();
            let seen = Some(self.seen.load(Ordering::Acquire));
            if kv.map(|kv| kv.mod_revision) == seen || (!keys_only && self.holds(kv)) {
                return Ok(answer.header.map(|header| header.revision));
            }
        }
        self.changed.cancel();
        Ok(None)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
