//! The store's process.

use std::process::ExitCode;

use clap::Parser;
use megacluster_service::{crypto, logging, shutdown::Shutdown};
use megacluster_store::flags::{Flags, refused};
use megacluster_store::server::Server;
use tracing::{error, info};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(reason) = refused(args.iter().map(String::as_str)) {
        eprintln!("error: {reason}");
        return ExitCode::from(2);
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
