//! The file that records are written to, on a thread of its own, and its older parts beside it, as
//! kube-apiserver's (`gopkg.in/natefinch/lumberjack.v2`) names and keeps them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tracing::error;

use crate::metrics::ResultLabels;

/// Bytes of records that wait to be written. New requests are recorded up to half of that; the rest
/// is for the ends of those that are under way.
const MOST: usize = 16 << 20;
/// After an error it is not written for so long; what has come meanwhile is lost, and counted.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the end waits for what is not yet written: a disk may never answer.
const LAST: Duration = Duration::from_secs(3);
const DAY: Duration = Duration::from_hours(24);
/// How an older part is named by the time at which it was closed.
const TIME: &str = "%Y-%m-%dT%H-%M-%S.%3f";

/// How long older parts are kept, in the terms of kube-apiserver's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of the file before it is put aside; 0 is never.
    pub size: u64,
    /// Older parts; 0 is any number.
    pub backups: usize,
    /// Days; 0 is for ever.
    pub days: u32,
}

/// Records by what became of them: `written`, `dropped` (too many waited), `failed`.
pub type Counts = Family<ResultLabels, Counter>;

fn count(counts: &Counts, result: &'static str, more: u64) {
    counts.get_or_create(&ResultLabels { result }).inc_by(more);
}

#[derive(Debug, Default)]
struct Waiting {
    /// Lines.
    bytes: Vec<u8>,
    /// Lines that are being written.
    taken: u64,
    closed: bool,
    /// The writer has ended.
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    come: Condvar,
    gone: Condvar,
    counts: Counts,
}

impl Shared {
    fn new(counts: Counts) -> Arc<Self> {
        let (waiting, come, gone) = (Mutex::default(), Condvar::new(), Condvar::new());
        Arc::new(Self { waiting, come, gone, counts })
    }
}

/// The log. When it is dropped, what waits is written first, if the disk takes it in a few seconds.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Opens the log, `-` for the standard output.
    pub fn open(path: &Path, retention: Retention, counts: Counts) -> io::Result<Self> {
        let mut out: Box<dyn Out> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(Rotated::open(path, retention)?)
        };
        let shared = Shared::new(counts);
        let of_writer = shared.clone();
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            // Said also where it panics: nobody is to wait for it then.
            let _ended = Ended(&of_writer);
            of_writer.write(out.as_mut());
        })?;
        Ok(Self { shared })
    }

    /// Whether another request may be recorded.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.waiting.lock().bytes.len() < MOST / 2
    }

    /// Adds a line, which ends with a line feed; it is counted if there is no room.
    pub fn add(&self, line: &[u8]) {
        let mut waiting = self.shared.waiting.lock();
        if waiting.bytes.len() + line.len() > MOST {
            drop(waiting);
            return count(&self.shared.counts, "dropped", 1);
        }
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        self.shared.come.notify_one();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        waiting.closed = true;
        self.shared.come.notify_one();
        let end = Instant::now() + LAST;
        while !waiting.ended {
            if self.shared.gone.wait_until(&mut waiting, end).timed_out() {
                let records = waiting.taken + lines(&waiting.bytes);
                waiting.bytes = Vec::new();
                drop(waiting);
                count(&self.shared.counts, "dropped", records);
                return error!(records, "audit records were not written: their disk hangs");
            }
        }
    }
}

/// The writer's end.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().ended = true;
        self.0.gone.notify_all();
    }
}

fn lines(text: &[u8]) -> u64 {
    text.split(|byte| *byte == b'\n').count() as u64 - 1
}

