//! Snapshots: the live keys and leases at one place of the log, which makes the log before it
//! needless.
//!
//! ```text
//! header  0 magic "MCSTSNP\0" | 8 format version u32 | 12 sequence u64 | 20 revision i64
//!        28 compact revision i64 | 36 CRC32C of 0..36
//! blocks  as in a segment, `synced` 0; items: lease, key, and one end with the counts
//! ```
//! `sequence` is that of the segment that follows. The file gets its name when it is whole and
//! synced; a snapshot without its end is corrupt.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{
    block::{self, BLOCK_HEADER, MAX_PAYLOAD},
    codec::{get_bytes, put_bytes, put_i64},
    error::{LogError, OpenError},
    names,
    rules::{Class, DurabilityRules},
    storage::{Source, Storage, StorageFile},
    writer::SyncPoint,
};
use crate::core::{Fields, KeyValue};

const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"MCSTSNP\0";
const HEADER: usize = 40;
const BLOCK_TARGET: usize = 1 << 20;

const LEASE: u8 = 1;
const KEY: u8 = 2;
const END: u8 = 3;

/// Where a snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Revision of the state in it.
    pub revision: i64,
    /// Compacted revision at that time.
    pub compact_revision: i64,
}

/// One part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotItem {
    /// A living lease.
    Lease {
        /// The lease's id.
        id: i64,
        /// Time to live in seconds, as granted.
        ttl: i64,
    },
    /// A live key.
    Key(KeyValue),
}

/// Writes a snapshot. Dropped before [`SnapshotWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    storage: Arc<dyn Storage>,
    file: Arc<dyn StorageFile>,
    sequence: u64,
    meta: SnapshotMeta,
    name: String,
    temporary: String,
    /// The beginning of the segment that follows, until it is synced.
    first: Option<SyncPoint>,
    /// One block in the making.
    buffer: Vec<u8>,
    offset: u64,
    leases: u64,
    keys: u64,
    finished: bool,
}

/// A snapshot that is whole and durable.
#[derive(Clone, Debug)]
pub struct SnapshotDone {
    storage: Arc<dyn Storage>,
    sequence: u64,
    /// What it is of.
    pub meta: SnapshotMeta,
    /// Its size in bytes.
    pub size: u64,
    /// Keys in it.
    pub keys: u64,
}

impl SnapshotWriter {
    pub(super) fn create(
        storage: Arc<dyn Storage>,
        sequence: u64,
        first: SyncPoint,
        meta: SnapshotMeta,
    ) -> Result<Self, LogError> {
        let name = names::snapshot(sequence);
        let temporary = names::temporary(&name);
        let file =
            storage.create(&temporary).map_err(|e| LogError::write("create", &temporary, e))?;
        let mut buffer = MAGIC.to_vec();
        buffer.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        buffer.extend_from_slice(&sequence.to_le_bytes());
        put_i64(&mut buffer, meta.revision);
        put_i64(&mut buffer, meta.compact_revision);
        let crc = crc32c::crc32c(&buffer);
        buffer.extend_from_slice(&crc.to_le_bytes());
        let mut writer = Self {
            storage,
            file,
            sequence,
            meta,
            name,
            temporary,
            first: Some(first),
            buffer: Vec::new(),
            offset: 0,
            leases: 0,
            keys: 0,
            finished: false,
        };
        writer.append(&buffer)?;
        Ok(writer)
    }

    /// Adds a lease.
    pub fn lease(&mut self, id: i64, ttl: i64) -> Result<(), LogError> {
        self.leases += 1;
        self.item(|out| {
            out.push(LEASE);
            put_i64(out, id);
            put_i64(out, ttl);
        })
    }

    /// Adds a live key; a lease goes before the keys attached to it.
    pub fn key(&mut self, kv: &KeyValue) -> Result<(), LogError> {
        self.keys += 1;
        let fields = kv.fields();
        self.item(|out| {
            out.push(KEY);
            put_i64(out, fields.lease);
            put_i64(out, fields.create_revision);
            put_i64(out, fields.mod_revision);
            put_i64(out, fields.version);
            put_bytes(out, fields.key);
            put_bytes(out, fields.value);
        })
    }

