//! A disk in memory that knows what was synced. Names are durable at once: what a crash does to
//! them is the concern of the log's own crash tests.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use megacluster_store::log::{Source, Storage, StorageFile};

#[derive(Debug, Default)]
struct Content {
    data: Vec<u8>,
    synced: usize,
    /// The end of the last run was a loss of power that took some of it.
    cut: bool,
}

/// How the name of a file in the making ends.
const TEMPORARY: &str = ".tmp";

#[derive(Debug, Default)]
struct File(Mutex<Content>);

#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: Mutex<BTreeMap<String, Arc<File>>>,
}

impl Disk {
    /// The newest segment, by the name that it has or will have, and its length: where the log ends.
    pub(crate) fn tail(&self) -> (String, usize) {
        let files = self.files.lock().unwrap();
        let (name, file) = files.iter().rfind(|(n, _)| n.starts_with("log-")).unwrap();
        let len = file.0.lock().unwrap().data.len();
        (name.trim_end_matches(TEMPORARY).to_owned(), len)
    }

    /// Whether what a segment held up to `len` is still there, or no longer needed. One without a
    /// name counts only behind a segment that is whole.
    pub(crate) fn holds(&self, (name, len): &(String, usize)) -> bool {
        let files = self.files.lock().unwrap();
        let holds = |file: &File| file.0.lock().unwrap().data.len() >= *len;
        if let Some(file) = files.get(name) {
            return holds(file);
        }
        let Some(file) = files.get(&format!("{name}{TEMPORARY}")) else { return true };
        let before = files.iter().rfind(|(n, _)| n.starts_with("log-") && *n < name);
        holds(file) && before.is_none_or(|(_, before)| !before.0.lock().unwrap().cut)
    }

    /// Drops a part of what was not synced: `keep` thousandths of it stay.
    pub(crate) fn lose_power(&self, keep: usize) {
        for file in self.files.lock().unwrap().values() {
            let mut content = file.0.lock().unwrap();
            let len = content.synced + (content.data.len() - content.synced) * keep / 1000;
            content.cut = len < content.data.len();
            content.data.truncate(len);
            content.synced = len;
        }
    }

    /// A run has begun on what the last one left: a later end of it is judged by itself.
    pub(crate) fn begun(&self) {
        for file in self.files.lock().unwrap().values() {
            file.0.lock().unwrap().cut = false;
        }
    }

    /// All files, with what is in them.
    pub(crate) fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.lock().unwrap();
        files.iter().map(|(n, f)| (n.clone(), f.0.lock().unwrap().data.clone())).collect()
    }

    /// A disk with these files on it.
    pub(crate) fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let file = |data: &Vec<u8>| {
            let content = Content { data: data.clone(), synced: data.len(), cut: false };
            Arc::new(File(Mutex::new(content)))
        };
        Self { files: Mutex::new(files.iter().map(|(n, d)| (n.clone(), file(d))).collect()) }
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        self.files.lock().unwrap().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = Arc::<File>::default();
        let before = self.files.lock().unwrap().insert(name.to_owned(), file.clone());
        if before.is_some() { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(file) }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(name)?)
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Source>> {
        let file = self.file(name)?;
        let data = file.0.lock().unwrap().data.clone();
        Ok(Box::new(io::Cursor::new(data)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let file = self.file(from)?;
        let mut files = self.files.lock().unwrap();
        files.remove(from);
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.files.lock().unwrap().remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl StorageFile for File {
    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().data.extend_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.synced = content.data.len();
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        content.data.truncate(len);
        content.synced = content.synced.min(len);
        Ok(())
    }
}
