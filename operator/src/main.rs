//! The operator's process: flags in, the controller run, its writes while this process leads.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand};
use kube::{
    Client, Config,
    runtime::events::{Recorder, Reporter},
};
use megacluster_operator::{
    api::{self, FIELD_MANAGER},
    controller,
    metrics::Metrics,
    reconcile::{Memory, Reconciler},
    validate::ImageDefaults,
};
use megacluster_service::{
    admin::Admin,
    crypto,
    flags::LogFlags,
    leadership::{ElectionConfig, ElectionMetrics, Leadership, LeaseElection},
    logging,
    shutdown::Shutdown,
    version::VERSION,
};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The longest that giving back the Lease may take.
const RELEASE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(name = "megacluster-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the `CustomResourceDefinition` as YAML.
    Crd,
}

#[derive(Debug, Args)]
struct RunFlags {
    #[command(flatten)]
    log: LogFlags,
    /// Look at this namespace only.
    #[arg(long)]
    namespace: Option<String>,
    /// How many clusters are reconciled at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Registry and path in front of MegaCluster's own images, for a MegaCluster that doesn't say.
    #[arg(long, env = "MEGACLUSTER_IMAGE_REGISTRY")]
    image_registry: Option<String>,
    /// Tag of MegaCluster's own images, for a MegaCluster that doesn't say.
    #[arg(long, env = "MEGACLUSTER_IMAGE_TAG", default_value = VERSION)]
    image_tag: String,
    /// Registry and path in front of the stock images, for a MegaCluster that doesn't say.
    #[arg(long, env = "MEGACLUSTER_KUBERNETES_REGISTRY", default_value = "registry.k8s.io")]
    kubernetes_registry: String,
    /// Address of the admin port: health, metrics and profiles.
    #[arg(long, default_value = "0.0.0.0:8080")]
    admin_listen_address: SocketAddr,
    /// Namespace of the Lease by which one of several replicas leads.
    #[arg(long, env = "POD_NAMESPACE", default_value = "megacluster-system")]
    leader_elect_resource_namespace: String,
    /// Name of that Lease.
    #[arg(long, default_value = FIELD_MANAGER)]
    leader_elect_resource_name: String,
    /// This replica's name in the Lease and in events: its pod's name.
    #[arg(long, env = "POD_NAME", default_value = FIELD_MANAGER)]
    identity: String,
    /// Where the other replicas connect to the one that leads, to take over at once when it is
    /// gone; port 0 for any.
    #[arg(long, default_value = "0.0.0.0:0")]
    standby_listen_address: SocketAddr,
}

/// Why the process could not run.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Crd(#[from] api::crd::CrdError),
    #[error(transparent)]
    Log(#[from] logging::LogError),
    #[error("starting: {0}")]
    Io(#[from] std::io::Error),
    #[error("the management cluster's kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    #[error("the management cluster's client: {0}")]
    Client(#[from] kube::Error),
}

fn main() -> ExitCode {
    crypto::install();
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "stopped");
            eprintln!("megacluster-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<(), MainError> {
    if let Some(Command::Crd) = cli.command {
        print!("{}", api::crd::yaml()?);
        return Ok(());
    }
    logging::init(&cli.run.log)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli.run))
}

async fn run(flags: RunFlags) -> Result<(), MainError> {
    let shutdown = Shutdown::on_signals()?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let elections = ElectionMetrics::register(&mut registry, "operator");
    let admin = Admin::new(registry, FIELD_MANAGER);
    let readiness = admin.readiness();
    readiness.set(controller::KNOWN, false);
    let warm = readiness.clone();
    admin.serve(flags.admin_listen_address, shutdown.token()).await?;

    let config = Config::infer().await?;
    let server = config.cluster_url.clone();
    let client = Client::try_from(config)?;
    let lease = CancellationToken::new();
    let mut election = ElectionConfig::new(
        &flags.leader_elect_resource_namespace,
        &flags.leader_elect_resource_name,
        &flags.identity,
    );
    election.listen = flags.standby_listen_address;
    let mut leadership = LeaseElection::new(client.clone(), &server, election)
        .with_metrics(elections)
        .with_synced(move || warm.is_ready())
        .run(lease.clone());
    info!(version = VERSION, identity = flags.identity, "started");

    // Watches and caches are there before this process leads; what may be written is asked for
    // each write.
    let reconciler = Arc::new(reconciler(&flags, &client, leadership.clone(), shutdown.token()));
    let options = controller::Options {
        namespace: flags.namespace.clone(),
        concurrency: flags.concurrency,
        leadership: leadership.clone(),
        readiness,
    };
    controller::run(reconciler, options, metrics, shutdown.token()).await;
    lease.cancel();
    // The receiver closes when the Lease is given back.
    let released = async { while leadership.changed().await.is_ok() {} };
    if tokio::time::timeout(RELEASE, released).await.is_err() {
        info!("stopped before the Lease was given back");
    }
    Ok(())
}

fn reconciler(
    flags: &RunFlags,
    client: &Client,
    leadership: watch::Receiver<Leadership>,
    stopping: CancellationToken,
) -> Reconciler {
    let reporter =
        Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(flags.identity.clone()) };
    Reconciler {
        client: client.clone(),
        recorder: Recorder::new(client.clone(), reporter),
        images: ImageDefaults {
            registry: flags.image_registry.clone(),
            tag: flags.image_tag.clone(),
            kubernetes_registry: flags.kubernetes_registry.clone(),
        },
        memory: Memory::default(),
        stopping: stopping.clone(),
        // The write that is under way ends; the rest is the next leader's.
        may_act: Box::new(move || !stopping.is_cancelled() && leadership.borrow().may_act()),
    }
}