    /// Ends the snapshot and makes it durable under its name.
    ///
    /// # Errors
    /// After any error the snapshot does not exist, and the log is as good as before.
    pub fn finish(mut self) -> Result<SnapshotDone, LogError> {
        let (leases, keys) = (self.leases, self.keys);
        self.item(|out| {
            out.push(END);
            out.extend_from_slice(&leases.to_le_bytes());
            out.extend_from_slice(&keys.to_le_bytes());
        })?;
        self.flush()?;
        self.file.sync().map_err(|e| LogError::write("sync", &self.temporary, e))?;
        // It stands for nothing without the segment that follows.
        if let Some(first) = self.first.take() {
            first.sync()?;
        }
        self.storage
            .rename(&self.temporary, &self.name)
            .map_err(|e| LogError::write("rename", &self.temporary, e))?;
        self.finished = true;
        self.storage.sync_dir().map_err(|e| LogError::write("sync directory of", &self.name, e))?;
        tracing::info!(
            revision = self.meta.revision,
            keys,
            leases,
            bytes = self.offset,
            "snapshot written"
        );
        Ok(SnapshotDone {
            storage: Arc::clone(&self.storage),
            sequence: self.sequence,
            meta: self.meta,
            size: self.offset,
            keys,
        })
    }

    fn item(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            block::begin(&mut self.buffer);
        }
        encode(&mut self.buffer);
        if self.buffer.len() > BLOCK_HEADER + MAX_PAYLOAD {
            return Err(LogError::TooLarge { size: self.buffer.len(), limit: MAX_PAYLOAD });
        }
        if self.buffer.len() >= BLOCK_HEADER + BLOCK_TARGET { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LogError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            return Ok(());
        }
        block::finish(&mut buffer, self.sequence, self.offset, 0);
        let result = self.append(&buffer);
        buffer.clear();
        self.buffer = buffer;
        result
    }

    fn append(&mut self, data: &[u8]) -> Result<(), LogError> {
        self.file.append(data).map_err(|e| LogError::write("write", &self.temporary, e))?;
        self.offset += data.len() as u64;
        Ok(())
    }
}

impl SnapshotDone {
    /// Removes the log that it makes needless, on whichever thread suits: the log goes on meanwhile.
    /// A crash in between leaves files that the next call removes.
    ///
    /// # Errors
    /// [`LogError::Write`]: some of it is still there, and does no harm.
    pub fn truncate_behind(&self) -> Result<(), LogError> {
        let sequence = self.sequence;
        let mut stale: Vec<String> = self
            .storage
            .list()
            .map_err(|e| LogError::write("list", "data directory", e))?
            .into_iter()
            .filter(|name| {
                names::parse_segment(name).is_some_and(|s| s < sequence)
                    || names::parse_snapshot(name).is_some_and(|s| s < sequence)
            })
            .collect();
        // Oldest first: what is left after a crash is a log without a gap.
        stale.sort();
        for name in &stale {
            self.storage.remove(name).map_err(|e| LogError::write("remove", name, e))?;
        }
        self.storage.sync_dir().map_err(|e| LogError::write("sync", "data directory", e))?;
        tracing::info!(removed = stale.len(), sequence, "log truncated behind snapshot");
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.storage.remove(&self.temporary)
        {
            tracing::warn!(%error, file = self.temporary, "unfinished snapshot not removed");
        }
    }
}

/// Reads a snapshot item by item. After an error it ends; the store must then not start.
#[derive(Debug)]
pub struct SnapshotReader {
    name: String,
    source: Box<dyn Source>,
    meta: SnapshotMeta,
    sequence: u64,
    offset: u64,
    /// What is left of the current block.
    block: Bytes,
    leases: u64,
    keys: u64,
    ended: bool,
    /// Keys that are of class none by these rules are left out.
    without: Option<DurabilityRules>,
}

