//! etcd's gRPC services: each request is checked, handed to the sequencer as one command, and its
//! reply gets a header that says who answers.

mod auth;
mod cluster;
mod direct;
mod hash;
mod kv;
mod lease;
mod maintenance;
mod paged;
mod pieces;
mod serving;
mod snapshot;
mod status;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub(crate) use direct::{Call, Way};
pub(crate) use pieces::Pieces;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Response, Status};

use crate::core::{Command, Error, Reply};
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::{
    ResponseHeader, auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
    lease_server::LeaseServer, maintenance_server::MaintenanceServer,
};
use crate::pb::health::health_server::HealthServer;
use crate::sequencer::Handle;

/// The etcd version whose behaviour is offered. kube-apiserver decides by it which features it may
/// use (`k8s.io/apiserver/pkg/storage/feature`); it must parse as a semantic version.
pub const ETCD_VERSION: &str = "3.6.8";
/// What etcd allows a gRPC message beyond `--max-request-bytes`.
const OVERHEAD_BYTES: usize = 512 * 1024;
/// Beyond this the codec refuses a message; below, we answer in etcd's words.
const CODEC_SLACK_BYTES: usize = 4 << 20;
/// One member leads itself from its first start on.
const TERM: u64 = 1;

/// Who answers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `--name`.
    pub name: String,
    /// Ids of cluster and member, made from the name so that they stay over restarts.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
    /// `--advertise-client-urls`.
    pub client_urls: Vec<String>,
    /// `--initial-advertise-peer-urls`, shown only: there are no peers.
    pub peer_urls: Vec<String>,
}

impl Identity {
    /// An identity from the member's name and the cluster's token.
    #[must_use]
    pub fn new(name: &str, token: &str, client_urls: Vec<String>, peer_urls: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            cluster_id: fnv1a(&[token.as_bytes(), b"/cluster"]),
            member_id: fnv1a(&[token.as_bytes(), b"/member/", name.as_bytes()]),
            client_urls,
            peer_urls,
        }
    }
}

/// FNV-1a of 64 bits; never 0, which etcd takes for "none".
fn fnv1a(parts: &[&[u8]]) -> u64 {
    let hash =
        parts.iter().flat_map(|part| part.iter()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    hash.max(1)
}

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest write in bytes (`--max-request-bytes`).
    pub request_bytes: usize,
    /// Operations of a transaction (`--max-txn-ops`).
    pub txn_ops: usize,
    /// How often an idle watch is told the revision, if it asked (`--watch-progress-notify-interval`).
    pub progress_interval: Duration,
    /// Quota as `Status` shows it; 0 is no bound.
    pub quota: usize,
}

/// What all services share.
#[derive(Clone, Debug)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    identity: Identity,
    limits: Limits,
    /// Where a snapshot's file is written before it is sent.
    data_dir: PathBuf,
    snapshots: Arc<Semaphore>,
    hashes: Semaphore,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    streams: AtomicU64,
    next_lease: AtomicU64,
}

impl Api {
    /// The services on a sequencer. Streams end when `drain` is cancelled. A snapshot's file is
    /// written into `data_dir` before it is sent.
    #[must_use]
    pub fn new(
        handle: Handle,
        identity: Identity,
        limits: Limits,
        data_dir: PathBuf,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                handle,
                identity,
                limits,
                data_dir,
                snapshots: Arc::new(Semaphore::new(1)),
                hashes: Semaphore::new(1),
                metrics,
                drain,
                streams: AtomicU64::new(0),
                next_lease: AtomicU64::new(rand::random()),
            }),
        }
    }

    /// All services as one router.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let decode = self.inner.limits.request_bytes + OVERHEAD_BYTES + CODEC_SLACK_BYTES;
        let encode = usize::MAX;
        macro_rules! bounded {
            ($server:ident) => {
                $server::new(self.clone())
                    .max_decoding_message_size(decode)
                    .max_encoding_message_size(encode)
            };
        }
        Routes::new(bounded!(KvServer))
            .add_service(watch::WatchService::new(self.clone(), decode))
            .add_service(bounded!(LeaseServer))
            .add_service(bounded!(MaintenanceServer))
            .add_service(bounded!(ClusterServer))
            .add_service(bounded!(AuthServer))
            .add_service(bounded!(HealthServer))
            .prepare()
    }

    /// Where everything is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    async fn ask(&self, command: Command, size: usize) -> Result<Reply, Status> {
        self.inner.handle.ask(command, size).await.map_err(|error| {
            if error == Error::TooManyRequests {
                self.inner.metrics.shed.inc();
            }
            error.into()
        })
    }

    /// A header with ids and a revision.
    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.inner.identity.cluster_id,
            member_id: self.inner.identity.member_id,
            revision,
            raft_term: TERM,
        }
    }

    /// A header with the newest visible revision.
    fn header_now(&self) -> ResponseHeader {
        self.header(self.inner.handle.history().revision())
    }

    /// Fills in who answers.
    fn sign(&self, header: &mut Option<ResponseHeader>) {
        *header = Some(self.header(header.as_ref().map_or(0, |header| header.revision)));
    }

    /// Refuses a message that etcd's gRPC server would refuse.
    fn check_message(&self, size: usize) -> Result<(), Status> {
        let limit = self.inner.limits.request_bytes + OVERHEAD_BYTES;
        if size > limit {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({size} vs. {limit})"
            )));
        }
        Ok(())
    }

    /// Refuses a write over `--max-request-bytes`, as etcd does before it proposes it.
    fn check_write(&self, size: usize) -> Result<(), Status> {
        self.check_message(size)?;
        if size > self.inner.limits.request_bytes {
            return Err(Error::RequestTooLarge.into());
        }
        Ok(())
    }
}

/// The reply was not of the command's kind: a defect here, not of the client.
fn mismatch() -> Status {
    Status::internal("megacluster-store: reply of another kind")
}

type Answer<T> = Result<Response<T>, Status>;
