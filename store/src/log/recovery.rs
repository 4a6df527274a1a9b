//! From the files to the state before the stop: one pass that checks everything and finds the end,
//! then readers that hand the records over.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{
    LogConfig,
    block::{self, Damage, HeaderFault, SegmentHead},
    codec::{self, Entry},
    error::OpenError,
    names,
    record::Record,
    rules::{Class, DurabilityRules},
    snapshot::SnapshotReader,
    storage::Storage,
    writer::Resume,
};

/// What was in the log.
#[derive(Debug)]
pub struct Recovered {
    /// The last snapshot, to be read first.
    pub snapshot: Option<SnapshotReader>,
    /// The records after it, in order. Operations on keys that are of class none are left out,
    /// unless the last stop kept them too; a transaction may be left without operations.
    pub records: RecordReader,
    /// The revision the store goes on from; the next transaction has one more.
    pub start_revision: i64,
    /// The compacted revision to start with. It is at least the snapshot's revision, and equals
    /// `start_revision` if something that clients may have seen is gone.
    pub compact_revision: i64,
    /// True for a new log and after a stop in order.
    pub clean: bool,
    /// Bytes of an unfinished write that were cut off.
    pub torn_bytes: u64,
}

/// What the first pass found.
#[derive(Debug)]
pub(super) struct Scan {
    snapshot: Option<u64>,
    /// Sequences and good lengths.
    segments: Vec<(u64, u64)>,
    /// The last segment has no name of its own yet: the stop came between its beginning and a sync.
    unnamed: bool,
    /// Good length of the last segment, and the length that was written.
    tail: (u64, u64),
    /// Its length in the file, with room that was reserved.
    size: u64,
    start_revision: i64,
    compact_revision: i64,
    clean: bool,
    /// The last stop lost keys of class none.
    volatile: bool,
    /// A run before the last lost them at this revision.
    lost: Option<i64>,
    bytes: u64,
    temporary: Vec<String>,
}

/// Reads and checks everything; changes nothing.
pub(super) fn scan(storage: &dyn Storage) -> Result<Scan, OpenError> {
    let files = storage.list().map_err(|e| OpenError::io("list", "data directory", e))?;
    let snapshot = files.iter().filter_map(|name| names::parse_snapshot(name)).max();
    let first = snapshot.unwrap_or(1);
    let mut segments: Vec<u64> = files
        .iter()
        .filter_map(|name| names::parse_segment(name))
        .filter(|sequence| *sequence >= first)
        .collect();
    segments.sort_unstable();
    let expected = first..;
    if let Some((missing, _)) = expected.zip(&segments).find(|(e, s)| e != *s) {
        return Err(OpenError::Missing { file: names::segment(missing) });
    }
    if snapshot.is_some() && segments.is_empty() {
        return Err(OpenError::Missing { file: names::segment(first) });
    }
    let mut fold = Fold::default();
    if let Some(sequence) = snapshot {
        let meta = SnapshotReader::open(storage, sequence)?.meta();
        fold.revision = meta.revision;
        fold.compact = meta.compact_revision.max(meta.revision);
        // The stop record of the run that made it, if there is one, is behind it.
        fold.clean = false;
    }
    let mut read = Pass::default();
    for (i, sequence) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        let data = load(storage, *sequence)?;
        let head = segment_head(&data, *sequence)?;
        if i > 0 && head.before.is_some_and(|before| before != read.tail.0) {
            let name = names::segment(sequence - 1);
            let what = "the next segment knows it with another length";
            return Err(OpenError::corrupt(&name, read.tail.0, what));
        }
        read.segment(&mut fold, &data, head, *sequence, last)?;
    }
    let mut temporary: Vec<String> =
        files.into_iter().filter(|name| names::is_temporary(name)).collect();
    let mut unnamed = false;
    if let Some(last) = segments.last()
        && let sequence = last + 1
        && let file = names::temporary(&names::segment(sequence))
        && let Some(at) = temporary.iter().position(|name| *name == file)
        && let Some((data, head)) = continuation(storage, sequence, read.tail.0)?
    {
        read.segment(&mut fold, &data, head, sequence, true)?;
        temporary.swap_remove(at);
        unnamed = true;
    }
    let Pass { segments, tail, size, bytes } = read;
    let (start_revision, compact_revision) = fold.outcome();
    Ok(Scan {
        snapshot,
        segments,
        unnamed,
        tail,
        size,
        start_revision,
        compact_revision,
        clean: fold.clean,
        volatile: fold.volatile,
        lost: fold.lost,
        bytes,
        temporary,
    })
}

