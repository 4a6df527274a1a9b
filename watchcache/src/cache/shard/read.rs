//! Reads of the store itself, of what a table of some parts does not hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::call::CallError;
use super::super::etcd::{Etcd, RangeRequest, RangeResponse};
use super::super::filter::Filter;
use super::super::paging::Paging;
use super::super::parts::Source;
use super::super::query::{Freshness, Pass, Plan};
use super::super::table::{Page, Window};
use super::{PAGE, PATIENCE, Shard, prefix_end};

/// gRPC's code for a revision that the store has not.
const OUT_OF_RANGE: &str = "11";
/// KiB of objects that are read from the store and not sent yet, of all reads of the process.
const ROOM: usize = 1 << 20;

/// Room for objects that are read from the store, which no table shares with other readers. At the
/// bound reads go on to a kube-apiserver.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

/// Room that a read has taken, given back when dropped.
#[derive(Debug, Default)]
pub struct Taken(Option<OwnedSemaphorePermit>);

impl Taken {
    /// Takes room for so many bytes more.
    fn more(&mut self, room: &Room, bytes: usize) -> Result<(), Pass> {
        let size = u32::try_from(bytes.div_ceil(1024)).map_err(|_| "room")?;
        let more = room.0.clone().try_acquire_many_owned(size).map_err(|_| "room")?;
        match &mut self.0 {
            Some(taken) => taken.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}

impl Shard {
    /// Where the objects are found that a plan needs.
    #[must_use]
    pub fn source(&self, plan: &Plan) -> Source {
        self.parts.source(self.indexed.is_some(), plan)
    }

    /// What is asked for, as the store has it: now and at least as new as asked, or at the
    /// window's revision.
    pub(in super::super) async fn fetch(
        &self,
        filter: &Filter,
        window: &Window,
        freshness: Freshness,
        room: &Room,
    ) -> Result<(Page, Taken), Pass> {
        let etcd = self.reads.read().clone().ok_or("stale")?;
        let (mut key, end) = self.span(filter, window);
        let mut revision = window.at.map_or(0, |at| i64::try_from(at).unwrap_or(i64::MAX));
        // As many as are looked at, for a page without selectors.
        let most = i64::try_from(window.limit).unwrap_or(PAGE);
        let limit = if filter.is_plain() && most > 0 { most.min(PAGE) } else { PAGE };
        let (mut paging, mut taken) = (None, Taken::default());
        loop {
            let range =
                RangeRequest { key, range_end: end.clone(), limit, revision, keys_only: false };
            let answer = range_of(&etcd, range).await?;
            if paging.is_none() {
                let header = answer.header.unwrap_or_default();
                if header.cluster_id != self.cluster.load(Ordering::Relaxed) {
                    return Err("stale");
                }
                if revision == 0 {
                    revision = header.revision;
                }
                let known = u64::try_from(revision).unwrap_or(0);
                if matches!(freshness, Freshness::NotOlderThan(asked) if asked > known) {
                    return Err("stale");
                }
                self.is_defined(&etcd).await?;
                paging = Some(Paging::new(filter, window, known));
            }
            let Some(page) = &mut paging else { return Err("stale") };
            let count = usize::try_from(answer.count).unwrap_or(0);
            let (mut bytes, mut wanted) = (0, true);
            for (place, kv) in answer.kvs.iter().enumerate() {
                let name = self.key(&kv.key).map_err(|_| "not-ready")?;
                let object = self.object(kv).map_err(|_| "not-ready")?.alone(name.into());
                let (size, before) = (object.message.bytes().len(), page.kept());
                wanted = page.take(Arc::new(object), count.saturating_sub(place + 1));
                bytes += if page.kept() > before { size } else { 0 };
                if !wanted {
                    break;
                }
            }
            taken.more(room, bytes)?;
            let last = answer.kvs.last().filter(|_| wanted && answer.more);
            let Some(last) = last else { break };
            key = [&last.key[..], &[0]].concat().into();
        }
        Ok((paging.map(Paging::end).unwrap_or_default(), taken))
    }

    /// The keys to look at: from, and up to but without; one key where that is empty.
    fn span(&self, filter: &Filter, window: &Window) -> (Bytes, Bytes) {
        if let Some(key) = &filter.key {
            return (format!("{}{key}", self.prefix).into(), Bytes::new());
        }
        let namespace = filter.namespace.as_ref().map(|name| format!("{name}/"));
        let scope = format!("{}{}", self.prefix, namespace.unwrap_or_default());
        let end = prefix_end(scope.as_bytes());
        let from = format!("{}{}", self.prefix, window.from);
        (scope.max(from).into(), end)
    }

    /// What a custom resource is shown by must be its definition of now, however old the objects
    /// are that are read.
    async fn is_defined(&self, etcd: &Etcd) -> Result<(), Pass> {
        let Some(custom) = &self.custom else { return Ok(()) };
        let range = RangeRequest { key: custom.key.clone(), ..RangeRequest::default() };
        let answer = range_of(etcd, range).await?;
        if custom.holds(answer.kvs.first()) { Ok(()) } else { Err("definition") }
    }
}

async fn range_of(etcd: &Etcd, range: RangeRequest) -> Result<RangeResponse, Pass> {
    let answer = tokio::time::timeout(PATIENCE, etcd.range(range)).await;
    answer.map_err(|_| "stale")?.map_err(|error| reason(&error))
}

/// Of a revision that the store has not, or not any more, kube-apiserver knows what to say.
fn reason(error: &CallError) -> Pass {
    match error {
        CallError::Status { code, message } if code == OUT_OF_RANGE => {
            if message.contains("compacted") { "too-old" } else { "too-new" }
        }
        _ => "stale",
    }
}
