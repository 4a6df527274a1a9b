//! One leader among replicas, by a `coordination.k8s.io/v1` Lease.
//!
//! Same protocol as `k8s.io/client-go/tools/leaderelection`, so that stock programs, ours and
//! kubectl understand each other's Leases: the holder renews; others take over once they have
//! seen the record unchanged for the lease's duration, by their own monotonic clock; every write
//! is a compare-and-swap on the resourceVersion. The decisions are in [`state`], without I/O.

pub mod state;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use state::{Action, ElectionState};

/// Where the Lease is, who we are and how patient everybody is.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Unique for each process: the pod's name.
    pub identity: String,
    /// How long others wait since the last change that they saw; whole seconds.
    pub lease_duration: Duration,
    /// The leader gives up when it could not renew for this long; less than `lease_duration`.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
}

impl ElectionConfig {
    /// The stock components' patience: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What is known about the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether we lead.
    pub leader: bool,
    /// Grows with each change of leader: the Lease's `leaseTransitions`.
    pub epoch: u64,
    /// Who leads, by the last record seen.
    pub holder: Option<String>,
    /// We must not act past this instant, whatever the task that renews is doing; `None` when we
    /// don't lead.
    pub fence: Option<Instant>,
}

impl Leadership {
    /// Whether we lead and the fence has not passed: ask right before each act.
    #[must_use]
    pub fn may_act(&self) -> bool {
        self.leader && self.fence.is_some_and(|fence| Instant::now() < fence)
    }
}

/// A candidate for one Lease.
#[derive(Clone)]
pub struct LeaseElection {
    api: Api<Lease>,
    config: ElectionConfig,
}

impl std::fmt::Debug for LeaseElection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseElection").field("config", &self.config).finish_non_exhaustive()
    }
}

impl LeaseElection {
    /// A candidate that writes with `client`.
    #[must_use]
    pub fn new(client: Client, config: ElectionConfig) -> Self {
        Self { api: Api::namespaced(client, &config.namespace), config }
    }

    /// Takes part on a task until `token` is cancelled; then gives the Lease back, so that the
    /// next leader need not wait. The receiver closes once that is done.
    #[must_use]
    pub fn run(self, token: CancellationToken) -> watch::Receiver<Leadership> {
        let (sender, receiver) = watch::channel(Leadership::default());
        tokio::spawn(async move { self.campaign(&sender, &token).await });
        receiver
    }

    async fn campaign(self, sender: &watch::Sender<Leadership>, token: &CancellationToken) {
        let mut state = ElectionState::new(self.config.clone());
        loop {
            let attempt = timeout(self.config.renew_deadline, self.attempt(&mut state));
            tokio::select! {
                () = token.cancelled() => break,
                result = attempt => match result {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(lease = self.config.name, %error, "leader election"),
                    Err(_) => warn!(lease = self.config.name, "leader election: timed out"),
                },
            }
            self.publish(&state, sender);
            let pause = state.pause(Instant::now());
            tokio::select! {
                () = token.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            // The fence may have passed while we slept or waited for the apiserver.
            self.publish(&state, sender);
        }
        self.release(&mut state, sender).await;
    }

    fn publish(&self, state: &ElectionState, sender: &watch::Sender<Leadership>) {
        let now = state.leadership(Instant::now());
        sender.send_if_modified(|old| {
            if old.leader != now.leader {
                info!(
                    lease = self.config.name,
                    leader = now.leader,
                    epoch = now.epoch,
                    "leadership"
                );
            } else if old.holder != now.holder {
                info!(lease = self.config.name, holder = now.holder, epoch = now.epoch, "leader");
            }
            let modified = *old != now;
            *old = now;
            modified
        });
    }

    /// One look at the Lease and the write that follows from it.
    async fn attempt(&self, state: &mut ElectionState) -> kube::Result<()> {
        let started = Instant::now();
        let found = self.api.get_opt(&self.config.name).await?;
        let wall = k8s_openapi::jiff::Timestamp::now();
        let action = state.observe(found, Instant::now(), wall);
        let written = match action {
            Action::Wait => return Ok(()),
            Action::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Action::Update(lease) => {
                self.api.replace(&self.config.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                // Fenced from before the request: the record may be as old as that.
                state.wrote(&lease, started);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // Somebody else was quicker; the next look says who.
                state.lost_race();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back. A renewal that was cut short by the drain may have landed all the
    /// same: then the record has moved on, and we look once more before we write.
    async fn release(&self, state: &mut ElectionState, sender: &watch::Sender<Leadership>) {
        let Some(lease) = state.release(k8s_openapi::jiff::Timestamp::now()) else { return };
        // Whoever acts on our leadership stops before others can see that the Lease is free.
        self.publish(state, sender);
        match timeout(self.config.retry_period, self.write_release(lease)).await {
            Ok(Ok(())) => info!(lease = self.config.name, "leadership released"),
            Ok(Err(error)) => warn!(lease = self.config.name, %error, "leadership not released"),
            Err(_) => warn!(lease = self.config.name, "leadership not released: timed out"),
        }
    }

    async fn write_release(&self, mut lease: Lease) -> kube::Result<()> {
        let params = PostParams::default();
        let written = self.api.replace(&self.config.name, &params, &lease).await;
        let Err(error) = written else { return Ok(()) };
        let conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
        let found = if conflict { self.api.get_opt(&self.config.name).await? } else { None };
        let Some(found) = found else { return Err(error) };
        if !state::is_held_by(&found, &self.config.identity) {
            return Ok(());
        }
        lease.metadata = found.metadata;
        self.api.replace(&self.config.name, &params, &lease).await.map(drop)
    }
}
