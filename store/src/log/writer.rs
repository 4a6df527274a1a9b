//! The open log.

use std::{collections::VecDeque, io, sync::Arc};

use parking_lot::Mutex;

use super::{
    LogConfig,
    block::{self, BLOCK_HEADER, MAX_PAYLOAD, SEGMENT_HEADER},
    codec,
    error::LogError,
    names,
    record::Record,
    rules::Class,
    snapshot::{SnapshotMeta, SnapshotWriter},
    storage::{Storage, StorageFile},
};

/// A block is closed when its payload reaches this many bytes.
const BLOCK_TARGET: usize = 1 << 20;

/// A place in the log: all that was appended before it is covered by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

/// The log, open for appending. One thread owns it; [`SyncPoint`]s and [`SnapshotWriter`]s leave it.
#[derive(Debug)]
pub struct Log {
    storage: Arc<dyn Storage>,
    config: LogConfig,
    segment: Segment,
    /// Blocks to write; their headers are filled at the write.
    buffer: Vec<u8>,
    /// Where each of them begins.
    blocks: Vec<usize>,
    appended: Position,
    written: Position,
    last_revision: i64,
    /// Highest revision in a reserve record, synced or not; 0 for none.
    reserved: i64,
    bytes_since_snapshot: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Segment {
    sequence: u64,
    name: String,
    file: Arc<dyn StorageFile>,
    /// Bytes in the file.
    len: u64,
}

/// Shared with the threads that sync.
#[derive(Debug, Default)]
struct Shared {
    /// Held during a sync. The kernel reports a failed write-back once for each open file: with two
    /// syncs at a time one of them could be told that all is well.
    gate: Mutex<()>,
    synced: Mutex<Synced>,
}

/// A new segment that has no name of its own yet. Blocks are written to it all the same; nothing in
/// it counts as synced before it has its name, and it gets that only when the segment before it is
/// whole on the disk. So only the last segment of a log can have a torn tail, and one without a name
/// holds nothing that a loss of power must not take.
#[derive(Clone, Debug)]
struct Rotation {
    storage: Arc<dyn Storage>,
    /// The segment before.
    old: Arc<dyn StorageFile>,
    old_name: String,
    /// The new one.
    sequence: u64,
    name: String,
}

/// What syncs have reached.
#[derive(Debug, Default)]
struct Synced {
    position: Position,
    /// Present until a sync finishes it.
    rotation: Option<Rotation>,
    /// Segment and length in it that are synced.
    sequence: u64,
    len: u64,
    /// Reservations on their way, oldest first.
    reservations: VecDeque<(Position, i64)>,
    revision_limit: i64,
    poison: Option<Arc<str>>,
}

/// Where a log goes on: handed over by recovery.
#[derive(Debug)]
pub(super) struct Resume {
    /// The last segment and its good length, which is synced; `None` for a new log.
    pub(super) tail: Option<(u64, u64)>,
    /// The segment to begin if there is no tail.
    pub(super) next_sequence: u64,
    pub(super) start_revision: i64,
    pub(super) compact_revision: i64,
    pub(super) bytes_since_snapshot: u64,
}

impl Log {
    /// Opens the tail and writes the start record (and the first reservation), synced.
    pub(super) fn resume(
        storage: Arc<dyn Storage>,
        config: LogConfig,
        resume: &Resume,
    ) -> Result<Self, LogError> {
        let segment = match resume.tail {
            Some((sequence, len)) => {
                let name = names::segment(sequence);
                let file = storage.open(&name).map_err(|e| LogError::write("open", &name, e))?;
                Segment { sequence, name, file, len }
            }
            None => create_segment(storage.as_ref(), resume.next_sequence, 0)?,
        };
        let synced = Synced { sequence: segment.sequence, len: segment.len, ..Synced::default() };
        let mut log = Self {
            storage,
            config,
            segment,
            buffer: Vec::new(),
            blocks: Vec::new(),
            appended: Position(0),
            written: Position(0),
            last_revision: resume.start_revision,
            reserved: 0,
            bytes_since_snapshot: resume.bytes_since_snapshot,
            shared: Arc::new(Shared { gate: Mutex::new(()), synced: Mutex::new(synced) }),
        };
        log.push(|out| codec::encode_start(resume.start_revision, resume.compact_revision, out))?;
        if !log.config.rules.all_fsync() {
            log.reserve(resume.start_revision)?;
        }
        log.sync()?;
        Ok(log)
    }

