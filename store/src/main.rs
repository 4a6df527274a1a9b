//! The store's process, and its tool `dump`.

use std::process::ExitCode;

use clap::Parser;
use megacluster_service::{crypto, logging, shutdown::Shutdown};
use megacluster_store::dump::{DumpFlags, dump};
use megacluster_store::flags::{Flags, refused};
use megacluster_store::server::Server;
use tracing::{error, info};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(reason) = refused(args.iter().map(String::as_str)) {
        eprintln!("error: {reason}");
        return ExitCode::from(2);
    }
    if args.get(1).is_some_and(|tool| tool == "dump") {
        return print_directory(&args[1..]);
    }
    let flags = Flags::parse();
    crypto::install();
    if let Err(problem) = logging::init(&flags.log) {
        eprintln!("error: {problem}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&flags)),
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
