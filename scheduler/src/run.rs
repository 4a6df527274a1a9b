//! Puts a process together from its flags: all in one, a shard or a relay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use megacluster_service::admin::{Admin, Readiness};
use megacluster_service::leadership::{ElectionConfig, ElectionMetrics, Leadership, LeaseElection};
use megacluster_service::tls::{
    ClientAuth, ClientTls, ClientTlsFiles, ServerTls, ServerTlsFiles, TlsError,
};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::{
    AllFlags, CommonFlags, ExplainFlags, LeadFlags, RelayFlags, ReservationFlags, ShardFlags,
};
use crate::config::{ConfigError, SchedulerConfig};
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::core::queue::QueueConfig;
use crate::metrics::Metrics;
use crate::protocol::transport::{self, ALPN, Peer, PeerError};
use crate::relay::bind::BindLimits;
use crate::relay::connections::Requests;
use crate::relay::coordinator::{Coordinator, CoordinatorConfig};
use crate::relay::copies::Copies;
use crate::relay::driver::{self, Surroundings};
use crate::relay::explain::{Explainer, Explanation, PREFIX, Question};
use crate::relay::fanout::{Fanout, Shard};
use crate::relay::{intake, lookup, report, tree};
use crate::shard::local::LocalShard;
use crate::shard::machine::{ShardConfig, ShardMachine};
use crate::shard::watch::{self as shard_watch, Shards};

/// Pods on their way from the watch to the queue.
const INTAKE: usize = 1024;
/// Binds that may be decided for each that is sent at once. By default there is room for three
/// rounds of some classes: binds of one begin while the next is reserved and the one after that
/// evaluated.
const BINDS_AHEAD: usize = 16;
/// What is left to report has this long when the process ends.
const LAST_REPORTS: Duration = Duration::from_secs(3);

/// How long an explanation may take.
const EXPLAIN: Duration = Duration::from_mins(1);

/// The process can't start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// `--config`
    #[error("--config: {0}")]
    Config(#[from] ConfigError),
    /// The kubeconfig.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// No kubeconfig, and not in a pod.
    #[error("{0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// The client can't be built.
    #[error("apiserver: {0}")]
    Client(#[from] kube::Error),
    /// Certificates.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// A shard's or relay's address.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// A port can't be bound.
    #[error("{what} {address}: {source}")]
    Bind {
        /// Which flag.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Flags that don't fit each other.
    #[error("{0}")]
    Flags(String),
}

struct Process {
    config: SchedulerConfig,
    client: Client,
    for_election: Client,
    /// For what is sent for each pod.
    for_requests: Requests,
    metrics: Metrics,
    readiness: Readiness,
    elections: ElectionMetrics,
    server: http::Uri,
    explainer: Explainer,
    questions: mpsc::Receiver<Question>,
    /// Where the Lease and the admin port are looked after.
    aside: Handle,
}

async fn start(
    common: &CommonFlags,
    token: &CancellationToken,
    aside: Handle,
) -> Result<Process, RunError> {
    let config = match &common.config {
        Some(path) => SchedulerConfig::read(path)?,
        None => SchedulerConfig::default(),
    };
    let mut cluster = match common.kubeconfig.as_ref().or(config.kubeconfig.as_ref()) {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?
        }
        None => kube::Config::infer().await?,
    };
    // Every request has a deadline and a retry of its own.
    cluster.default_retry = false;
    let server = cluster.cluster_url.clone();
    // A client's tasks run where it was made.
    let for_election = {
        let _aside = aside.enter();
        Client::try_from(cluster.clone())?
    };
    let for_requests = Requests::new(cluster.clone())?;
    let client = Client::try_from(cluster)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let elections = ElectionMetrics::register(&mut registry, "scheduler");
    let (explainer, questions) = Explainer::new();
    let pages = explainer.clone();
    let admin =
        Admin::new(registry, "megacluster-scheduler").with_slow(move |path| pages.page(path));
    let readiness = admin.readiness();
    // Not ready before the parts have said what they wait for.
    readiness.set("started", false);
    let address = common.admin_listen_address;
    let stop = token.clone();
    let listening = aside.spawn(async move { admin.serve(address, stop).await }).await;
    listening
        .unwrap_or_else(|ended| Err(std::io::Error::other(ended)))
        .map_err(|source| RunError::Bind { what: "--admin-listen-address", address, source })?;
    Ok(Process {
        config,
        client,
        for_election,
        for_requests,
        metrics,
        readiness,
        elections,
        server,
        explainer,
        questions,
        aside,
    })
}

/// Everything in one process, until `token` is cancelled and what was under way has ended. The Lease
/// and the admin port are looked after `aside`.
pub async fn all_in_one(
    flags: AllFlags,
    token: CancellationToken,
    aside: Handle,
) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    let process = start(&flags.common, &stop, aside).await?;
    let names: Vec<Arc<str>> = (0..flags.shards).map(|i| format!("shard-{i}").into()).collect();
    let membership = Membership::new(0, &names);
    let shards: Shards = names
        .iter()
        .map(|name| Arc::new(local_shard(&process, name, &membership, &flags.reservation)))
        .collect();
    let Process { client, metrics, readiness, .. } = &process;
    shard_watch::spawn(client, &shards, false, readiness, metrics, &stop);
    let children = names.into_iter().zip(shards.iter().cloned().map(Shard::Local)).collect();
    let width = usize::from(flags.shards);
    let fanout = Fanout::new(
        membership.clone(),
        children,
        HashMap::default(),
        width,
        process.metrics.clone(),
    );
    lead(process, &flags.lead, membership, Arc::new(fanout), shards, token).await;
    stop.cancel();
    Ok(())
}

