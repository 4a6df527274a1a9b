//! The other side, by etcd's API: reads in pages, retries where that is safe, and etcdctl's flags.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use super::error::MigrateError;
use crate::core::KeyValue;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::{
    LeaseLeasesRequest, LeaseTimeToLiveRequest, RangeRequest, RangeResponse,
};

/// Largest message that is taken: bounds memory. A page that is larger is asked for in parts.
const MAX_MESSAGE: usize = 64 << 20;
/// Bytes that a page should have.
const PAGE_BYTES: usize = 4 << 20;
/// Keys of the first page, and the most that are asked for.
const FIRST_PAGE: i64 = 16;
const MAX_PAGE: i64 = 8192;
/// How often a request is tried that found no server, and the wait before the second time.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A request that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);
/// Leases that are looked at side by side.
const LEASES_AT_A_TIME: usize = 32;

/// Everything there is: from the least key on.
const ALL: Bytes = Bytes::from_static(b"\0");

/// How to reach an etcd: etcdctl's flags.
#[derive(Args, Clone, Debug, Default)]
pub struct PeerFlags {
    /// Endpoints of the etcd that is read; the first that answers is used.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        env = "ETCDCTL_ENDPOINTS"
    )]
    pub endpoints: Vec<String>,
    /// CAs of its certificate, PEM.
    #[arg(long, env = "ETCDCTL_CACERT")]
    pub cacert: Option<PathBuf>,
    /// Certificate to show it, PEM.
    #[arg(long, env = "ETCDCTL_CERT")]
    pub cert: Option<PathBuf>,
    /// Key of that certificate, PEM.
    #[arg(long, env = "ETCDCTL_KEY")]
    pub key: Option<PathBuf>,
}

/// An etcd, or a store of ours.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    channel: Channel,
}

