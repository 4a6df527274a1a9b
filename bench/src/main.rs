//! Load on a server with etcd's API, and the comparison of ours with its peers.

mod error;
mod floor;
mod h2;
mod histogram;
mod line;
mod load;
mod pb;
mod plot;
mod proc;
mod report;
mod server;
mod space;
mod suite;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
use crate::floor::FloorArgs;
use crate::line::Line;
use crate::load::{Kind, Load, Outcome, Plan};
use crate::proc::Usage;
use crate::space::{Shape, Space};
use crate::suite::SuiteArgs;
use crate::watch::{Seen, Watchers};

/// Load on a server with etcd's API.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One load of unary calls on a server that runs.
    Load(LoadArgs),
    /// Watchers, and a writer for them.
    Watch(WatchArgs),
    /// What the machine adds to a request without any server.
    Floor(FloorArgs),
    /// The comparison of our store with etcd.
    Store(SuiteArgs),
}

#[derive(Clone, Debug, Args)]
struct Common {
    /// The server, without TLS.
    #[arg(long, default_value = "127.0.0.1:2379")]
    target: SocketAddr,
    /// The server's process, to read its CPU time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Connections of the clients.
    #[arg(long, default_value_t = 10)]
    connections: usize,
    /// Clients, each with one request under way.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Requests per second; without it as many as are answered.
    #[arg(long)]
    rate: Option<f64>,
    /// Keys, of 48 bytes.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024)]
    value: usize,
    /// Seconds measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// What decides which keys are used.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Debug, Args)]
struct LoadArgs {
    /// What is asked.
    kind: Kind,
    #[command(flatten)]
    common: Common,
    /// What values look like.
    #[arg(long, value_enum, default_value = "random")]
    shape: Shape,
    /// Compact this often, in seconds.
    #[arg(long)]
    compact_every: Option<f64>,
    /// Write all keys first, in large transactions; all loads but `put` do it anyway.
    #[arg(long)]
    fill: bool,
}

#[derive(Clone, Debug, Args)]
struct WatchArgs {
    #[command(flatten)]
    common: Common,
    /// Watchers.
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// Prefixes that they watch and keys are dealt to.
    #[arg(long, default_value_t = 1)]
    prefixes: usize,
    /// Streams that carry the watches.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Connections that carry the streams.
    #[arg(long, default_value_t = 10)]
    watch_connections: usize,
    /// Ask for what a key held before.
    #[arg(long)]
    prev_kv: bool,
    /// Further watchers of everything that never read.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
}

impl Common {
    fn plan(&self, kind: Kind) -> Plan {
        Plan {
            target: self.target,
            pid: self.pid,
            kind,
            connections: self.connections,
            clients: self.clients,
            keys: self.keys.max(1),
            value: self.value,
            rate: self.rate,
            warmup: Duration::from_secs_f64(self.warmup),
            duration: Duration::from_secs_f64(self.seconds),
            compact_every: None,
            fill: false,
            seed: self.seed,
        }
    }

    fn describe(&self, line: &mut Line) {
        line.add("clients", self.clients).add("connections", self.connections);
        if let Some(rate) = self.rate {
            line.add("rate", rate);
        }
        line.add("keys", self.keys).add("value", self.value);
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Load(args) => unary(&args).map(|line| println!("{line}")),
        Command::Watch(args) => watches(&args).map(|line| println!("{line}")),
        Command::Floor(args) => {
            floor::run(args).map(|lines| lines.iter().for_each(|line| println!("{line}")))
        }
        Command::Store(args) => suite::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("megacluster-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unary(args: &LoadArgs) -> Result<Line, Error> {
    let mut plan = args.common.plan(args.kind);
    plan.compact_every = args.compact_every.map(Duration::from_secs_f64);
    plan.fill = args.fill;
    let space = Space::new(1, args.shape);
    let outcome = Load::new(&plan, &space, Instant::now())?.run(|_| {})?;
    let mut line = Line::default();
    line.add("load", format!("{:?}", args.kind).to_lowercase());
    args.common.describe(&mut line);
    written(&mut line, &outcome, outcome.ops);
    line.latency("", &outcome.latency);
    Ok(line)
}

fn watches(args: &WatchArgs) -> Result<Line, Error> {
    let plan = args.common.plan(Kind::Put);
    let watchers = Watchers {
        target: args.common.target,
        count: args.watchers,
        streams: args.streams,
        connections: args.watch_connections,
        prefixes: args.prefixes,
        prev_kv: args.prev_kv,
        stalled: args.stalled,
    };
    let (outcome, seen) = watch::run(&plan, &watchers)?;
    let mut line = Line::default();
    line.add("load", "watch");
    args.common.describe(&mut line);
    line.add("watchers", args.watchers).add("prefixes", args.prefixes);
    line.add("streams", args.streams).add("prev_kv", args.prev_kv).add("stalled", args.stalled);
    events(&mut line, &outcome, &seen);
    Ok(line)
}

fn events(line: &mut Line, outcome: &Outcome, seen: &Seen) {
    written(line, outcome, seen.events);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    line.add("events_per_s", format!("{:.0}", seen.events as f64 / outcome.seconds));
    line.add("missing", seen.missing);
    line.latency("event_", &seen.latency);
    line.latency("", &outcome.latency);
}

/// What a load did, and what each of `units` cost the server.
fn written(line: &mut Line, outcome: &Outcome, units: u64) {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (ops, units) = (outcome.ops as f64, units as f64);
    let Usage { cpu, resident } = outcome.after;
    line.add("ops_per_s", format!("{:.0}", ops / outcome.seconds)).add("errors", outcome.errors);
    if resident > 0 {
        let spent = cpu.saturating_sub(outcome.before.cpu).as_secs_f64();
        line.add("cpu_us", format!("{:.2}", spent * 1e6 / units.max(1.0)));
        line.add("cores", format!("{:.2}", spent / outcome.seconds));
        line.add("rss_mib", resident >> 20);
    }
}
