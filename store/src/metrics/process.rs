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

/// The largest number of 64 bits, as Prometheus shows it.
const UNLIMITED: f64 = 18_446_744_073_709_551_615.0;

#[derive(Debug)]
pub(super) struct Process;

/// Bytes received and sent by all interfaces (`/proc/net/dev`).
fn traffic(dev: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for (_, numbers) in dev.lines().filter_map(|line| line.split_once(':')) {
        let mut numbers = numbers.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        sums.0 = sums.0.saturating_add(numbers.next().unwrap_or(0));
        sums.1 = sums.1.saturating_add(numbers.nth(7).unwrap_or(0));
    }
    sums
}

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
        let limits = read("/proc/self/limits");
        let max_fds = line(&limits, "Max open files");
        let (received, sent) = traffic(&read("/proc/self/net/dev"));
        for (name, help, bytes) in [
            (
                "process_network_receive_bytes",
                "Bytes that this network namespace received",
                received,
            ),
            ("process_network_transmit_bytes", "Bytes that this network namespace sent", sent),
        ] {
            let counter = ConstCounter::new(bytes);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        // The directory itself is one of them while it is read.
        let open = open.and_then(|open| u32::try_from(open).ok()).map(f64::from);
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
            // As in Go, "unlimited" is the largest number there is.
            (
                "process_virtual_memory_max_bytes",
                "Most address space",
                Some(line(&limits, "Max address space").unwrap_or(UNLIMITED)),
            ),
            ("process_open_fds", "Open files", open),
            ("process_max_fds", "Most open files", max_fds),
            // etcd's own names for the same.
            ("os_fd_used", "Open files", open),
            ("os_fd_limit", "Most open files", max_fds),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}
