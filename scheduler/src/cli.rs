//! Command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use megacluster_service::flags::LogFlags;

use crate::simulate::SimulateFlags;

/// Schedules pods onto nodes as kube-scheduler does, in one process or as relays above shards.
///
/// Without a subcommand everything runs in this process, against any cluster.
#[derive(Clone, Debug, Parser)]
#[command(name = "megacluster-scheduler", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to be; without it, all in one.
    #[command(subcommand)]
    pub role: Option<Role>,
    /// Flags of all in one.
    #[command(flatten)]
    pub all: AllFlags,
}

/// A process's part.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// Owns a part of the nodes and answers relays.
    Shard(ShardFlags),
    /// Takes in pods, asks the shards, binds. One of the relays leads; the others stand by.
    Relay(RelayFlags),
    /// Shows where a workload would go, and how fast, on a cluster from a dump or out of nothing.
    Simulate(SimulateFlags),
    /// Asks a relay why a pod is Pending: which plugin rejects how many nodes on which shard.
    Explain(ExplainFlags),
}

/// A question about a pod.
#[derive(Args, Clone, Debug)]
pub struct ExplainFlags {
    /// The pod, as NAMESPACE/NAME.
    pub pod: String,
    /// The admin port of the relay that leads.
    #[arg(long, default_value = "http://127.0.0.1:10259")]
    pub admin: http::Uri,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of every role.
#[derive(Args, Clone, Debug)]
pub struct CommonFlags {
    /// Kubeconfig of the cluster whose pods are scheduled. Default: what --config says, else
    /// $KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// `KubeSchedulerConfiguration`, kubescheduler.config.k8s.io/v1. Fields that are not supported
    /// are refused. Flags win over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Address of /livez, /readyz, /metrics and /debug/pprof/profile, plain HTTP.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10259)))]
    pub admin_listen_address: SocketAddr,
    /// Logs.
    #[command(flatten)]
    pub log: LogFlags,
}

/// Flags of what leads.
#[derive(Args, Clone, Debug)]
pub struct LeadFlags {
    /// Pods with this spec.schedulerName are scheduled. Default: default-scheduler.
    #[arg(long)]
    pub scheduler_name: Option<String>,
    /// Hold the Lease while scheduling. Only for a single process may it be false. Default: true.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub leader_elect: Option<bool>,
    /// The Lease's namespace. Default: kube-system.
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,
    /// The Lease's name. Default: kube-scheduler, so that a stock scheduler and this one never act
    /// together.
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// Where standbys connect to the leader, to take over at once when it is gone; port 0 for any.
    /// Several on one host need a port each, or 0.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))]
    pub standby_listen_address: SocketAddr,
    /// Binds sent to the apiserver at once. Beyond sixteen times as many no pod is decided.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub bind_concurrency: u16,
    /// Pods without a node that are held, at about 1 KiB each; beyond, those of the lowest priority
    /// wait with the apiserver.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_pending_pods: u32,
    /// Events written each second; more are dropped and counted.
    #[arg(long, default_value_t = 500)]
    pub events_per_second: u32,
    /// How long shards may take to answer. One that is slower is left out for a while.
    #[arg(long, default_value = "3s", value_parser = duration)]
    pub exchange_deadline: Duration,
}

/// Flags of reservations.
#[derive(Args, Clone, Debug)]
pub struct ReservationFlags {
    /// After this long without a known bind the apiserver is asked about a reservation. Must be
    /// above the apiserver's request time-out (60s).
    #[arg(long, default_value = "90s", value_parser = duration)]
    pub reservation_ttl: Duration,
}

/// All in one.
#[derive(Args, Clone, Debug)]
pub struct AllFlags {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Flags of what leads.
    #[command(flatten)]
    pub lead: LeadFlags,
    /// Flags of reservations.
    #[command(flatten)]
    pub reservation: ReservationFlags,
    /// Shards in this process.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub shards: u16,
}

/// A shard.
#[derive(Args, Clone, Debug)]
pub struct ShardFlags {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Flags of reservations.
    #[command(flatten)]
    pub reservation: ReservationFlags,
    /// This shard's name, one of --shard-names. Processes of one name are copies of one shard.
    #[arg(long)]
    pub name: String,
    /// All shards' names: they divide the nodes. The same on every shard and relay.
    #[arg(long, value_delimiter = ',', required = true)]
    pub shard_names: Vec<String>,
    /// Address of the gRPC port.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7443)))]
    pub listen_address: SocketAddr,
    /// The gRPC port's certificate, PEM.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// CA that relays' certificates must come from, PEM.
    #[arg(long)]
    pub trusted_ca_file: PathBuf,
}

/// A relay.
#[derive(Args, Clone, Debug)]
pub struct RelayFlags {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Flags of what leads.
    #[command(flatten)]
    pub lead: LeadFlags,
    /// A shard, as NAME=https://HOST:PORT. Repeat it for each: the same on every relay. A name that
    /// is given again has one more copy, which takes over when the one in use is gone.
    #[arg(long = "shard", value_parser = peer, required = true)]
    pub shards: Vec<(String, String)>,
    /// A relay that the leader may place between itself and some shards when there are more than
    /// --fan-out, as NAME=https://HOST:PORT. Repeat it for each; this one's own is left out by
    /// --name.
    #[arg(long = "relay", value_parser = peer)]
    pub relays: Vec<(String, String)>,
    /// This relay's name among --relay.
    #[arg(long, default_value = "")]
    pub name: String,
    /// Children that a relay asks at once.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..))]
    pub fan_out: u16,
    /// Address of the gRPC port for a leader that places this relay below itself. Default: none.
    #[arg(long)]
    pub listen_address: Option<SocketAddr>,
    /// Certificate shown to shards and relays, and on the gRPC port, PEM.
    #[arg(long)]
    pub cert_file: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    pub key_file: PathBuf,
    /// CA that shards' and relays' certificates must come from, PEM.
    #[arg(long)]
    pub trusted_ca_file: PathBuf,
}

fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && url.starts_with("https://") => {
            Ok((name.to_owned(), url.trim_end_matches('/').to_owned()))
        }
        _ => Err("must be NAME=https://HOST:PORT".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).ok_or_else(|| "must be such as 500ms or 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn all_in_one_needs_no_subcommand() {
        let cli = Cli::try_parse_from(["x", "--kubeconfig", "k", "--leader-elect=false"]);
        let cli = cli.expect("valid");
        assert!(cli.role.is_none());
        assert_eq!(cli.all.lead.leader_elect, Some(false));
    }

    #[test]
    fn roles() {
        let tls = ["--trusted-ca-file", "c", "--fan-out", "10"];
        let relay = ["x", "relay", "--shard", "a=https://h:1", "--shard", "b=https://i:1"];
        let pair = ["--cert-file", "a", "--key-file", "b"];
        let cli = Cli::try_parse_from(relay.iter().chain(&tls).chain(&pair)).expect("valid");
        let Some(Role::Relay(flags)) = cli.role else { panic!("a relay") };
        assert_eq!(flags.shards[1], ("b".to_owned(), "https://i:1".to_owned()));
        assert!(Cli::try_parse_from(["x", "relay", "--shard", "http://h:1"]).is_err());
        let shard = "x shard --name a --shard-names a,b --tls-cert-file c \
                     --tls-private-key-file k --trusted-ca-file ca";
        let cli = Cli::try_parse_from(shard.split_whitespace()).expect("valid");
        let Some(Role::Shard(flags)) = cli.role else { panic!("a shard") };
        assert_eq!(flags.shard_names, ["a", "b"]);
    }
}
