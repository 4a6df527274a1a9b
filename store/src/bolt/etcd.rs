//! etcd 3.6's buckets (etcd `server/storage/schema`), filled from this store.
//!
//! Bucket `key` holds every version since the compacted revision, and those that lived at it
//! ([`Entries`]).

use std::collections::HashSet;
use std::io::{self, Seek, Write};

use prost::encoding::int64;
use serde::Serialize;

use super::entries::{Compacted, Entries, each_version, revision_key};
use super::writer::Database;
use crate::core::{History, KeyValue};

/// Storage version and cluster version: what is written here is etcd 3.6's.
const VERSION: &str = "3.6.0";
/// A lease that only a key knows of (it was granted and revoked while leases were listed) is
/// written with this time to live, so that it ends.
const UNKNOWN_TTL: i64 = 60;

/// Why no file came to be.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The file can't be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A compaction took the history that was being read.
    #[error(transparent)]
    Compacted(#[from] Compacted),
}

/// The member that the file is of; `etcdutl snapshot restore` puts others in its place.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where it would be reached by others.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
}

/// Content of a file.
#[derive(Debug)]
pub struct Snapshot {
    /// The newest revision in it.
    pub revision: i64,
    /// The compacted revision; 0 or below if there was no compaction.
    pub compacted: i64,
    /// What lived at the compacted revision.
    pub base: Vec<KeyValue>,
    /// Ids and times to live.
    pub leases: Vec<(i64, i64)>,
    /// Who wrote it.
    pub member: Member,
    /// Raft's index and term, which must not be 0.
    pub index: u64,
    /// The term.
    pub term: u64,
}

impl Snapshot {
    /// Writes the file, taking from the history what came after the compaction. Gives the file and
    /// its size.
    pub fn write<W: Write + Seek>(
        mut self,
        out: W,
        history: &History,
    ) -> Result<(W, u64), BuildError> {
        let mut database = Database::create(out)?;
        self.write_keys(&mut database, history)?;
        self.write_leases(&mut database)?;
        self.write_meta(&mut database)?;
        let mut cluster = database.bucket(b"cluster");
        cluster.put(b"clusterVersion", VERSION.as_bytes())?;
        cluster.finish()?;
        let mut members = database.bucket(b"members");
        let json = serde_json::to_vec(&self.member).map_err(io::Error::other)?;
        members.put(format!("{:x}", self.member.id).as_bytes(), &json)?;
        members.finish()?;
        for empty in ["alarm", "auth", "authRoles", "authUsers", "members_removed"] {
            database.bucket(empty.as_bytes()).finish()?;
        }
        Ok(database.finish()?)
    }

    fn write_keys<W: Write + Seek>(
        &mut self,
        database: &mut Database<W>,
        history: &History,
    ) -> Result<(), BuildError> {
        let mut known: HashSet<i64> = self.leases.iter().map(|(id, _)| *id).chain([0]).collect();
        let mut unknown = Vec::new();
        let (mut bucket, mut entries) = (database.bucket(b"key"), Entries::default());
        // Keys come in key order; a stable sort leaves those of one revision so.
        self.base.sort_by_key(KeyValue::mod_revision);
        let mut put = |kv: &KeyValue| {
            if known.insert(kv.lease()) {
                unknown.push((kv.lease(), UNKNOWN_TTL));
            }
            let (key, value) = entries.entry(kv);
            bucket.put(key, value)
        };
        for kv in std::mem::take(&mut self.base) {
            put(&kv)?;
        }
        each_version::<BuildError>(history, self.compacted, self.revision, |kv| Ok(put(kv)?))?;
        bucket.finish()?;
        self.leases.extend(unknown);
        Ok(())
    }

    fn write_leases<W: Write + Seek>(&mut self, database: &mut Database<W>) -> io::Result<()> {
        // As the bytes sort: negative ids, which nobody makes, come last.
        self.leases.sort_by_key(|(id, _)| id.cast_unsigned());
        self.leases.dedup_by_key(|(id, _)| *id);
        let mut bucket = database.bucket(b"lease");
        for (id, ttl) in &self.leases {
            // leasepb.Lease: ID, TTL and the time that remains, of which there is no checkpoint.
            let mut lease = Vec::new();
            int64::encode(1, id, &mut lease);
            int64::encode(2, ttl, &mut lease);
            bucket.put(&id.to_be_bytes(), &lease)?;
        }
        bucket.finish()
    }

    fn write_meta<W: Write + Seek>(&self, database: &mut Database<W>) -> io::Result<()> {
        let mut meta = database.bucket(b"meta");
        meta.put(b"consistent_index", &self.index.to_be_bytes())?;
        if self.compacted > 0 {
            meta.put(b"finishedCompactRev", &revision_key(self.compacted, 0))?;
            meta.put(b"scheduledCompactRev", &revision_key(self.compacted, 0))?;
        }
        meta.put(b"storageVersion", VERSION.as_bytes())?;
        meta.put(b"term", &self.term.to_be_bytes())?;
        meta.finish()
    }
}