impl SnapshotReader {
    pub(super) fn open(storage: &dyn Storage, sequence: u64) -> Result<Self, OpenError> {
        let name = names::snapshot(sequence);
        let mut source = storage.read(&name).map_err(|e| OpenError::io("open", &name, e))?;
        let mut header = [0; HEADER];
        let mut len = 0;
        while len < HEADER {
            match source.read(&mut header[len..]) {
                Ok(0) => return Err(OpenError::corrupt(&name, 0, "shorter than its header")),
                Ok(n) => len += n,
                Err(e) => return Err(OpenError::io("read", &name, e)),
            }
        }
        if header[0..8] != MAGIC {
            return Err(OpenError::corrupt(&name, 0, "not a snapshot"));
        }
        let version = block::u32_at(&header, 8);
        if version != FORMAT_VERSION {
            return Err(OpenError::Version { file: name, found: version, known: FORMAT_VERSION });
        }
        if block::u32_at(&header, 36) != crc32c::crc32c(&header[0..36]) {
            return Err(OpenError::corrupt(&name, 0, "checksum of the header"));
        }
        if block::u64_at(&header, 12) != sequence {
            return Err(OpenError::corrupt(&name, 12, "the sequence is not that of the name"));
        }
        let meta = SnapshotMeta {
            revision: block::u64_at(&header, 20).cast_signed(),
            compact_revision: block::u64_at(&header, 28).cast_signed(),
        };
        Ok(Self {
            name,
            source,
            meta,
            sequence,
            offset: HEADER as u64,
            block: Bytes::new(),
            leases: 0,
            keys: 0,
            ended: false,
            without: None,
        })
    }

    pub(super) fn without_volatile(mut self, rules: DurabilityRules) -> Self {
        self.without = Some(rules);
        self
    }

    /// What the snapshot stands for.
    #[must_use]
    pub fn meta(&self) -> SnapshotMeta {
        self.meta
    }

    fn read_item(&mut self) -> Result<Option<SnapshotItem>, OpenError> {
        loop {
            if self.block.is_empty() {
                self.read_block()?;
            }
            let kind = self.block.get_u8();
            let item = match kind {
                LEASE => self.decode_lease(),
                KEY => self.decode_key(),
                END => {
                    self.ended = true;
                    let counts =
                        (self.block.try_get_u64_le().ok(), self.block.try_get_u64_le().ok());
                    if counts != (Some(self.leases), Some(self.keys)) {
                        return Err(self.corrupt("the counts at the end don't match"));
                    }
                    return Ok(None);
                }
                _ => None,
            };
            let Some(item) = item else { return Err(self.corrupt("not an item")) };
            match (&item, &self.without) {
                (SnapshotItem::Key(kv), Some(rules)) if rules.class(kv.key()) == Class::None => {}
                _ => return Ok(Some(item)),
            }
        }
    }

    fn decode_lease(&mut self) -> Option<SnapshotItem> {
        self.leases += 1;
        let block = &mut self.block;
        Some(SnapshotItem::Lease {
            id: block.try_get_i64_le().ok()?,
            ttl: block.try_get_i64_le().ok()?,
        })
    }

    fn decode_key(&mut self) -> Option<SnapshotItem> {
        self.keys += 1;
        let mut rest = self.block.as_ref();
        let fields = Fields {
            lease: rest.try_get_i64_le().ok()?,
            create_revision: rest.try_get_i64_le().ok()?,
            mod_revision: rest.try_get_i64_le().ok()?,
            version: rest.try_get_i64_le().ok()?,
            key: get_bytes(&mut rest)?,
            value: get_bytes(&mut rest)?,
        };
        let item = SnapshotItem::Key(KeyValue::new(fields));
        let read = self.block.len() - rest.len();
        self.block.advance(read);
        Some(item)
    }

    fn read_block(&mut self) -> Result<(), OpenError> {
        let mut data = vec![0; BLOCK_HEADER];
        self.fill(&mut data, 0)?;
        let length = block::u32_at(&data, 8) as usize;
        if length > MAX_PAYLOAD {
            return Err(self.corrupt("block length out of bounds"));
        }
        data.resize(BLOCK_HEADER + length, 0);
        self.fill(&mut data, BLOCK_HEADER)?;
        let data = Bytes::from(data);
        match block::read(&data, 0, self.sequence, self.offset) {
            Ok(block) if block.payload.is_empty() => Err(self.corrupt("empty block")),
            Ok(block) => {
                self.offset += data.len() as u64;
                self.block = block.payload;
                Ok(())
            }
            Err(what) => Err(self.corrupt(what)),
        }
    }

    fn fill(&mut self, data: &mut [u8], from: usize) -> Result<(), OpenError> {
        self.source.read_exact(&mut data[from..]).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.corrupt("the file ends too early"),
            _ => OpenError::io("read", &self.name, e),
        })
    }

    fn corrupt(&self, what: &str) -> OpenError {
        OpenError::corrupt(&self.name, self.offset, what)
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<SnapshotItem, OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read_item().transpose();
        if matches!(item, Some(Err(_))) {
            self.ended = true;
        }
        item
    }
}
