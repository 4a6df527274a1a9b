//! The process of the front door.

use std::process::ExitCode;

use clap::Parser;
use megacluster_service::flags::LogFlags;
use megacluster_service::shutdown::Shutdown;
use megacluster_service::{crypto, logging};
use megacluster_watchcache::app::App;
use megacluster_watchcache::flags::Flags;
use megacluster_watchcache::guard::{self, GuardFlags};
use tracing::error;

fn main() -> ExitCode {
    crypto::install();
    let mut arguments = std::env::args_os();
    let ended = match arguments.nth(1) {
        Some(first) if first == "guard" => {
            let program = std::ffi::OsString::from("megacluster-watchcache guard");
            let flags = GuardFlags::parse_from(std::iter::once(program).chain(arguments));
            started(&flags.log, || stand_guard(&flags))
        }
        _ => {
            let flags = Flags::parse();
            started(&flags.log, || run(&flags))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "stopped");
            eprintln!("megacluster-watchcache: {error}");
            ExitCode::FAILURE
        }
    }
}

type Ended = Result<(), Box<dyn std::error::Error>>;

fn started(log: &LogFlags, run: impl FnOnce() -> Ended) -> Ended {
    logging::init(log)?;
    run()
}

/// On one thread: it only copies, while the front door beside it is gone.
fn stand_guard(flags: &GuardFlags) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        Ok(guard::run(flags, &shutdown.token()).await?)
    })
}

fn run(flags: &Flags) -> Ended {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let app = App::start(flags).await?;
        shutdown.token().cancelled().await;
        app.stop().await;
        Ok(())
    })
}
