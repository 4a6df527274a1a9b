//! One leader among replicas, and another one at once when it is gone.
//!
//! The truth is a `coordination.k8s.io/v1` Lease, written by compare-and-swap, with client-go's
//! fields: kubectl and stock programs understand it. It alone is too slow, so a standby also
//! holds a connection to the leader, whose address the Lease tells.
//!
//! - A leader that **dies** has its connections closed by its kernel. While it may act it never
//!   closes one without saying so: an end without a word is its death, and the standby takes the
//!   Lease at once.
//! - A leader that falls **silent** may still act. It asks the standbys several times each second,
//!   and each answer is a promise: not to take over for [`TAKEOVER_DELAY`] from when the question
//!   was read. The leader counts only [`GRANT`] from when it sent it, so no delay of a message and
//!   no pause of a process makes its time longer than the standby's. Who has promised that the
//!   Lease says; a standby of which the Lease says nothing waits for the Lease to expire. A leader
//!   whose standby does not answer therefore first takes it out of the Lease, and goes on.
//! - A leader that **can't renew** does not act: its fence is [`ElectionConfig::renew_deadline`]
//!   after the request that last renewed the Lease, by the monotonic clock.
//! - A leader that is **asked to stop** ends what is under way, stops for good and tells its standby,
//!   which takes the Lease in one write. Where it does not, the Lease is given back for anybody.
//!
//! Each leadership has an epoch, the resourceVersion of the write that took the Lease, greater than
//! all before it, for messages to carry. A candidate that finds no Lease may act only after all that could be known from a deleted
//! one is over. The decisions are in [`election`], without I/O; `tests/leadership.rs` simulates
//! them.

mod edge;
pub mod election;
mod handover;
mod metrics;
mod peers;
pub mod record;
mod standby;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use metrics::ElectionMetrics;
pub use standby::{End, Target};

/// How often a leader asks its standbys.
pub const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a leader relies on a promise, from when it asked.
pub const GRANT: Duration = Duration::from_millis(800);
/// How long a standby keeps a promise, from when it was asked. Longer than [`GRANT`] by more than
/// clocks of two machines drift apart in that time.
pub const TAKEOVER_DELAY: Duration = Duration::from_secs(1);

/// Where the Lease is, who we are and how patient everybody is.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// The process's name in the Lease: the pod's name. No spaces.
    pub identity: String,
    /// How long others wait since the last change that they saw; whole seconds, the same for all
    /// candidates and longer than `renew_deadline`.
    pub lease_duration: Duration,
    /// The leader does not act when it could not renew for this long.
    pub renew_deadline: Duration,
    /// Pause between renewals and looks.
    pub retry_period: Duration,
    /// Where to listen for standbys; port 0 for any.
    pub listen: SocketAddr,
    /// The address that standbys connect to. If not given, the one that is shown to the apiserver.
    pub advertise: Option<IpAddr>,
}

impl ElectionConfig {
    /// 5 s, 3 s, 1 s: a crash of all candidates costs the first; that of one costs nearly nothing.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.replace(char::is_whitespace, "_"),
            lease_duration: Duration::from_secs(5),
            renew_deadline: Duration::from_secs(3),
            retry_period: Duration::from_secs(1),
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            advertise: None,
        }
    }
}

/// What is known about the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether we lead and may act.
    pub leader: bool,
    /// Whether the Lease is ours. Without `leader`: the right to act is suspended, and comes back
    /// or is lost within seconds.
    pub holds: bool,
    /// Grows with each leadership, and is never used twice: a resourceVersion of the Lease.
    pub epoch: u64,
    /// Who leads, by the last record seen.
    pub holder: Option<String>,
    /// We must not act past this instant, whatever the task that renews is doing; `None` when we
    /// may not act.
    pub fence: Option<Instant>,
    /// Whether a standby that holds all that it needs would take over from a leader that died now.
    pub standby_synced: bool,
}

impl Leadership {
    /// Whether we lead and the fence has not passed: ask right before each act.
    #[must_use]
    pub fn may_act(&self) -> bool {
        self.leader && self.fence.is_some_and(|fence| Instant::now() < fence)
    }
}

/// Why a leadership began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There was no Lease.
    Vacant,
    /// The leader gave the Lease back.
    Handover,
    /// The leader died.
    Death,
    /// The leader was silent.
    Silence,
    /// The Lease stood still for its whole duration.
    Expired,
    /// Our own earlier life led.
    Restart,
}

impl Cause {
    /// The value of a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Handover => "handover",
            Self::Death => "death",
            Self::Silence => "silence",
            Self::Expired => "expired",
            Self::Restart => "restart",
        }
    }
}

/// How a leadership began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The new epoch.
    pub epoch: u64,
    /// Why.
    pub cause: Cause,
    /// From the last sign of the old leader until the new one may act; `None` where there was no
    /// old one.
    pub took: Option<Duration>,
}

/// A candidate for one Lease.
#[derive(Clone)]
pub struct LeaseElection {
    api: Api<Lease>,
    config: ElectionConfig,
    metrics: Option<ElectionMetrics>,
    synced: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The apiserver's host and port, to find the address by which it sees us.
    server: Option<(String, u16)>,
}

impl std::fmt::Debug for LeaseElection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseElection").field("config", &self.config).finish_non_exhaustive()
    }
}

impl LeaseElection {
    /// A candidate that writes with `client`. `server` is the apiserver's URL.
    #[must_use]
    pub fn new(client: Client, server: &http::Uri, config: ElectionConfig) -> Self {
        let port = server.port_u16().unwrap_or(443);
        Self {
            api: Api::namespaced(client, &config.namespace),
            server: server.host().map(|host| (host.trim_matches(['[', ']']).to_owned(), port)),
            config,
            metrics: None,
            synced: Arc::new(|| true),
        }
    }

    /// Counts takeovers there.
    #[must_use]
    pub fn with_metrics(mut self, metrics: ElectionMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Asks `synced`, which must be quick, whether this process holds all that it needs to lead.
    #[must_use]
    pub fn with_synced(mut self, synced: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.synced = Arc::new(synced);
        self
    }

    /// Takes part on a task until `token` is cancelled; then gives the Lease back, so that the
    /// next leader need not wait. The receiver closes once that is done.
    #[must_use]
    pub fn run(self, token: CancellationToken) -> watch::Receiver<Leadership> {
        let (sender, receiver) = watch::channel(Leadership::default());
        tokio::spawn(async move { edge::campaign(self, &sender, &token).await });
        receiver
    }
}
