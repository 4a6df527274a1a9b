//! The admin port: health, metrics, version and a CPU profile, in plain HTTP.
//!
//! Paths and answers follow kube-apiserver's health endpoints
//! (`k8s.io/apiserver/pkg/server/healthz`): `ok` with status 200, or 500 and the list of checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::linger::Linger;
use crate::version::{REVISION, VERSION};

/// Connections served at once; more wait in the kernel's accept queue.
const MAX_CONNECTIONS: usize = 64;
/// A client has this long to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that were begun when the port closes have this long to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest CPU profile.
const MAX_PROFILE_SECONDS: u64 = 60;
/// Samples each second: off the round hundred, so as not to beat with timers.
const PROFILE_HERTZ: i32 = 99;

type Stream = TokioIo<Linger<TcpStream>>;

/// Named conditions that must all hold before the process takes traffic.
///
/// A process without a condition is ready. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    checks: Arc<RwLock<BTreeMap<String, bool>>>,
}

impl Readiness {
    /// Sets the condition `name`. Set all that matter to `false` before the port is served.
    pub fn set(&self, name: &str, ready: bool) {
        let before = self.checks.write().insert(name.to_owned(), ready);
        if before != Some(ready) {
            info!(check = name, ready, "readiness");
        }
    }

    /// Whether every condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.checks.read().values().all(|ready| *ready)
    }

    fn report(&self) -> String {
        let mut text = String::new();
        for (name, ready) in self.checks.read().iter() {
            text.push_str(if *ready { "[+]" } else { "[-]" });
            text.push_str(name);
            text.push_str(if *ready { " ok\n" } else { " failed\n" });
        }
        text
    }
}

/// Answers paths that this module does not know: `None` gives 404.
type Extra = Arc<dyn Fn(&Method, &str) -> Option<Response<Full<Bytes>>> + Send + Sync>;

/// An answer that takes its time.
type Later = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;
/// As [`Extra`], for answers that have to be waited for.
type Slow = Arc<dyn Fn(&str) -> Option<Later> + Send + Sync>;

/// The admin port of one process.
#[derive(Clone)]
pub struct Admin {
    name: Arc<str>,
    registry: Arc<Mutex<Registry>>,
    readiness: Readiness,
    profiling: Arc<Semaphore>,
    extra: Option<Extra>,
    slow: Option<Slow>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Admin {
    /// The admin port of the process `name`, which serves the metrics of `registry`.
    #[must_use]
    pub fn new(registry: Registry, name: &str) -> Self {
        Self {
            name: name.into(),
            registry: Arc::new(Mutex::new(registry)),
            readiness: Readiness::default(),
            profiling: Arc::new(Semaphore::new(1)),
            extra: None,
            slow: None,
        }
    }

    /// Serves further paths of the process's own, such as etcd's `/health`. `extra` must be quick:
    /// it runs on the port's task.
    #[must_use]
    pub fn with_extra(
        mut self,
        extra: impl Fn(&Method, &str) -> Option<Response<Full<Bytes>>> + Send + Sync + 'static,
    ) -> Self {
        self.extra = Some(Arc::new(extra));
        self
    }

    /// Serves further paths whose answers have to be waited for, as status and JSON or plain text.
    #[must_use]
    pub fn with_slow<F>(mut self, slow: impl Fn(&str) -> Option<F> + Send + Sync + 'static) -> Self
    where
        F: Future<Output = (StatusCode, String)> + Send + 'static,
    {
        self.slow = Some(Arc::new(move |path| {
            let answer = slow(path)?;
            Some(Box::pin(async move {
                let (status, body) = answer.await;
                if body.starts_with('{') {
                    return with_type(status, "application/json", body.into());
                }
                text(status, body)
            }))
        }));
        self
    }

    /// The conditions behind `/readyz`.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Binds `address`, serves it on a task until `token` is cancelled, and gives the bound
    /// address (the port may be asked as 0).
    pub async fn serve(
        &self,
        address: SocketAddr,
        token: CancellationToken,
    ) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        info!(address = %bound, "admin port");
        tokio::spawn(self.clone().accept(listener, token));
        Ok(bound)
    }

    async fn accept(self, listener: TcpListener, token: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                () = token.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!(%error, "admin port: accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let admin = self.clone();
            let token = token.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let admin = admin.clone();
                    async move { Ok::<_, std::convert::Infallible>(admin.answer(&request).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(Linger::new(stream)), service);
                if let Err(error) = finish(connection, &token).await {
                    debug!(%error, "admin port: connection");
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let query = request.uri().query().unwrap_or("");
        self.answer_path(request.method(), request.uri().path(), query).await
    }

    async fn answer_path(&self, method: &Method, path: &str, query: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        if let Some(answer) = self.slow.as_ref().and_then(|slow| slow(path)) {
            return answer.await;
        }
        match path {
            "/livez" | "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" => {
                self.readyz(query.split('&').any(|p| p.split('=').next() == Some("verbose")))
            }
            "/metrics" => self.metrics(),
            "/debug/pprof/profile" => self.profile(query).await,
            _ => match self.extra.as_ref().and_then(|extra| extra(method, path)) {
                Some(response) => response,
                None if path == "/version" => text(
                    StatusCode::OK,
                    format!(
                        "{{\"name\":\"{}\",\"version\":\"{VERSION}\",\"revision\":\"{REVISION}\"}}\n",
                        self.name
                    ),
                ),
                None => text(StatusCode::NOT_FOUND, "not found\n"),
            },
        }
    }

    /// `/readyz`, for another port that has it too.
    #[must_use]
    pub fn readyz(&self, verbose: bool) -> Response<Full<Bytes>> {
        match (self.readiness.is_ready(), verbose) {
            (true, false) => text(StatusCode::OK, "ok"),
            (true, true) => text(StatusCode::OK, self.readiness.report() + "readyz check passed\n"),
            (false, _) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                self.readiness.report() + "readyz check failed\n",
            ),
        }
    }

    /// `/metrics`, for another port that has it too. It takes a millisecond or more.
    #[must_use]
    pub fn metrics(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if encode(&mut body, &self.registry.lock()).is_err() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "metrics can't be encoded\n");
        }
        with_type(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body.into(),
        )
    }

    /// A CPU profile in pprof's format, as Go's `net/http/pprof` serves it at the same path.
    async fn profile(&self, query: &str) -> Response<Full<Bytes>> {
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
        let seconds = match asked.map_or(Ok(30), str::parse::<u64>) {
            Ok(seconds) if (1..=MAX_PROFILE_SECONDS).contains(&seconds) => seconds,
            _ => {
                return text(
                    StatusCode::BAD_REQUEST,
                    format!("seconds: must be a number from 1 to {MAX_PROFILE_SECONDS}\n"),
                );
            }
        };
        let Ok(_only) = self.profiling.try_acquire() else {
            return text(StatusCode::TOO_MANY_REQUESTS, "a profile is being taken\n");
        };
        match take_profile(Duration::from_secs(seconds)).await {
            Ok(profile) => with_type(StatusCode::OK, "application/octet-stream", profile.into()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("profile: {error}\n")),
        }
    }
}

/// Serves a connection to its end. When the port closes, an answer that was begun may end.
async fn finish<S>(
    connection: http1::Connection<Stream, S>,
    token: &CancellationToken,
) -> hyper::Result<()>
where
    S: HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        () = token.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Whoever has not read the answer by then does without.
    tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
}

