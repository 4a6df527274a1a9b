//! Flags of `simulate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What is simulated.
#[derive(Args, Clone, Debug)]
#[command(next_line_help = true)]
#[expect(clippy::struct_excessive_bools, reason = "flags are flags")]
pub struct SimulateFlags {
    /// A dump of a cluster: what `kubectl get nodes,pods,namespaces,services,replicasets,
    /// statefulsets,replicationcontrollers -A -o yaml` or `-o json` prints, or several such
    /// documents in one file. Pods without a node are the workload. Repeat it for several files.
    #[arg(long = "from", value_name = "FILE")]
    pub from: Vec<PathBuf>,
    /// Manifests of a workload that isn't there yet: pods, what has a template of them (Deployment,
    /// `ReplicaSet`, `StatefulSet`, Job). Repeat it for several files.
    #[arg(long, value_name = "FILE")]
    pub workload: Vec<PathBuf>,
    /// Nodes to generate. Default: 1000 where no file is given, else none.
    #[arg(long)]
    pub nodes: Option<u32>,
    /// Zones that generated nodes are in.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub zones: u32,
    /// Waiting pods to generate. Default: as many as generated nodes, at most 100,000.
    #[arg(long)]
    pub pods: Option<u32>,
    /// Pods to generate that are on generated nodes already.
    #[arg(long, default_value_t = 0)]
    pub running: u32,
    /// Classes of equal pods among the generated ones, each with requests of its own; some select
    /// a type of nodes, some prefer a zone.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub classes: u32,
    /// Generated pods wait in turn, one of each class after the other, instead of class by class.
    #[arg(long)]
    pub interleave: bool,
    /// Generated pods of a class spread over this, as a rule that must hold (maxSkew 1 over zones,
    /// 5 over nodes).
    #[arg(long)]
    pub spread: Option<Domain>,
    /// Generated pods of a class keep away from each other within this.
    #[arg(long)]
    pub anti_affinity: Option<Domain>,
    /// Generated pods belong to a `ReplicaSet` for each class and so spread by default over nodes and
    /// zones, as those of Deployments do.
    #[arg(long)]
    pub replica_sets: bool,
    /// What is generated, and how ties are broken, hang on this.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Shards that divide the nodes.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub shards: u16,
    /// Relay and shards speak gRPC with TLS over loopback, as processes of their own do, and the
    /// shards work side by side.
    #[arg(long)]
    pub wire: bool,
    /// So many of the waiting pods come one by one, each when the one before has its node: says how
    /// long a pod takes on an idle system. Default: 1000, or a tenth of the pods if that is less.
    #[arg(long)]
    pub single: Option<u32>,
    /// `KubeSchedulerConfiguration`: its first profile's plugins and weights.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Lists each pod with its node, or why it has none.
    #[arg(long)]
    pub list: bool,
}

/// What nodes are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Domain {
    /// `topology.kubernetes.io/zone`
    Zone,
    /// `kubernetes.io/hostname`: each node by itself.
    Hostname,
}

impl Domain {
    /// The label.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Zone => crate::core::spread::ZONE_LABEL,
            Self::Hostname => crate::core::selector::HOSTNAME_LABEL,
        }
    }
}
