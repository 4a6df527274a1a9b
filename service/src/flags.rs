//! Flags that every process takes.

use clap::{Args, ValueEnum};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line for each event.
    #[default]
    Text,
    /// One JSON object for each event.
    Json,
}

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct LogFlags {
    /// What to log, by level and module: `info`, `debug`, `info,megacluster_store=debug`.
    #[arg(long, default_value = "info", env = "MEGACLUSTER_LOG_LEVEL")]
    pub log_level: String,
    /// Format of the log lines.
    #[arg(long, value_enum, default_value_t, env = "MEGACLUSTER_LOG_FORMAT")]
    pub log_format: LogFormat,
}

impl Default for LogFlags {
    fn default() -> Self {
        Self { log_level: "info".to_owned(), log_format: LogFormat::Text }
    }
}
