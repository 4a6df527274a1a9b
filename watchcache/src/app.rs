//! The process: puts the parts together, keeps the configuration current, stops in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use megacluster_service::admin::{Admin, Readiness};
use megacluster_service::tls::{ClientAuth, ServerTlsFiles, TlsError};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::audit::{AuditError, Auditor, Retention};
use crate::authn::{ClientCa, ClientCaError, Identity, ProxyCa};
use crate::cache::{Cache, Parts, Store, Turns};
use crate::config::{BackendTls, ConfigError, PoolConfig, RouterConfiguration};
use crate::flags::{Flags, FlagsError};
use crate::guard::Alive;
use crate::metrics::{Metrics, ResultLabels};
use crate::router::{Options, RouteTable, Router, Snapshot};
use crate::serve::{FrontTls, Server, bind};
use crate::upstream::{Connector, Pool};

/// How often it is looked whether every pool has been ready.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// The front door can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration file.
    #[error("--config: {0}")]
    Config(#[from] ConfigError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Flags that do not go together.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// The CA of client certificates, or of proxies'.
    #[error("{path}: {source}", path = path.display())]
    ClientCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ClientCaError,
    },
    /// A file.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Audit records.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Identities in client certificates could not be handed on.
    #[error("--client-ca-file needs backendTLS.proxyClientCertFile in the configuration")]
    NoProxyCertificate,
    /// A port.
    #[error("{address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A running front door.
#[derive(Debug)]
pub struct App {
    /// Where it serves.
    pub address: SocketAddr,
    /// Its admin port.
    pub admin_address: SocketAddr,
    /// The router.
    pub router: Arc<Router>,
    readiness: Readiness,
    connections: TaskTracker,
    drain: CancellationToken,
    cut: CancellationToken,
    /// Ends the tasks behind the front door.
    background: CancellationToken,
    delay: Duration,
    timeout: Duration,
}

impl App {
    /// Starts to serve.
    pub async fn start(flags: &Flags) -> Result<Self, StartError> {
        let background = CancellationToken::new();
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let admin = Admin::new(registry, "megacluster-watchcache");
        let readiness = admin.readiness();
        readiness.set("pools", false);
        readiness.set("shutdown", true);

        let config = RouterConfiguration::read(&flags.config)?;
        let parts = flags.parts()?;
        let ca = match &flags.client_ca_file {
            None => ClientCa::none(),
            Some(path) => client_ca(path)?,
        };
        let ca = Arc::new(ca);
        let proxies = match &flags.requestheader_client_ca_file {
            None => None,
            Some(path) => {
                let names = &flags.requestheader_allowed_names;
                Some(Arc::new(ProxyCa::new(client_ca(path)?, names)))
            }
        };
        let tls = FrontTls::new(
            ServerTlsFiles {
                cert: flags.tls_cert_file.clone(),
                key: flags.tls_private_key_file.clone(),
                client_ca: None,
                client_auth: ClientAuth::None,
            },
            &ca,
        )?;
        tls.watch(background.clone());
        let mut pools = Pools::new(flags, &metrics, &background);
        let snapshot = pools.snapshot(&config)?;

        let listen = |address, source| StartError::Listen { address, source };
        let bound = match &flags.guard_socket {
            None => bind(flags.listen_address).map(|listener| (listener, None)),
            Some(name) => Alive::listener(name, flags.listen_address)
                .await
                .map(|(listener, alive)| (listener, Some(alive))),
        };
        let (listener, alive) = bound.map_err(|source| listen(flags.listen_address, source))?;
        let address =
            listener.local_addr().map_err(|source| listen(flags.listen_address, source))?;
        let (drain, cut) = (CancellationToken::new(), CancellationToken::new());
        let options = Options {
            response_deadline: flags.response_timeout,
            goaway_chance: flags.goaway_chance,
            goaway_min_age: flags.goaway_min_age,
        };
        let cache = start_cache(flags, parts, &metrics, &background);
        let router = Router::new(snapshot, ca.clone(), options, metrics.clone(), cut.clone());
        let audit = start_audit(flags, &metrics)?;
        let router = router.with_cache(cache).with_audit(audit).with_proxies(proxies.clone());
        let router = Arc::new(router);
        let admin_address = admin
            .serve(flags.admin_listen_address, background.clone())
            .await
            .map_err(|source| listen(flags.admin_listen_address, source))?;
        let connections = TaskTracker::new();
        let server = Server {
            router: router.clone(),
            tls: Arc::new(tls),
            max_streams: flags.http2_max_streams_per_connection,
            drain: drain.clone(),
            cut: cut.clone(),
            connections: connections.clone(),
        };
        tokio::spawn(server.accept(listener));
        if let Some(alive) = alive {
            tokio::spawn(alive.keep(drain.clone(), background.clone()));
        }
        tokio::spawn(watch_readiness(router.clone(), readiness.clone(), background.clone()));
        tokio::spawn(
            Reload { flags: flags.clone(), pools, router: router.clone(), ca, proxies, metrics }
                .run(background.clone()),
        );
        info!(%address, pools = config.pools.len(), "front door");
        Ok(Self {
            address,
            admin_address,
            router,
            readiness,
            connections,
            drain,
            cut,
            background,
            delay: flags.shutdown_delay_duration,
            timeout: flags.shutdown_timeout,
        })
    }

