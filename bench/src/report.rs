//! The table of figures and the plots, from the lines of a suite.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, io};
use crate::line::{number, value};
use crate::plot::{Plot, Series};

/// Date and machine.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        value.unwrap_or("unknown").to_owned()
    };
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let revision = std::env::var("BENCH_REVISION").unwrap_or_else(|_| "unknown".to_owned());
    format!(
        "# {}; {cores} cores of {}; {} of memory; Linux {}; revision {revision}; load average {}",
        date.unwrap_or_default(),
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        load_average(),
    )
}

/// What else ran on the machine: the load average of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// The last line of a system with these values.
pub(crate) fn find<'a>(
    lines: &'a [String],
    wanted: &[(&str, &str)],
    system: &str,
) -> Option<&'a str> {
    let fits = |line: &&String| {
        value(line, "system") == Some(system)
            && wanted.iter().all(|(name, want)| value(line, name) == Some(*want))
    };
    lines.iter().rfind(fits).map(String::as_str)
}

/// One figure of the table.
struct Row {
    what: &'static str,
    etcd: Option<f64>,
    mem_etcd: Option<f64>,
    ours: Option<f64>,
    goal: String,
    reached: Option<bool>,
}

/// How a figure is judged.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bound) => figure <= bound,
            Self::AtLeast(bound) => figure >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", short(bound)),
            Self::AtLeast(bound) => format!("≥ {}", short(bound)),
        }
    }
}