async fn take_profile(duration: Duration) -> pprof::Result<Vec<u8>> {
    use pprof::protos::Message;
    let guard = pprof::ProfilerGuardBuilder::default()
        .frequency(PROFILE_HERTZ)
        // Unwinding inside these can deadlock on their own locks.
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build()?;
    tokio::time::sleep(duration).await;
    let profile = guard.report().build()?.pprof()?;
    profile.write_to_bytes().map_err(|error| std::io::Error::other(error).into())
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body.into().into())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    async fn get(admin: &Admin, path: &str, query: &str) -> (StatusCode, Vec<u8>) {
        let response = admin.answer_path(&Method::GET, path, query).await;
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn readiness_is_the_conjunction_of_its_checks() {
        let admin = Admin::new(Registry::default(), "test");
        assert_eq!(get(&admin, "/readyz", "").await.0, StatusCode::OK);
        admin.readiness().set("store", false);
        admin.readiness().set("cache", true);
        let (status, body) = get(&admin, "/readyz", "").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body, b"[+]cache ok\n[-]store failed\nreadyz check failed\n");
        admin.readiness().set("store", true);
        assert_eq!(get(&admin, "/readyz", "").await, (StatusCode::OK, b"ok".to_vec()));
        assert!(get(&admin, "/readyz", "verbose").await.1.ends_with(b"readyz check passed\n"));
    }

    #[tokio::test]
    async fn metrics_are_served_over_a_socket() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("things", "Things that were done", counter.clone());
        counter.inc_by(7);
        let token = CancellationToken::new();
        let admin = Admin::new(registry, "test");
        let address = admin.serve(([127, 0, 0, 1], 0).into(), token.clone()).await.unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/metrics").body(Full::<Bytes>::default()).unwrap();
        let body = sender.send_request(request).await.unwrap().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("things_total 7"));
        token.cancel();
    }

    #[tokio::test]
    async fn bad_profile_lengths_are_refused() {
        let admin = Admin::new(Registry::default(), "test");
        for query in ["seconds=0", "seconds=61", "seconds=x", "seconds=-1"] {
            let (status, body) = get(&admin, "/debug/pprof/profile", query).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
            assert!(body.starts_with(b"seconds: "));
        }
    }

    #[tokio::test]
    async fn a_profile_is_taken() {
        let admin = Admin::new(Registry::default(), "test");
        let (status, body) = get(&admin, "/debug/pprof/profile", "seconds=1").await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    }

    #[tokio::test]
    async fn own_paths_come_after_ours() {
        let admin = Admin::new(Registry::default(), "test").with_extra(|_, path| {
            (path == "/health").then(|| text(StatusCode::OK, "{\"health\":\"true\"}"))
        });
        assert_eq!(get(&admin, "/health", "").await.0, StatusCode::OK);
        assert_eq!(get(&admin, "/nothing", "").await.0, StatusCode::NOT_FOUND);
        assert_eq!(get(&admin, "/version", "").await.0, StatusCode::OK);
    }
}
