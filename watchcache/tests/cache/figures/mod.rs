//! What reads cost: a front door's own process beside the kube-apiserver's, on one store, in one
//! run. `bench/run watchcache` runs this, optimised; nothing else does.

mod death;
mod events;
mod lone;
mod reads;
mod source;
mod watches;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use self::source::{Template, Writer};
use crate::cluster::{Cluster, PROTOBUF, User, free_port, until};
use crate::frames::list;

const NODES: usize = 1_000;
/// Pods with one label's value: those of one Deployment, say.
const GROUP: usize = 40;
/// The kernel's clock ticks.
const TICK: f64 = 0.01;

/// A front door in a process of its own.
struct Door {
    process: Child,
    address: SocketAddr,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Door {
    async fn start(cluster: &Cluster, resource: &str, store: SocketAddr) -> Self {
        let address = ([127, 0, 0, 1], free_port()).into();
        let path = |name: &str| cluster.certificates.path(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_megacluster-watchcache"));
        command.args([
            format!("--listen-address={address}"),
            "--admin-listen-address=127.0.0.1:0".to_owned(),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("client-ca.pem")),
            format!("--config={}", path("config.yaml")),
            "--goaway-chance=0".to_owned(),
            format!("--cache-resource={resource}"),
            "--cache-review-group=system:masters".to_owned(),
            format!("--etcd-servers=http://{store}"),
        ]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let door = Self { process, address };
        until("the front door listens", || std::net::TcpStream::connect(address).is_ok()).await;
        door
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    /// A client, once the cache answers with so many objects: its kube-apiserver is known then.
    async fn reader(&self, cluster: &Cluster, path: &str, objects: usize) -> User {
        let mut reader = cluster.at(&cluster.admin(), self.address).await;
        let mut seen = usize::MAX;
        while seen != objects {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (status, bytes) = reader.read(path, PROTOBUF).await;
            seen = if status.is_success() { list(&bytes).items.len() } else { usize::MAX };
        }
        reader
    }
}

/// Seconds of CPU that a process has used.
fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * TICK).sum()
}

/// Resident memory in KiB.
fn resident(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes pods by one that kube-apiserver has stored.
pub(crate) async fn fill(cluster: &Cluster, pods: usize) -> Template {
    let mut user = cluster.direct(&cluster.admin()).await;
    let pod = json!({
        "metadata": {"name": "p-000000", "labels": {"app": "g00000", "tier": "front"}},
        "spec": {"nodeName": "n-0000",
                 "containers": [{"name": "c", "image": "registry.example/image:1",
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]},
    });
    user.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
    let mut writer = Writer::connect(cluster.store.address).await;
    let value = writer.get("/registry/pods/a/p-000000").await;
    let template = Arc::new(Template::new(
        value,
        &[("p-000000", 1, pods), ("g00000", GROUP, pods), ("n-0000", 1, NODES)],
    ));
    let mut makers = Vec::new();
    for maker in 0..32 {
        let (mut writer, template) = (writer.clone(), template.clone());
        makers.push(tokio::spawn(async move {
            for number in (maker..pods).step_by(32) {
                let key = format!("/registry/pods/a/p-{number:06}");
                writer.put(key, template.of(number)).await;
            }
        }));
    }
    for maker in makers {
        maker.await.unwrap();
    }
    Arc::into_inner(template).unwrap()
}

/// How many pods are asked for; none where no figures are.
fn pods() -> Option<usize> {
    std::env::var("FIGURES_PODS").ok().map(|text| text.parse().unwrap())
}

/// A kube-apiserver with so many pods, and a front door that has read them.
async fn filled(pods: usize) -> (Cluster, Door, Template) {
    let cluster = Cluster::start().await;
    let start = Instant::now();
    let template = fill(&cluster, pods).await;
    println!("{pods} pods on {NODES} nodes, made in {:?}", start.elapsed());
    let door = Door::start(&cluster, "pods", cluster.store.address).await;
    let _ = door.reader(&cluster, "/api/v1/pods?resourceVersion=0", pods).await;
    (cluster, door, template)
}

/// Connections of an administrator.
async fn connections(cluster: &Cluster, address: SocketAddr, count: usize) -> Vec<User> {
    let mut users = Vec::with_capacity(count);
    for _ in 0..count {
        users.push(cluster.at(&cluster.admin(), address).await);
    }
    users
}

#[allow(clippy::cast_precision_loss, reason = "for a person")]
fn ratio(part: usize, of: usize) -> f64 {
    part as f64 / of as f64
}
