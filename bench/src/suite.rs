//! The comparison of stores: the same loads on each, one after the other, a line for each result.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::error::{Error, io};
use crate::floor::{self, FloorArgs};
use crate::h2::Method;
use crate::line::{Line, number};
use crate::pb::{self, Value};
use crate::proc::Usage;
use crate::report;
use crate::server::{Program, Server, System, ask, on_cores};

/// What is compared, and how thoroughly.
#[derive(Clone, Debug, Args)]
pub(crate) struct SuiteArgs {
    /// etcd's program.
    #[arg(long)]
    etcd: PathBuf,
    /// Ours.
    #[arg(long)]
    store: PathBuf,
    /// k8s-1m's `mem_etcd`.
    #[arg(long)]
    mem_etcd: Option<PathBuf>,
    /// etcd's `tools/benchmark`.
    #[arg(long)]
    benchmark: Option<PathBuf>,
    /// Where results are written.
    #[arg(long)]
    out: PathBuf,
    /// Where servers keep their data meanwhile.
    #[arg(long)]
    scratch: PathBuf,
    /// A few minutes: fewer objects, shorter runs.
    #[arg(long)]
    short: bool,
    /// Parts to run: all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Throughput and CPU of the server on one core.
    Core,
    /// What the machine adds without any server.
    Floor,
    /// Latency at fixed rates.
    Latency,
    /// The fsync class.
    Fsync,
    /// Latency during snapshots and compactions.
    Stall,
    /// Watches.
    Watch,
    /// Memory for objects and for old versions; recovery.
    Memory,
    /// etcd's own load generator.
    Benchmark,
}

const PARTS: [Part; 8] = [
    Part::Core,
    Part::Floor,
    Part::Latency,
    Part::Fsync,
    Part::Stall,
    Part::Watch,
    Part::Memory,
    Part::Benchmark,
];

struct Suite {
    args: SuiteArgs,
    lines: Vec<String>,
    /// Server and generator have a core each.
    pinned: bool,
    runs: usize,
}

type Done = Result<(), Error>;

/// Runs the suite; the table and the plots are made from what it found.
pub(crate) fn run(args: SuiteArgs) -> Done {
    let parts = if args.only.is_empty() { PARTS.to_vec() } else { args.only.clone() };
    fs::create_dir_all(&args.out).map_err(io(args.out.display().to_string()))?;
    let pinned = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let mut suite = Suite { args, lines: Vec::new(), pinned, runs: 0 };
    suite.note(&report::machine());
    for part in parts {
        let began = Instant::now();
        let result = match part {
            Part::Core => suite.core(),
            Part::Floor => suite.floor(),
            Part::Latency => suite.latency(),
            Part::Fsync => suite.fsync(),
            Part::Stall => suite.stall(),
            Part::Watch => suite.watch(),
            Part::Memory => suite.memory(),
            Part::Benchmark => suite.benchmark(),
        };
        if let Err(error) = result {
            // The other parts can still say something; the table shows what is missing.
            suite.note(&format!("# {part:?} failed: {error}"));
        }
        let load = report::load_average();
        suite.note(&format!("# {part:?}: {} s; load average {load}", began.elapsed().as_secs()));
    }
    report::write(&suite.args.out, &suite.lines)
}

impl Suite {
    fn note(&mut self, line: &str) {
        println!("{line}");
        let _ = std::io::stdout().flush();
        self.lines.push(line.to_owned());
    }

    fn systems(&self, fsync: bool) -> Vec<System> {
        let system = |program, path: &Path| System { program, path: path.to_owned(), fsync };
        let mut systems =
            vec![system(Program::Etcd, &self.args.etcd), system(Program::Store, &self.args.store)];
        if let Some(path) = &self.args.mem_etcd {
            systems.push(system(Program::MemEtcd, path));
        }
        systems
    }

