//! `megacluster-store export`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinHandle;
use tracing::info;

use super::digest::{Digest, Scope, Sum};
use super::error::MigrateError;
use super::peer::{Keys, Peer, PeerFlags, retry};
use crate::core::KeyValue;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, request_op::Request,
};

/// The key by which a target is known to be an export's, and whose puts raise its revision. It holds
/// the source's cluster id in decimal.
const MARKER: &[u8] = b"megacluster-store/export";
/// Operations of one transaction, below etcd's default `--max-txn-ops` of 128, and bytes of one,
/// below its default `--max-request-bytes` of 1.5 MiB.
const BATCH_OPS: usize = 100;
const BATCH_BYTES: usize = 512 << 10;
/// Leases of so many seconds are kept alive each second, others every ten.
const SHORT_LEASE: i64 = 60;
/// Requests to the target side by side.
const SIDE_BY_SIDE: usize = 64;

/// Flags of `megacluster-store export`.
#[derive(Args, Clone, Debug, Default)]
pub struct ExportFlags {
    /// The store to read.
    #[command(flatten)]
    pub peer: PeerFlags,
    /// Endpoints of the etcd to write to; the first that answers is used.
    #[arg(long, value_delimiter = ',', required = true)]
    pub target_endpoints: Vec<String>,
    /// CAs of its certificate, PEM.
    #[arg(long)]
    pub target_cacert: Option<std::path::PathBuf>,
    /// Certificate to show it, PEM.
    #[arg(long)]
    pub target_cert: Option<std::path::PathBuf>,
    /// Key of that certificate, PEM.
    #[arg(long)]
    pub target_key: Option<std::path::PathBuf>,
    /// The last run, with the source's writers stopped: fails if the source moved on meanwhile, and
    /// takes the mark off the target.
    #[arg(long = "final")]
    pub last: bool,
    /// The most revisions to raise the target by, each by a put.
    #[arg(long, default_value_t = 10_000_000)]
    pub max_bump: i64,
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The source's revision.
    pub source_revision: i64,
    /// The target's, which is not lower.
    pub target_revision: i64,
    /// Puts and deletes that were needed.
    pub changed: u64,
    /// What both sides hold.
    pub verified: Sum,
}

/// Makes the target hold what the source holds. Run again, it writes only what differs.
///
/// # Errors
/// See [`MigrateError`].
pub async fn export(flags: &ExportFlags) -> Result<Exported, MigrateError> {
    let target_flags = PeerFlags {
        endpoints: flags.target_endpoints.clone(),
        cacert: flags.target_cacert.clone(),
        cert: flags.target_cert.clone(),
        key: flags.target_key.clone(),
    };
    let source = Peer::connect(&flags.peer).await?;
    let target = Peer::connect(&target_flags).await?;
    let (cluster, _) = source.now().await?;
    claim(&target, cluster).await?;
    let leases = source.all_leases().await?;
    // Behind the leases: a key of this revision whose lease is not in the list is a new one.
    let (_, revision) = source.now().await?;
    // Before all writes, so that each gets a revision above all that the source gave out.
    bump(&target, cluster, revision, flags.max_bump).await?;
    grant(&target, &leases).await?;
    let _kept = Kept::start(&target, &leases);
    let changed = write_differences(&source, &target, revision, &leases).await?;
    revoke(&target, &leases).await?;
    let (verified, target_revision) = verify(&source, &target, revision).await?;
    if flags.last {
        let (_, to) = source.now().await?;
        if to != revision {
            return Err(MigrateError::Moved { from: revision, to });
        }
        retry("take the mark off the target", || {
            let mut kv = target.kv();
            let request = DeleteRangeRequest { key: MARKER.into(), ..Default::default() };
            async move { kv.delete_range(request).await }
        })
        .await?;
    }
    Ok(Exported { source_revision: revision, target_revision, changed, verified })
}

/// Checks that the target is empty, or an export of this source, and marks it.
async fn claim(target: &Peer, cluster: u64) -> Result<(), MigrateError> {
    let ask = |key: Bytes, range_end: Bytes| {
        retry("look at the target", move || {
            let mut kv = target.kv();
            let (key, range_end) = (key.clone(), range_end.clone());
            let request = RangeRequest { key, range_end, limit: 2, ..Default::default() };
            async move { kv.range(request).await }
        })
    };
    let mark = Bytes::from(cluster.to_string());
    let marker = ask(MARKER.into(), Bytes::new()).await?.kvs;
    if marker.first().is_some_and(|kv| kv.value() == mark.as_ref()) {
        return Ok(());
    }
    let all = Bytes::from_static(b"\0");
    if !marker.is_empty() || !ask(all.clone(), all).await?.kvs.is_empty() {
        return Err(MigrateError::Foreign);
    }
    put_marker(target, mark).await.map(|_| ())
}

