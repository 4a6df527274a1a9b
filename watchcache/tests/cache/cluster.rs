//! A store and a front door with a cache in this process, and a kube-apiserver beside them.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use megacluster_watchcache::app::App;
use megacluster_watchcache::cache::kinds;
use megacluster_watchcache::flags::Flags;
use megacluster_watchcache::metrics::ReasonLabels;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::certificates::{Certificates, Pair};
use crate::client::{Body, Client, empty, full};

pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A store in this process.
pub(crate) struct Store {
    server: Option<(megacluster_store::server::Server, CancellationToken)>,
    dir: std::path::PathBuf,
    pub(crate) address: SocketAddr,
}

impl Store {
    async fn start(dir: std::path::PathBuf) -> Self {
        let address = ([127, 0, 0, 1], free_port()).into();
        let mut store = Self { server: None, dir, address };
        store.open().await;
        store
    }

    /// Starts it on what it has stored.
    pub(crate) async fn open(&mut self) {
        let arguments = [
            "megacluster-store".to_owned(),
            format!("--data-dir={}", self.dir.display()),
            format!("--listen-client-urls=http://{}", self.address),
            "--io-threads=1".to_owned(),
        ];
        let flags = megacluster_store::flags::Flags::parse_from(arguments);
        let drain = CancellationToken::new();
        let server = megacluster_store::server::Server::start(&flags, drain.clone()).await.unwrap();
        self.server = Some((server, drain));
    }

    /// Stops it.
    pub(crate) async fn close(&mut self) {
        let (server, drain) = self.server.take().unwrap();
        drain.cancel();
        server.finish().await;
    }
}

pub(crate) struct Cluster {
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) store: Store,
    pub(crate) app: App,
    apiserver: Child,
    apiserver_address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.apiserver.kill();
        let _ = self.apiserver.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The flags of a front door; an address of its own comes instead of any that is free.
fn door_flags(certificates: &Certificates, store: SocketAddr, more: &[&str]) -> Flags {
    let path = |name: &str| certificates.path(name).display().to_string();
    let names: Vec<_> = kinds::all().iter().map(kinds::Kind::full_name).collect();
    let mut arguments = vec![
        "megacluster-watchcache".to_owned(),
        "--listen-address=127.0.0.1:0".to_owned(),
        "--admin-listen-address=127.0.0.1:0".to_owned(),
        "--goaway-chance=0".to_owned(),
        format!("--tls-cert-file={}", path("server.crt")),
        format!("--tls-private-key-file={}", path("server.key")),
        format!("--client-ca-file={}", path("client-ca.pem")),
        format!("--config={}", path("config.yaml")),
        format!("--cache-resource={}", names.join(",")),
        format!("--etcd-servers=http://{store}"),
    ];
    if more.iter().any(|flag| flag.starts_with("--listen-address")) {
        arguments.retain(|flag| !flag.starts_with("--listen-address"));
    }
    arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
    Flags::parse_from(arguments)
}