/// Where a figure stands: the values of its line, its name, and the line's system but for the
/// class.
type Place = (&'static [(&'static str, &'static str)], &'static str, &'static str);

fn rows(lines: &[String]) -> Vec<Row> {
    let at = |(wanted, name, class): Place, system: &str| {
        find(lines, wanted, &format!("{system}{class}")).and_then(|line| number(line, name))
    };
    let best = |part: &str, name: &str, system: &str| {
        let of = |line: &&String| {
            value(line, "part") == Some(part)
                && value(line, "prev_kv") == Some("false")
                && value(line, "system") == Some(system)
        };
        lines.iter().filter(of).filter_map(|line| number(line, name)).reduce(f64::max)
    };
    let row = |what, place: Place, goal: Goal| {
        let ours = at(place, "ours");
        Row {
            what,
            etcd: at(place, "etcd"),
            mem_etcd: at(place, "mem_etcd"),
            ours,
            goal: goal.text(),
            reached: ours.map(|figure| goal.holds(figure)),
        }
    };
    let put: Place = (&[("part", "core"), ("load", "put")], "cpu_us", "");
    let get: Place = (&[("part", "core"), ("load", "get")], "cpu_us", "");
    let cas = &[("part", "core"), ("load", "cas"), ("clients", "200")];
    let synced_cpu: Place = (&[("part", "fsync"), ("clients", "200")], "cpu_us", "-fsync");
    let synced: Place = (&[("part", "fsync"), ("clients", "200")], "ops_per_s", "-fsync");
    let alone: Place = (&[("part", "fsync"), ("clients", "1")], "ops_per_s", "-fsync");
    let against_etcd = |times: f64, place: Place| {
        Goal::AtLeast(at(place, "etcd").map_or(f64::INFINITY, |rate| rate * times))
    };
    // What the core would do if nothing else ran on it.
    let per_cpu_second = |system: &str| at((cas, "cpu_us", ""), system).map(|micros| 1e6 / micros);
    let fan_out = best("fan-out", "events_per_s", "ours");
    let disjoint: Place = (&[("part", "disjoint"), ("rate", "20000")], "event_p99_ms", "");
    vec![
        row("put, server CPU, µs", put, Goal::AtMost(15.0)),
        row("get of one key, server CPU, µs", get, Goal::AtMost(10.0)),
        row("compare-and-put, server CPU, µs", (cas, "cpu_us", ""), Goal::AtMost(18.0)),
        row(
            "compare-and-put per second on one server core",
            (cas, "ops_per_s", ""),
            Goal::AtLeast(60_000.0),
        ),
        Row {
            what: "the same per second of its CPU time",
            etcd: per_cpu_second("etcd"),
            mem_etcd: per_cpu_second("mem_etcd"),
            ours: per_cpu_second("ours"),
            goal: String::new(),
            reached: None,
        },
        row(
            "fsync class: server CPU of a put, µs",
            synced_cpu,
            Goal::AtMost(at(put, "ours").unwrap_or(0.0) * 1.3),
        ),
        row("fsync class: puts per second, one client", alone, against_etcd(1.0, alone)),
        row("fsync class: puts per second, 200 clients", synced, against_etcd(3.0, synced)),
        Row {
            what: "events per second, 100 watchers of one prefix",
            etcd: best("fan-out", "events_per_s", "etcd"),
            mem_etcd: None,
            ours: fan_out,
            goal: Goal::AtLeast(500_000.0).text(),
            reached: fan_out.map(|figure| figure >= 500_000.0),
        },
        row("10,000 watchers, 20,000 writes/s: p99 delivery, ms", disjoint, Goal::AtMost(10.0)),
        row(
            "overhead of a live key beyond its bytes, bytes",
            (&[("part", "objects")], "overhead_each", ""),
            Goal::AtMost(160.0),
        ),
        row(
            "an old version of a lease, bytes",
            (&[("part", "versions")], "bytes_each", ""),
            Goal::AtMost(100.0),
        ),
        row(
            "recovery after a kill, largest set of 1 KiB values, s",
            (&[("part", "recovery")], "after_kill_s", ""),
            Goal::AtMost(5.0),
        ),
        row(
            "p99.9 at half of the highest load, ms",
            (&[("part", "latency"), ("share", "0.5")], "p999_ms", ""),
            Goal::AtMost(2.0),
        ),
        row(
            "the same during snapshots and compactions, ms",
            (&[("part", "stall")], "p999_ms", ""),
            Goal::AtMost(2.0),
        ),
    ]
}

/// What no server on this machine can be below.
fn floor(lines: &[String]) -> Row {
    let echo = [("part", "floor"), ("load", "echo"), ("share", "0.5")];
    Row {
        what: "p99.9 of a message there and back at that rate without a server, ms",
        etcd: None,
        mem_etcd: None,
        ours: find(lines, &echo, "none").and_then(|line| number(line, "p999_ms")),
        goal: String::new(),
        reached: None,
    }
}

/// The table in Markdown.
pub(crate) fn table(lines: &[String]) -> String {
    let mut out = String::from("| figure | etcd | mem_etcd | ours | goal | reached |\n");
    out.push_str("|---|---|---|---|---|---|\n");
    for row in rows(lines).into_iter().chain([floor(lines)]) {
        let show = |figure: Option<f64>| figure.map_or_else(|| "–".to_owned(), short);
        let reached = match row.reached {
            Some(true) => "yes",
            Some(false) => "no",
            None if row.goal.is_empty() => "",
            None => "not measured",
        };
        let cells =
            [show(row.etcd), show(row.mem_etcd), show(row.ours), row.goal, reached.to_owned()];
        // Writing to a string does not fail.
        let _ = writeln!(out, "| {} | {} |", row.what, cells.join(" | "));
    }
    out
}

/// A number with three digits that matter.
fn short(figure: f64) -> String {
    if !figure.is_finite() {
        return "etcd's".to_owned();
    }
    let digits = match figure.abs() {
        n if n >= 100.0 => 0,
        n if n >= 10.0 => 1,
        _ => 2,
    };
    format!("{figure:.digits$}")
}

/// Writes lines, table and plots.
pub(crate) fn write(out: &Path, lines: &[String]) -> Result<(), Error> {
    let put = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).map_err(io(path.display().to_string()))
    };
    let table = table(lines);
    println!("\n{table}");
    put("results.txt", &format!("{}\n", lines.join("\n")))?;
    let first = lines.first().map_or("", |line| line.trim_start_matches("# "));
    put("table.md", &format!("{first}\n\n{table}"))?;
    let mut latency = Vec::new();
    let mut memory = Vec::new();
    for (system, colour) in [("etcd", "#c44e52"), ("mem_etcd", "#8c8c8c"), ("ours", "#2b6cb0")] {
        for (name, dash) in [("p50_ms", "2 3"), ("p99_ms", "7 3"), ("p999_ms", "")] {
            let points = points(lines, "latency", system, "ops_per_s", name);
            let label = format!("{system} {}", name.trim_end_matches("_ms"));
            latency.push(Series { label, colour, dash, points });
        }
        let points = points(lines, "objects", system, "count", "rss_mib");
        memory.push(Series { label: system.to_owned(), colour, dash: "", points });
    }
    put(
        "latency.svg",
        &Plot {
            title: "Compare-and-put on one server core: latency against load",
            x: "requests per second",
            y: "ms from when the request was due",
            series: latency,
        }
        .draw(),
    )?;
    put(
        "memory.svg",
        &Plot {
            title: "Memory against objects of 48 + 1024 bytes",
            x: "objects",
            y: "resident MiB",
            series: memory,
        }
        .draw(),
    )
}

fn points(lines: &[String], part: &str, system: &str, x: &str, y: &str) -> Vec<(f64, f64)> {
    let of =
        |line: &&String| value(line, "part") == Some(part) && value(line, "system") == Some(system);
    let point = |line: &String| Some((number(line, x)?, number(line, y)?));
    lines.iter().filter(of).filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_filled_from_lines() {
        let lines: Vec<String> = [
            "part=core system=etcd load=put cpu_us=142.0",
            "part=core system=ours load=put cpu_us=14.0",
            "part=core system=ours load=cas clients=200 ops_per_s=59000 cpu_us=16.9",
            "part=fsync system=etcd-fsync load=put clients=1 ops_per_s=1100",
            "part=fsync system=ours-fsync load=put clients=1 ops_per_s=1200",
        ]
        .map(str::to_owned)
        .into();
        let table = table(&lines);
        assert!(
            table.contains("| put, server CPU, µs | 142 | – | 14.0 | ≤ 15.0 | yes |"),
            "{table}"
        );
        assert!(table.contains("core | – | – | 59000 | ≥ 60000 | no |"), "{table}");
        assert!(table.contains("one client | 1100 | – | 1200 | ≥ 1100 | yes |"), "{table}");
        assert!(table.contains("≤ 160 | not measured |"), "{table}");
    }
}