    /// Encodes a record into the buffer and returns the position that covers it. A record of class
    /// none is only counted, and is covered at once.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Order`], [`LogError::Poisoned`]; the record is then not
    /// in the log and the log is as before.
    pub fn append(&mut self, class: Class, record: &Record) -> Result<Position, LogError> {
        self.check()?;
        let revision = match record {
            Record::Txn { revision, .. } => Some(*revision),
            _ => None,
        };
        if let Some(revision) = revision
            && revision <= self.last_revision
        {
            return Err(LogError::Order { revision, last: self.last_revision });
        }
        if class != Class::None {
            self.push(|out| codec::encode(record, out))?;
        }
        let position = if class == Class::None { Position(0) } else { self.appended };
        if let Some(revision) = revision {
            self.last_revision = revision;
            if !self.config.rules.all_fsync() && revision > self.reserved - self.config.reserve / 2
            {
                self.reserve(revision)?;
            }
        }
        Ok(position)
    }

    /// Hands the buffer to the kernel: one write(2).
    ///
    /// # Errors
    /// [`LogError::Write`]: nothing of it is in the file, all of it still in the buffer; try again
    /// or give up. [`LogError::Poisoned`].
    pub fn write(&mut self) -> Result<Position, LogError> {
        self.check()?;
        if self.buffer.is_empty() {
            return Ok(self.written);
        }
        let (len, limit) = (self.segment.len, self.config.segment_bytes);
        // One rotation at a time, unless syncs are hopelessly behind: then they are waited for.
        if len >= limit && (!self.is_rotating() || len >= 2 * limit) {
            self.rotate()?;
        }
        self.write_buffer()
    }

    /// Everything written so far, to be synced on whichever thread suits.
    pub fn sync_point(&self) -> SyncPoint {
        SyncPoint {
            file: Arc::clone(&self.segment.file),
            name: self.segment.name.clone(),
            sequence: self.segment.sequence,
            len: self.segment.len,
            position: self.written,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Writes and syncs on this thread.
    pub fn sync(&mut self) -> Result<Position, LogError> {
        self.write()?;
        self.sync_point().sync()
    }

    /// What was appended.
    #[must_use]
    pub fn appended(&self) -> Position {
        self.appended
    }

    /// What a death of the process can't take back.
    #[must_use]
    pub fn written(&self) -> Position {
        self.written
    }

    /// What a loss of power can't take back.
    #[must_use]
    pub fn synced(&self) -> Position {
        self.shared.synced.lock().position
    }

    /// Highest revision that may be shown to a client before it is synced.
    #[must_use]
    pub fn revision_limit(&self) -> i64 {
        self.shared.synced.lock().revision_limit
    }

    /// True while a sync should come soon whatever the class of the records: a reservation waits
    /// for it, or a new segment for its name.
    #[must_use]
    pub fn wants_sync(&self) -> bool {
        let synced = self.shared.synced.lock();
        synced.rotation.is_some() || !synced.reservations.is_empty()
    }

    fn is_rotating(&self) -> bool {
        self.shared.synced.lock().rotation.is_some()
    }

    /// Why nothing more can be made durable, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<LogError> {
        self.check().err()
    }

    /// True if the log behind the last snapshot is long enough for a new one.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        let (bytes, limit) = (self.bytes_since_snapshot, self.config.snapshot_bytes);
        // It ends a segment.
        bytes >= limit && (!self.is_rotating() || bytes - limit > limit / 4)
    }

    /// Bytes of log that a start would replay.
    #[must_use]
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Begins a snapshot of the state after everything appended so far, on a segment boundary. The
    /// writer is independent of the log: fill it on another thread while appends go on.
    pub fn begin_snapshot(&mut self, meta: SnapshotMeta) -> Result<SnapshotWriter, LogError> {
        self.write()?;
        self.rotate()?;
        // Counted from here even if the snapshot fails, so that a full disk isn't hammered.
        self.bytes_since_snapshot = 0;
        let first = self.sync_point();
        SnapshotWriter::create(Arc::clone(&self.storage), self.segment.sequence, first, meta)
    }

    /// Ends the log in order. `revision` is the highest revision given out. `volatile` says that
    /// keys or history of class none are lost with the process (no snapshot holds them): clients
    /// then have to list anew after the start.
    pub fn close(mut self, revision: i64, volatile: bool) -> Result<(), LogError> {
        self.push(|out| codec::encode_stop(revision, volatile, out))?;
        self.write()?;
        self.sync_point().finish().map(|_| ())
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.shared.synced.lock().poison {
            Some(cause) => Err(LogError::Poisoned { cause: Arc::clone(cause) }),
            None => Ok(()),
        }
    }

    fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), LogError> {
        let before = self.buffer.len();
        if self.blocks.last().is_none_or(|start| before - start >= BLOCK_HEADER + BLOCK_TARGET) {
            let start = block::begin(&mut self.buffer);
            self.blocks.push(start);
        }
        let from = self.buffer.len();
        encode(&mut self.buffer);
        let size = self.buffer.len() - from;
        if size > MAX_PAYLOAD - BLOCK_TARGET {
            self.buffer.truncate(before);
            if from != before {
                self.blocks.pop();
            }
            return Err(LogError::TooLarge { size, limit: MAX_PAYLOAD - BLOCK_TARGET });
        }
        self.appended.0 += size as u64;
        Ok(())
    }

    /// Reserves revisions above `revision`.
    fn reserve(&mut self, revision: i64) -> Result<(), LogError> {
        let limit = revision.saturating_add(self.config.reserve);
        self.push(|out| codec::encode_reserve(limit, out))?;
        self.reserved = limit;
        self.shared.synced.lock().reservations.push_back((self.appended, limit));
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<Position, LogError> {
        let synced = {
            let shared = self.shared.synced.lock();
            if shared.sequence == self.segment.sequence { shared.len } else { 0 }
        };
        for (i, start) in self.blocks.iter().enumerate() {
            let end = self.blocks.get(i + 1).copied().unwrap_or(self.buffer.len());
            block::finish(
                &mut self.buffer[*start..end],
                self.segment.sequence,
                self.segment.len + *start as u64,
                synced,
            );
        }
        self.segment.file.reserve(self.buffer.len() as u64);
        if let Err(error) = self.segment.file.append(&self.buffer) {
            return Err(self.undo_write(error));
        }
        self.segment.len += self.buffer.len() as u64;
        self.bytes_since_snapshot += self.buffer.len() as u64;
        self.buffer.clear();
        self.blocks.clear();
        self.written = self.appended;
        Ok(self.written)
    }

    /// Takes a part that may have been written off the file again.
    fn undo_write(&mut self, error: io::Error) -> LogError {
        match self.segment.file.truncate(self.segment.len) {
            Ok(()) => LogError::write("write", &self.segment.name, error),
            Err(undo) => poison(
                &self.shared,
                format!("write {}: {error}, and then truncate: {undo}", self.segment.name),
            ),
        }
    }

    /// Begins a new segment without waiting for any disk: the next sync makes the old one whole
    /// there and gives the new one its name.
    fn rotate(&mut self) -> Result<(), LogError> {
        if self.is_rotating() {
            self.sync_point().sync()?;
        }
        // What is in the buffer goes to the new one: the old one ends here.
        let (sequence, before) = (self.segment.sequence + 1, self.segment.len);
        let next = unnamed_segment(self.storage.as_ref(), sequence, before)?;
        let old = std::mem::replace(&mut self.segment, next);
        {
            let mut shared = self.shared.synced.lock();
            (shared.sequence, shared.len) = (sequence, 0);
            shared.rotation = Some(Rotation {
                storage: Arc::clone(&self.storage),
                old: old.file,
                old_name: old.name,
                sequence,
                name: self.segment.name.clone(),
            });
        }
        // A snapshot may remove the segment that holds the reservation: carry it over, first in the
        // new segment. It was synced in the old one or is in the buffer, so it needs no waiting for.
        if self.reserved > 0 {
            let (buffer, blocks) =
                (std::mem::take(&mut self.buffer), std::mem::take(&mut self.blocks));
            let start = block::begin(&mut self.buffer);
            self.blocks.push(start);
            codec::encode_reserve(self.reserved, &mut self.buffer);
            let written = self.written;
            let result = self.write_buffer();
            (self.buffer, self.blocks, self.written) = (buffer, blocks, written);
            result?;
        }
        Ok(())
    }
}

/// A part of the log to be synced: one fdatasync, on any thread, while the log goes on.
#[derive(Debug)]
#[must_use = "nothing is synced before `sync` is called"]
pub struct SyncPoint {
    file: Arc<dyn StorageFile>,
    name: String,
    sequence: u64,
    len: u64,
    position: Position,
    shared: Arc<Shared>,
}

impl SyncPoint {
    /// What will be synced.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Syncs, and returns what is synced now.
    ///
    /// # Errors
    /// [`LogError::Poisoned`]: the log is at its end.
    pub fn sync(self) -> Result<Position, LogError> {
        self.sync_by(|file| file.sync())
    }