impl Cluster {
    /// With the front door's user bound to a role by which it may ask who may what.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    /// With more arguments for each: without a binding where the front door asks in a group.
    pub(crate) async fn start_with(of_apiserver: &[&str], of_door: &[&str]) -> Self {
        megacluster_service::crypto::install();
        let program = std::env::var_os("KUBE_APISERVER").expect("KUBE_APISERVER names the program");
        let certificates = Arc::new(Certificates::new());
        let dir = tempfile::tempdir().unwrap();
        let store = Store::start(dir.path().join("store")).await;
        let key = rcgen::KeyPair::generate().unwrap();
        certificates.write("sa.key", &key.serialize_pem());
        certificates.write("sa.pub", &key.public_key_pem());
        let apiserver_address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let path = |name: &str| certificates.path(name).display().to_string();
        let log = std::fs::File::create(dir.path().join("kube-apiserver.log")).unwrap();
        let apiserver = Command::new(program)
            .args([
                format!("--etcd-servers=http://{}", store.address),
                format!("--secure-port={}", apiserver_address.port()),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--tls-cert-file={}", path("server.crt")),
                format!("--tls-private-key-file={}", path("server.key")),
                format!("--client-ca-file={}", path("client-ca.pem")),
                format!("--requestheader-client-ca-file={}", path("proxy-ca.pem")),
                "--requestheader-allowed-names=front-proxy-client".to_owned(),
                "--requestheader-username-headers=X-Remote-User".to_owned(),
                "--requestheader-group-headers=X-Remote-Group".to_owned(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
                "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
                "--service-account-issuer=https://test".to_owned(),
                format!("--service-account-key-file={}", path("sa.pub")),
                format!("--service-account-signing-key-file={}", path("sa.key")),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ])
            .args(of_apiserver)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        certificates.write(
            "config.yaml",
            &format!(
                "apiVersion: watchcache.megacluster.io/v1alpha1\nkind: RouterConfiguration\n\
                 backendTLS: {{caFile: {}, proxyClientCertFile: {}, proxyClientKeyFile: {}}}\n\
                 pools:\n- {{name: default, host: localhost, port: 1, addresses: [\"{apiserver_address}\"]}}\n",
                path("ca.pem"),
                path("proxy.crt"),
                path("proxy.key"),
            ),
        );
        let app = App::start(&door_flags(&certificates, store.address, of_door)).await.unwrap();
        let cluster = Self { certificates, store, app, apiserver, apiserver_address, _dir: dir };
        let bind = !of_door.iter().any(|more| more.starts_with("--cache-review-group"));
        cluster.prepare(bind).await;
        cluster
    }

    /// The flags of another front door.
    pub(crate) fn flags(&self, more: &[&str]) -> Flags {
        door_flags(&self.certificates, self.store.address, more)
    }

    /// Waits until all is served, and lets the front door ask who may what.
    async fn prepare(&self, bind: bool) {
        let pool = self.app.router.current().pools[0].clone();
        until("kube-apiserver is ready", || pool.has_been_ready()).await;
        let admin = self.admin();
        let mut client = self.direct(&admin).await;
        if bind {
            let binding = json!({
                "metadata": {"name": "front-door"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                            "name": "system:auth-delegator"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                              "name": "system:megacluster-watchcache"}],
            });
            let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
            client.write(Method::POST, path, &binding).await;
        }
        for namespace in ["a", "b", "ab"] {
            let namespace = json!({"metadata": {"name": namespace}});
            client.write(Method::POST, "/api/v1/namespaces", &namespace).await;
        }
        let mut door = self.door(&admin).await;
        for _ in 0..600 {
            let before = self.answers("list");
            door.read("/api/v1/pods", PROTOBUF).await;
            if self.answers("list") > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the cache does not answer");
    }

    pub(crate) fn admin(&self) -> Pair {
        self.certificates.client_ca.client("admin", &["system:masters"])
    }

    /// A client of the kube-apiserver.
    pub(crate) async fn direct(&self, pair: &Pair) -> User {
        User(
            Client::connect(&self.certificates, self.apiserver_address, Some(pair), true).await,
            None,
        )
    }

    /// A client of the front door.
    pub(crate) async fn door(&self, pair: &Pair) -> User {
        User(Client::connect(&self.certificates, self.app.address, Some(pair), true).await, None)
    }

    /// Clients of the kube-apiserver and of the front door that show a token.
    pub(crate) async fn with_token(&self, token: &str) -> [User; 2] {
        let direct = self.with_token_at(token, self.apiserver_address).await;
        [direct, self.with_token_at(token, self.app.address).await]
    }

    /// A client of a server elsewhere that shows a token.
    pub(crate) async fn with_token_at(&self, token: &str, address: SocketAddr) -> User {
        let client = Client::connect(&self.certificates, address, None, true).await;
        User(client, Some(format!("Bearer {token}")))
    }

    /// A client of a server elsewhere with the same certificates.
    pub(crate) async fn at(&self, pair: &Pair, address: SocketAddr) -> User {
        User(Client::connect(&self.certificates, address, Some(pair), true).await, None)
    }

    /// Where the kube-apiserver listens.
    pub(crate) fn direct_address(&self) -> SocketAddr {
        self.apiserver_address
    }

    /// The kube-apiserver's process.
    pub(crate) fn process(&self) -> u32 {
        self.apiserver.id()
    }

    /// A client of the front door by HTTP/1.1.
    pub(crate) async fn old_door(&self, pair: &Pair) -> User {
        User(Client::connect(&self.certificates, self.app.address, Some(pair), false).await, None)
    }

    /// Requests that the cache has answered.
    pub(crate) fn answers(&self, verb: &'static str) -> u64 {
        let labels = ReasonLabels { reason: verb };
        self.app.router.metrics().cache_answers.get_or_create(&labels).get()
    }
}

/// A connection, and the token that its requests show.
pub(crate) struct User(Client, Option<String>);

impl User {
    fn request(&self, method: Method, path: &str, accept: &str, body: Body) -> Request<Body> {
        let mut headers = vec![("accept", accept), ("content-type", "application/json")];
        headers.push(("user-agent", "tests/1.0 <of the cache>"));
        headers.extend(self.1.as_ref().map(|token| ("authorization", token.as_str())));
        self.0.request(method, path, &headers, body)
    }

