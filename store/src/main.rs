//! The store's process, and its tools `import`, `export` and `dump`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use megacluster_service::flags::LogFlags;
use megacluster_service::{crypto, logging, shutdown::Shutdown};
use megacluster_store::dump::{DumpFlags, dump};
use megacluster_store::flags::{Flags, refused};
use megacluster_store::heap;
use megacluster_store::migrate::{self, ExportFlags, ImportFlags};
use megacluster_store::server::Server;
use tracing::{error, info};

/// What the program does when its first argument names a tool.
#[derive(Debug, Parser)]
#[command(name = "megacluster-store", version, about = "From etcd to the store and back")]
struct Tools {
    #[command(subcommand)]
    tool: Tool,
    #[command(flatten)]
    log: LogFlags,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Copies a running etcd into a data directory, with all revisions. May be killed and run again.
    Import(ImportFlags),
    /// Writes what a running store holds to a running etcd. May be killed and run again.
    Export(ExportFlags),
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(reason) = refused(args.iter().map(String::as_str)) {
        eprintln!("error: {reason}");
        return ExitCode::from(2);
    }
    if args.get(1).is_some_and(|tool| tool == "dump") {
        return print_directory(&args[1..]);
    }
    heap::keep();
    crypto::install();
    raise_open_files();
    if matches!(args.get(1).map(String::as_str), Some("import" | "export")) {
        let tools = Tools::parse();
        return process(&tools.log, use_tool(&tools.tool));
    }
    let flags = Flags::parse();
    process(&flags.log, run(&flags))
}

/// A connection is an open file, and the usual limit of 1,024 is a soft one. Go programs such as
/// etcd raise it at their start; so do we. Where that fails, the limit stays as it is.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

fn process(log: &LogFlags, work: impl Future<Output = Result<(), String>>) -> ExitCode {
    if let Err(problem) = logging::init(log) {
        eprintln!("error: {problem}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(problem) => Err(problem.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(error = problem, "megacluster-store stopped");
            ExitCode::FAILURE
        }
    }
}

/// The tool `dump`.
fn print_directory(args: &[String]) -> ExitCode {
    match dump(&DumpFlags::parse_from(args), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Says on standard output what was done.
async fn use_tool(tool: &Tool) -> Result<(), String> {
    match tool {
        Tool::Import(flags) => {
            let done = migrate::import(flags).await.map_err(|problem| problem.to_string())?;
            println!(
                "imported up to revision {}, {} revisions of them after the copy",
                done.revision, done.followed
            );
            match done.verified {
                Some(sum) => println!("verified: source and data directory both have {sum}"),
                None => println!("not verified"),
            }
        }
        Tool::Export(flags) => {
            let done = migrate::export(flags).await.map_err(|problem| problem.to_string())?;
            println!(
                "exported revision {} with {} changes; the target is at revision {}",
                done.source_revision, done.changed, done.target_revision
            );
            println!("verified: source and target both have {}", done.verified);
        }
    }
    Ok(())
}

async fn run(flags: &Flags) -> Result<(), String> {
    let shutdown = Shutdown::on_signals().map_err(|problem| problem.to_string())?;
    info!(name = flags.name, data_dir = %flags.directory().display(), "megacluster-store starting");
    let drain = shutdown.token();
    let server =
        Server::start(flags, drain.clone()).await.map_err(|problem| problem.to_string())?;
    drain.cancelled().await;
    server.finish().await;
    Ok(())
}