/// A shard, until `token` is cancelled; its admin port is looked after `aside`.
pub async fn shard(
    flags: ShardFlags,
    token: CancellationToken,
    aside: Handle,
) -> Result<(), RunError> {
    if !flags.shard_names.contains(&flags.name) {
        let problem = format!("--name {}: not one of --shard-names", flags.name);
        return Err(RunError::Flags(problem));
    }
    let files = ServerTlsFiles {
        cert: flags.tls_cert_file.clone(),
        key: flags.tls_private_key_file.clone(),
        client_ca: Some(flags.trusted_ca_file.clone()),
        client_auth: ClientAuth::Required,
    };
    let tls = ServerTls::new(files, ALPN)?;
    tls.watch(token.clone());
    let process = start(&flags.common, &token, aside).await?;
    let membership = Membership::new(0, &flags.shard_names);
    let name: Arc<str> = flags.name.as_str().into();
    let shard = Arc::new(local_shard(&process, &name, &membership, &flags.reservation));
    let Process { client, metrics, readiness, .. } = &process;
    let shards: Shards = [shard.clone()].into();
    shard_watch::spawn(client, &shards, true, readiness, metrics, &token);
    let address = flags.listen_address;
    let (_, grpc) = transport::serve(shard, address, tls, token)
        .await
        .map_err(|source| RunError::Bind { what: "--listen-address", address, source })?;
    readiness.set("started", true);
    info!(shard = %name, shards = membership.len(), "shard");
    // Ends with the token; what a shard holds is rebuilt by the next run.
    drop(grpc.await);
    Ok(())
}

fn local_shard(
    process: &Process,
    name: &Arc<str>,
    membership: &Membership,
    reservation: &ReservationFlags,
) -> LocalShard {
    let machine = ShardMachine::new(ShardConfig {
        name: name.clone(),
        membership: membership.clone(),
        incarnation: rand::random::<u64>().max(1),
        ttl: reservation.reservation_ttl,
    });
    LocalShard::new(machine, process.metrics.clone())
}