    /// Seconds of one load.
    fn seconds(&self) -> &'static str {
        if self.args.short { "2" } else { "5" }
    }

    /// A directory of its own for each server.
    fn fresh(&mut self) -> PathBuf {
        self.runs += 1;
        self.args.scratch.join(format!("run-{}", self.runs))
    }

    fn forget(dir: &Path) {
        // What is left lies in the scratch directory, which the caller removes.
        let _ = fs::remove_dir_all(dir);
    }

    fn start(&self, system: &System, dir: &Path, pinned: bool) -> Result<Server, Error> {
        let cores = (pinned && self.pinned).then_some("0");
        Server::start(system, dir, cores, &[])
    }

    /// Runs one load on a server and notes its line.
    fn load(
        &mut self,
        part: impl std::fmt::Display,
        server: &Server,
        pinned: bool,
        arguments: &[&str],
    ) -> Result<String, Error> {
        let exe = std::env::current_exe().map_err(io("this program"))?;
        let cores = (pinned && self.pinned).then_some("1");
        let output = on_cores(&exe, cores)
            .args(arguments)
            .arg(format!("--target={}", server.address))
            .arg(format!("--pid={}", server.pid()))
            .output()
            .map_err(io("start a load"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let mut line = Line::default();
        line.add("system", server.name);
        let line = format!("part={part} {line} {}", said.trim());
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            self.note(&format!("# {line}: {}", why.trim()));
            return Ok(String::new());
        }
        self.note(&line);
        Ok(line)
    }

    /// What one core of the server does.
    fn core(&mut self) -> Done {
        for system in self.systems(false) {
            let dir = self.fresh();
            let server = self.start(&system, &dir, true)?;
            for kind in ["put", "get", "cas", "mix"] {
                self.load("core", &server, true, &["load", kind, "--seconds", self.seconds()])?;
            }
            for clients in ["1", "10", "50"] {
                let arguments = ["load", "cas", "--seconds", "2", "--clients", clients];
                self.load("core", &server, true, &arguments)?;
            }
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }

    /// The most compare-and-puts a second, as just seen on one core, or a guess.
    fn highest(&self, system: &str) -> f64 {
        report::find(&self.lines, &[("part", "core"), ("load", "cas"), ("clients", "200")], system)
            .and_then(|line| number(line, "ops_per_s"))
            .unwrap_or(5000.0)
    }

    /// What the machine alone makes requests wait, at a tenth and at half of our highest load.
    fn floor(&mut self) -> Done {
        if !self.pinned {
            self.note("# Floor: it takes two cores");
            return Ok(());
        }
        for share in [0.1, 0.5] {
            let args = FloorArgs {
                rate: (self.highest("ours") * share).round(),
                seconds: if self.args.short { 2.0 } else { 5.0 },
            };
            for line in floor::run(args)? {
                self.note(&format!("part=floor share={share} {line}"));
            }
        }
        Ok(())
    }

    /// Latency at a share of the highest load.
    fn latency(&mut self) -> Done {
        let shares: &[f64] =
            if self.args.short { &[0.25, 0.5, 0.75] } else { &[0.1, 0.25, 0.5, 0.7, 0.8, 0.9] };
        for system in self.systems(false) {
            if system.program == Program::MemEtcd {
                // It knows no transaction of this kind.
                continue;
            }
            let dir = self.fresh();
            let server = self.start(&system, &dir, true)?;
            let highest = self.highest(system.name());
            for share in shares {
                let rate = format!("{:.0}", highest * share);
                let seconds = self.seconds();
                let arguments =
                    ["load", "cas", "--rate", &rate, "--clients", "1000", "--seconds", seconds];
                self.load(format!("latency share={share}"), &server, true, &arguments)?;
            }
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }

    fn fsync(&mut self) -> Done {
        for system in self.systems(true) {
            let dir = self.fresh();
            let server = self.start(&system, &dir, false)?;
            for clients in ["1", "200"] {
                let seconds = self.seconds();
                let arguments = ["load", "put", "--seconds", seconds, "--clients", clients];
                self.load("fsync", &server, false, &arguments)?;
            }
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }

    /// Half of the highest load while the server compacts all the time, and ours writes snapshots.
    fn stall(&mut self) -> Done {
        for system in self.systems(false) {
            if system.program == Program::MemEtcd {
                continue;
            }
            let dir = self.fresh();
            let mut flags = Vec::new();
            if system.program == Program::Store {
                // Several snapshots within the run.
                flags.push(format!("--snapshot-log-bytes={}", 64 << 20));
            }
            let cores = self.pinned.then_some("0");
            let server = Server::start(&system, &dir, cores, &flags)?;
            let rate = format!("{:.0}", self.highest(system.name()) / 2.0);
            let seconds = if self.args.short { "4" } else { "10" };
            let keys = if self.args.short { "50000" } else { "200000" };
            let mut arguments =
                vec!["load", "cas", "--rate", &rate, "--clients", "1000", "--seconds", seconds];
            arguments.extend(["--keys", keys, "--compact-every", "1"]);
            self.load("stall", &server, true, &arguments)?;
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }

    fn watch(&mut self) -> Done {
        let seconds = self.seconds();
        let one = ["watch", "--watchers", "100", "--keys", "10000", "--seconds", seconds];
        let many = ["watch", "--watchers", "10000", "--prefixes", "10000", "--seconds", seconds];
        for system in self.systems(false) {
            if system.program == Program::MemEtcd {
                // One watch of a stream is all it takes, and its keys must have its own form.
                continue;
            }
            let dir = self.fresh();
            let server = self.start(&system, &dir, false)?;
            for clients in ["20", "200"] {
                let arguments = [&one[..], &["--clients", clients]].concat();
                self.load("fan-out", &server, false, &arguments)?;
            }
            let arguments = [&one[..], &["--clients", "50", "--prev-kv"]].concat();
            self.load("fan-out", &server, false, &arguments)?;
            let rates: &[&str] =
                if system.program == Program::Store { &["20000"] } else { &["2000", "20000"] };
            for rate in rates {
                let arguments = [&many[..], &["--rate", rate, "--clients", "1000"]].concat();
                self.load("disjoint", &server, false, &arguments)?;
            }
            let slow = ["--rate", "2000", "--clients", "1000", "--stalled", "10"];
            let arguments = [&many[..], &slow].concat();
            self.load("stalled", &server, false, &arguments)?;
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }

    /// Memory as objects become more, recovery of the most, then versions of leases.
    fn memory(&mut self) -> Done {
        let sizes: &[&str] = if self.args.short {
            &["10000", "50000", "100000"]
        } else {
            &["100000", "300000", "1000000"]
        };
        for system in self.systems(false) {
            let mut largest: Option<(Server, PathBuf)> = None;
            for keys in sizes {
                // A server of its own for each size: to fill the same keys again would leave an old
                // version of each.
                if let Some((server, dir)) = largest.take() {
                    drop(server);
                    Self::forget(&dir);
                }
                let dir = self.fresh();
                let server = self.start(&system, &dir, false)?;
                let empty = server.usage()?;
                let fill = ["load", "put", "--fill", "--keys", keys, "--seconds", "0.1"];
                let arguments = [&fill[..], &["--rate", "10", "--warmup", "0"]].concat();
                self.load("fill", &server, false, &arguments)?;
                self.resident("objects", &server, empty, keys.parse().unwrap_or(1.0), 1072.0)?;
                largest = Some((server, dir));
            }
            let Some((server, dir)) = largest else { continue };
            if system.program != Program::MemEtcd {
                self.recovery(&system, server, &dir)?;
            }
            Self::forget(&dir);
            if system.program != Program::MemEtcd {
                self.versions(&system)?;
            }
        }
        Ok(())
    }

    /// Notes what so many things of `bytes` each take beyond these bytes.
    fn resident(
        &mut self,
        part: &str,
        server: &Server,
        before: Usage,
        count: f64,
        bytes: f64,
    ) -> Done {
        let after = server.usage()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = after.resident.saturating_sub(before.resident) as f64 / count;
        let mut line = Line::default();
        line.add("part", part).add("system", server.name).add("count", count);
        line.add("rss_mib", after.resident >> 20).add("bytes_each", format!("{each:.0}"));
        line.add("overhead_each", format!("{:.0}", each - bytes));
        self.note(&line.to_string());
        Ok(())
    }

    /// Stops the server in order and starts it, kills it and starts it.
    fn recovery(&mut self, system: &System, server: Server, dir: &Path) -> Done {
        server.stop()?;
        let again = self.start(system, dir, false)?;
        let in_order = again.took;
        drop(again);
        let killed = self.start(system, dir, false)?;
        let mut line = Line::default();
        line.add("part", "recovery").add("system", system.name());
        line.add("after_stop_s", seconds(in_order)).add("after_kill_s", seconds(killed.took));
        line.add("rss_mib", killed.usage()?.resident >> 20);
        self.note(&line.to_string());
        Ok(())
    }

    /// Updates of leases: what each old version takes.
    fn versions(&mut self, system: &System) -> Done {
        let dir = self.fresh();
        let server = self.start(system, &dir, false)?;
        let seconds = if self.args.short { "3" } else { "10" };
        let lease = ["load", "cas", "--shape", "lease", "--value", "0", "--keys", "10000"];
        // The first run pays for tables and buffers.
        self.load("leases", &server, false, &[&lease[..], &["--seconds", "1"]].concat())?;
        let before = server.usage()?;
        let arguments = [&lease[..], &["--seconds", seconds, "--warmup", "0"]].concat();
        let line = self.load("leases", &server, false, &arguments)?;
        let per_second = number(&line, "ops_per_s").unwrap_or(0.0);
        // The fill writes each key once more.
        let updates = per_second * seconds.parse().unwrap_or(0.0) + 10_000.0;
        self.resident("versions", &server, before, updates, 0.0)?;
        drop(server);
        Self::forget(&dir);
        Ok(())
    }

    /// etcd's own generator, with 200 clients on 10 connections.
    fn benchmark(&mut self) -> Done {
        let Some(program) = self.args.benchmark.clone() else { return Ok(()) };
        let total = if self.args.short { "20000" } else { "100000" };
        let kinds: [(&str, &[&str]); 3] = [
            ("put", &["put", "--key-space-size", "10000", "--total"]),
            ("txn-put", &["txn-put", "--key-space-size", "10000", "--total"]),
            ("range", &["range", "k", "--total"]),
        ];
        for system in self.systems(false) {
            let dir = self.fresh();
            let server = self.start(&system, &dir, true)?;
            let mut key = Vec::new();
            pb::put(&mut key, b"k", &Value { head: b"", body: &[b'v'; 1024] });
            if !ask(server.address, Method::Put, &key) {
                return Err(Error::Peer("does not take a key".into()));
            }
            for (kind, arguments) in kinds {
                let mut command = on_cores(&program, self.pinned.then_some("1"));
                command
                    .arg(format!("--endpoints={}", server.address))
                    .args(["--clients=200", "--conns=10"])
                    .args(arguments)
                    .arg(total);
                if kind != "range" {
                    command.args(["--key-size=48", "--val-size=1024"]);
                }
                let before = server.usage()?;
                let output = command.output().map_err(io("start etcd's benchmark"))?;
                let cpu = server.usage()?.cpu.saturating_sub(before.cpu);
                let said = String::from_utf8_lossy(&output.stdout);
                let mut line = Line::default();
                line.add("part", "benchmark").add("system", server.name).add("load", kind);
                line.add("clients", 200).add("connections", 10).add("total", total);
                let rate = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
                match rate {
                    Some(rate) if !said.contains("Error distribution") => {
                        let total: f64 = total.parse().unwrap_or(1.0);
                        line.add("ops_per_s", rate.trim());
                        line.add("cpu_us", format!("{:.2}", cpu.as_secs_f64() * 1e6 / total));
                        self.note(&line.to_string());
                    }
                    _ => self.note(&format!("# {line}: not taken")),
                }
            }
            drop(server);
            Self::forget(&dir);
        }
        Ok(())
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}
