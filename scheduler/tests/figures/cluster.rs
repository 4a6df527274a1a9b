//! A store, a kube-apiserver on it, and what is done to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

use crate::process::Program;
use crate::workload::{HIGH, node};

/// Requests under way at once.
const WRITERS: usize = 16;

pub(crate) struct Cluster {
    client: Client,
    apiserver: Program,
    _store: Program,
    directory: tempfile::TempDir,
}

fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names a program")).into()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("address").port()
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        megacluster_service::crypto::install();
        let directory = tempfile::tempdir().expect("directory");
        let file = |name: &str| directory.path().join(name);
        let text = |name: &str| file(name).display().to_string();
        let etcd = free_port();
        let store = Program::start(
            &program("STORE"),
            &[
                format!("--data-dir={}", text("store")),
                format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
            ],
            &file("store.log"),
        );
        let key = rcgen::KeyPair::generate().expect("key");
        std::fs::write(file("sa.key"), key.serialize_pem()).expect("write");
        std::fs::write(file("sa.pub"), key.public_key_pem()).expect("write");
        std::fs::write(file("tokens"), "admin,admin,admin,system:masters\n").expect("write");
        let port = free_port();
        let apiserver = Program::start(
            &program("KUBE_APISERVER"),
            &[
                format!("--etcd-servers=http://127.0.0.1:{etcd}"),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--cert-dir={}", text("certificates")),
                format!("--token-auth-file={}", text("tokens")),
                "--service-account-issuer=https://test".to_owned(),
                format!("--service-account-key-file={}", text("sa.pub")),
                format!("--service-account-signing-key-file={}", text("sa.key")),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
            ],
            &file("kube-apiserver.log"),
        );
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "u", "user": {"token": "admin"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(file("kubeconfig"), kubeconfig.to_string()).expect("write");
        let read = Kubeconfig::read_from(file("kubeconfig")).expect("kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(read, &options).await.expect("config");
        let client = Client::try_from(config).expect("client");
        let cluster = Self { client, apiserver, _store: store, directory };
        cluster.prepare().await;
        cluster
    }

    async fn prepare(&self) {
        let classes: Api<PriorityClass> = Api::all(self.client.clone());
        let high = PriorityClass {
            metadata: ObjectMeta { name: Some(HIGH.to_owned()), ..ObjectMeta::default() },
            value: Some(1000),
            ..PriorityClass::default()
        };
        let end = Instant::now() + Duration::from_mins(2);
        // Known only once the caches are filled.
        while classes.create(&PostParams::default(), &high).await.is_err()
            && classes.get(HIGH).await.is_err()
        {
            assert!(Instant::now() < end, "no kube-apiserver; see its log");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        while namespaces.get("default").await.is_err() {
            assert!(Instant::now() < end, "no namespace");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn kube_scheduler(&self) -> Program {
        let kubeconfig = self.file("kubeconfig").display().to_string();
        let arguments = [
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--cert-dir={}", self.file("scheduler-certificates").display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", free_port()),
            "--leader-elect=false".to_owned(),
            // By default it would wait most of the time.
            "--kube-api-qps=5000".to_owned(),
            "--kube-api-burst=5000".to_owned(),
        ];
        Program::start(&program("KUBE_SCHEDULER"), &arguments, &self.file("kube-scheduler.log"))
    }

    pub(crate) fn scheduler(&self) -> Program {
        let arguments = [
            format!("--kubeconfig={}", self.file("kubeconfig").display()),
            format!("--admin-listen-address=127.0.0.1:{}", free_port()),
            "--leader-elect=false".to_owned(),
        ];
        let own = Path::new(env!("CARGO_BIN_EXE_megacluster-scheduler"));
        let program = std::env::var_os("SCHEDULER").map_or(own.to_owned(), PathBuf::from);
        Program::start(&program, &arguments, &self.file("scheduler.log"))
    }

    pub(crate) fn apiserver_cpu(&self) -> Duration {
        self.apiserver.cpu()
    }

    pub(crate) async fn make_nodes(&self, nodes: usize) {
        let api: Api<Node> = Api::all(self.client.clone());
        let make = |number: usize| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &node(number)).await.expect("a node is made");
            }
        };
        futures::stream::iter(0..nodes).for_each_concurrent(WRITERS, make).await;
    }

    pub(crate) async fn make_pods(&self, pods: impl Iterator<Item = Pod> + Send) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let make = |pod: Pod| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &pod).await.expect("a pod is made");
            }
        };
        futures::stream::iter(pods).for_each_concurrent(WRITERS, make).await;
    }

    /// Waits until every pod has a node; false where that takes longer.
    pub(crate) async fn all_bound(&self, patience: Duration) -> bool {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let waiting = ListParams::default().fields("spec.nodeName=").match_any();
        let end = Instant::now() + patience;
        loop {
            let left = api.list_metadata(&waiting).await.expect("a list").items.len();
            if left == 0 {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(if left > 500 { 1000 } else { 100 })).await;
        }
    }

    pub(crate) async fn delete_pods(&self) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let end = Instant::now() + Duration::from_mins(5);
        loop {
            // Refused where it takes too long; the rest is done the next time.
            let _ = api.delete_collection(&at_once, &ListParams::default()).await;
            let one = ListParams::default().limit(1);
            if api.list_metadata(&one).await.is_ok_and(|list| list.items.is_empty()) {
                return;
            }
            assert!(Instant::now() < end, "pods stay");
        }
    }
}