    /// Stops in order: says that it is not ready, goes on for the delay, accepts nothing more,
    /// ends watches, lets requests finish, cuts off what is left at the timeout.
    pub async fn stop(self) {
        self.readiness.set("shutdown", false);
        tokio::time::sleep(self.delay).await;
        self.drain.cancel();
        self.connections.close();
        self.router.upgrades().close();
        let finish = async {
            tokio::join!(
                self.router.watches().end_all(self.timeout / 2),
                self.connections.wait(),
                self.router.upgrades().wait(),
            )
        };
        if tokio::time::timeout(self.timeout, finish).await.is_err() {
            warn!(
                connections = self.connections.len(),
                upgraded = self.router.upgrades().len(),
                "requests are cut off"
            );
            self.cut.cancel();
            // They end at once now.
            tokio::join!(self.connections.wait(), self.router.upgrades().wait());
        }
        self.background.cancel();
        info!("stopped");
    }
}

fn start_cache(
    flags: &Flags,
    parts: Parts,
    metrics: &Metrics,
    token: &CancellationToken,
) -> Option<Cache> {
    if flags.cache_resource.is_empty() {
        return None;
    }
    let store = Store {
        endpoints: flags.etcd_servers.clone(),
        ca: flags.etcd_cafile.clone(),
        identity: flags.etcd_certfile.clone().zip(flags.etcd_keyfile.clone()),
        next: Arc::default(),
    };
    let own = Identity::of_front_door().in_groups(&flags.cache_review_group);
    let turns = Turns::counted(metrics.expensive_reads.clone());
    let resources = (&flags.cache_resource[..], parts);
    let cache = Cache::start(resources, &flags.etcd_prefix, &store, own, turns, token);
    Some(cache.with_gates(flags.gates()))
}

fn start_audit(flags: &Flags, metrics: &Metrics) -> Result<Option<Auditor>, StartError> {
    // As in kube-apiserver, one without the other records nothing.
    let (Some(policy), Some(path)) = (&flags.audit_policy_file, &flags.audit_log_path) else {
        return Ok(None);
    };
    let kept = Retention {
        size: u64::from(flags.audit_log_maxsize) << 20,
        backups: flags.audit_log_maxbackup,
        days: flags.audit_log_maxage,
    };
    let policy = read(policy)?;
    let policy = String::from_utf8_lossy(&policy);
    Ok(Some(Auditor::new(&policy, path, kept, metrics.audit_events.clone())?))
}

fn client_ca(path: &std::path::Path) -> Result<ClientCa, StartError> {
    let pem = read(path)?;
    let wrong = |source| StartError::ClientCa { path: path.to_owned(), source };
    ClientCa::from_pem(&pem).map_err(wrong)
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })
}

async fn watch_readiness(router: Arc<Router>, readiness: Readiness, token: CancellationToken) {
    loop {
        let ready = router.current().pools.iter().all(|pool| pool.has_been_ready());
        readiness.set("pools", ready);
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(READY_INTERVAL) => {}
        }
    }
}

/// Makes the pools of each configuration; a pool that did not change goes on.
struct Pools {
    needs_proxy_certificate: bool,
    metrics: Metrics,
    background: CancellationToken,
    current: Vec<Arc<Pool>>,
    connector: Option<(BackendTls, Connectors, tokio_util::sync::DropGuard)>,
    /// Of other parts, and the name that their certificates are verified for.
    peers: Vec<(u8, PoolConfig)>,
    peer_name: Option<String>,
}

/// To kube-apiservers, and to peers.
type Connectors = [Arc<Connector>; 2];

impl Pools {
    fn new(flags: &Flags, metrics: &Metrics, background: &CancellationToken) -> Self {
        Self {
            needs_proxy_certificate: flags.client_ca_file.is_some(),
            metrics: metrics.clone(),
            background: background.clone(),
            current: Vec::new(),
            connector: None,
            peers: flags.peers(),
            peer_name: flags.cache_peer_server_name.clone(),
        }
    }

