//! The stock kube-controller-manager, kube-scheduler and kubectl, which read all they read through
//! the cache: a Deployment becomes pods on nodes, and what is deleted takes its children along.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, User};

const REPLICAS: usize = 20;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stock program beside kube-apiserver's.
fn program(name: &str) -> PathBuf {
    let apiserver = std::env::var_os("KUBE_APISERVER").expect("KUBE_APISERVER names the program");
    Path::new(&apiserver).with_file_name(name)
}

fn start(name: &str, log: &Path, arguments: &[String]) -> Process {
    let log = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program(name));
    let child = command.args(arguments).stdout(Stdio::null()).stderr(log).spawn();
    Process(child.unwrap_or_else(|error| panic!("{name}: {error}")))
}

async fn read(user: &mut User, path: &str) -> Vec<Value> {
    let (_, bytes) = user.read(path, "application/json").await;
    let list: Value = serde_json::from_slice(&bytes).unwrap();
    list["items"].as_array().cloned().unwrap_or_default()
}

async fn until(what: &str, user: &mut User, path: &str, holds: impl Fn(&[Value]) -> bool) {
    for _ in 0..600 {
        if holds(&read(user, path).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let seen = read(user, path).await;
    panic!("{what}: {} at {path}, such as {:?}", seen.len(), seen.first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn stock_controllers_work_through_the_cache() {
    // As the operator starts them: what the front door caches the kube-apiserver does not.
    let cluster = Cluster::start_with(
        &["--watch-cache-sizes=pods#0,nodes#0,replicasets.apps#0,deployments.apps#0"],
        &["--cache-review-group=system:masters"],
    )
    .await;
    let files = &cluster.certificates;
    files.write_pair("admin", &cluster.admin());
    let path = |name: &str| files.path(name).display().to_string();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "door",
        "clusters": [{"name": "door", "cluster": {
            "server": format!("https://localhost:{}", cluster.app.address.port()),
            "certificate-authority": path("ca.pem")}}],
        "users": [{"name": "admin", "user": {
            "client-certificate": path("admin.crt"), "client-key": path("admin.key")}}],
        "contexts": [{"name": "door", "context": {"cluster": "door", "user": "admin"}}],
    });
    files.write("kubeconfig", &kubeconfig.to_string());
    let mut direct = cluster.direct(&cluster.admin()).await;
    for node in 0..3 {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"}});
        let node = json!({"metadata": {"name": format!("n{node}")}, "status": ready});
        direct.write(Method::POST, "/api/v1/nodes", &node).await;
        // A new node is tainted until the controller of nodes, which is off, sees it ready.
        let path = format!("/api/v1/nodes/{}", node["metadata"]["name"].as_str().unwrap());
        direct.write(Method::PATCH, &path, &json!({"spec": {"taints": null}})).await;
    }
    let answers = ["get", "list", "watch"].map(|verb| cluster.answers(verb));
    let common = [
        format!("--kubeconfig={}", path("kubeconfig")),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ];
    let _scheduler = start("kube-scheduler", &files.path("scheduler.log"), &common);
    let more = ["--controllers=*,-nodelifecycle".to_owned()];
    let log = files.path("controllers.log");
    let _controllers = start("kube-controller-manager", &log, &[&common[..], &more].concat());
    let kubectl = |arguments: &[&str]| {
        let output = Command::new(program("kubectl"))
            .arg(format!("--kubeconfig={}", path("kubeconfig")))
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let replicas = format!("--replicas={REPLICAS}");
    kubectl(&["-n", "a", "create", "deployment", "web", "--image=i", &replicas]);
    let mut door = cluster.door(&cluster.admin()).await;
    let pods = "/api/v1/namespaces/a/pods?labelSelector=app%3Dweb";
    until("all pods are on nodes", &mut door, pods, |pods| {
        pods.len() == REPLICAS && pods.iter().all(|pod| pod["spec"]["nodeName"].is_string())
    })
    .await;
    let json = kubectl(&["-n", "a", "get", "pods", "-o", "json"]);
    let seen: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(seen["items"].as_array().unwrap().len(), REPLICAS);
    kubectl(&["-n", "a", "scale", "deployment", "web", "--replicas=5"]);
    until("it is smaller", &mut door, pods, |pods| {
        pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count() == 5
    })
    .await;
    // The collector of garbage learns of owners and children by metadata alone.
    kubectl(&["-n", "a", "delete", "deployment", "web", "--cascade=background", "--wait=false"]);
    let sets = "/apis/apps/v1/namespaces/a/replicasets";
    until("its sets are collected", &mut door, sets, <[Value]>::is_empty).await;
    until("its pods are collected", &mut door, pods, |pods| {
        // No kubelet ends those that are on a node.
        pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    for (verb, before) in ["get", "list", "watch"].into_iter().zip(answers) {
        let answered = cluster.answers(verb) - before;
        println!("{verb}: {answered} answered by the cache");
        // They mostly watch; few read one object.
        assert!(answered > if verb == "get" { 0 } else { 10 }, "{verb} {answered}");
    }
}
