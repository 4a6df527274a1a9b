//! The files below the log, as far as the log needs them: a seam for fault injection.

use std::{
    fmt, fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use super::error::OpenError;

/// A flat directory of append-only files.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes an empty file; fails if there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file for appending.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file for reading from its beginning.
    fn read(&self, name: &str) -> io::Result<Box<dyn Source>>;
    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file open for reading.
pub trait Source: Read + Send + fmt::Debug {}

impl<T: Read + Send + fmt::Debug> Source for T {}

/// An open file.
pub trait StorageFile: Send + Sync + fmt::Debug {
    /// Appends all of `data`. On an error a part of it may be there.
    fn append(&self, data: &[u8]) -> io::Result<()>;
    /// Makes what was appended durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file off.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Takes room on the disk for `bytes` more, and some beyond, so that a sync need not make a
    /// new size durable each time: the file reads as zeros behind what was appended. It is a wish;
    /// where it can't be had, appending goes on as before.
    fn reserve(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Gives back what was reserved, and makes all that was appended and the size durable.
    fn finish(&self) -> io::Result<()> {
        self.sync()
    }
}

const LOCK: &str = "LOCK";

/// A directory of the file system, locked against other processes for as long as it lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held for its lock. A directory that is only looked at may have none.
    _lock: Option<fs::File>,
}

impl Directory {
    /// Makes the directory if it isn't there (mode 0700, as etcd does), and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let shown = || path.display().to_string();
        if !path.is_dir() {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder
                .recursive(true)
                .create(path)
                .map_err(|e| OpenError::io("create data directory", shown(), e))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                match fs::File::open(parent).and_then(|parent| parent.sync_all()) {
                    // A parent that may be searched but not read: its owner's concern.
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    result => result
                        .map_err(|e| OpenError::io("sync", parent.display().to_string(), e))?,
                }
            }
        }
        refuse_foreign(path)?;
        let lock_path = path.join(LOCK);
        let mut lock = fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(|e| OpenError::io("open lock file", lock_path.display().to_string(), e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(locked(path, lock)),
            Err(fs::TryLockError::Error(e)) => {
                return Err(OpenError::io("lock", lock_path.display().to_string(), e));
            }
        }
        // The owner is for people: a failure to note it (a full disk) takes nothing away.
        if let Err(error) = lock
            .set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(lock, "{}", std::process::id()))
        {
            tracing::debug!(%error, "could not note the owner in the lock file");
        }
        Ok(Self { path: path.to_owned(), _lock: Some(lock) })
    }

    /// Opens a directory to look at it: nothing is made or changed. Several may look at a time, and
    /// no store may start meanwhile. A copy need not have a lock file.
    pub(super) fn look(path: &Path) -> Result<Self, OpenError> {
        let failed = |action, path: &Path| {
            let path = path.display().to_string();
            move |e| OpenError::io(action, path, e)
        };
        fs::read_dir(path).map_err(failed("read data directory", path))?;
        refuse_foreign(path)?;
        let lock_path = path.join(LOCK);
        let lock = match fs::File::open(&lock_path) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), _lock: None });
            }
            Err(e) => return Err(failed("open lock file", &lock_path)(e)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(locked(path, lock)),
            Err(fs::TryLockError::Error(e)) => Err(failed("lock", &lock_path)(e)),
        }
    }
}

fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    if path.join("member").exists() {
        return Err(OpenError::Foreign {
            dir: path.to_owned(),
            found: "an etcd member directory".to_owned(),
        });
    }
    Ok(())
}

fn locked(path: &Path, mut lock: fs::File) -> OpenError {
    let mut owner = String::new();
    let owner = lock
        .read_to_string(&mut owner)
        .ok()
        .map(|_| owner.trim().to_owned())
        .filter(|owner| !owner.is_empty());
    OpenError::Locked { dir: path.to_owned(), owner }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that isn't UTF-8 isn't one of the log's.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = fs::File::options().create_new(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DirectoryFile { file, extent: Mutex::default() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut file = fs::File::options().write(true).open(self.path.join(name))?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Arc::new(DirectoryFile { file, extent: Mutex::new(Extent { len, reserved: len }) }))
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Source>> {
        Ok(Box::new(fs::File::open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

/// Room is reserved in pieces of this size: one change of the file's size for as many writes.
const RESERVE: u64 = 8 << 20;

#[derive(Debug)]
struct DirectoryFile {
    file: fs::File,
    extent: Mutex<Extent>,
}

/// How far a file reaches.
#[derive(Debug, Default)]
struct Extent {
    /// What was appended.
    len: u64,
    /// The file's size, with what is reserved.
    reserved: u64,
}

impl StorageFile for DirectoryFile {
    fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut extent = self.extent.lock();
        (&self.file).write_all(data)?;
        extent.len += data.len() as u64;
        extent.reserved = extent.reserved.max(extent.len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut extent = self.extent.lock();
        self.file.set_len(len)?;
        (&self.file).seek(SeekFrom::Start(len))?;
        *extent = Extent { len, reserved: len };
        Ok(())
    }

    fn reserve(&self, bytes: u64) {
        let mut extent = self.extent.lock();
        if extent.len + bytes <= extent.reserved {
            return;
        }
        let (from, more) = (extent.reserved, bytes + RESERVE);
        match fallocate(&self.file, FallocateFlags::empty(), from, more) {
            Ok(()) => extent.reserved = from + more,
            // A full disk, or a file system without it: appending will tell.
            Err(error) => tracing::debug!(%error, "no room reserved for the log"),
        }
    }

    fn finish(&self) -> io::Result<()> {
        let mut extent = self.extent.lock();
        if extent.reserved > extent.len {
            self.file.set_len(extent.len)?;
            extent.reserved = extent.len;
        }
        // The size too, which a sync of data alone need not keep when it shrinks.
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_reserved_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let size = || fs::metadata(dir.path().join("a")).unwrap().len();
        let read = || fs::read(dir.path().join("a")).unwrap();
        let file = directory.create("a").unwrap();
        file.reserve(3);
        assert_eq!(size(), RESERVE + 3);
        file.append(b"abc").unwrap();
        file.append(b"de").unwrap();
        assert!(read().starts_with(b"abcde\0\0"));
        // More than was reserved, with and without asking.
        let large = vec![7; usize::try_from(RESERVE).unwrap()];
        file.append(&large).unwrap();
        file.reserve(RESERVE);
        file.append(&large).unwrap();
        file.finish().unwrap();
        assert_eq!(size(), 2 * RESERVE + 5);
        // After a restart: behind what is there, and what was reserved is cut off first.
        file.reserve(1);
        let again = directory.open("a").unwrap();
        again.truncate(4).unwrap();
        again.append(b"xy").unwrap();
        again.sync().unwrap();
        assert_eq!(read(), b"abcdxy");
    }
}
