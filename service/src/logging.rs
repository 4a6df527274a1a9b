//! Structured logs on standard error.

use std::io;

use tracing_subscriber::{EnvFilter, fmt};

use crate::flags::{LogFlags, LogFormat};

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter of `--log-level` does not parse.
    #[error("--log-level {value:?}: {source}")]
    Filter {
        /// What was given.
        value: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody set up logging before.
    #[error("logging is set up already: {0}")]
    Twice(Box<dyn std::error::Error + Send + Sync>),
}

/// Sets up the process's logging; call it once, early in `main`.
pub fn init(flags: &LogFlags) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&flags.log_level)
        .map_err(|source| LogError::Filter { value: flags.log_level.clone(), source })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(true);
    match flags.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(LogError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_names_the_flag() {
        let flags = LogFlags { log_level: "a=b=c".to_owned(), ..LogFlags::default() };
        let error = init(&flags).unwrap_err().to_string();
        assert!(error.starts_with("--log-level \"a=b=c\""), "{error}");
    }
}