/// What was read of the segments.
#[derive(Debug, Default)]
struct Pass {
    segments: Vec<(u64, u64)>,
    tail: (u64, u64),
    size: u64,
    bytes: u64,
}

impl Pass {
    fn segment(
        &mut self,
        fold: &mut Fold,
        data: &Bytes,
        head: SegmentHead,
        sequence: u64,
        last: bool,
    ) -> Result<(), OpenError> {
        let good = fold.segment(data, head, sequence, last)?;
        // Zeros at the end are room that was reserved, and nothing that was written.
        let zeros = data[good..].iter().rev().take_while(|byte| **byte == 0).count();
        self.segments.push((sequence, good as u64));
        self.tail = (good as u64, (data.len() - zeros) as u64);
        self.size = data.len() as u64;
        self.bytes += good as u64;
        Ok(())
    }
}

/// The segment without a name, if it goes on where the last one with a name ends. If that one is
/// shorter than it was when this one was begun, or this one has no good header, the power was lost
/// before any sync of what is in it.
fn continuation(
    storage: &dyn Storage,
    sequence: u64,
    before: u64,
) -> Result<Option<(Bytes, SegmentHead)>, OpenError> {
    let data = load(storage, sequence)?;
    let head = block::check_segment_header(&data, sequence).ok();
    let head = head.filter(|head| head.before == Some(before));
    if head.is_none() {
        tracing::warn!(sequence, "a segment that no sync had reached is dropped");
    }
    Ok(head.map(|head| (data, head)))
}

impl Scan {
    /// Removes what a crash left half done and makes what was found durable: only then may it be
    /// served again.
    pub(super) fn repair(&self, storage: &dyn Storage) -> Result<Resume, OpenError> {
        for name in &self.temporary {
            storage.remove(name).map_err(|e| OpenError::io("remove", name, e))?;
        }
        // Its end may still have room that was reserved.
        if let (true, [.., (sequence, good), _]) = (self.unnamed, self.segments.as_slice()) {
            let name = names::segment(*sequence);
            let file = storage.open(&name).map_err(|e| OpenError::io("open", &name, e))?;
            file.truncate(*good).map_err(|e| OpenError::io("truncate", &name, e))?;
            file.finish().map_err(|e| OpenError::io("sync", &name, e))?;
        }
        let tail = match self.segments.last() {
            Some((sequence, _)) => {
                let segment = names::segment(*sequence);
                let name = if self.unnamed { names::temporary(&segment) } else { segment.clone() };
                let file = storage.open(&name).map_err(|e| OpenError::io("open", &name, e))?;
                let (good, len) = self.tail;
                if good < len {
                    tracing::warn!(
                        file = name,
                        offset = good,
                        bytes = len - good,
                        "unfinished write at the end of the log cut off"
                    );
                }
                if good < self.size {
                    file.truncate(good).map_err(|e| OpenError::io("truncate", &name, e))?;
                }
                file.sync().map_err(|e| OpenError::io("sync", &name, e))?;
                if self.unnamed {
                    let renamed = storage.rename(&name, &segment);
                    renamed.map_err(|e| OpenError::io("rename", &name, e))?;
                }
                Some((*sequence, good))
            }
            None => None,
        };
        // A file may be visible under a name that isn't durable yet.
        storage.sync_dir().map_err(|e| OpenError::io("sync", "data directory", e))?;
        Ok(Resume {
            tail,
            next_sequence: 1,
            start_revision: self.start_revision,
            compact_revision: self.compact_revision,
            bytes_since_snapshot: self.bytes,
        })
    }