/// Asks a relay why a pod waits, and prints what it says.
pub async fn explain(flags: ExplainFlags) -> Result<(), RunError> {
    let Some((namespace, name)) = flags.pod.split_once('/') else {
        return Err(RunError::Flags(format!("{}: must be NAMESPACE/NAME", flags.pod)));
    };
    let mut config = kube::Config::new(flags.admin);
    config.default_retry = false;
    let client = Client::try_from(config)?;
    let request = http::Request::get(format!("{PREFIX}{namespace}/{name}")).body(Vec::new());
    let request = request.map_err(|error| RunError::Flags(error.to_string()))?;
    let asked = tokio::time::timeout(EXPLAIN, client.request_text(request));
    let text = match asked.await {
        Ok(text) => text?,
        Err(_) => return Err(RunError::Flags("no answer in time".to_owned())),
    };
    if flags.json {
        print!("{text}");
        return Ok(());
    }
    let explanation: Explanation =
        serde_json::from_str(&text).map_err(|error| RunError::Flags(error.to_string()))?;
    print!("{explanation}");
    Ok(())
}

/// A relay, until `token` is cancelled and what was under way has ended.
pub async fn relay(flags: RelayFlags, token: CancellationToken) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    let files = ClientTlsFiles {
        ca: Some(flags.trusted_ca_file.clone()),
        cert: Some(flags.cert_file.clone()),
        key: Some(flags.key_file.clone()),
    };
    let tls = ClientTls::new(files, ALPN)?;
    tls.watch(stop.clone());
    let mut copies: HashMap<Arc<str>, Copies> = HashMap::default();
    for (place, (name, url)) in flags.shards.iter().enumerate() {
        if flags.shards[..place].iter().any(|(_, other)| other == url) {
            return Err(RunError::Flags(format!("--shard {name}={url}: given twice")));
        }
        let peer = Peer::new(url, &tls)?;
        copies.entry(name.as_str().into()).or_insert_with(|| Copies::new(Vec::new())).push(peer);
    }
    let shards: HashMap<Arc<str>, Shard> =
        copies.into_iter().map(|(name, copies)| (name, Shard::Remote(Arc::new(copies)))).collect();
    let mut relays: HashMap<Arc<str>, Peer> = HashMap::default();
    for (name, url) in flags.relays.iter().filter(|(name, _)| *name != flags.name) {
        if relays.insert(name.as_str().into(), Peer::new(url, &tls)?).is_some() {
            return Err(RunError::Flags(format!("--relay {name}: given twice")));
        }
    }
    let most = usize::from(flags.fan_out);
    let widest = tree::widest(shards.len(), relays.len(), most);
    if widest > most {
        warn!(
            shards = shards.len(),
            relays = relays.len(),
            fan_out = most,
            widest,
            "too few relays for the fan-out: some ask more shards"
        );
    }
    let process = start(&flags.common, &stop, Handle::current()).await?;
    let membership = Membership::new(0, shards.keys());
    let fanout = Fanout::new(membership.clone(), shards, relays, most, process.metrics.clone());
    let fanout = Arc::new(fanout);
    if let Some(address) = flags.listen_address {
        let files = ServerTlsFiles {
            cert: flags.cert_file.clone(),
            key: flags.key_file.clone(),
            client_ca: Some(flags.trusted_ca_file.clone()),
            client_auth: ClientAuth::Required,
        };
        let tls = ServerTls::new(files, ALPN)?;
        tls.watch(stop.clone());
        transport::serve(fanout.clone(), address, tls, stop.clone())
            .await
            .map_err(|source| RunError::Bind { what: "--listen-address", address, source })?;
    }
    lead(process, &flags.lead, membership, fanout, Shards::default(), token).await;
    stop.cancel();
    Ok(())
}

