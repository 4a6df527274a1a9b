//! What the front door records of its answers is what kube-apiserver records of its own, under the
//! same policy: the same events but for names and times. What goes on is recorded once, there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use megacluster_watchcache::metrics::ResultLabels;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PROTOBUF, User};

const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [Panic]
rules:
- {level: None, users: [quiet]}
- {level: RequestResponse, resources: [{group: '', resources: [secrets]}]}
- {level: Request, verbs: [watch], namespaces: [b]}
- {level: Metadata, userGroups: ['system:nodes'], omitStages: [RequestReceived]}
- {level: None, resources: [{group: '', resources: [nodes], resourceNames: [n1]}]}
- {level: Metadata, resources: [{group: '*'}]}
";

/// Both logs.
struct Logs {
    apiserver: PathBuf,
    door: PathBuf,
}

/// The events of a request, without what differs from one to another.
fn events(log: &Path, uri: &str, user: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut events = Vec::new();
    for line in whole.lines().filter(|line| line.contains(user)) {
        let mut event: Value = serde_json::from_str(line).unwrap();
        if event["requestURI"] != uri || event["user"]["username"] != user {
            continue;
        }
        assert_eq!(event["auditID"].as_str().unwrap().len(), 36, "{event}");
        for name in ["auditID", "requestReceivedTimestamp", "stageTimestamp"] {
            let masked =
                event[name].as_str().unwrap().replace(|c: char| c.is_ascii_hexdigit(), "0");
            event[name] = masked.into();
        }
        // Of what has taken long, kube-apiserver tells how long.
        if let Some(annotations) = event["annotations"].as_object_mut() {
            annotations.retain(|name, _| !name.starts_with("apiserver.latency.k8s.io/"));
        }
        events.push(event);
    }
    events
}

