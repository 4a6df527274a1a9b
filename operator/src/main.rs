//! The operator's process: flags, logging, and the subcommand that prints the CRD.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use megacluster_operator::api;

#[derive(Debug, Parser)]
#[command(name = "megacluster-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the CustomResourceDefinition as YAML.
    Crd,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Some(Command::Crd) => match api::crd::yaml() {
            Ok(yaml) => {
                print!("{yaml}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        None => ExitCode::SUCCESS,
    }
}
