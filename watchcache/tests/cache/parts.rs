//! Front doors that hold a part each, beside a kube-apiserver: whichever is asked, the same bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use megacluster_watchcache::app::App;
use megacluster_watchcache::metrics::ReasonLabels;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use crate::cluster::{Cluster, PROTOBUF, User, free_port, until};
use crate::custom::{define, same, widgets};
use crate::differential::{Pair, lists, pages};
use crate::frames::{Frames, list};
use crate::history::{History, NODES, Random, collection, selector};

const STEPS: usize = 60;
const JSON: &str = "application/json";
const QUIET: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(20);
const STATE: &str =
    "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

/// A front door with threads of its own, so that it can be ended as by a kill.
struct Door {
    app: Option<App>,
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Door {
    async fn start(cluster: &Cluster, part: usize, ports: &[u16; 2]) -> Self {
        Self::of(cluster, &[2, part], ports, ports[part]).await
    }

    /// One that holds a part of so many, and asks the front doors at these ports for the first ones.
    async fn of(cluster: &Cluster, [count, part]: &[usize; 2], peers: &[u16; 2], own: u16) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ca = cluster.certificates.path("proxy-ca.pem").display().to_string();
        let flags = cluster.flags(&[
            &format!("--cache-parts={count}"),
            &format!("--cache-part={part}"),
            &format!("--cache-peer=0=localhost:{},1=localhost:{}", peers[0], peers[1]),
            &format!("--requestheader-client-ca-file={ca}"),
            "--requestheader-allowed-names=front-proxy-client",
            &format!("--listen-address=127.0.0.1:{own}"),
            "--cache-resource=widgets.example.com",
        ]);
        let app = runtime.spawn(async move { App::start(&flags).await.unwrap() }).await.unwrap();
        let address = app.address;
        let door = Self { app: Some(app), runtime: Some(runtime), address };
        let snapshot = door.app().router.current();
        until("kube-apiserver is seen", || snapshot.pools[0].has_been_ready()).await;
        door
    }

    fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// All its connections end, amid whatever they were at.
    fn kill(&mut self) {
        self.app.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn count(&self, what: What, reason: &'static str) -> u64 {
        let metrics = self.app().router.metrics();
        let family = match what {
            What::Answers => &metrics.cache_answers,
            What::Passes => &metrics.cache_passes,
            What::Store => &metrics.cache_store_reads,
            What::Peer => &metrics.cache_peer_reads,
        };
        family.get_or_create(&ReasonLabels { reason }).get()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, Copy)]
enum What {
    Answers,
    Passes,
    Store,
    Peer,
}

async fn doors(cluster: &Cluster) -> [Door; 2] {
    let ports = [free_port(), free_port()];
    let doors = [Door::start(cluster, 0, &ports).await, Door::start(cluster, 1, &ports).await];
    let admin = cluster.admin();
    for (place, door) in doors.iter().enumerate() {
        let other = &doors[1 - place];
        let peers = door.app().router.current();
        let other_part = u8::try_from(1 - place).unwrap();
        until("the peer is ready", || peers.peers[&other_part].has_been_ready()).await;
        let mut user = cluster.at(&admin, door.address).await;
        for _ in 0..400 {
            // Of everything, of the own part, and of the peer's.
            let before = (door.count(What::Store, "list"), other.count(What::Answers, "list"));
            for selector in
                ["", "?fieldSelector=spec.nodeName%3Dn0", "?fieldSelector=spec.nodeName%3Dn1"]
            {
                user.read(&format!("/api/v1/pods{selector}"), PROTOBUF).await;
            }
            if door.count(What::Store, "list") > before.0
                && other.count(What::Answers, "list") > before.1
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    doors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn two_parts_answer_as_one() {
    let cluster = Cluster::start().await;
    let doors = doors(&cluster).await;
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    let mut users = Vec::new();
    for door in &doors {
        users.push(cluster.at(&admin, door.address).await);
    }
    let count = |what, reason| doors.iter().map(|door| door.count(what, reason)).sum::<u64>();
    let before = ["list", "watch", "get"].map(|verb| count(What::Answers, verb));
    let (store, peer) = (count(What::Store, "list"), count(What::Peer, "list"));
    let (mut history, mut random) = (History::default(), Random::new(7));
    let (mut watches, mut versions, mut asked) = (Vec::new(), Vec::new(), 0);
    for step in 0..STEPS {
        let door = random.below(2);
        if step % 4 == 0 {
            let path = collection(&mut random);
            let selector = selector(&mut random);
            let path_and_query = format!("{path}?{selector}");
            let (one, other) = lists(&mut direct, &mut users[door], &path_and_query).await;
            let version = one.version.min(other.version);
            if step % 12 == 0 {
                pages(&mut random, &mut direct, &mut users[door], &path_and_query).await;
            }
            let start = match random.below(4) {
                0 => STATE.to_owned(),
                1 => String::new(),
                2 => format!("&resourceVersion={version}"),
                _ => format!("{STATE}&resourceVersion={version}"),
            };
            let path = format!("{path}?watch=1{start}{selector}&timeoutSeconds=600");
            watches.push(Pair::open(&mut direct, &mut users[door], path).await);
        }
        let writer = random.below(2);
        history.step(&mut random, &mut users[writer]).await;
        // Written by one, and read by the other at once.
        let path = format!("{}?{}", collection(&mut random), selector(&mut random));
        let (one, other) = lists(&mut direct, &mut users[1 - writer], &path).await;
        versions.push(one.version.min(other.version));
        lists(&mut direct, &mut users[door], &format!("{path}&resourceVersion=0")).await;
        let then = random.choose(&versions);
        let exact = format!("{path}&resourceVersionMatch=Exact&resourceVersion={then}");
        let (_, seen) = lists(&mut direct, &mut users[door], &exact).await;
        assert_eq!(seen.version, then, "{exact}");
        asked += 3;
        let pod = history.a_pod(&mut random);
        for accept in [PROTOBUF, JSON] {
            let expected = direct.read(&pod, accept).await;
            assert_eq!(users[door].read(&pod, accept).await, expected, "{pod}");
        }
        if let Some((collection, name)) = pod.rsplit_once('/') {
            let one = format!("{collection}?fieldSelector=metadata.name%3D{name}");
            lists(&mut direct, &mut users[door], &one).await;
        }
    }
    by_key(&mut direct, &mut users).await;
    custom(&mut direct, &mut users, &doors).await;
    let mut events = 0;
    for watch in watches {
        events += watch.compare(QUIET).await;
    }
    println!("{asked} lists and {events} events are equal");
    assert!(events > 100);
    for ((verb, before), asked) in
        ["list", "watch", "get"].into_iter().zip(before).zip([asked, 15, 60])
    {
        let answered = count(What::Answers, verb) - before;
        assert!(answered * 10 > asked * 9, "the caches have answered {answered} of {asked} {verb}");
    }
    assert!(count(What::Store, "list") > store && count(What::Peer, "list") > peer);
    assert_eq!(count(What::Passes, "part"), 0);
}

/// What is divided by its key.
async fn by_key(direct: &mut User, users: &mut [User]) {
    let mut watches = Vec::new();
    for number in 0..8 {
        let map = json!({"metadata": {"name": format!("m{number}")}, "data": {"k": "v"}});
        let path = "/api/v1/namespaces/a/configmaps";
        users[number % 2].write(Method::POST, path, &map).await;
        for user in &mut *users {
            let one = format!("{path}/m{number}");
            assert_eq!(user.read(&one, PROTOBUF).await, direct.read(&one, PROTOBUF).await);
            let one = format!("{path}?fieldSelector=metadata.name%3Dm{number}");
            lists(direct, user, &one).await;
            lists(direct, user, path).await;
            watches.push(Pair::open(direct, user, format!("{one}&watch=1{STATE}")).await);
        }
        let change = json!({"data": {"k": "changed"}});
        users[0].write(Method::PATCH, &format!("{path}/m{number}"), &change).await;
    }
    for watch in watches {
        // There already, the mark, and the change.
        assert_eq!(watch.compare(Duration::from_millis(50)).await, 3);
    }
}

/// Custom resources, which are stored as JSON.
async fn custom(direct: &mut User, users: &mut [User], doors: &[Door; 2]) {
    define(direct, &widgets(0)).await;
    let (all, one) = ("/apis/example.com/v1/widgets?", "/apis/example.com/v1/namespaces/a/widgets");
    for (door, user) in doors.iter().zip(&mut *users) {
        let before = door.count(What::Store, "list");
        let mut answered = false;
        for _ in 0..600 {
            user.read(all, JSON).await;
            answered = door.count(What::Store, "list") > before;
            if answered {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(answered, "the cache knows the definition");
    }
    let gets = doors.iter().map(|door| door.count(What::Store, "get")).sum::<u64>();
    for number in 0..8 {
        let name = format!("w{number}");
        let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget",
                            "metadata": {"name": name}, "spec": {"size": number}});
        users[number % 2].write(Method::POST, one, &widget).await;
        for user in &mut *users {
            let paths = [
                all.to_owned(),
                format!("{all}limit=3"),
                format!("{all}fieldSelector=spec.color%3Dblue"),
                format!("{one}/{name}"),
                format!("{one}?fieldSelector=metadata.name%3D{name}"),
            ];
            for path in paths {
                same(direct, user, &path, JSON).await;
            }
        }
    }
    let all_gets = doors.iter().map(|door| door.count(What::Store, "get")).sum::<u64>();
    // Each is held by one of both.
    assert!(all_gets - gets >= 8);
}

/// A kubelet is served through any front door, and as itself alone; that which holds its part may be
/// killed, and nobody lists anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn a_kubelet_asks_any_door() {
    let cluster = Cluster::start_with(&[], &[]).await;
    let mut doors = doors(&cluster).await;
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    for node in NODES {
        let node = json!({"metadata": {"name": node}});
        direct.write(Method::POST, "/api/v1/nodes", &node).await;
    }
    for (place, node) in NODES.into_iter().enumerate() {
        let pod = pod(&format!("before-{place}"), node);
        direct.write(Method::POST, "/api/v1/namespaces/a/pods", &pod).await;
    }
    for node in NODES {
        let user = format!("system:node:{node}");
        let kubelet = cluster.certificates.client_ca.client(&user, &["system:nodes"]);
        let mut direct = cluster.direct(&kubelet).await;
        for door in &doors {
            let mut user = cluster.at(&kubelet, door.address).await;
            let peers = door.count(What::Peer, "watch");
            for of in NODES {
                let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{of}");
                let watch = format!("{path}&watch=1{STATE}");
                if of == node {
                    let pair = Pair::open(&mut direct, &mut user, watch).await;
                    assert_eq!(pair.compare(QUIET).await, 2);
                    continue;
                }
                for path in [&path, &watch] {
                    let (status, _) = user.read(path, PROTOBUF).await;
                    assert_eq!(status, StatusCode::FORBIDDEN, "{path} of {node}");
                    assert_eq!(direct.read(path, PROTOBUF).await.0, status);
                }
            }
            // Each holds some of these nodes, and not all.
            assert!(door.count(What::Peer, "watch") > peers);
        }
    }
    tokens(&cluster, &doors).await;
    disagree(&cluster, &doors).await;
    killed(&cluster, &mut doors).await;
}

/// A token is passed on, and is worth what it is worth anywhere.
async fn tokens(cluster: &Cluster, doors: &[Door; 2]) {
    let mut admin = cluster.direct(&cluster.admin()).await;
    let accounts = "/api/v1/namespaces/a/serviceaccounts";
    admin.write(Method::POST, accounts, &json!({"metadata": {"name": "reader"}})).await;
    let role = json!({"metadata": {"name": "reader"},
                      "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    admin.write(Method::POST, &format!("{rbac}/clusterroles"), &role).await;
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "a", "name": "reader"}],
    });
    admin.write(Method::POST, &format!("{rbac}/clusterrolebindings"), &binding).await;
    let wish = json!({"spec": {"expirationSeconds": 3600}});
    let issued = admin.write(Method::POST, &format!("{accounts}/reader/token"), &wish).await;
    let token = issued["status"]["token"].as_str().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut direct = cluster.with_token_at(token, cluster.direct_address()).await;
    for door in doors {
        let mut user = cluster.with_token_at(token, door.address).await;
        let peers = door.count(What::Peer, "list");
        for node in NODES {
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
            lists(&mut direct, &mut user, &path).await;
            let mut stranger = cluster.with_token_at("a.b.c", door.address).await;
            assert_eq!(stranger.read(&path, PROTOBUF).await.0, StatusCode::UNAUTHORIZED);
        }
        let (_, seen) = user.read("/api/v1/nodes?limit=1", PROTOBUF).await;
        let mut another = cluster.with_token_at(token, cluster.direct_address()).await;
        assert_eq!(
            another.read("/api/v1/nodes?limit=1", PROTOBUF).await.1,
            seen,
            "not its to read"
        );
        assert!(door.count(What::Peer, "list") > peers);
    }
}

/// A front door that counts three parts takes the first of two for one that holds the pods of n1. That
/// does not pass the request on to the second: a kube-apiserver answers.
async fn disagree(cluster: &Cluster, doors: &[Door; 2]) {
    let ports = [doors[0].address.port(), doors[1].address.port()];
    let third = Door::of(cluster, &[3, 2], &ports, free_port()).await;
    let peers = third.app().router.current();
    until("the peer is ready", || peers.peers[&0].has_been_ready()).await;
    let admin = cluster.admin();
    let (mut direct, mut user) =
        (cluster.direct(&admin).await, cluster.at(&admin, third.address).await);
    for _ in 0..400 {
        let (passes, peers) =
            (doors[0].count(What::Passes, "part"), doors[0].count(What::Peer, "list"));
        let asked = third.count(What::Peer, "list");
        lists(&mut direct, &mut user, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await;
        // Once it knows the resource.
        if third.count(What::Peer, "list") > asked {
            assert!(doors[0].count(What::Passes, "part") > passes);
            assert_eq!(doors[0].count(What::Peer, "list"), peers);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the third does not ask the first");
}

/// The front door of part 1 dies under a watch of it through the other.
async fn killed(cluster: &Cluster, doors: &mut [Door; 2]) {
    let admin = cluster.admin();
    let mut direct = cluster.direct(&admin).await;
    let mut user = cluster.at(&admin, doors[0].address).await;
    let path = "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1";
    let mut watch = Frames::new(user.open(&format!("{path}&watch=1{STATE}")).await.into_body());
    assert_eq!(watch.next(PATIENCE).await.unwrap().kind, "ADDED");
    assert_eq!(watch.next(PATIENCE).await.unwrap().kind, "BOOKMARK");
    let (_, bytes) = user.read(path, PROTOBUF).await;
    let version = list(&bytes).version;
    doors[1].kill();
    // A regular end, after which clients go on from where they were.
    let begun = Instant::now();
    assert!(watch.next(PATIENCE).await.is_none() && begun.elapsed() < PATIENCE / 2);
    direct.write(Method::POST, "/api/v1/namespaces/a/pods", &pod("after", "n1")).await;
    let answers = doors[0].count(What::Answers, "watch");
    let resumed = format!("{path}&watch=1&resourceVersion={version}");
    let mut watch = Frames::new(user.open(&resumed).await.into_body());
    let event = watch.next(PATIENCE).await.unwrap();
    assert!(event.kind == "ADDED" && event.bytes.windows(5).any(|window| window == b"after"));
    assert_eq!(doors[0].count(What::Answers, "watch"), answers + 1, "answered by its events");
    // What needs the part's objects goes on to a kube-apiserver, and is the same.
    let passes = doors[0].count(What::Passes, "part");
    let (_, seen) = lists(&mut direct, &mut user, path).await;
    assert_eq!(seen.items.len(), 2);
    assert!(doors[0].count(What::Passes, "part") > passes);
}

fn pod(name: &str, node: &str) -> serde_json::Value {
    json!({"metadata": {"name": name},
           "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
}
