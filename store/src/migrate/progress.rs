//! How far an import is: a small file in the data directory, replaced as a whole.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::MigrateError;

const NAME: &str = "import.json";
const FORMAT: u32 = 1;

/// Where an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Keys are copied at one revision.
    Base,
    /// The data directory is a store at a revision of the source; changes since are followed.
    Follow,
    /// Caught up, and verified unless that was not asked for. It may be served.
    Done,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    format: u32,
    /// The source's cluster id.
    pub(super) cluster: u64,
    /// The revision at which the keys are copied.
    pub(super) revision: i64,
    pub(super) phase: Phase,
}

impl Progress {
    pub(super) fn new(cluster: u64, revision: i64) -> Self {
        Self { format: FORMAT, cluster, revision, phase: Phase::Base }
    }

    /// What a former run left; `None` if the directory is empty or not there.
    ///
    /// # Errors
    /// [`MigrateError::NotEmpty`] if the directory is something else.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, MigrateError> {
        let path = dir.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return if empty(dir)? {
                    Ok(None)
                } else {
                    Err(MigrateError::NotEmpty(dir.into()))
                };
            }
            Err(error) => return Err(MigrateError::file("read", path)(error)),
        };
        let progress: Self = serde_json::from_slice(&text).map_err(|error| {
            MigrateError::Progress { path: path.clone(), reason: error.to_string() }
        })?;
        if progress.format != FORMAT {
            let reason = format!("format {}, and this program knows {FORMAT}", progress.format);
            return Err(MigrateError::Progress { path, reason });
        }
        Ok(Some(progress))
    }

    /// Replaces the file, durably.
    pub(super) fn save(&self, dir: &Path) -> Result<(), MigrateError> {
        let (path, next) = (dir.join(NAME), dir.join(format!("{NAME}.next")));
        let text = serde_json::to_vec(self).map_err(|error| MigrateError::Progress {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let written = fs::File::create(&next).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&next, &path)?;
            fs::File::open(dir)?.sync_all()
        });
        written.map_err(MigrateError::file("write", path))
    }
}

/// True for a directory that is not there, or holds nothing but what a run left that was killed at
/// its very beginning.
fn empty(dir: &Path) -> Result<bool, MigrateError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(MigrateError::file("list", dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(MigrateError::file("list", dir))?.file_name();
        if name != "lost+found" && name != "import.json.next" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Checks that a data directory may be served: it is no import, or one that is done.
pub fn check_served(dir: &Path) -> Result<(), MigrateError> {
    if !dir.join(NAME).exists() {
        return Ok(());
    }
    match Progress::load(dir)? {
        Some(Progress { phase: Phase::Done, .. }) | None => Ok(()),
        Some(_) => Err(MigrateError::Unfinished(dir.into())),
    }
}

/// Ends an import for good: from now on the directory is a store of its own, to which nothing can be
/// imported any more. Call before the first write.
pub fn mark_served(dir: &Path) -> Result<(), MigrateError> {
    let path: PathBuf = dir.join(NAME);
    if !path.exists() {
        return Ok(());
    }
    fs::remove_file(&path)
        .and_then(|()| fs::File::open(dir)?.sync_all())
        .map_err(MigrateError::file("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Progress::load(&dir.path().join("absent")).unwrap(), None);
        assert_eq!(Progress::load(dir.path()).unwrap(), None);
        let mut progress = Progress::new(7, 9);
        progress.save(dir.path()).unwrap();
        assert_eq!(Progress::load(dir.path()).unwrap(), Some(progress.clone()));
        assert!(matches!(check_served(dir.path()), Err(MigrateError::Unfinished(_))));
        progress.phase = Phase::Done;
        progress.save(dir.path()).unwrap();
        check_served(dir.path()).unwrap();
        mark_served(dir.path()).unwrap();
        fs::write(dir.path().join("log-1"), "x").unwrap();
        assert!(matches!(Progress::load(dir.path()), Err(MigrateError::NotEmpty(_))));
        check_served(dir.path()).unwrap();
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert!(matches!(check_served(dir.path()), Err(MigrateError::Progress { .. })));
    }
}
