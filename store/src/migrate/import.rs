//! `megacluster-store import`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use super::digest::{Digest, Scope, Sum};
use super::error::MigrateError;
use super::peer::{Peer, PeerFlags};
use super::progress::{Phase, Progress};
use super::staging::Staging;
use crate::core::{KeyRange, KeyValue, State, Want};
use crate::log::{Class, Log, LogConfig, Record, Recovered, SnapshotItem, SnapshotMeta};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest};
use crate::pb::mvccpb;

/// How often the copy begins anew when the source compacts the revision that is copied. It does so
/// every five minutes under Kubernetes, and ten minutes are enough for a gigabyte many times over.
const COPIES: u32 = 3;
/// How often a watch is opened again without any news in between.
const WATCHES: u32 = 5;
/// After so long without news the source is asked how far it is; and the watch is opened again when
/// it has been asked so often in vain.
const SILENCE: Duration = Duration::from_secs(1);
const QUESTIONS: u32 = 30;
/// Keys of a page in which our own copy is read for verification.
const OWN_PAGE: usize = 4096;

/// Flags of `megacluster-store import`.
#[derive(Args, Clone, Debug, Default)]
pub struct ImportFlags {
    /// The data directory to make: a new one, or that of an import that was begun before.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Do not read both sides again at the end and compare them.
    #[arg(long)]
    pub skip_verification: bool,
    /// The etcd to read.
    #[command(flatten)]
    pub peer: PeerFlags,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The source's revision, and the data directory's.
    pub revision: i64,
    /// Revisions that were followed after the copy, in this run.
    pub followed: u64,
    /// What both sides hold, unless verification was skipped.
    pub verified: Option<Sum>,
}