    pub(super) fn recovered(
        self,
        storage: &Arc<dyn Storage>,
        config: &LogConfig,
    ) -> Result<Recovered, OpenError> {
        // Keys of class none are in the log only by chance (in a transaction with others, or from
        // before a change of the rules), and then old: unless the stops since kept them all.
        let kept = self.clean && !self.volatile;
        let lost = if kept { self.lost } else { Some(i64::MAX) };
        let without = lost.map(|lost| (lost, config.rules.clone()));
        let mut snapshot = match self.snapshot {
            Some(sequence) => Some(SnapshotReader::open(storage.as_ref(), sequence)?),
            None => None,
        };
        if let Some((_, rules)) = &without {
            snapshot = snapshot.map(|reader| reader.without_volatile(rules.clone()));
        }
        Ok(Recovered {
            snapshot,
            records: RecordReader {
                storage: Arc::clone(storage),
                segments: self.segments.into_iter().rev().collect(),
                current: None,
                payload: Bytes::new(),
                failed: false,
                without,
            },
            start_revision: self.start_revision,
            compact_revision: self.compact_revision,
            clean: self.clean,
            torn_bytes: self.tail.1 - self.tail.0,
        })
    }
}

/// What the entries so far say about revisions.
#[derive(Debug)]
struct Fold {
    revision: i64,
    compact: i64,
    reserved: i64,
    clean: bool,
    volatile: bool,
    lost: Option<i64>,
}

impl Default for Fold {
    fn default() -> Self {
        // A new etcd is at revision 1, and nothing is compacted (etcd shows 0 or -1 by place).
        Self { revision: 1, compact: 0, reserved: 0, clean: true, volatile: false, lost: None }
    }
}

impl Fold {
    /// Checks one segment and returns its good length.
    fn segment(
        &mut self,
        data: &Bytes,
        head: SegmentHead,
        sequence: u64,
        last: bool,
    ) -> Result<usize, OpenError> {
        let name = names::segment(sequence);
        let mut offset = head.len;
        while offset < data.len() {
            let block = match block::read(data, offset, sequence, offset as u64) {
                Ok(block) => block,
                Err(_) if last && block::judge(data, sequence, offset) == Damage::Torn => {
                    return Ok(offset);
                }
                Err(what) => return Err(OpenError::corrupt(&name, offset as u64, what)),
            };
            let mut payload = block.payload.as_ref();
            while !payload.is_empty() {
                let entry = codec::skim(&mut payload);
                entry
                    .ok_or("not a record")
                    .and_then(|entry| self.entry(&entry))
                    .map_err(|what| OpenError::corrupt(&name, offset as u64, what))?;
            }
            offset = block.end;
        }
        Ok(offset)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), &'static str> {
        match entry {
            Entry::Start { revision, compact } => {
                if *revision < self.revision {
                    return Err("a run starts below the revision before it");
                }
                // It went on above what may have been seen, because something was gone.
                if *revision > self.revision {
                    self.lost = Some(*revision);
                }
                (self.revision, self.compact) = (*revision, *compact);
                (self.reserved, self.clean, self.volatile) = (0, false, false);
            }
            Entry::Reserve { revision } => {
                self.reserved = self.reserved.max(*revision);
                self.clean = false;
            }
            Entry::Stop { revision, volatile } => {
                self.revision = self.revision.max(*revision);
                (self.clean, self.volatile) = (true, *volatile);
            }
            Entry::Record(Record::Txn { revision, .. }) => {
                if *revision <= self.revision {
                    return Err("revisions out of order");
                }
                self.revision = *revision;
                self.clean = false;
            }
            Entry::Record(Record::Compact { revision }) => {
                self.compact = self.compact.max(*revision);
                self.clean = false;
            }
            Entry::Record(Record::LeaseGrant { .. } | Record::LeaseRevoke { .. }) => {
                self.clean = false;
            }
        }
        Ok(())
    }

    /// Start and compacted revision for the next run.
    fn outcome(&self) -> (i64, i64) {
        let gone_up_to = if self.clean {
            self.volatile.then_some(self.revision)
        } else {
            (self.reserved > 0).then_some(self.reserved.max(self.revision))
        };
        match gone_up_to {
            // A client that saw R watches from R + 1, and is told to list anew only if that is
            // below the compacted revision.
            Some(revision) => (revision.saturating_add(2), revision.saturating_add(2)),
            None => (self.revision, self.compact),
        }
    }
}

