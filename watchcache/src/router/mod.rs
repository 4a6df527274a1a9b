//! The router: each request to its pool, with the identity it has shown.

mod cached;
mod forward;
mod frames;
mod response;
mod route;
mod upgrade;
mod watches;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls_pki_types::UnixTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use response::ResponseBody;
pub use route::RouteTable;
pub use watches::Watches;

use crate::api::{Failure, Reason, RequestInfo, decode_path};
use crate::audit::Auditor;
use crate::authn::{
    ClientCa, Credentials, KnownTokens, PeerCertificates, ProxyCa, Verdict, decide, named,
};
use crate::cache::Cache;
use crate::config::Limits;
use crate::headers;
use crate::limits::Permit;
use crate::metrics::{Metrics, PoolLabel, ReasonLabels, RequestLabels, verb_label};
use crate::upstream::{Load, Pool};

/// How long a body that is too large is read on.
const DISCARD_DEADLINE: Duration = Duration::from_secs(5);

/// One configuration in force.
#[derive(Debug)]
pub struct Snapshot {
    /// Resource to pool.
    pub table: RouteTable,
    /// The pools, in the table's order; never empty.
    pub pools: Vec<Arc<Pool>>,
    /// Front doors that hold parts which are not held here.
    pub peers: HashMap<u8, Arc<Pool>>,
    /// Bounds.
    pub limits: Limits,
}

/// What the flags say about requests.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Until a backend must begin to answer a request that is not long-running.
    pub response_deadline: Duration,
    /// Chance that an HTTP/2 request tells its client to connect anew, as kube-apiserver's
    /// `--goaway-chance`.
    pub goaway_chance: f64,
    /// `--goaway-min-age`.
    pub goaway_min_age: Duration,
}

/// Connections of this process so far.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// One client connection.
#[derive(Debug)]
pub struct Client {
    /// Counted from 0.
    pub number: usize,
    /// Where it comes from.
    pub address: IpAddr,
    /// Certificates it has shown.
    pub certificates: PeerCertificates,
    /// Whether it speaks HTTP/2.
    pub http2: bool,
    /// Cancelled when the client is to connect anew: the connection takes no new requests and
    /// ends with the last it has.
    pub leave: CancellationToken,
    /// Requests that it has sent.
    pub requests: AtomicU64,
    /// When it was accepted.
    pub since: Instant,
}

impl Client {
    /// A connection that has sent nothing yet.
    #[must_use]
    pub fn new(
        address: IpAddr,
        certificates: PeerCertificates,
        http2: bool,
        leave: CancellationToken,
    ) -> Self {
        let (requests, since) = (AtomicU64::new(0), Instant::now());
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Self { number, address, certificates, http2, leave, requests, since }
    }
}

/// The router.
#[derive(Debug)]
pub struct Router {
    current: ArcSwap<Snapshot>,
    ca: Arc<ClientCa>,
    options: Options,
    metrics: Metrics,
    known_tokens: KnownTokens,
    watches: Watches,
    upgrades: TaskTracker,
    cache: Option<Cache>,
    audit: Option<Auditor>,
    proxies: Option<Arc<ProxyCa>>,
    /// Cancelled when what is left is cut off.
    cut: CancellationToken,
}

/// What is known of a request before it is passed on.
struct Asked {
    pool: Arc<Pool>,
    verb: &'static str,
    long_running: bool,
    watch: bool,
    limits: Limits,
    /// What the cache is asked, if it may answer.
    cached: Option<cached::Question>,
}

impl Asked {
    fn load(&self) -> Load {
        if self.long_running { Load::Long } else { Load::Short }
    }
}

impl Router {
    /// A router with its first configuration.
    #[must_use]
    pub fn new(
        snapshot: Snapshot,
        ca: Arc<ClientCa>,
        options: Options,
        metrics: Metrics,
        cut: CancellationToken,
    ) -> Self {
        Self {
            current: ArcSwap::from_pointee(snapshot),
            ca,
            options,
            metrics,
            known_tokens: KnownTokens::default(),
            watches: Watches::default(),
            upgrades: TaskTracker::new(),
            cache: None,
            audit: None,
            proxies: None,
            cut,
        }
    }