async fn lead(
    process: Process,
    flags: &LeadFlags,
    membership: Membership,
    fanout: Arc<Fanout>,
    shards: Shards,
    token: CancellationToken,
) {
    let Process { config, client, metrics, readiness, explainer, questions, .. } = process;
    explainer.asks(&fanout);
    let either = |flag: &Option<String>, file: &Option<String>, default: &str| {
        flag.clone().or_else(|| file.clone()).unwrap_or_else(|| default.to_owned())
    };
    let profiles = config.policies(flags.scheduler_name.as_deref());
    let host = hostname();
    // The election and the watch outlive the drain; reports outlive both.
    let stop_watch = CancellationToken::new();
    let stop_election = CancellationToken::new();
    let stop_reports = CancellationToken::new();
    let mut leadership = if flags.leader_elect.or(config.leader_elect).unwrap_or(true) {
        let namespace =
            either(&flags.leader_elect_resource_namespace, &config.lease_namespace, "kube-system");
        let name = either(&flags.leader_elect_resource_name, &config.lease_name, "kube-scheduler");
        // By its port a process knows that its earlier life is over; without one of its own each
        // life has a name of its own.
        let identity = match flags.standby_listen_address.port() {
            0 => format!("{host}_{:016x}", rand::random::<u64>()),
            port => format!("{host}_{port}"),
        };
        let mut election = ElectionConfig::new(&namespace, &name, &identity);
        election.lease_duration = config.lease_duration.unwrap_or(election.lease_duration);
        election.renew_deadline = config.renew_deadline.unwrap_or(election.renew_deadline);
        election.retry_period = config.retry_period.unwrap_or(election.retry_period);
        election.listen = flags.standby_listen_address;
        let warm = readiness.clone();
        let _aside = process.aside.enter();
        LeaseElection::new(process.for_election, &process.server, election)
            .with_metrics(process.elections)
            .with_synced(move || warm.is_ready())
            .run(stop_election.clone())
    } else {
        always_leading(stop_election.clone())
    };
    let (reporter, mut reports) = report::spawn(
        process.for_requests.clone(),
        report::ReportConfig { host, events_per_second: flags.events_per_second },
        metrics.clone(),
        &stop_reports,
    );
    let (sink, intake) = mpsc::channel(INTAKE);
    let list = Arc::new(Notify::new());
    lookup::spawn(&client, &sink, &metrics, &stop_watch);
    tokio::spawn(intake::run(
        client.clone(),
        profiles.clone(),
        intake::Hearers { sink, shards, readiness: readiness.clone() },
        list.clone(),
        metrics.clone(),
        stop_watch.clone(),
    ));
    let queue = QueueConfig::default();
    let queue = QueueConfig {
        initial_backoff: config.initial_backoff.unwrap_or(queue.initial_backoff),
        max_backoff: config.max_backoff.unwrap_or(queue.max_backoff),
        max_pending: usize::try_from(flags.max_pending_pods).unwrap_or(usize::MAX),
        ..queue
    };
    let names: Vec<&str> = profiles.iter().map(|policy| &*policy.profile).collect();
    info!(profiles = names.join(","), shards = membership.len(), "relay");
    let coordinator = Coordinator::new(
        CoordinatorConfig {
            membership,
            relays: fanout.relay_names(),
            max_binds: usize::from(flags.bind_concurrency) * BINDS_AHEAD,
            deadline: flags.exchange_deadline,
            queue,
            await_directory: true,
            seed: rand::random(),
        },
        metrics.clone(),
    );
    readiness.set("started", true);
    let surroundings = Surroundings {
        fanout,
        requests: process.for_requests,
        bind_concurrency: usize::from(flags.bind_concurrency),
        limits: BindLimits::default(),
        reporter,
        leadership: leadership.clone(),
        readiness,
        metrics,
        list,
        questions,
    };
    driver::run(coordinator, surroundings, intake, token).await;
    stop_watch.cancel();
    stop_election.cancel();
    // The receiver closes when the Lease is given back.
    while leadership.changed().await.is_ok() {}
    stop_reports.cancel();
    let rest = async { while reports.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_REPORTS, rest).await.is_err() {
        warn!("some events were not written");
    }
}

/// Leadership without a Lease, for a process that knows it is the only one.
fn always_leading(token: CancellationToken) -> watch::Receiver<Leadership> {
    let century = Duration::from_hours(100 * 365 * 24);
    let fence = Instant::now().checked_add(century);
    let leadership = Leadership { leader: true, holds: true, fence, ..Leadership::default() };
    let (sender, receiver) = watch::channel(leadership);
    tokio::spawn(async move {
        token.cancelled().await;
        drop(sender);
    });
    receiver
}

fn hostname() -> String {
    let named = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    named
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}