/// Copies an etcd into a data directory, up to the revision that it has by then. Run again on the
/// same directory, it follows on.
///
/// # Errors
/// See [`MigrateError`]. The directory can't be served until a run ends well.
pub async fn import(flags: &ImportFlags) -> Result<Imported, MigrateError> {
    let source = Peer::connect(&flags.peer).await?;
    let (cluster, revision) = source.now().await?;
    let dir = flags.data_dir.as_path();
    let mut progress = if let Some(progress) = Progress::load(dir)? {
        progress
    } else {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(dir).map_err(MigrateError::file("create", dir))?;
        let progress = Progress::new(cluster, revision);
        progress.save(dir)?;
        progress
    };
    if progress.cluster != cluster {
        let (found, asked) = (progress.cluster, cluster);
        return Err(MigrateError::OtherCluster { dir: dir.into(), found, asked });
    }
    let mut copies = 0;
    loop {
        let (log, recovered) = Log::open(dir, LogConfig::default())?;
        let run =
            Run { dir, source: &source, progress: &mut progress, log, leases: HashSet::new() };
        match run.follow_on(recovered).await {
            Ok(followed) => {
                let revision = progress.revision;
                let verified = if flags.skip_verification {
                    None
                } else {
                    Some(verify(dir, &source, revision).await?)
                };
                progress.phase = Phase::Done;
                progress.save(dir)?;
                return Ok(Imported { revision, followed, verified });
            }
            Err(MigrateError::Compacted { what, revision }) if copies < COPIES => {
                copies += 1;
                warn!(what, revision, "compacted at the source: the copy begins anew");
                progress = begin_anew(dir, cluster, source.now().await?.1)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Empties the directory but for the note that it is an import.
fn begin_anew(dir: &Path, cluster: u64, revision: i64) -> Result<Progress, MigrateError> {
    let progress = Progress::new(cluster, revision);
    progress.save(dir)?;
    Staging::remove(dir)?;
    for entry in std::fs::read_dir(dir).map_err(MigrateError::file("list", dir))? {
        let entry = entry.map_err(MigrateError::file("list", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("log-") || name.starts_with("snapshot-") {
            std::fs::remove_file(entry.path())
                .map_err(MigrateError::file("remove", entry.path()))?;
        }
    }
    Ok(progress)
}

/// One go at it, with the directory locked.
struct Run<'a> {
    dir: &'a Path,
    source: &'a Peer,
    progress: &'a mut Progress,
    log: Log,
    /// Leases in the log.
    leases: HashSet<i64>,
}

impl Run<'_> {
    /// From wherever the directory is to the source's revision; gives how many revisions were
    /// followed. `progress.revision` is then that revision.
    async fn follow_on(mut self, recovered: Recovered) -> Result<u64, MigrateError> {
        let (_, target) = self.source.now().await?;
        let from = if self.progress.phase == Phase::Base {
            self.copy().await?;
            self.progress.revision
        } else {
            self.read_leases(&mut { recovered.snapshot }, recovered.records)?;
            recovered.start_revision
        };
        if target < from && self.progress.phase == Phase::Follow {
            let (source_revision, imported) = (target, from);
            return Err(MigrateError::WentBack { source_revision, imported });
        }
        self.progress.phase = Phase::Follow;
        self.progress.save(self.dir)?;
        // In this order: a lease that is not listed was revoked before, with its keys, at a
        // revision that is followed.
        let living = self.source.all_leases().await?;
        let (_, target) = self.source.now().await?;
        for (id, ttl) in &living {
            self.grant(*id, *ttl)?;
        }
        let (followed, reached) = self.follow(from, target).await?;
        let living: HashSet<i64> = living.into_iter().map(|(id, _)| id).collect();
        for id in self.leases.difference(&living) {
            // One that came while we followed lives on.
            if self.source.granted(*id).await?.is_none() {
                self.log.append(Class::Fsync, &Record::LeaseRevoke { id: *id })?;
            }
        }
        self.progress.revision = reached;
        self.log.close(self.progress.revision, false)?;
        info!(revision = self.progress.revision, followed, "caught up with the source");
        Ok(followed)
    }

    /// Copies everything at the pinned revision into a snapshot of the log.
    async fn copy(&mut self) -> Result<(), MigrateError> {
        let revision = self.progress.revision;
        let mut staging = Staging::open(self.dir)?;
        if staging.keys > 0 {
            info!(keys = staging.keys, revision, "going on with a copy that was begun");
        }
        if !staging.complete {
            let start = staging.last.as_deref().map(super::peer::after);
            let mut keys = self.source.keys(revision, start);
            let mut told = staging.keys;
            while let Some((kvs, more)) = keys.page().await? {
                staging.add(kvs, more)?;
                if staging.keys - told >= 100_000 {
                    told = staging.keys;
                    info!(keys = told, revision, "copying");
                }
            }
        }
        let leases = self.source.all_leases().await?;
        let meta = SnapshotMeta { revision, compact_revision: revision };
        let mut snapshot = self.log.begin_snapshot(meta)?;
        for (id, ttl) in leases {
            snapshot.lease(id, ttl)?;
            self.leases.insert(id);
        }
        let mut pages = staging.pages()?;
        let mut keys = 0;
        while let Some(page) = pages.next_page()? {
            keys += page.kvs.len() as u64;
            for kv in page.kvs {
                snapshot.key(&kv)?;
            }
        }
        if keys != staging.keys {
            staging.clear()?;
            let reason = format!("{keys} keys of {} are readable", staging.keys);
            return Err(MigrateError::Progress { path: self.dir.join("import.keys"), reason });
        }
        let done = snapshot.finish()?;
        done.truncate_behind()?;
        self.progress.phase = Phase::Follow;
        self.progress.save(self.dir)?;
        Staging::remove(self.dir)?;
        info!(keys, revision, "copied");
        Ok(())
    }

    /// Which leases the log holds.
    fn read_leases(
        &mut self,
        snapshot: &mut Option<crate::log::SnapshotReader>,
        records: crate::log::RecordReader,
    ) -> Result<(), MigrateError> {
        for item in snapshot.iter_mut().flatten() {
            // Leases come first.
            let SnapshotItem::Lease { id, .. } = item? else { break };
            self.leases.insert(id);
        }
        for record in records {
            match record? {
                Record::LeaseGrant { id, .. } => {
                    self.leases.insert(id);
                }
                Record::LeaseRevoke { id } => {
                    self.leases.remove(&id);
                }
                Record::Txn { .. } | Record::Compact { .. } => {}
            }
        }
        Ok(())
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<(), MigrateError> {
        if self.leases.insert(id) {
            self.log.append(Class::Fsync, &Record::LeaseGrant { id, ttl })?;
        }
        Ok(())
    }

    /// Writes every revision after `from` up to `target` (and what comes with it) to the log. Gives
    /// how many there were, and the last.
    async fn follow(&mut self, from: i64, target: i64) -> Result<(u64, i64), MigrateError> {
        let mut reached = from;
        let mut followed = 0;
        let mut silent = 0;
        while reached < target {
            let before = reached;
            match self.watch(&mut reached, target, &mut followed).await {
                Ok(()) => {}
                Err(MigrateError::Request { what, status }) if silent < WATCHES => {
                    warn!(what, error = status.message(), "watching again");
                }
                Err(error) => return Err(error),
            }
            silent = if reached == before { silent + 1 } else { 0 };
            if silent > WATCHES {
                return Err(MigrateError::Protocol(format!(
                    "the source does not tell what happened after revision {reached}"
                )));
            }
        }
        Ok((followed, reached))
    }

    /// One watch, until the target is reached or the stream ends.
    async fn watch(
        &mut self,
        reached: &mut i64,
        target: i64,
        followed: &mut u64,
    ) -> Result<(), MigrateError> {
        let failed = |status: tonic::Status| MigrateError::Request {
            what: "watch",
            status: Box::new(status),
        };
        let create = WatchCreateRequest {
            key: b"\0"[..].into(),
            range_end: b"\0"[..].into(),
            start_revision: *reached + 1,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let ask = |union| WatchRequest { request_union: Some(union) };
        let (requests, outgoing) = mpsc::channel(QUESTIONS as usize + 1);
        // There is room: nothing else is in the channel.
        let _ = requests.try_send(ask(RequestUnion::CreateRequest(create)));
        let opened = self.source.watch().watch(ReceiverStream::new(outgoing)).await;
        let mut answers = opened.map_err(failed)?.into_inner();
        let mut questions = 0;
        // The revision whose events are coming in: it may go over several fragments.
        let mut open: Vec<mvccpb::Event> = Vec::new();
        while *reached < target {
            let Ok(answer) = timeout(SILENCE, answers.message()).await else {
                questions += 1;
                let progress = ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                if questions > QUESTIONS || requests.try_send(progress).is_err() {
                    return Ok(());
                }
                continue;
            };
            let Some(answer) = answer.map_err(failed)? else { return Ok(()) };
            if answer.compact_revision > 0 {
                return Err(MigrateError::Compacted { what: "watch", revision: *reached + 1 });
            }
            if answer.canceled {
                return Err(MigrateError::Protocol(format!(
                    "the watch was cancelled: {}",
                    answer.cancel_reason
                )));
            }
            let revision_of = |event: &mvccpb::Event| event.kv.as_ref().map(KeyValue::mod_revision);
            for event in answer.events {
                if open
                    .first()
                    .and_then(revision_of)
                    .is_some_and(|r| Some(r) != revision_of(&event))
                {
                    *reached = self.write(std::mem::take(&mut open)).await?;
                    *followed += 1;
                }
                open.push(event);
            }
            if !answer.fragment && !open.is_empty() {
                *reached = self.write(std::mem::take(&mut open)).await?;
                *followed += 1;
            }
            // Progress: nothing happened up to there that was not told.
            let header = answer.header.unwrap_or_default();
            if answer.watch_id == -1 && !answer.created && !answer.fragment {
                *reached = header.revision.max(*reached);
            }
            self.log.sync()?;
        }
        Ok(())
    }

    /// Writes the events of one revision as one transaction.
    async fn write(&mut self, events: Vec<mvccpb::Event>) -> Result<i64, MigrateError> {
        let mut ops = Vec::with_capacity(events.len());
        let mut revision = 0;
        for event in events {
            let Some(kv) = event.kv else {
                return Err(MigrateError::Protocol("an event without a key".to_owned()));
            };
            revision = kv.mod_revision();
            if kv.lease() != 0
                && !self.leases.contains(&kv.lease())
                && let Some((id, ttl)) = self.source.granted(kv.lease()).await?
            {
                self.grant(id, ttl)?;
            }
            // A delete's version is etcd's tombstone: the key and the revision.
            ops.push(kv);
        }
        self.log.append(Class::Fsync, &Record::Txn { revision, ops })?;
        Ok(revision)
    }
}

/// Reads both sides at one revision and compares them.
async fn verify(dir: &Path, source: &Peer, revision: i64) -> Result<Sum, MigrateError> {
    let (log, recovered) = Log::open(dir, LogConfig::default())?;
    let found = recovered.start_revision;
    let state = State::recover(recovered)?;
    if found != revision {
        return Err(MigrateError::Protocol(format!(
            "the data directory is at revision {found} and should be at {revision}"
        )));
    }
    let mut ours = Digest::new(Scope::Exact);
    let mut range = KeyRange::From(b"\0"[..].into());
    loop {
        let found = state.mvcc.range(&range, revision, Want::First(OWN_PAGE));
        for kv in &found.kvs {
            ours.add(kv);
        }
        match found.kvs.last() {
            Some(kv) if found.kvs.len() == OWN_PAGE => {
                range = KeyRange::From(super::peer::after(kv.key()));
            }
            _ => break,
        }
    }
    let mut theirs = Digest::new(Scope::Exact);
    let mut keys = source.keys(revision, None);
    while let Some((kvs, _)) = keys.page().await? {
        for kv in &kvs {
            theirs.add(kv);
        }
    }
    log.close(revision, false)?;
    let (ours, theirs) = (ours.finish(), theirs.finish());
    if ours != theirs {
        return Err(MigrateError::Different { theirs, ours });
    }
    info!(revision, %ours, "verified");
    Ok(ours)
}
