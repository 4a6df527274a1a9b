//! A program under measurement.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The kernel's clock ticks.
const TICK: Duration = Duration::from_millis(10);
/// A program that takes less than this in a second does nothing.
const QUIET: Duration = Duration::from_millis(30);

/// A program that runs, its output in a file.
pub(crate) struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let log = File::create(log).expect("log");
        let child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self(child)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).expect("it runs")
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = self.read("stat");
        let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
        let times = fields.skip(11).take(2).map(|field| field.parse::<u32>().expect("a number"));
        TICK * times.sum::<u32>()
    }

    pub(crate) fn resident(&self) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// Waits until it does nothing, half a minute at most: its events are sent by then.
    pub(crate) async fn is_quiet(&self) {
        for _ in 0..30 {
            let before = self.cpu();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.cpu().saturating_sub(before) < QUIET {
                return;
            }
        }
    }
}