/// Gives the target's revision.
async fn put_marker(target: &Peer, value: Bytes) -> Result<i64, MigrateError> {
    let response = retry("mark the target", || {
        let mut kv = target.kv();
        let request = PutRequest { key: MARKER.into(), value: value.clone(), ..Default::default() };
        async move { kv.put(request).await }
    });
    Ok(response.await?.header.unwrap_or_default().revision)
}

/// Raises the target's revision to at least `revision`.
async fn bump(target: &Peer, cluster: u64, revision: i64, limit: i64) -> Result<(), MigrateError> {
    let mark = Bytes::from(cluster.to_string());
    loop {
        let (_, now) = target.now().await?;
        let needed = revision - now;
        if needed <= 0 {
            return Ok(());
        }
        if needed > limit {
            return Err(MigrateError::TooFar { needed, limit });
        }
        info!(revision, now, "raising the target's revision");
        stream::iter(0..needed)
            .map(|_| put_marker(target, mark.clone()))
            .buffer_unordered(SIDE_BY_SIDE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
    }
}

/// Grants what the target lacks.
async fn grant(target: &Peer, leases: &[(i64, i64)]) -> Result<(), MigrateError> {
    let there: HashSet<i64> = target.all_leases().await?.into_iter().map(|(id, _)| id).collect();
    let missing = leases.iter().filter(|(id, _)| !there.contains(id)).copied();
    stream::iter(missing)
        .map(|(id, ttl)| {
            retry("grant a lease", move || {
                let mut client = target.leases();
                async move { client.lease_grant(LeaseGrantRequest { id, ttl }).await }
            })
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .try_for_each(|_| async { Ok(()) })
        .await
}

/// Revokes what the source does not have (any more). No key of the source is on such a lease.
async fn revoke(target: &Peer, leases: &[(i64, i64)]) -> Result<(), MigrateError> {
    let wanted: HashSet<i64> = leases.iter().map(|(id, _)| *id).collect();
    for (id, _) in target.all_leases().await? {
        if !wanted.contains(&id) {
            retry("revoke a lease", || {
                let mut client = target.leases();
                async move { client.lease_revoke(LeaseRevokeRequest { id }).await }
            })
            .await?;
        }
    }
    Ok(())
}

/// Keeps the target's leases alive until the export is over: a short one would take its keys along
/// while others are still being written.
struct Kept(JoinHandle<()>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Kept {
    fn start(target: &Peer, leases: &[(i64, i64)]) -> Self {
        let (mut client, leases) = (target.leases(), leases.to_vec());
        let keep = async move {
            for second in 0_u64.. {
                let due = leases.iter().filter(|(_, ttl)| *ttl <= SHORT_LEASE || second % 10 == 0);
                let requests: Vec<_> =
                    due.map(|(id, _)| LeaseKeepAliveRequest { id: *id }).collect();
                let requests = stream::iter(requests);
                // A round that fails is made up for by the next.
                if let Ok(answers) = client.lease_keep_alive(requests).await {
                    let mut answers = answers.into_inner();
                    while let Ok(Some(_)) = answers.message().await {}
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        Self(tokio::spawn(keep))
    }
}

/// Both sides' keys in key order, one by one.
struct Side {
    keys: Keys,
    page: std::vec::IntoIter<KeyValue>,
}

impl Side {
    fn new(peer: &Peer, revision: i64) -> Self {
        Self { keys: peer.keys(revision, None), page: Vec::new().into_iter() }
    }

    async fn next(&mut self) -> Result<Option<KeyValue>, MigrateError> {
        loop {
            if let Some(kv) = self.page.next() {
                return Ok(Some(kv));
            }
            let Some((page, _)) = self.keys.page().await? else { return Ok(None) };
            self.page = page.into_iter();
        }
    }

    /// The next key that is not the export's own.
    async fn next_exported(&mut self) -> Result<Option<KeyValue>, MigrateError> {
        loop {
            match self.next().await? {
                Some(kv) if kv.key() == MARKER => {}
                other => return Ok(other),
            }
        }
    }
}

/// Puts and deletes what differs; gives how many it were.
async fn write_differences(
    source: &Peer,
    target: &Peer,
    revision: i64,
    leases: &[(i64, i64)],
) -> Result<u64, MigrateError> {
    let mut known: HashSet<i64> = leases.iter().map(|(id, _)| *id).chain([0]).collect();
    let (_, target_revision) = target.now().await?;
    let (mut theirs, mut ours) = (Side::new(source, revision), Side::new(target, target_revision));
    let (mut wanted, mut found) = (theirs.next_exported().await?, ours.next_exported().await?);
    let mut batches =
        Batches { target, waiting: Vec::new(), ops: Vec::new(), bytes: 0, changed: 0 };
    loop {
        let order = match (&wanted, &found) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(wanted), Some(found)) => wanted.key().cmp(found.key()),
        };
        if let Some(kv) = &wanted
            && order != Ordering::Greater
        {
            // A key that was put anew with the same value has a newer revision at the source; the
            // target's must not be below it.
            let is_same = |f: &KeyValue| {
                f.value() == kv.value()
                    && f.lease() == kv.lease()
                    && f.mod_revision() >= kv.mod_revision()
            };
            let same = order == Ordering::Equal && found.as_ref().is_some_and(is_same);
            if !same {
                if known.insert(kv.lease())
                    && let Some(lease) = source.granted(kv.lease()).await?
                {
                    grant(target, &[lease]).await?;
                }
                batches.put(kv).await?;
            }
        }
        if let Some(kv) = &found
            && order == Ordering::Greater
        {
            batches.delete(kv).await?;
        }
        if order != Ordering::Greater {
            wanted = theirs.next_exported().await?;
        }
        if order != Ordering::Less {
            found = ours.next_exported().await?;
        }
    }
    batches.finish().await
}

/// Operations on their way to the target. No key is in two of them, so their order is of no matter.
struct Batches<'a> {
    target: &'a Peer,
    /// Full transactions.
    waiting: Vec<Vec<RequestOp>>,
    ops: Vec<RequestOp>,
    bytes: usize,
    changed: u64,
}

impl Batches<'_> {
    async fn put(&mut self, kv: &KeyValue) -> Result<(), MigrateError> {
        let copy = Bytes::copy_from_slice;
        let (key, value, lease) = (copy(kv.key()), copy(kv.value()), kv.lease());
        let bytes = key.len() + value.len();
        let put = PutRequest { key, value, lease, ..Default::default() };
        self.add(Request::RequestPut(put), bytes).await
    }

    async fn delete(&mut self, kv: &KeyValue) -> Result<(), MigrateError> {
        let delete =
            DeleteRangeRequest { key: Bytes::copy_from_slice(kv.key()), ..Default::default() };
        self.add(Request::RequestDeleteRange(delete), kv.key().len()).await
    }

    async fn add(&mut self, request: Request, bytes: usize) -> Result<(), MigrateError> {
        if self.ops.len() == BATCH_OPS || (self.bytes + bytes > BATCH_BYTES && self.bytes > 0) {
            self.waiting.push(std::mem::take(&mut self.ops));
            self.bytes = 0;
        }
        self.ops.push(RequestOp { request: Some(request) });
        self.bytes += bytes;
        self.changed += 1;
        if self.waiting.len() < SIDE_BY_SIDE { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), MigrateError> {
        let target = self.target;
        stream::iter(std::mem::take(&mut self.waiting))
            .map(|success| {
                let txn = TxnRequest { success, ..Default::default() };
                retry("write to the target", move || {
                    let (mut kv, txn) = (target.kv(), txn.clone());
                    async move { kv.txn(txn).await }
                })
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    async fn finish(mut self) -> Result<u64, MigrateError> {
        if !self.ops.is_empty() {
            self.waiting.push(std::mem::take(&mut self.ops));
        }
        self.flush().await?;
        info!(changed = self.changed, "the target is written");
        Ok(self.changed)
    }
}

/// Reads both sides again and compares all that a client can write.
async fn verify(source: &Peer, target: &Peer, revision: i64) -> Result<(Sum, i64), MigrateError> {
    let (_, target_revision) = target.now().await?;
    let mut sums = Vec::new();
    for mut side in [Side::new(source, revision), Side::new(target, target_revision)] {
        let mut digest = Digest::new(Scope::Contents);
        while let Some(kv) = side.next_exported().await? {
            digest.add(&kv);
        }
        sums.push(digest.finish());
    }
    match <[Sum; 2]>::try_from(sums) {
        Ok([theirs, ours]) if theirs == ours => {
            info!(revision, target_revision, %ours, "verified");
            Ok((ours, target_revision))
        }
        Ok([theirs, ours]) => Err(MigrateError::Different { theirs, ours }),
        Err(_) => Err(MigrateError::Protocol("two sides".to_owned())),
    }
}
