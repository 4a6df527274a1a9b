//! Turns a `MegaCluster` into a whole control plane.
//!
//! Data moves one way through a reconcile: [`api`] (what the user wrote) → [`validate`] (a typed,
//! defaulted, checked cluster) → `pki` and `build` (pure: all that should exist) → apply → status.

pub mod api;
pub mod backoff;
pub mod build;
pub mod children;
pub mod controller;
pub mod metrics;
pub mod pki;
pub mod reconcile;
pub mod validate;
