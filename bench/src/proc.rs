//! What the kernel says of a process: CPU time and memory.

use std::fs;
use std::time::Duration;

use crate::error::{Error, io};

/// `USER_HZ`: 100 on every architecture that Linux runs on today.
const TICK: Duration = Duration::from_millis(10);

/// A process at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
    /// Resident memory in bytes.
    pub(crate) resident: u64,
}

/// Looks at a process.
pub(crate) fn usage(pid: u32) -> Result<Usage, Error> {
    let read = |what: &str| {
        let path = format!("/proc/{pid}/{what}");
        fs::read_to_string(&path).map_err(io(path))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    parse(&stat, &status).ok_or_else(|| Error::Peer(format!("/proc/{pid} is not to be read")))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name in parentheses may hold anything; the third field is the first after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Usage { cpu: TICK * (ticks(11)? + ticks(12)?), resident: kib << 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 9 1000 200";
        let usage = parse(stat, "Name:\ta\nVmRSS:\t    2048 kB\n").unwrap();
        assert_eq!(usage.cpu, Duration::from_secs(2));
        assert_eq!(usage.resident, 2 << 20);
        assert!(super::usage(std::process::id()).unwrap().resident > 0);
    }
}
