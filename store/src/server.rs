//! The whole process: recover, serve, drain.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use megacluster_service::admin::{Admin, Readiness};
use megacluster_service::tls::{ClientAuth, ServerTls, ServerTlsFiles, TlsError};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{Api, Identity, Limits};
use crate::core::EngineConfig;
use crate::edge::{Listeners, Security, ServeConfig, ServeError, health_pages};
use crate::flags::{self, FlagError, Flags};
use crate::log::{Class, DurabilityRules, LogConfig, OpenError, RuleError};
use crate::metrics::Metrics;
use crate::migrate::{self, MigrateError};
use crate::sequencer::{self, Health, Running, Shared};

/// How long connections may finish what they began once the drain starts.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the store could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags that don't fit.
    #[error(transparent)]
    Flags(#[from] FlagError),
    /// Durability rules that don't fit.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// The data directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin port.
    #[error("admin port {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The client listeners.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An import that is not done.
    #[error(transparent)]
    Import(#[from] MigrateError),
    /// A thread ended.
    #[error("recovery was interrupted")]
    Interrupted,
}

/// A running store.
#[derive(Debug)]
pub struct Server {
    running: Running,
    listeners: Listeners,
    admin: Vec<SocketAddr>,
    readiness: Readiness,
    drain: CancellationToken,
    /// Ends the admin port, last of all.
    end: CancellationToken,
}

impl Server {
    /// Recovers the state and serves it. Cancelling `drain` starts the drain; [`Server::finish`]
    /// completes it.
    pub async fn start(flags: &Flags, drain: CancellationToken) -> Result<Self, StartError> {
        flags.check()?;
        migrate::check_served(&flags.directory())?;
        let rules = DurabilityRules::new(flags.default_class(), flags.durability_rules.clone())?;
        let tls = server_tls(flags)?;
        let quota = usize::try_from(flags.quota_backend_bytes).unwrap_or(0);
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        metrics.set_quota(quota);
        let config = sequencer::Config {
            data_dir: flags.directory(),
            log: LogConfig {
                rules: rules.clone(),
                snapshot_bytes: flags.snapshot_log_bytes,
                ..LogConfig::default()
            },
            engine: EngineConfig { rules, lease_class: strongest(flags), quota },
        };
        // The admin port comes first: recovery takes as long as the log is long, and the process
        // is alive meanwhile.
        let pages: Arc<OnceLock<Api>> = Arc::default();
        let answering = pages.clone();
        let admin = Admin::new(registry, "megacluster-store")
            .with_extra(move |method, path| health_pages(answering.get(), method, path));
        let readiness = admin.readiness();
        readiness.set("serving", false);
        let end = CancellationToken::new();
        let mut bound = Vec::new();
        for (address, _) in flags::addresses(&flags.listen_metrics_urls)? {
            let serve = admin.serve(address, end.clone()).await;
            bound.push(serve.map_err(|source| StartError::Admin { address, source })?);
        }

        let recovering = metrics.clone();
        let running = tokio::task::spawn_blocking(move || sequencer::start(config, recovering))
            .await
            .map_err(|_| StartError::Interrupted)??;
        migrate::mark_served(&flags.directory())?;
        let identity = Identity::new(
            &flags.name,
            &flags.initial_cluster_token,
            flags.advertise_client_urls.clone(),
            flags.initial_advertise_peer_urls.clone(),
        );
        let limits = Limits {
            request_bytes: flags.max_request_bytes,
            txn_ops: flags.max_txn_ops,
            progress_interval: flags.progress_interval(),
            quota,
        };
        let handle = running.handle.clone();
        let data_dir = flags.directory();
        let api =
            Api::new(handle.clone(), identity, limits, data_dir, metrics.clone(), drain.clone());
        if let Some(tls) = &tls {
            tls.watch(drain.clone());
        }

        let _ = pages.set(api.clone());
        let addresses = flags::addresses(&flags.listen_client_urls)?
            .into_iter()
            .map(|(address, tls)| (address, if tls { Security::Tls } else { Security::Plain }))
            .collect();
        let serve = ServeConfig {
            addresses,
            tls,
            max_streams: flags.max_concurrent_streams,
            keepalive_interval: flags.grpc_keepalive_interval,
            keepalive_timeout: flags.grpc_keepalive_timeout,
            runtimes: runtimes(flags.io_threads),
        };
        let listeners = Listeners::start(serve, api, admin, metrics, drain.clone()).await?;
        readiness.set("serving", true);
        tokio::spawn(watch_health(handle, readiness.clone(), drain.clone()));
        Ok(Self { running, listeners, admin: bound, readiness, drain, end })
    }

    /// Where clients are served, in the order of `--listen-client-urls`.
    #[must_use]
    pub fn client_addresses(&self) -> &[SocketAddr] {
        self.listeners.addresses()
    }

    /// Where the admin port is.
    #[must_use]
    pub fn admin_addresses(&self) -> &[SocketAddr] {
        &self.admin
    }

    /// Drains: no new connections, requests under way are answered, watches end, the log is closed
    /// in order.
    pub async fn finish(self) {
        self.drain.cancel();
        self.readiness.set("serving", false);
        self.listeners.finish(PATIENCE).await;
        let running = self.running;
        let _ = tokio::task::spawn_blocking(move || running.stop()).await;
        self.end.cancel();
        info!("stopped");
    }
}

fn server_tls(flags: &Flags) -> Result<Option<ServerTls>, TlsError> {
    let (Some(cert), Some(key)) = (&flags.cert_file, &flags.key_file) else { return Ok(None) };
    // As in etcd, a CA alone makes certificates needed; --client-cert-auth needs a CA.
    let client_auth = match &flags.trusted_ca_file {
        Some(_) => ClientAuth::Required,
        None => ClientAuth::None,
    };
    let files = ServerTlsFiles {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: flags.trusted_ca_file.clone(),
        client_auth,
    };
    ServerTls::new(files, &[b"h2", b"http/1.1"]).map(Some)
}

/// The strongest class of any key: leases get it, so that no durable key loses its lease.
fn strongest(flags: &Flags) -> Class {
    let rules = flags.durability_rules.iter().map(|rule| rule.class);
    rules.max().unwrap_or(Class::None).max(flags.default_class())
}

fn runtimes(asked: usize) -> usize {
    if asked > 0 {
        return asked;
    }
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps readiness true to the log's health.
async fn watch_health(handle: sequencer::Handle, readiness: Readiness, drain: CancellationToken) {
    let mut last = None;
    loop {
        let shared: &Shared = handle.shared();
        let health = shared.health();
        if last != Some(health) {
            readiness.set("log", health == Health::Good);
            if health != Health::Good {
                warn!(?health, "writes are refused");
            }
            last = Some(health);
        }
        tokio::select! {
            () = drain.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}