impl Shared {
    fn write(&self, out: &mut dyn Out) {
        let mut records = Vec::new();
        loop {
            let closed = {
                let mut waiting = self.waiting.lock();
                while waiting.bytes.is_empty() && !waiting.closed {
                    self.come.wait(&mut waiting);
                }
                records.clear();
                std::mem::swap(&mut records, &mut waiting.bytes);
                waiting.taken = lines(&records);
                waiting.closed
            };
            if records.is_empty() {
                return;
            }
            let number = lines(&records);
            match out.write(&records) {
                Ok(()) => count(&self.counts, "written", number),
                Err(problem) => {
                    error!(error = %problem, "audit records are not written");
                    count(&self.counts, "failed", number);
                    if !closed {
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
    }
}

/// Where lines go.
trait Out: Send {
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;
}

impl Out for io::Stdout {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut out = self.lock();
        out.write_all(lines)?;
        out.flush()
    }
}

/// A file, put aside when it is full.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    retention: Retention,
    file: File,
    size: u64,
    /// The last line may be a part of one.
    broken: bool,
}

impl Rotated {
    fn open(path: &Path, retention: Retention) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        let this = Self { path: path.to_owned(), retention, file, size, broken: false };
        this.clean(SystemTime::now());
        Ok(this)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let now = SystemTime::now();
        match std::fs::rename(&self.path, self.backup(now)) {
            // Someone else has put it aside.
            Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(problem),
            _ => {}
        }
        self.file = append(&self.path)?;
        (self.size, self.broken) = (0, false);
        self.clean(now);
        Ok(())
    }

    /// What the names of older parts have before and after the time.
    fn names(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let after = self.path.extension().map(|_| format!(".{}", text(self.path.extension())));
        (format!("{}-", text(self.path.file_stem())), after.unwrap_or_default())
    }

    /// Where the file is put; not where another one is already.
    fn backup(&self, now: SystemTime) -> PathBuf {
        let (before, after) = self.names();
        let mut at = now;
        loop {
            let time = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            let path = self.path.with_file_name(format!("{before}{}{after}", time.strftime(TIME)));
            if !path.exists() {
                return path;
            }
            at += Duration::from_millis(1);
        }
    }

    /// Takes away older parts that are too many or too old. What can't be taken away stays.
    fn clean(&self, now: SystemTime) {
        let (before, after) = self.names();
        let Some(dir) = self.path.parent() else { return };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        let mut parts: Vec<(jiff::Timestamp, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let time = name.strip_prefix(&before)?.strip_suffix(&after)?;
                let time = jiff::civil::DateTime::strptime(TIME, time).ok()?;
                Some((time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp(), entry.path()))
            })
            .collect();
        parts.sort_by(|one, other| other.cmp(one));
        let oldest = (self.retention.days > 0)
            .then(|| now.checked_sub(DAY * self.retention.days))
            .flatten()
            .and_then(|oldest| jiff::Timestamp::try_from(oldest).ok());
        for (place, (time, path)) in parts.iter().enumerate() {
            let too_many = self.retention.backups > 0 && place >= self.retention.backups;
            if too_many || oldest.is_some_and(|oldest| *time < oldest) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Out for Rotated {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut rest = lines;
        while !rest.is_empty() {
            let room = match self.retention.size {
                0 => usize::MAX,
                size => usize::try_from(size.saturating_sub(self.size)).unwrap_or(usize::MAX),
            };
            // As many whole lines as there is room for.
            let fits = match rest.get(..room) {
                None => rest.len(),
                Some(part) => part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1),
            };
            let fits = if fits > 0 {
                fits
            } else if self.size > 0 {
                self.rotate()?;
                continue;
            } else {
                // A line that is longer than a file.
                rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1)
            };
            let (now, later) = rest.split_at(fits);
            if std::mem::replace(&mut self.broken, true) {
                self.file.write_all(b"\n")?;
            }
            self.file.write_all(now)?;
            self.broken = false;
            self.size += fits as u64;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn parts_are_put_aside_whole_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in").join("audit.log");
        let counts = Counts::default();
        let retention = Retention { size: 100, backups: 3, days: 0 };
        let log = Log::open(&path, retention, counts.clone()).unwrap();
        for number in 0..100 {
            log.add(format!("{number:03} of lines of thirty\n").as_bytes());
        }
        drop(log);
        let names = parts(path.parent().unwrap());
        assert_eq!(names.len(), 4, "{names:?}");
        let mut all = String::new();
        for name in &names {
            let text = std::fs::read_to_string(path.with_file_name(name)).unwrap();
            assert!(text.len() <= 100 && text.ends_with('\n'), "{name}: {text}");
            all += &text;
        }
        assert!(all.ends_with("099 of lines of thirty\n") && names[3] == "audit.log");
        assert_eq!(all.lines().count(), 16);
        let written = counts.get_or_create(&ResultLabels { result: "written" }).get();
        assert_eq!(written, 100);
    }

    #[test]
    fn old_parts_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for name in [
            "audit-2020-01-02T03-04-05.678.log",
            "audit-2020.log",
            "other-2020-01-02T03-04-05.678.log",
        ] {
            std::fs::write(dir.path().join(name), "x\n").unwrap();
        }
        std::fs::write(&path, "before\n").unwrap();
        let retention = Retention { size: 0, backups: 0, days: 1 };
        let log = Log::open(&path, retention, Counts::default()).unwrap();
        log.add(b"after\n");
        drop(log);
        let names = ["audit-2020.log", "audit.log", "other-2020-01-02T03-04-05.678.log"];
        assert_eq!(parts(dir.path()), names);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn a_full_disk_is_counted() {
        let counts = Counts::default();
        let retention = Retention { size: 10, backups: 0, days: 0 };
        let path = Path::new("/dev/full");
        let log = Log::open(path, Retention { size: 0, ..retention }, counts.clone()).unwrap();
        log.add(b"one\n");
        drop(log);
        assert_eq!(counts.get_or_create(&ResultLabels { result: "failed" }).get(), 1);
        // A file that has gone is begun anew; a line that may be a part of one is ended.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = Rotated::open(&path, retention).unwrap();
        file.write(b"one\ntwo\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write(b"three\n").unwrap();
        file.broken = true;
        file.write(b"4\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n\n4\n");
    }

    /// A disk that takes nothing: what waits is bounded, and what is lost is counted.
    #[test]
    fn nothing_grows_with_a_slow_disk() {
        let shared = Shared::new(Counts::default());
        let log = Log { shared: shared.clone() };
        let line = vec![b'x'; 1 << 20];
        assert!(log.has_room());
        for _ in 0..MOST >> 20 {
            log.add(&line);
        }
        assert!(!log.has_room());
        log.add(b"\n");
        assert_eq!(shared.waiting.lock().bytes.len(), MOST);
        assert_eq!(shared.counts.get_or_create(&ResultLabels { result: "dropped" }).get(), 1);
    }
    /// A disk that hangs, here a pipe that nobody reads: requests go on, and so does the end.
    #[test]
    fn a_disk_that_hangs_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        // As one who reads and writes: that does not wait for another end.
        let pipe = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let counts = Counts::default();
        let retention = Retention { size: 0, backups: 0, days: 0 };
        let log = Log::open(&path, retention, counts.clone()).unwrap();
        let start = Instant::now();
        let line = [vec![b'x'; (1 << 16) - 1], vec![b'\n']].concat();
        for _ in 0..2 * MOST / line.len() {
            log.add(&line);
        }
        assert!(!log.has_room());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let start = Instant::now();
        drop(log);
        let took = start.elapsed();
        assert!(took >= LAST && took < LAST * 2, "{took:?}");
        let count = |result| counts.get_or_create(&ResultLabels { result }).get();
        // But for what the pipe holds.
        assert!(count("dropped") >= (2 * MOST / line.len()) as u64 - 2, "{}", count("dropped"));
        drop(pipe);
    }
}