    fn snapshot(&mut self, config: &RouterConfiguration) -> Result<Snapshot, StartError> {
        if self.needs_proxy_certificate && config.backend_tls.proxy_client_cert_file.is_none() {
            return Err(StartError::NoProxyCertificate);
        }
        let tls = &config.backend_tls;
        let ([connector, to_peers], kept) = match &self.connector {
            Some((known, connectors, _)) if known == tls => (connectors.clone(), true),
            _ => {
                let token = self.background.child_token();
                let connector = Arc::new(Connector::new(tls, &token)?);
                let to_peers = if self.peers.is_empty() {
                    connector.clone()
                } else {
                    let server_name = self.peer_name.clone();
                    Arc::new(Connector::new(&BackendTls { server_name, ..tls.clone() }, &token)?)
                };
                let connectors = [connector, to_peers];
                self.connector = Some((tls.clone(), connectors.clone(), token.drop_guard()));
                (connectors, false)
            }
        };
        let adopted =
            |pool: &PoolConfig| self.current.iter().find(|old| kept && old.adopt(pool)).cloned();
        let of_apiservers =
            |pool| adopted(pool).unwrap_or_else(|| Pool::start(pool, &connector, &self.metrics));
        let of_peers = |pool| {
            let start = || Pool::start_of_peers(pool, &to_peers, &self.metrics);
            adopted(pool).unwrap_or_else(start)
        };
        let pools: Vec<_> = config.pools.iter().map(of_apiservers).collect();
        let peers = self.peers.iter().map(|(part, peer)| (*part, of_peers(peer)));
        let peers: HashMap<_, _> = peers.collect();
        self.current = pools.iter().chain(peers.values()).cloned().collect();
        let table = RouteTable::new(&config.pools);
        Ok(Snapshot { table, pools, peers, limits: config.limits })
    }
}

/// Reads the configuration and the client CA again.
struct Reload {
    flags: Flags,
    pools: Pools,
    router: Arc<Router>,
    ca: Arc<ClientCa>,
    proxies: Option<Arc<ProxyCa>>,
    metrics: Metrics,
}

impl Reload {
    async fn run(mut self, token: CancellationToken) {
        let mut config = std::fs::read(&self.flags.config).ok();
        let content = |path: &Option<PathBuf>| std::fs::read(path.as_ref()?).ok();
        let mut ca = content(&self.flags.client_ca_file);
        let mut of_proxies = content(&self.flags.requestheader_client_ca_file);
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(self.flags.reload_interval) => {}
            }
            self.poll_config(&mut config);
            self.poll_ca(self.flags.client_ca_file.as_deref(), &self.ca, &mut ca);
            if let Some(proxies) = &self.proxies {
                let path = self.flags.requestheader_client_ca_file.as_deref();
                self.poll_ca(path, proxies.ca(), &mut of_proxies);
            }
        }
    }

    /// A file that can't be used leaves what is in force, and is reported once.
    fn poll_config(&mut self, seen: &mut Option<Vec<u8>>) {
        let Some(new) = changed(&self.flags.config, seen) else { return };
        let result = new.and_then(|bytes| {
            let config = RouterConfiguration::parse(&String::from_utf8_lossy(&bytes))?;
            self.pools.snapshot(&config)
        });
        let label = match result {
            Ok(snapshot) => {
                self.router.replace(snapshot);
                info!("configuration reloaded");
                "success"
            }
            Err(error) => {
                error!(%error, "configuration not reloaded: the old one stays");
                "error"
            }
        };
        self.metrics.config_reloads.get_or_create(&ResultLabels { result: label }).inc();
    }

    fn poll_ca(&self, path: Option<&std::path::Path>, ca: &ClientCa, seen: &mut Option<Vec<u8>>) {
        let Some(path) = path else { return };
        let Some(new) = changed(path, seen) else { return };
        let wrong = |source| StartError::ClientCa { path: path.to_owned(), source };
        let label = match new.and_then(|bytes| ca.replace(&bytes).map_err(wrong)) {
            Ok(()) => {
                info!(path = %path.display(), "client CA reloaded");
                "success"
            }
            Err(error) => {
                error!(%error, "client CA not reloaded: the old one stays");
                "error"
            }
        };
        self.metrics.client_ca_reloads.get_or_create(&ResultLabels { result: label }).inc();
    }
}

/// The file's content where it differs from what was seen.
fn changed(
    path: &std::path::Path,
    seen: &mut Option<Vec<u8>>,
) -> Option<Result<Vec<u8>, StartError>> {
    match read(path) {
        Ok(bytes) if seen.as_ref() == Some(&bytes) => None,
        Ok(bytes) => {
            *seen = Some(bytes.clone());
            Some(Ok(bytes))
        }
        // Reported once: a file that is back is read again.
        Err(error) => seen.take().map(|_| Err(error)),
    }
}