impl Peer {
    /// Connects to the first endpoint that answers.
    pub(super) async fn connect(flags: &PeerFlags) -> Result<Self, MigrateError> {
        let tls = tls(flags)?;
        let mut last = MigrateError::Flags("no endpoints given".to_owned());
        for endpoint in &flags.endpoints {
            match dial(endpoint, tls.as_ref()).await {
                Ok(channel) => return Ok(Self { channel }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Its cluster id and its revision.
    pub(super) async fn now(&self) -> Result<(u64, i64), MigrateError> {
        let request = RangeRequest { key: ALL, ..RangeRequest::default() };
        let found = retry("read the revision", || {
            let (mut kv, request) = (self.kv(), request.clone());
            async move { kv.range(request).await }
        });
        let header = found.await?.header.unwrap_or_default();
        if header.revision < 1 {
            return Err(MigrateError::Protocol("an answer without a revision".to_owned()));
        }
        Ok((header.cluster_id, header.revision))
    }

    /// All keys at a revision, from `start` on.
    pub(super) fn keys(&self, revision: i64, start: Option<Bytes>) -> Keys {
        let next = Some(start.unwrap_or(ALL));
        Keys { peer: self.clone(), revision, next, limit: FIRST_PAGE }
    }

    /// All leases: ids, and seconds that were granted. One that ends meanwhile is left out.
    pub(super) async fn all_leases(&self) -> Result<Vec<(i64, i64)>, MigrateError> {
        let list = retry("list leases", || {
            let mut client = self.leases();
            async move { client.lease_leases(LeaseLeasesRequest {}).await }
        });
        let ids: Vec<i64> = list.await?.leases.into_iter().map(|lease| lease.id).collect();
        let mut views =
            futures::stream::iter(ids).map(|id| self.granted(id)).buffered(LEASES_AT_A_TIME);
        let mut leases = Vec::new();
        while let Some(lease) = views.next().await {
            leases.extend(lease?);
        }
        Ok(leases)
    }

    /// A lease's id and the seconds it was granted, if it lives.
    pub(super) async fn granted(&self, id: i64) -> Result<Option<(i64, i64)>, MigrateError> {
        let view = retry("look at a lease", || {
            let mut client = self.leases();
            async move { client.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: false }).await }
        });
        let view = view.await?;
        Ok((view.ttl >= 0).then_some((id, view.granted_ttl)))
    }
}

/// Pages of all keys at one revision.
#[derive(Debug)]
pub(super) struct Keys {
    peer: Peer,
    revision: i64,
    next: Option<Bytes>,
    limit: i64,
}

impl Keys {
    /// The next page, and whether there are more; `None` behind the last.
    ///
    /// # Errors
    /// [`MigrateError::Compacted`] if the revision is no more.
    pub(super) async fn page(&mut self) -> Result<Option<(Vec<KeyValue>, bool)>, MigrateError> {
        let Some(start) = self.next.clone() else { return Ok(None) };
        let RangeResponse { kvs, more, .. } = loop {
            let request = RangeRequest {
                key: start.clone(),
                range_end: ALL,
                revision: self.revision,
                limit: self.limit,
                ..RangeRequest::default()
            };
            let page = retry("read keys", || {
                let (mut kv, request) = (self.peer.kv(), request.clone());
                async move { kv.range(request).await }
            });
            match page.await {
                Err(MigrateError::Request { status, .. }) if is_compacted(&status) => {
                    let (what, revision) = ("read keys", self.revision);
                    return Err(MigrateError::Compacted { what, revision });
                }
                Err(MigrateError::Request { status, .. })
                    if is_too_large(&status) && self.limit > 1 =>
                {
                    self.limit = (self.limit / 8).max(1);
                }
                page => break page?,
            }
        };
        let bytes: usize = kvs.iter().map(|kv| kv.key().len() + kv.value().len() + 32).sum();
        if bytes < PAGE_BYTES / 2 {
            self.limit = (self.limit * 2).min(MAX_PAGE);
        } else if bytes > PAGE_BYTES * 2 {
            self.limit = (self.limit / 2).max(1);
        }
        self.next = match kvs.last() {
            Some(kv) if more => Some(after(kv.key())),
            None if more => {
                return Err(MigrateError::Protocol("a page without keys, and more".to_owned()));
            }
            _ => None,
        };
        Ok(Some((kvs, more)))
    }
}

/// The least key above a key.
pub(super) fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// etcd's error for a revision that is gone.
pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange
        && status.message() == crate::core::Error::Compacted.to_string()
}

/// A message over [`MAX_MESSAGE`], or over what the server may send.
fn is_too_large(status: &Status) -> bool {
    matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
        && status.message().contains("larg")
}

/// Asks again while no server answers, so that the restart of one interrupts nothing.
pub(super) async fn retry<T, F>(
    what: &'static str,
    mut ask: impl FnMut() -> F,
) -> Result<T, MigrateError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut wait = FIRST_WAIT;
    let mut tries = 1;
    loop {
        let status = match ask().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let transient = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        if !transient || tries == TRIES {
            return Err(MigrateError::Request { what, status: Box::new(status) });
        }
        tracing::warn!(what, error = status.message(), "trying again");
        tokio::time::sleep(wait).await;
        wait *= 2;
        tries += 1;
    }
}

fn tls(flags: &PeerFlags) -> Result<Option<ClientTlsConfig>, MigrateError> {
    if flags.cert.is_some() != flags.key.is_some() {
        return Err(MigrateError::Flags("--cert and --key go together".to_owned()));
    }
    let Some(ca) = &flags.cacert else {
        if flags.cert.is_some() || flags.endpoints.iter().any(|e| e.starts_with("https://")) {
            return Err(MigrateError::Flags("--cacert is needed for TLS".to_owned()));
        }
        return Ok(None);
    };
    let read = |path: &PathBuf| fs::read(path).map_err(MigrateError::file("read", path));
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&flags.cert, &flags.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(Some(tls))
}

async fn dial(endpoint: &str, tls: Option<&ClientTlsConfig>) -> Result<Channel, MigrateError> {
    let url = if endpoint.contains("://") {
        endpoint.to_owned()
    } else if tls.is_some() {
        format!("https://{endpoint}")
    } else {
        format!("http://{endpoint}")
    };
    let failed = |source| MigrateError::Connect { endpoint: endpoint.to_owned(), source };
    let mut target = Endpoint::from_shared(url.clone())
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .tcp_nodelay(true);
    if let Some(tls) = tls.filter(|_| url.starts_with("https://")) {
        target = target.tls_config(tls.clone()).map_err(failed)?;
    }
    target.connect().await.map_err(failed)
}