    /// With a cache that answers some requests.
    #[must_use]
    pub fn with_cache(mut self, cache: Option<Cache>) -> Self {
        self.cache = cache;
        self
    }

    /// With records of what its cache answers.
    #[must_use]
    pub fn with_audit(mut self, audit: Option<Auditor>) -> Self {
        self.audit = audit;
        self
    }

    /// With proxies that may name the users whom they ask for.
    #[must_use]
    pub fn with_proxies(mut self, proxies: Option<Arc<ProxyCa>>) -> Self {
        self.proxies = proxies;
        self
    }

    /// Puts another configuration in force for requests that come from now on.
    pub fn replace(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// The configuration in force.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The client CA.
    #[must_use]
    pub fn client_ca(&self) -> &ClientCa {
        &self.ca
    }

    /// Metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The open watches.
    #[must_use]
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// The connections that have changed their protocol.
    #[must_use]
    pub fn upgrades(&self) -> &TaskTracker {
        &self.upgrades
    }

    /// Answers one request.
    pub async fn serve(
        &self,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        client.requests.fetch_add(1, Ordering::Relaxed);
        let snapshot = self.current.load_full();
        let path = decode_path(request.uri().path());
        let query = request.uri().query().unwrap_or("");
        let info = RequestInfo::parse(request.method(), &path, query);
        let Some(pool) = snapshot.pools.get(snapshot.table.pool(&info)) else {
            return own(&Failure::new(Reason::ServiceUnavailable, "no pool is configured"));
        };
        let asked = Asked {
            pool: pool.clone(),
            verb: verb_label(&info.verb),
            long_running: info.is_long_running(),
            watch: info.is_watch(),
            limits: snapshot.limits,
            cached: self.plan(&request, &info, query, client.address),
        };
        drop(path);
        drop(snapshot);
        // Many users share a proxy's connection: what one of them does is no reason to end it.
        let now = UnixTime::now();
        let proxied =
            self.proxies.as_ref().is_some_and(|proxies| proxies.trusts(&client.certificates, now));
        // A peer asks whether this front door serves, not the kube-apiservers behind it.
        let probed = proxied
            && request.uri().path() == "/readyz"
            && request.headers().contains_key(headers::PART);
        let response = if probed {
            Response::new(ResponseBody::Own(Some(Bytes::from_static(b"ok"))))
        } else {
            self.answer(&client, &asked, request, proxied)
                .await
                .unwrap_or_else(|failure| own(&failure))
        };
        if client.http2 && !proxied {
            self.maybe_goaway(&client, response.status());
        }
        let labels = RequestLabels {
            pool: PoolLabel(asked.pool.name().clone()),
            verb: asked.verb,
            code: response.status().as_u16(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        response
    }

    async fn answer(
        &self,
        client: &Arc<Client>,
        asked: &Asked,
        mut request: Request<Incoming>,
        proxied: bool,
    ) -> Result<Response<ResponseBody>, Failure> {
        if request.method() == Method::CONNECT {
            return Err(Failure::new(Reason::BadRequest, "CONNECT is not supported"));
        }
        // In kube-apiserver's order: whom a proxy names, then the certificate's own user.
        let verdict = match named(request.headers()).filter(|_| proxied) {
            Some(identity) => Verdict::Accepted(identity),
            None => client.certificates.verdict(&self.ca, UnixTime::now()),
        };
        if let Verdict::Rejected(problem) = &verdict
            && !proxied
        {
            tracing::debug!(client = %client.address, %problem, "client certificate");
            self.metrics.certificates_rejected.inc();
        }
        let credentials = decide(&verdict, request.headers());
        match credentials {
            Credentials::Refused => {
                return Err(Failure::new(Reason::Unauthorized, "Unauthorized"));
            }
            Credentials::Anonymous if client.http2 && !proxied => {
                self.tell_to_leave(client, "anonymous");
            }
            _ => {}
        }
        let permit = self.admit(asked, &credentials)?;
        let permit = match &asked.cached {
            Some(question) => {
                let passed_on = proxied && request.headers().contains_key(headers::PART);
                let who = (&credentials, request.headers());
                let elsewhere = question.part().filter(|_| !passed_on);
                let answer = match elsewhere {
                    Some(part) => {
                        let at = (part, request.uri());
                        self.at_peer(question, asked, at, who, (client, permit)).await
                    }
                    None => self.cached(question, asked, who, client, permit).await,
                };
                match answer {
                    Ok(answer) => return answer,
                    Err(permit) => permit,
                }
            }
            None => permit,
        };
        let max = asked.limits.max_request_bytes;
        if declared_length(&request).is_some_and(|length| length > max) {
            discard(request.into_body(), max).await;
            return Err(too_large(max));
        }
        let protocol = if client.http2 { None } else { headers::upgrade_of(request.headers()) };
        headers::to_backend(request.headers_mut(), &credentials, client.address);
        match protocol {
            Some(protocol) => {
                self.upgrade(asked, &credentials, (client, permit), protocol, request).await
            }
            None => self.forward(asked, &credentials, (client, permit), request).await,
        }
    }

    /// Finds a place for the request below the bounds. As in kube-apiserver, `system:masters` is
    /// never turned away: someone must get in to see what is wrong.
    fn admit(&self, asked: &Asked, credentials: &Credentials) -> Result<Permit, Failure> {
        let (bounded, max, bound) = if asked.long_running {
            (&self.metrics.watches, asked.limits.max_watches, "maxWatches")
        } else {
            (&self.metrics.in_flight, asked.limits.max_in_flight, "maxInFlight")
        };
        if matches!(credentials, Credentials::Identity(identity) if identity.is_privileged()) {
            return Ok(bounded.take_always());
        }
        bounded.take(max).ok_or_else(|| self.turned_away(bound))
    }

    fn turned_away(&self, bound: &'static str) -> Failure {
        self.metrics.shed.get_or_create(&ReasonLabels { reason: bound }).inc();
        Failure::new(
            Reason::TooManyRequests,
            format!("too many requests ({bound} is reached), please try again later"),
        )
    }

    /// As kube-apiserver does, a client that has shown no identity gets one HTTP/2 request out of
    /// a connection (`k8s.io/apiserver/pkg/endpoints/filters/authentication.go`), and others are
    /// told now and then to connect anew (`.../server/filters/goaway.go`).
    ///
    /// Unlike kube-apiserver we leave young connections alone. A client in Go that begins many
    /// requests at once dials for each of them and keeps the first connection. If that one is told to
    /// leave while the other dials are under way, one of those stays open with nothing on it; when
    /// both die with the front door, the watches of the one are begun anew on the other, and of
    /// those whose write fails client-go lists (`golang.org/x/net/http2`, `addConnIfNeeded`).
    fn maybe_goaway(&self, client: &Client, status: StatusCode) {
        if status == StatusCode::UNAUTHORIZED {
            self.tell_to_leave(client, "unauthorized");
        } else if self.options.goaway_chance > 0.0
            && client.since.elapsed() >= self.options.goaway_min_age
            && rand::random::<f64>() < self.options.goaway_chance
        {
            self.tell_to_leave(client, "chance");
        }
    }

    fn tell_to_leave(&self, client: &Client, reason: &'static str) {
        if !client.leave.is_cancelled() {
            self.metrics.goaways.get_or_create(&ReasonLabels { reason }).inc();
            client.leave.cancel();
        }
    }
}

fn declared_length(request: &Request<Incoming>) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on for a while what a client is sending: many would otherwise see their connection or
/// stream break before they read the answer.
async fn discard(body: Incoming, max: u64) {
    let most = usize::try_from(max.saturating_mul(2)).unwrap_or(usize::MAX);
    let read = http_body_util::Limited::new(body, most);
    let read = std::pin::pin!(async {
        let mut read = read;
        while let Some(Ok(_)) = read.frame().await {}
    });
    // Too slow or too much: the client sees its connection break.
    let _ = tokio::time::timeout(DISCARD_DEADLINE, read).await;
}

fn too_large(max: u64) -> Failure {
    // The words of k8s.io/apiserver/pkg/endpoints/handlers/rest.go.
    Failure::new(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {max}"))
}

fn own(failure: &Failure) -> Response<ResponseBody> {
    let (status, headers, body) = failure.answer();
    let mut response = Response::new(ResponseBody::Own(Some(body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
