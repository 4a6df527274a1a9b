//! `megacluster-scheduler`

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use megacluster_scheduler::cli::{Cli, Role};
use megacluster_scheduler::core::maps;
use megacluster_scheduler::simulate::{self, SimulateFlags};
use megacluster_scheduler::{pace, run};
use megacluster_service::shutdown::Shutdown;
use megacluster_service::{crypto, logging};
use tokio::runtime::{Builder, Handle};

fn main() -> ExitCode {
    let cli = Cli::parse();
    crypto::install();
    let common = match &cli.role {
        None => Some(&cli.all.common),
        Some(Role::Shard(flags)) => Some(&flags.common),
        Some(Role::Relay(flags)) => Some(&flags.common),
        Some(Role::Simulate(flags)) => return simulate(flags),
        // Prints its answer, and no log.
        Some(Role::Explain(_)) => None,
    };
    // Users choose many keys, so the order of maps must not be known. Above it is, for the simulator.
    if !maps::seed(rand::random()) {
        eprintln!("megacluster-scheduler: maps were used before their seed was drawn");
        return ExitCode::FAILURE;
    }
    if let Some(common) = common
        && let Err(error) = logging::init(&common.log)
    {
        eprintln!("megacluster-scheduler: {error}");
        return ExitCode::FAILURE;
    }
    let quiet = common.is_none();
    match run_to_the_end(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if quiet => {
            eprintln!("megacluster-scheduler: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(error, "stopped");
            ExitCode::FAILURE
        }
    }
}

fn simulate(flags: &SimulateFlags) -> ExitCode {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let ended = simulate::run(flags, &mut out).and_then(|()| Ok(out.flush()?));
    if let Err(error) = ended {
        drop(out.flush());
        eprintln!("megacluster-scheduler simulate: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A shard, and all in one process, have one thread for watches, messages, the queue and binds: their
/// steps are short, and waking another thread for each costs more than most of them. The Lease and
/// the admin port have a thread of their own, which no long step holds up.
fn run_to_the_end(cli: Cli) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut threads = Builder::new_multi_thread();
    if !matches!(cli.role, None | Some(Role::Shard(_))) {
        let runtime = threads.enable_all().build().map_err(text)?;
        let here = runtime.handle().clone();
        return runtime.block_on(scheduler(cli, here));
    }
    let aside = threads.worker_threads(1).enable_all().build().map_err(text)?;
    let mut thread = Builder::new_current_thread();
    if cli.role.is_none() {
        pace::gather(&mut thread);
    }
    let runtime = thread.enable_all().build().map_err(text)?;
    let ended = runtime.block_on(scheduler(cli, aside.handle().clone()));
    aside.shutdown_background();
    ended
}

async fn scheduler(cli: Cli, aside: Handle) -> Result<(), String> {
    let token = Shutdown::on_signals().map_err(|error| error.to_string())?.token();
    match cli.role {
        None => run::all_in_one(cli.all, token, aside).await,
        Some(Role::Shard(flags)) => run::shard(flags, token, aside).await,
        Some(Role::Relay(flags)) => run::relay(flags, token).await,
        Some(Role::Explain(flags)) => run::explain(flags).await,
        // Ended above.
        Some(Role::Simulate(_)) => Ok(()),
    }
    .map_err(|error| error.to_string())
}
