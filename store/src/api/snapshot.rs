//! `Snapshot`: etcd's database file, as `etcdctl snapshot save` wants it.
//!
//! The keys that lived at the compacted revision are gathered in pages: shared, not copied. The file
//! is then written, without a name, into the data directory (which must have room for it), and sent
//! from there at the client's pace. Writes go on all the while.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{Api, TERM, mismatch};
use crate::bolt::{BuildError, Compacted, Member, Snapshot};
use crate::core::{Command, Error, KeyRange, Reply};
use crate::pb::etcdserverpb::SnapshotResponse;

/// Bytes of keys and values of a page.
pub(super) const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of one answer, and answers that may wait for the client.
const BLOB: usize = 128 * 1024;
const OUTGOING: usize = 4;
/// How often it begins again behind compactions. Kubernetes compacts every five minutes.
pub(super) const TRIES: u32 = 4;
/// What the file says it is.
const STORAGE_VERSION: &str = "3.6.0";

pub(super) type Outgoing = mpsc::Sender<Result<SnapshotResponse, Status>>;
pub(super) type Answers = mpsc::Receiver<Result<SnapshotResponse, Status>>;

impl Api {
    /// Begins a snapshot; its answers come over the channel. One at a time: each takes disk.
    pub(super) fn begin_snapshot(&self) -> Result<Answers, Status> {
        let permit = self.inner.snapshots.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::from(Error::TooManyRequests))?;
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        tokio::spawn(run(self.clone(), outgoing, permit));
        Ok(answers)
    }

    /// Everything but the history, which is read when the file is written.
    async fn gather(&self) -> Result<Snapshot, Status> {
        // Before and behind: no lease of a key at this revision is left out.
        let mut leases = self.leases_now().await?;
        let status = self.status_now().await?;
        let mut base = Vec::new();
        if status.compacted > 0 {
            let mut next = Some(Bytes::from_static(b"\0"));
            while let Some(from) = next.take() {
                let command = Command::Page {
                    range: KeyRange::From(Bytes::from_static(b"\0")),
                    revision: status.compacted,
                    from,
                    max_bytes: PAGE_BYTES,
                };
                let Reply::Page(page) = self.ask(command, 0).await? else {
                    return Err(mismatch());
                };
                next = page.next;
                base.extend(page.kvs);
            }
        }
        leases.extend(self.leases_now().await?);
        let identity = &self.inner.identity;
        Ok(Snapshot {
            revision: status.revision,
            compacted: status.compacted,
            base,
            leases,
            member: Member {
                id: identity.member_id,
                peer_urls: identity.peer_urls.clone(),
                name: identity.name.clone(),
                client_urls: identity.client_urls.clone(),
            },
            index: u64::try_from(self.inner.handle.shared().batches()).unwrap_or(0).max(1),
            term: TERM,
        })
    }

    async fn leases_now(&self) -> Result<Vec<(i64, i64)>, Status> {
        let Reply::LeaseList(_, ids) = self.ask(Command::LeaseList, 0).await? else {
            return Err(mismatch());
        };
        let mut leases = Vec::with_capacity(ids.len());
        for id in ids {
            match self.ask(Command::LeaseView(id, false), 0).await? {
                Reply::LeaseView(_, Some(view)) => leases.push((id, view.granted_ttl)),
                Reply::LeaseView(_, None) => {}
                _ => return Err(mismatch()),
            }
        }
        Ok(leases)
    }

    async fn build(&self) -> Result<(File, u64), Status> {
        let mut tries = 1;
        loop {
            let built = match self.gather().await {
                Ok(snapshot) => {
                    let (revision, keys) = (snapshot.revision, snapshot.base.len());
                    info!(revision, keys, "writing an etcd snapshot");
                    let (handle, dir) = (self.inner.handle.clone(), self.inner.data_dir.clone());
                    spawn_blocking(move || snapshot.write(nameless(&dir)?, handle.history()))
                        .await
                        .map_err(|error| Status::internal(error.to_string()))?
                }
                Err(status) if is_compacted(&status) => Err(BuildError::Compacted(Compacted)),
                Err(status) => return Err(status),
            };
            match built {
                Ok(built) => return Ok(built),
                Err(BuildError::Compacted(_)) if tries < TRIES => tries += 1,
                Err(BuildError::Compacted(_)) => return Err(Error::Compacted.into()),
                Err(BuildError::Io(error)) => {
                    warn!(%error, "etcd snapshot not written");
                    return Err(Status::internal(format!(
                        "megacluster-store: the snapshot's file in the data directory: {error}"
                    )));
                }
            }
        }
    }
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message() == Error::Compacted.to_string()
}

/// A file that is gone with the last who has it open, however this process ends. Only between the
/// two calls could a kill leave it; its name is one that the next start removes.
fn nameless(dir: &Path) -> std::io::Result<File> {
    let path = dir.join(format!("snapshot-{:020}.tmp", u64::MAX));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

async fn run(api: Api, outgoing: Outgoing, permit: OwnedSemaphorePermit) {
    let result = match api.build().await {
        Ok((file, size)) => send(file, size, &outgoing).await,
        Err(status) => Err(status),
    };
    if let Err(status) = result {
        // Nobody waits any more: the client is gone.
        let _ = outgoing.send(Err(status)).await;
    }
    drop(permit);
}

/// Sends the file, then its SHA-256, which `etcdctl` appends to it (etcd
/// `server/etcdserver/api/v3rpc/maintenance.go`, `Snapshot`).
async fn send(file: File, size: u64, outgoing: &Outgoing) -> Result<(), Status> {
    let mut file = file;
    let mut left = size;
    let mut context = Context::new(&SHA256);
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(BLOB).min(BLOB);
        let read = spawn_blocking(move || {
            let mut blob = vec![0; length];
            file.read_exact(&mut blob).map(|()| (file, blob))
        });
        let (back, blob) =
            read.await.map_err(|error| Status::internal(error.to_string()))?.map_err(unreadable)?;
        file = back;
        left -= length as u64;
        context.update(&blob);
        let answer = SnapshotResponse {
            header: None,
            remaining_bytes: left,
            blob: blob.into(),
            version: STORAGE_VERSION.to_owned(),
        };
        if outgoing.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    let blob = Bytes::copy_from_slice(context.finish().as_ref());
    let version = STORAGE_VERSION.to_owned();
    let last = SnapshotResponse { header: None, remaining_bytes: 0, blob, version };
    let _ = outgoing.send(Ok(last)).await;
    info!(bytes = size, "etcd snapshot sent");
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: std::io::Error) -> Status {
    Status::internal(format!("megacluster-store: the snapshot's file: {error}"))
}