/// Hands the records over, one by one. After an error it ends; the store must then not start.
#[derive(Debug)]
pub struct RecordReader {
    storage: Arc<dyn Storage>,
    /// Segments still to read, the next one last, and how much of them is of the past.
    segments: Vec<(u64, u64)>,
    /// Segment being read, its sequence, and the next block's offset.
    current: Option<(Bytes, u64, usize)>,
    /// What is left of the current block.
    payload: Bytes,
    failed: bool,
    /// Up to this revision, keys that are of class none by these rules are left out.
    without: Option<(i64, DurabilityRules)>,
}

impl RecordReader {
    fn read(&mut self) -> Result<Option<Record>, OpenError> {
        loop {
            while !self.payload.is_empty() {
                let mut rest = self.payload.as_ref();
                let Some(entry) = codec::decode(&mut rest) else {
                    return Err(self.changed());
                };
                let read = self.payload.len() - rest.len();
                self.payload.advance(read);
                if let Entry::Record(record) = entry {
                    return Ok(Some(self.keep(record)));
                }
            }
            if !self.next_block()? {
                return Ok(None);
            }
        }
    }

    fn next_block(&mut self) -> Result<bool, OpenError> {
        loop {
            if let Some((data, sequence, offset)) = &mut self.current
                && *offset < data.len()
            {
                match block::read(data, *offset, *sequence, *offset as u64) {
                    Ok(block) => {
                        *offset = block.end;
                        self.payload = block.payload;
                        return Ok(true);
                    }
                    Err(_) => return Err(self.changed()),
                }
            }
            let Some((sequence, end)) = self.segments.pop() else { return Ok(false) };
            let mut data = load(self.storage.as_ref(), sequence)?;
            // What this run appends is not of the past.
            data.truncate(usize::try_from(end).unwrap_or(usize::MAX));
            let head = segment_head(&data, sequence)?;
            self.current = Some((data, sequence, head.len));
        }
    }

    /// The first pass read the same bytes and found them good.
    fn changed(&self) -> OpenError {
        let (sequence, offset) =
            self.current.as_ref().map_or((0, 0), |(_, sequence, offset)| (*sequence, *offset));
        OpenError::corrupt(&names::segment(sequence), offset as u64, "changed while it was read")
    }

    /// Leaves out the keys that the last run did not keep.
    fn keep(&self, mut record: Record) -> Record {
        if let (Record::Txn { revision, ops }, Some((lost, rules))) = (&mut record, &self.without)
            && *revision <= *lost
        {
            ops.retain(|kv| rules.class(kv.key()) != Class::None);
        }
        record
    }
}

impl Iterator for RecordReader {
    type Item = Result<Record, OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.read().transpose();
        self.failed = matches!(record, Some(Err(_)));
        record
    }
}

fn segment_head(data: &Bytes, sequence: u64) -> Result<SegmentHead, OpenError> {
    block::check_segment_header(data, sequence).map_err(|fault| {
        let file = names::segment(sequence);
        match fault {
            HeaderFault::Version(found) => {
                OpenError::Version { file, found, known: block::SEGMENT_VERSION }
            }
            HeaderFault::Damaged(what) => OpenError::corrupt(&file, 0, what),
        }
    })
}

/// A whole segment, which may have no name of its own yet. Its size is bounded by
/// [`LogConfig::segment_bytes`] and one group.
fn load(storage: &dyn Storage, sequence: u64) -> Result<Bytes, OpenError> {
    let name = names::segment(sequence);
    let mut data = Vec::new();
    let file = match storage.read(&name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            storage.read(&names::temporary(&name))
        }
        found => found,
    };
    file.and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut data))
        .map_err(|e| OpenError::io("read", &name, e))?;
    Ok(Bytes::from(data))
}