impl Logs {
    /// Waits for as many events of the apiserver's and of the front door's.
    async fn of(&self, uri: &str, user: &str, wanted: [usize; 2]) -> [Vec<Value>; 2] {
        let start = Instant::now();
        loop {
            let seen = [&self.apiserver, &self.door].map(|log| events(log, uri, user));
            if [seen[0].len(), seen[1].len()] == wanted || start.elapsed() > Duration::from_secs(10)
            {
                assert_eq!([seen[0].len(), seen[1].len()], wanted, "{user} {uri}: {seen:?}");
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads all of an answer.
async fn read(user: &mut User, uri: &str, accept: &str) -> (StatusCode, usize) {
    let answer = user.open_as(uri, accept).await;
    let (status, id) =
        (answer.status(), answer.headers().get("audit-id").map(http::HeaderValue::len));
    let _ = answer.into_body().collect().await.unwrap();
    (status, id.unwrap_or(0))
}

struct Asking<'a> {
    name: &'a str,
    direct: User,
    door: User,
}

/// Where a request is answered and recorded that is sent to the front door.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The cache, with so many events.
    Cache(usize),
    /// A kube-apiserver, with so many events.
    Apiserver(usize),
}

impl Asking<'_> {
    async fn ask(&mut self, logs: &Logs, uri: &str, accept: &str, by: By) {
        let what = format!("{} {uri}", self.name);
        let expected = read(&mut self.direct, uri, accept).await;
        let (By::Cache(number) | By::Apiserver(number)) = by;
        let [before, none] = logs.of(uri, self.name, [number, 0]).await;
        assert!(none.is_empty(), "{what}");
        let seen = read(&mut self.door, uri, accept).await;
        assert_eq!(seen.0, expected.0, "{what}");
        if number > 0 {
            assert_eq!(seen.1, 36, "{what}: it tells its name");
        }
        match by {
            By::Cache(number) => {
                let [apiserver, door] = logs.of(uri, self.name, [number, number]).await;
                assert_eq!((&apiserver, &door), (&before, &before), "{what}");
            }
            By::Apiserver(number) => {
                let [both, _] = logs.of(uri, self.name, [2 * number, 0]).await;
                for (one, other) in both[..number].iter().zip(&both[number..]) {
                    assert_eq!(one["stage"], other["stage"], "{what}");
                }
            }
        }
    }
}

/// Makes what is read, and lets some read it; a token of an account that may.
async fn fill(admin: &mut User) -> String {
    for namespace in ["a", "b"] {
        let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}},
            "spec": {"nodeName": "n0", "containers": [{"name": "c", "image": "i"}]}});
        admin.write(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
    }
    for name in ["n0", "n1"] {
        let node = json!({"metadata": {"name": name}});
        admin.write(Method::POST, "/api/v1/nodes", &node).await;
    }
    let accounts = "/api/v1/namespaces/a/serviceaccounts";
    admin.write(Method::POST, accounts, &json!({"metadata": {"name": "reader"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": ["*"],
        "resources": ["pods", "leases", "nodes"], "verbs": ["get", "list", "watch"]}]});
    admin.write(Method::POST, &format!("{rbac}/clusterroles"), &role).await;
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "readers"},
                     {"kind": "ServiceAccount", "namespace": "a", "name": "reader"}],
    });
    admin.write(Method::POST, &format!("{rbac}/clusterrolebindings"), &binding).await;
    let asked = json!({"spec": {"expirationSeconds": 3600}});
    let issued = admin.write(Method::POST, &format!("{accounts}/reader/token"), &asked).await;
    issued["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn records_are_those_of_kube_apiserver() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs {
        apiserver: dir.path().join("kube-apiserver.log"),
        door: dir.path().join("door.log"),
    };
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let flags = |log: &Path| {
        ["--audit-policy-file=", "--audit-log-path="]
            .into_iter()
            .zip([&*policy, log])
            .map(|(flag, path)| format!("{flag}{}", path.display()))
            .collect::<Vec<_>>()
    };
    let (of_apiserver, of_door) = (flags(&logs.apiserver), flags(&logs.door));
    let [of_apiserver, of_door]: [Vec<&str>; 2] =
        [&of_apiserver, &of_door].map(|flags| flags.iter().map(String::as_str).collect());
    let cluster = Cluster::start_with(&of_apiserver, &of_door).await;
    let mut admin = cluster.direct(&cluster.admin()).await;
    let token = fill(&mut admin).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let [direct, door] = cluster.with_token(&token).await;
    let mut asking = vec![Asking { name: "system:serviceaccount:a:reader", direct, door }];
    for (name, groups) in [
        ("admin-2", &["system:masters"][..]),
        ("alice", &["dev", "readers"]),
        ("quiet", &["readers"]),
    ] {
        let pair = cluster.certificates.client_ca.client(name, groups);
        let (direct, door) = (cluster.direct(&pair).await, cluster.door(&pair).await);
        asking.push(Asking { name, direct, door });
    }
    let kubelet = cluster.certificates.client_ca.client("system:node:n0", &["system:nodes"]);
    let mut kubelet = Asking {
        name: "system:node:n0",
        direct: cluster.direct(&kubelet).await,
        door: cluster.door(&kubelet).await,
    };
    let answers = ["get", "list", "watch"].map(|verb| cluster.answers(verb));
    let mut cached = 0;
    for one in &mut asking {
        let name = one.name;
        let events = |number| if name == "quiet" { 0 } else { number };
        let (two, three) = (By::Cache(events(2)), By::Cache(events(3)));
        for (uri, by) in [
            ("/api/v1/pods", two),
            ("/api/v1/namespaces/a/pods?labelSelector=app%3Dweb,x%21%3Dy&limit=500", two),
            ("/api/v1/pods?fieldSelector=metadata.name%3Dp&resourceVersion=0", two),
            ("/api/v1/namespaces/a/pods/p", two),
            ("/api/v1/nodes/n0", two),
            ("/api/v1/nodes/n1", By::Cache(0)),
            ("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", two),
            ("/api/v1/pods?watch=1&timeoutSeconds=1", three),
            ("/api/v1/namespaces/b/pods?watch=true&timeoutSeconds=1&resourceVersion=0", three),
        ] {
            one.ask(&logs, uri, PROTOBUF, by).await;
            one.ask(
                &logs,
                &format!("{uri}{}", if uri.contains('?') { "&" } else { "?" }),
                "application/json",
                by,
            )
            .await;
            cached += 2;
        }
        // Not for the cache, or not with this policy: there, and there alone.
        let there = |number| By::Apiserver(events(number));
        for (uri, by) in [
            ("/api/v1/namespaces/a/pods/none", there(2)),
            ("/api/v1/namespaces/a/pods?limit=-1", there(2)),
            ("/api/v1/namespaces/a/pods?pretty=1", there(2)),
            ("/api/v1/namespaces/a/secrets", there(2)),
            (
                "/api/v1/secrets?watch=1&timeoutSeconds=1",
                if name == "admin-2" { By::Cache(3) } else { there(3) },
            ),
            ("/api/v1/configmaps", if name == "admin-2" { By::Cache(2) } else { there(2) }),
        ] {
            one.ask(&logs, uri, PROTOBUF, by).await;
        }
    }
    for (uri, by) in [
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn0", By::Cache(1)),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn0&watch=1&timeoutSeconds=1", By::Cache(2)),
        ("/api/v1/pods", By::Apiserver(1)),
    ] {
        kubelet.ask(&logs, uri, PROTOBUF, by).await;
    }
    let answered = ["get", "list", "watch"].into_iter().zip(answers);
    let answered: u64 = answered.map(|(verb, before)| cluster.answers(verb) - before).sum();
    // And two of the kubelet, and a list and a watch of the administrator.
    assert_eq!(answered, cached + 4, "the cache has answered");
    let counts = &cluster.app.router.metrics().audit_events;
    let count = |result| counts.get_or_create(&ResultLabels { result }).get();
    println!("{} events, of {answered} requests, are equal", count("written"));
    assert!(count("written") > 100);
    assert_eq!((count("dropped"), count("failed")), (0, 0));
}
