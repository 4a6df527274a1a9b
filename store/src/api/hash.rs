//! `HashKV`: the checksum that etcd makes of the same history (etcd
//! `server/storage/mvcc/hash.go`), so that the two can be compared.
//!
//! It goes over the bucket of versions as etcd would have it: those above the compacted revision,
//! and of those at or below it the ones that are still the newest of their keys at the revision
//! asked for. What lives is gathered in pages, the rest is read off the sequencer.

use std::time::Instant;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tonic::Status;

use super::snapshot::{PAGE_BYTES, TRIES, is_compacted};
use super::{Api, mismatch};
use crate::bolt::{Compacted, Entries, each_version};
use crate::core::{Command, Error, History, KeyRange, KeyValue, Reply};
use crate::pb::etcdserverpb::HashKvResponse;

/// The name of the bucket, with which the checksum begins.
const BUCKET: &[u8] = b"key";

impl Api {
    /// The checksum at a revision; 0 is the newest.
    pub(super) async fn hash_at(&self, revision: i64) -> Result<HashKvResponse, Status> {
        // One at a time: each goes over all there is.
        let Ok(_turn) = self.inner.hashes.acquire().await else { return Err(mismatch()) };
        let began = Instant::now();
        let mut tries = 1;
        let response = loop {
            match self.try_hash(revision).await {
                // The next try says whether the revision itself is gone.
                Err(status) if tries < TRIES && is_compacted(&status) => tries += 1,
                result => break result?,
            }
        };
        self.inner.metrics.observe_hash(began.elapsed());
        Ok(response)
    }

    async fn try_hash(&self, revision: i64) -> Result<HashKvResponse, Status> {
        let status = self.status_now().await?;
        let (current, compacted) = (status.revision, status.compacted);
        if revision > 0 && revision < compacted {
            return Err(Error::Compacted.into());
        }
        if revision > current {
            return Err(Error::FutureRevision.into());
        }
        let at = if revision == 0 { current } else { revision };
        // As in etcd nothing is below 0, and nothing is refused.
        let hash = if at < 0 {
            crc32c::crc32c(BUCKET)
        } else {
            let base = self.base(compacted, at).await?;
            let handle = self.inner.handle.clone();
            spawn_blocking(move || sum(base, compacted, at, handle.history()))
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|Compacted| Status::from(Error::Compacted))?
        };
        Ok(HashKvResponse {
            header: Some(self.header(current)),
            hash,
            compact_revision: compacted,
            hash_revision: at,
        })
    }

    /// Versions at or below the compacted revision that count at a revision.
    async fn base(&self, compacted: i64, at: i64) -> Result<Vec<KeyValue>, Status> {
        if compacted <= 0 {
            return Ok(Vec::new());
        }
        let (base, lives) = self.living(at, compacted).await?;
        if lives {
            return Ok(base);
        }
        // Where no key is left, etcd leaves nothing out that its compaction kept.
        Ok(self.living(compacted, compacted).await?.0)
    }

    /// The keys that live at a revision and were last changed by `through`, and whether any key
    /// lives.
    async fn living(&self, at: i64, through: i64) -> Result<(Vec<KeyValue>, bool), Status> {
        let first = Bytes::from_static(b"\0");
        let (mut base, mut lives) = (Vec::new(), false);
        let mut next = Some(first.clone());
        while let Some(from) = next.take() {
            let range = KeyRange::From(first.clone());
            let command = Command::Page { range, revision: at, from, max_bytes: PAGE_BYTES };
            let Reply::Page(page) = self.ask(command, 0).await? else { return Err(mismatch()) };
            lives |= !page.kvs.is_empty();
            base.extend(page.kvs.into_iter().filter(|kv| kv.mod_revision() <= through));
            next = page.next;
        }
        Ok((base, lives))
    }
}

fn sum(
    mut base: Vec<KeyValue>,
    compacted: i64,
    at: i64,
    history: &History,
) -> Result<u32, Compacted> {
    // Keys come in key order; a stable sort leaves those of one revision so.
    base.sort_by_key(KeyValue::mod_revision);
    let mut entries = Entries::default();
    let mut sum = crc32c::crc32c(BUCKET);
    let mut add = |kv: &KeyValue| {
        let (key, value) = entries.entry(kv);
        sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, key), value);
    };
    for kv in base {
        add(&kv);
    }
    each_version(history, compacted, at, |kv| {
        add(kv);
        Ok::<(), Compacted>(())
    })?;
    Ok(sum)
}
