//! What can be wrong with what is to be simulated.

use std::path::PathBuf;

use crate::config::ConfigError;

/// A simulation can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// `--config`
    #[error("--config: {0}")]
    Config(#[from] ConfigError),
    /// A file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A document is neither YAML nor JSON.
    #[error("{path}: document {document}: {problem}", path = path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which document of it, from 1.
        document: usize,
        /// Where and why.
        problem: String,
    },
    /// A field has the wrong type or an impossible value.
    #[error("{path}: {field}: {problem}", path = path.display())]
    Field {
        /// Which file.
        path: PathBuf,
        /// Path of the field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// Flags that ask for nothing.
    #[error("{0}")]
    Flags(String),
    /// The output is closed, or there is no room for connections.
    #[error("{0}")]
    Output(#[from] std::io::Error),
}