    /// The same for a file that nothing more is appended to: what was reserved is given back.
    fn finish(self) -> Result<Position, LogError> {
        self.sync_by(|file| file.finish())
    }

    fn sync_by(
        self,
        sync: impl FnOnce(&dyn StorageFile) -> io::Result<()>,
    ) -> Result<Position, LogError> {
        let _gate = self.shared.gate.lock();
        let rotation = {
            let shared = self.shared.synced.lock();
            if let Some(cause) = &shared.poison {
                return Err(LogError::Poisoned { cause: Arc::clone(cause) });
            }
            // Rotation synced it already.
            if shared.position >= self.position && shared.sequence > self.sequence {
                return Ok(shared.position);
            }
            shared.rotation.clone().filter(|rotation| rotation.sequence == self.sequence)
        };
        if let Some(rotation) = &rotation
            && let Err(error) = rotation.old.finish()
        {
            return Err(poison(&self.shared, format!("sync {}: {error}", rotation.old_name)));
        }
        if let Err(error) = sync(self.file.as_ref()) {
            return Err(poison(&self.shared, format!("sync {}: {error}", self.name)));
        }
        if let Some(rotation) = &rotation {
            self.give_name(rotation)?;
        }
        let mut shared = self.shared.synced.lock();
        if rotation.is_some() {
            shared.rotation = None;
        }
        shared.position = shared.position.max(self.position);
        if shared.sequence == self.sequence {
            shared.len = shared.len.max(self.len);
        }
        while let Some((position, limit)) = shared.reservations.front().copied()
            && position <= shared.position
        {
            shared.revision_limit = limit;
            shared.reservations.pop_front();
        }
        Ok(shared.position)
    }
}

impl SyncPoint {
    /// Both the segment before and this one are on the disk: now it may be found.
    fn give_name(&self, rotation: &Rotation) -> Result<(), LogError> {
        let Rotation { storage, name, .. } = rotation;
        let temporary = names::temporary(name);
        // It may be tried again: nothing is lost by it.
        storage.rename(&temporary, name).map_err(|e| LogError::write("rename", &temporary, e))?;
        storage
            .sync_dir()
            .map_err(|error| poison(&self.shared, format!("sync the directory of {name}: {error}")))
    }
}

fn poison(shared: &Shared, cause: String) -> LogError {
    let mut shared = shared.synced.lock();
    let cause = Arc::clone(shared.poison.get_or_insert_with(|| {
        tracing::error!(%cause, "log poisoned: nothing more can be made durable");
        cause.into()
    }));
    LogError::Poisoned { cause }
}

/// Makes a segment that is there with its header, or not at all. A failed sync comes back as
/// [`LogError::Poisoned`]: to do it again and be told that all is well would prove nothing.
fn create_segment(storage: &dyn Storage, sequence: u64, before: u64) -> Result<Segment, LogError> {
    let segment = unnamed_segment(storage, sequence, before)?;
    let name = &segment.name;
    let unsynced = |e: io::Error| LogError::Poisoned { cause: format!("sync {name}: {e}").into() };
    segment.file.sync().map_err(unsynced)?;
    let temporary = names::temporary(name);
    storage.rename(&temporary, name).map_err(|e| LogError::write("rename", &temporary, e))?;
    storage.sync_dir().map_err(unsynced)?;
    Ok(segment)
}

/// Makes a segment with its header under its temporary name, and syncs nothing.
fn unnamed_segment(storage: &dyn Storage, sequence: u64, before: u64) -> Result<Segment, LogError> {
    let name = names::segment(sequence);
    let temporary = names::temporary(&name);
    let failed = |action: &'static str| {
        let temporary = temporary.clone();
        move |e| LogError::write(action, &temporary, e)
    };
    let file = match storage.create(&temporary) {
        // Left by a try that failed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            storage.remove(&temporary).map_err(failed("remove"))?;
            storage.create(&temporary)
        }
        created => created,
    };
    let file = file.map_err(failed("create"))?;
    file.append(&block::segment_header(sequence, before)).map_err(failed("write"))?;
    Ok(Segment { sequence, name, file, len: SEGMENT_HEADER as u64 })
}
