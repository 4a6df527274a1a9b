//! One pool of kube-apiservers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use super::{Backend, Candidate, Connector, Usability, choose, probe, resolve};
use crate::authn::Identity;
use crate::config::PoolConfig;
use crate::metrics::Metrics;

/// Which kind of load counts when a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Requests that end soon.
    Short,
    /// Watches and the like.
    Long,
}

/// One pool.
#[derive(Debug)]
pub struct Pool {
    name: Arc<str>,
    host: Arc<str>,
    port: u16,
    /// Whether the backends are given by address.
    fixed: bool,
    connector: Arc<Connector>,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    probe_identity: Arc<Identity>,
    /// Whether its backends are front doors.
    of_peers: bool,
    metrics: Metrics,
    token: CancellationToken,
    /// Whether a backend was ever ready.
    was_ready: AtomicBool,
    _stop: DropGuard,
}

impl Pool {
    /// Starts to look for the pool's backends and to check their health, until it is dropped.
    #[must_use]
    pub fn start(config: &PoolConfig, connector: &Arc<Connector>, metrics: &Metrics) -> Arc<Self> {
        Self::begin(config, connector, metrics, false)
    }

    /// The same of front doors that hold a part.
    #[must_use]
    pub fn start_of_peers(
        config: &PoolConfig,
        connector: &Arc<Connector>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        Self::begin(config, connector, metrics, true)
    }

    fn begin(
        config: &PoolConfig,
        connector: &Arc<Connector>,
        metrics: &Metrics,
        of_peers: bool,
    ) -> Arc<Self> {
        let token = CancellationToken::new();
        let pool = Arc::new(Self {
            name: config.name.as_str().into(),
            host: config.host.as_str().into(),
            port: config.port,
            fixed: !config.addresses.is_empty(),
            connector: connector.clone(),
            backends: ArcSwap::default(),
            probe_identity: Arc::new(Identity::of_front_door()),
            of_peers,
            metrics: metrics.clone(),
            token: token.clone(),
            was_ready: AtomicBool::new(false),
            _stop: token.clone().drop_guard(),
        });
        if pool.fixed {
            pool.update(&config.addresses.iter().copied().collect());
        } else {
            tokio::spawn(resolve::run(Arc::downgrade(&pool), token));
        }
        pool
    }

    /// Goes on under a newer configuration if it can: the same name, host and port, and backends
    /// found in the same way.
    #[must_use]
    pub fn adopt(&self, config: &PoolConfig) -> bool {
        let fits = *self.name == *config.name
            && *self.host == *config.host
            && self.port == config.port
            && self.fixed != config.addresses.is_empty();
        if fits && self.fixed {
            self.update(&config.addresses.iter().copied().collect());
        }
        fits
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where its backends are looked for.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The backends' port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes these addresses for the pool's backends. One that stays keeps its connections.
    pub(super) fn update(&self, addresses: &BTreeSet<SocketAddr>) {
        let old = self.backends.load();
        if old.len() == addresses.len()
            && old.iter().all(|backend| addresses.contains(&backend.address()))
        {
            return;
        }
        let new = addresses
            .iter()
            .map(|address| {
                old.iter()
                    .find(|backend| backend.address() == *address)
                    .cloned()
                    .unwrap_or_else(|| self.add(*address))
            })
            .collect();
        for backend in old.iter().filter(|backend| !addresses.contains(&backend.address())) {
            info!(pool = %self.name, address = %backend.address(), "backend gone");
            backend.retire();
        }
        self.backends.store(Arc::new(new));
    }

    fn add(&self, address: SocketAddr) -> Arc<Backend> {
        info!(pool = %self.name, %address, "backend found");
        let backend = Arc::new(Backend::new(
            &self.name,
            &self.host,
            address,
            &self.connector,
            &self.metrics,
            self.token.child_token(),
        ));
        tokio::spawn(probe::run(backend.clone(), self.probe_identity.clone(), self.of_peers));
        backend
    }

    /// Chooses a backend, those of `avoided` only if there is no other.
    #[must_use]
    pub fn choose(&self, load: Load, avoided: &[SocketAddr]) -> Option<Arc<Backend>> {
        let backends = self.backends.load();
        let candidate = |index: usize| {
            backends.get(index).map_or(
                Candidate { usability: Usability::Unusable, avoided: true, load: 0 },
                |backend| Candidate {
                    usability: backend.usability(),
                    avoided: avoided.contains(&backend.address()),
                    load: backend.load(load == Load::Long),
                },
            )
        };
        choose(backends.len(), candidate, rand::random())
            .and_then(|index| backends.get(index).cloned())
    }

    /// Whether a backend is or was ready. A pool that was ready once does not make the front door
    /// unready when its backends fail: requests then get 503 with Retry-After, which is better
    /// than an address that does not answer, and other pools still serve.
    #[must_use]
    pub fn has_been_ready(&self) -> bool {
        if self.was_ready.load(Ordering::Relaxed) {
            return true;
        }
        let ready =
            self.backends.load().iter().any(|backend| backend.usability() == Usability::Ready);
        if ready {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        ready
    }

    /// The backends as they are now.
    #[must_use]
    pub fn backends(&self) -> Arc<Vec<Arc<Backend>>> {
        self.backends.load_full()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for backend in self.backends.load().iter() {
            backend.retire();
        }
    }
}
