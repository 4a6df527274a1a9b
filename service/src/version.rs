//! Which build this is.

/// The release, as in Cargo.toml: `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The source revision: set by the build as `MEGACLUSTER_REVISION`, `unknown` otherwise.
pub const REVISION: &str = match option_env!("MEGACLUSTER_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
