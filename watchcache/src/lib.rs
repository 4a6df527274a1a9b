//! The front door of a control plane. A router takes every request, finds out who asks, and
//! passes it on to a pool of kube-apiservers; a [`cache`] answers reads of hot resources beside it
//! where it is switched on.
//!
//! The way of a request: [`serve`] (TLS, HTTP) → [`router`] (what is asked: [`api`]; who asks:
//! [`authn`]; which pool; which headers: [`headers`]) → [`upstream`] (which backend, which
//! connection). Nothing calls back.

pub mod api;
pub mod app;
pub mod audit;
pub mod authn;
pub mod cache;
pub mod config;
pub mod executor;
pub mod flags;
pub mod guard;
pub mod headers;
pub mod limits;
pub mod metrics;
pub mod router;
pub mod serve;
pub mod upstream;

#[cfg(test)]
mod testing;