    /// Writes in JSON where that is allowed; else says why not.
    pub(crate) async fn may_write(
        &mut self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(), String> {
        let request = self.request(method, path, "application/json", full(body.to_string()));
        let response = self.0.send(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        if status.is_success() { Ok(()) } else { Err(String::from_utf8_lossy(&bytes).into_owned()) }
    }

    /// A whole answer.
    pub(crate) async fn read(&mut self, path: &str, accept: &str) -> (StatusCode, Vec<u8>) {
        let request = self.request(Method::GET, path, accept, empty());
        let response = self.0.send(request).await.unwrap();
        let status = response.status();
        if status == StatusCode::OK {
            let json = crate::forms::is_json(accept);
            let expected = if json { "application/json" } else { PROTOBUF };
            assert_eq!(response.headers()["content-type"], expected);
            assert_eq!(response.headers()["cache-control"], "no-cache, private");
        }
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    /// A whole answer that may be compressed: its headers that tell of it, how long it is, and what
    /// it is in full.
    pub(crate) async fn read_gzip(&mut self, path: &str, accept: &str) -> (String, Vec<u8>) {
        let mut request = self.request(Method::GET, path, accept, empty());
        let gzip = http::HeaderValue::from_static("gzip");
        request.headers_mut().insert("accept-encoding", gzip);
        let response = self.0.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let told = ["content-encoding", "vary", "content-type"].map(|name| {
            format!("{:?}", response.headers().get_all(name).iter().collect::<Vec<_>>())
        });
        let is_gzip = response.headers().contains_key("content-encoding");
        let bytes = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        if !is_gzip {
            return (told.join(" "), bytes);
        }
        let mut whole = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
        std::io::Read::read_to_end(&mut decoder, &mut whole).unwrap();
        (told.join(" "), whole)
    }

    /// An answer that goes on.
    pub(crate) async fn open(&mut self, path: &str) -> Response<Incoming> {
        self.open_as(path, PROTOBUF).await
    }

    /// An answer that goes on, in another form.
    pub(crate) async fn open_as(&mut self, path: &str, accept: &str) -> Response<Incoming> {
        let request = self.request(Method::GET, path, accept, empty());
        self.0.send(request).await.unwrap()
    }

    /// Creates, or finds created; false where that can't be done now.
    pub(crate) async fn try_write(&mut self, path: &str, body: &Value) -> bool {
        let body = full(body.to_string());
        let request = self.request(Method::POST, path, "application/json", body);
        let Ok(response) = self.0.send(request).await else { return false };
        matches!(response.status(), StatusCode::CREATED | StatusCode::CONFLICT)
    }

    /// Writes in JSON, and gives the answer.
    pub(crate) async fn write(&mut self, method: Method, path: &str, body: &Value) -> Value {
        let merges = method == Method::PATCH;
        let mut request = self.request(method, path, "application/json", full(body.to_string()));
        if merges {
            let kind = http::HeaderValue::from_static("application/merge-patch+json");
            request.headers_mut().insert("content-type", kind);
        }
        let response = self.0.send(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{status} {}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not in time: {what}");
}
