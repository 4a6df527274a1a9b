//! The process of the front door.

use std::process::ExitCode;

use clap::Parser;
use megacluster_service::shutdown::Shutdown;
use megacluster_service::{crypto, logging};
use megacluster_watchcache::app::App;
use megacluster_watchcache::flags::Flags;
use tracing::error;

fn main() -> ExitCode {
    let flags = Flags::parse();
    crypto::install();
    if let Err(error) = logging::init(&flags.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the front door can't start");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let app = App::start(flags).await?;
        shutdown.token().cancelled().await;
        app.stop().await;
        Ok(())
    })
}
