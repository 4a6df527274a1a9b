//! What the Go client library tells of each process: memory, CPU, open files. Dashboards of etcd
//! show it. Read from `/proc` when it is asked for.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks of a second in `/proc`: fixed for user space (`USER_HZ`).
const TICKS: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

/// Field by its number in proc(5), from those of `/proc/self/stat` behind the program's name.
fn field(stat: &str, number: usize) -> Option<f64> {
    let behind = stat.rsplit_once(") ")?.1;
    behind.split(' ').nth(number - 3)?.parse().ok()
}

/// The number in the line that begins with a name.
fn line(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/self/stat");
        if let (Some(user), Some(system)) = (field(&stat, 14), field(&stat, 15)) {
            let seconds = ConstCounter::new((user + system) / TICKS);
            let help = "Seconds of CPU, user and system";
            let kind = seconds.metric_type();
            seconds.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                help,
                None,
                kind,
            )?)?;
        }
        let status = read("/proc/self/status");
        let started = field(&stat, 22).zip(line(&read("/proc/stat"), "btime"));
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory in use",
                line(&status, "VmRSS:").map(|kib| kib * 1024.0),
            ),
            ("process_virtual_memory_bytes", "Address space", field(&stat, 23)),
            (
                "process_start_time_seconds",
                "Start, in seconds since 1970",
                started.map(|(ticks, boot)| boot + ticks / TICKS),
            ),
            // The directory itself is one of them while it is read.
            (
                "process_open_fds",
                "Open files",
                open.and_then(|open| u32::try_from(open).ok()).map(f64::from),
            ),
            (
                "process_max_fds",
                "Most open files",
                line(&read("/proc/self/limits"), "Max open files"),
            ),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}
