//! Keys that were read from the source and are not a snapshot yet: a file of pages in key order, to
//! which a run that was killed goes on adding.
//!
//! A page is `length u32 | CRC32C u32 | RangeResponse`, little-endian; `more` is set in all but the
//! last. What does not check out is cut off with all behind it, and read from the source again.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::error::MigrateError;
use crate::core::KeyValue;
use crate::pb::etcdserverpb::RangeResponse;

const NAME: &str = "import.keys";
const FRAME: usize = 8;
/// A longer page is not one of ours.
const MAX_PAGE: usize = 256 << 20;

/// The file, open for more pages.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    file: BufWriter<File>,
    /// Keys in it.
    pub(super) keys: u64,
    /// The last of them.
    pub(super) last: Option<Bytes>,
    /// All keys are in it.
    pub(super) complete: bool,
}

impl Staging {
    /// Opens the file, or makes an empty one.
    pub(super) fn open(dir: &Path) -> Result<Self, MigrateError> {
        let path = dir.join(NAME);
        let failed = |action| MigrateError::file(action, path.clone());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(failed("open"))?;
        let mut pages = Pages::new(&path)?;
        let (mut keys, mut last, mut complete) = (0, None, false);
        while let Some(page) = pages.next_page()? {
            keys += page.kvs.len() as u64;
            last = page.kvs.last().map(|kv| Bytes::copy_from_slice(kv.key())).or(last);
            complete = !page.more;
        }
        file.set_len(pages.good).map_err(failed("truncate"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("seek in"))?;
        Ok(Self { path, file: BufWriter::new(file), keys, last, complete })
    }

    /// Adds a page; `more` says that it isn't the last.
    pub(super) fn add(&mut self, kvs: Vec<KeyValue>, more: bool) -> Result<(), MigrateError> {
        self.keys += kvs.len() as u64;
        if let Some(kv) = kvs.last() {
            self.last = Some(Bytes::copy_from_slice(kv.key()));
        }
        self.complete = !more;
        let page = RangeResponse { kvs, more, ..RangeResponse::default() }.encode_to_vec();
        let length = u32::try_from(page.len()).ok().filter(|_| page.len() <= MAX_PAGE);
        let length = length.ok_or_else(|| {
            MigrateError::Protocol(format!("a page of {} bytes is too long", page.len()))
        })?;
        self.file
            .write_all(&length.to_le_bytes())
            .and_then(|()| self.file.write_all(&crc32c::crc32c(&page).to_le_bytes()))
            .and_then(|()| self.file.write_all(&page))
            // To the kernel: what a killed process wrote stays.
            .and_then(|()| self.file.flush())
            .map_err(MigrateError::file("write", self.path.clone()))
    }

    /// All pages from the first on.
    pub(super) fn pages(&self) -> Result<Pages, MigrateError> {
        Pages::new(&self.path)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> Result<(), MigrateError> {
        let file = self.file.get_mut();
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(MigrateError::file("truncate", self.path.clone()))?;
        (self.keys, self.last, self.complete) = (0, None, false);
        Ok(())
    }

    /// Removes the file of a directory, if there is one.
    pub(super) fn remove(dir: &Path) -> Result<(), MigrateError> {
        let path = dir.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(MigrateError::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads pages up to the first that does not check out.
#[derive(Debug)]
pub(super) struct Pages {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes of whole pages so far.
    good: u64,
}

impl Pages {
    fn new(path: &Path) -> Result<Self, MigrateError> {
        let file = File::open(path).map_err(MigrateError::file("open", path))?;
        Ok(Self { path: path.into(), file: BufReader::new(file), good: 0 })
    }

    pub(super) fn next_page(&mut self) -> Result<Option<RangeResponse>, MigrateError> {
        let Some(frame) = self.take(FRAME)? else { return Ok(None) };
        let number = |at: usize| {
            u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
        };
        let (length, crc) = (number(0) as usize, number(4));
        if length > MAX_PAGE {
            return Ok(None);
        }
        let Some(page) = self.take(length)? else { return Ok(None) };
        if crc32c::crc32c(&page) != crc {
            return Ok(None);
        }
        let Ok(page) = RangeResponse::decode(Bytes::from(page)) else { return Ok(None) };
        self.good += (FRAME + length) as u64;
        Ok(Some(page))
    }

    fn take(&mut self, length: usize) -> Result<Option<Vec<u8>>, MigrateError> {
        let mut data = Vec::new();
        let limit = length as u64;
        let read = Read::by_ref(&mut self.file).take(limit).read_to_end(&mut data);
        read.map_err(MigrateError::file("read", self.path.clone()))?;
        Ok((data.len() == length).then_some(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Fields;

    fn page(keys: std::ops::Range<u32>) -> Vec<KeyValue> {
        keys.map(|n| {
            let key = format!("{n:05}");
            KeyValue::new(Fields { key: key.as_bytes(), mod_revision: 9, ..Fields::default() })
        })
        .collect()
    }

    #[test]
    fn a_torn_page_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut staging = Staging::open(dir.path()).unwrap();
        staging.add(page(0..100), true).unwrap();
        staging.add(page(100..200), true).unwrap();
        drop(staging);
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let mut staging = Staging::open(dir.path()).unwrap();
        assert_eq!((staging.keys, staging.complete), (100, false));
        assert_eq!(staging.last.as_deref(), Some(&b"00099"[..]));
        staging.add(page(100..150), false).unwrap();
        drop(staging);
        // A bit that turned, in the first page: nothing behind it counts.
        let mut flipped = std::fs::read(&path).unwrap();
        let staging = Staging::open(dir.path()).unwrap();
        assert_eq!((staging.keys, staging.complete), (150, true));
        let mut pages = staging.pages().unwrap();
        let mut count = 0;
        while let Some(page) = pages.next_page().unwrap() {
            count += page.kvs.len();
        }
        assert_eq!(count, 150);
        flipped[20] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let mut staging = Staging::open(dir.path()).unwrap();
        assert_eq!((staging.keys, staging.last.clone()), (0, None));
        staging.clear().unwrap();
        Staging::remove(dir.path()).unwrap();
        Staging::remove(dir.path()).unwrap();
    }
}
