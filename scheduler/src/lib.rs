//! To be written.
pub mod core;
