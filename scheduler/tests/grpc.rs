//! A relay and shards over gRPC on loopback with mTLS, and a fake apiserver.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::collections::HashMap as StdMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Authority, node, pod, requests, status};
use http::Method;
use megacluster_scheduler::core::ahead::Course;
use megacluster_scheduler::core::evaluate::Evaluation;
use megacluster_scheduler::core::gather::Decision;
use megacluster_scheduler::core::maps::HashMap;
use megacluster_scheduler::core::membership::Membership;
use megacluster_scheduler::core::pod::PodRequest;
use megacluster_scheduler::core::queue::QueueConfig;
use megacluster_scheduler::metrics::Metrics;
use megacluster_scheduler::protocol::transport::{self, ALPN, Peer, Serve};
use megacluster_scheduler::protocol::{
    Answer, Operation, PodId, Refusal, Request, Reservation, Response, Target,
};
use megacluster_scheduler::relay::bind::BindLimits;
use megacluster_scheduler::relay::coordinator::{Coordinator, CoordinatorConfig};
use megacluster_scheduler::relay::copies::Copies;
use megacluster_scheduler::relay::driver::{self, Surroundings};
use megacluster_scheduler::relay::fanout::{Fanout, Shard};
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::pods::Intake;
use megacluster_scheduler::relay::report;
use megacluster_scheduler::shard::local::LocalShard;
use megacluster_scheduler::shard::machine::{ShardConfig, ShardMachine};
use megacluster_service::admin::Readiness;
use megacluster_service::leadership::Leadership;
use megacluster_service::tls::{ClientAuth, ClientTls, ClientTlsFiles, ServerTls, ServerTlsFiles};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const INCARNATION: u64 = 77;

struct Fleet {
    /// Held for its files.
    #[allow(dead_code, reason = "dropped last")]
    directory: tempfile::TempDir,
    authority: Authority,
    other: Authority,
    membership: Membership,
    addresses: StdMap<String, SocketAddr>,
    shards: Vec<Arc<LocalShard>>,
    token: CancellationToken,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

fn server_tls(authority: &Authority) -> ServerTls {
    let (cert, key) = authority.leaf("server");
    let files = ServerTlsFiles {
        cert,
        key,
        client_ca: Some(authority.ca()),
        client_auth: ClientAuth::Required,
    };
    ServerTls::new(files, ALPN).expect("server TLS")
}

fn client_tls(trusts: &Authority, issued_by: &Authority) -> ClientTls {
    let (cert, key) = issued_by.leaf("client");
    let files = ClientTlsFiles { ca: Some(trusts.ca()), cert: Some(cert), key: Some(key) };
    ClientTls::new(files, ALPN).expect("client TLS")
}

/// Shards with `nodes` nodes of 4 CPUs among them.
async fn fleet(shards: usize, nodes: usize) -> Fleet {
    megacluster_service::crypto::install();
    let directory = tempfile::tempdir().expect("directory");
    let authority = Authority::new(directory.path(), "good");
    let other = Authority::new(directory.path(), "other");
    let names: Vec<String> = (0..shards).map(|i| format!("s{i}")).collect();
    let membership = Membership::new(0, &names);
    let token = CancellationToken::new();
    let mut addresses = StdMap::new();
    let mut locals = Vec::new();
    for name in &names {
        let mut machine = ShardMachine::new(ShardConfig {
            name: name.as_str().into(),
            membership: membership.clone(),
            incarnation: INCARNATION,
            ttl: Duration::from_secs(90),
        });
        machine.node_list_begins();
        (0..nodes).for_each(|i| machine.node_applied(&node(&format!("n{i}"), 4)));
        machine.node_list_ends();
        machine.pod_list_begins();
        machine.pod_list_ends();
        machine.without_volumes();
        let shard = Arc::new(LocalShard::new(machine, Metrics::unregistered()));
        let loopback = "127.0.0.1:0".parse().expect("address");
        let (address, _) =
            transport::serve(shard.clone(), loopback, server_tls(&authority), token.clone())
                .await
                .expect("serve");
        addresses.insert(name.clone(), address);
        locals.push(shard);
    }
    Fleet { directory, authority, other, membership, addresses, shards: locals, token }
}

impl Fleet {
    fn url(&self, name: &str) -> String {
        format!("https://localhost:{}", self.addresses[name].port())
    }

    fn peers(&self) -> HashMap<Arc<str>, Shard> {
        let tls = client_tls(&self.authority, &self.authority);
        let peer = |name: &String| {
            let peer = Peer::new(&self.url(name), &tls).expect("peer");
            (Arc::from(name.as_str()), Shard::Remote(Arc::new(Copies::new(vec![peer]))))
        };
        self.addresses.keys().map(peer).collect()
    }

    fn request(&self, operations: Vec<Operation>) -> Request {
        let target =
            |name: &Arc<str>| Target { shard: name.clone(), incarnation: INCARNATION, changes: 0 };
        Request {
            term: 1,
            membership: self.membership.fingerprint(),
            targets: self.membership.names().map(target).collect(),
            relays: Vec::new(),
            deadline: Duration::from_secs(5),
            operations,
        }
    }
}

fn class(cpu: &str) -> Arc<PodRequest> {
    Arc::new(PodRequest::compile(&pod(0, cpu)))
}

fn evaluate(count: u32) -> Operation {
    Operation::Evaluate {
        class: class("1"),
        seed: 5,
        count,
        survey: None,
        nominees: Arc::default(),
    }
}

fn evaluations(response: &Response) -> &[Evaluation] {
    match &response.answers[0] {
        Answer::Evaluations(evaluations) => evaluations,
        other => panic!("{other:?}"),
    }
}

/// Where the next pods go, eight at most.
fn eight(evaluation: &Evaluation) -> Vec<Arc<str>> {
    let class = class("1");
    let mut course = Course::new(evaluation.clone(), &class, None);
    let next = || match course.decide() {
        Some(Decision::Place(placement)) => Some(placement.node),
        _ => None,
    };
    std::iter::from_fn(next).take(8).collect()
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let fleet = fleet(1, 1).await;
    let request = fleet.request(vec![evaluate(1)]);
    let good = Peer::new(&fleet.url("s0"), &client_tls(&fleet.authority, &fleet.authority));
    let response = good.expect("peer").exchange(&request).await;
    assert_eq!(response.shards[0].refusal, None);
    // The client's is wrong; the server's is wrong; the client shows none.
    let none = ClientTlsFiles { ca: Some(fleet.authority.ca()), cert: None, key: None };
    for tls in [
        client_tls(&fleet.authority, &fleet.other),
        client_tls(&fleet.other, &fleet.authority),
        ClientTls::new(none, ALPN).expect("client TLS"),
    ] {
        let peer = Peer::new(&fleet.url("s0"), &tls).expect("peer");
        let response = peer.exchange(&request).await;
        assert!(matches!(response.shards[0].refusal, Some(Refusal::Unreachable(_))));
        assert!(response.answers.is_empty());
    }
    assert!(Peer::new("http://localhost:1", &client_tls(&fleet.other, &fleet.other)).is_err());
}

#[tokio::test]
async fn refusals_are_typed() {
    let fleet = fleet(1, 1).await;
    let tls = client_tls(&fleet.authority, &fleet.authority);
    let peer = Peer::new(&fleet.url("s0"), &tls).expect("peer");
    let ask = async |change: fn(&mut Request)| {
        let mut request = fleet.request(vec![evaluate(1)]);
        change(&mut request);
        let response = peer.exchange(&request).await;
        assert!(response.answers.is_empty(), "something was carried out");
        response.shards[0].clone()
    };
    let stale = ask(|request| request.membership ^= 1).await.refusal;
    let current = fleet.membership.fingerprint();
    assert_eq!(stale, Some(Refusal::StaleMembership { current }));
    let restarted = ask(|request| request.targets[0].incarnation = 5).await;
    assert_eq!(restarted.refusal, Some(Refusal::NewIncarnation));
    assert_eq!(restarted.incarnation, INCARNATION);
    let mut later = fleet.request(Vec::new());
    later.term = 9;
    assert_eq!(peer.exchange(&later).await.shards[0].refusal, None);
    assert_eq!(ask(|_| {}).await.refusal, Some(Refusal::StaleTerm { current: 9 }));
    let elsewhere = ask(|request| request.targets[0].shard = "s9".into()).await.refusal;
    assert!(matches!(elsewhere, Some(Refusal::Malformed(_))));
}

/// Answers too late.
struct Asleep;
impl Serve for Asleep {
    async fn exchange(&self, request: Request) -> Response {
        tokio::time::sleep(Duration::from_mins(1)).await;
        Response::refused(&request.targets, &Refusal::NotSynced)
    }
}

#[tokio::test]
async fn a_shard_answers_only_once_it_is_synced_and_in_time() {
    let fleet = fleet(1, 0).await;
    let machine = ShardMachine::new(ShardConfig {
        name: "s0".into(),
        membership: fleet.membership.clone(),
        incarnation: INCARNATION,
        ttl: Duration::from_secs(90),
    });
    let shard = LocalShard::new(machine, Metrics::unregistered());
    let request = fleet.request(vec![evaluate(1)]);
    assert_eq!(shard.exchange(request.clone()).await.shards[0].refusal, Some(Refusal::NotSynced));

    let loopback = "127.0.0.1:0".parse().expect("address");
    let tls = server_tls(&fleet.authority);
    let served = transport::serve(Arc::new(Asleep), loopback, tls, fleet.token.clone());
    let (address, _) = served.await.expect("serve");
    let url = format!("https://localhost:{}", address.port());
    let tls = client_tls(&fleet.authority, &fleet.authority);
    let peer = Peer::new(&url, &tls).expect("peer");
    let request = Request { deadline: Duration::from_millis(200), ..request };
    let begun = std::time::Instant::now();
    let response = peer.exchange(&request).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(matches!(response.shards[0].refusal, Some(Refusal::Unreachable(_))));
}

#[tokio::test]
async fn a_session_neither_holds_up_the_end_of_a_shard_nor_outlives_it() {
    let fleet = fleet(1, 4).await;
    let shard = fleet.shards[0].clone();
    let serve = async |address: SocketAddr, token: &CancellationToken| {
        let tls = server_tls(&fleet.authority);
        transport::serve(shard.clone(), address, tls, token.clone()).await.expect("serve")
    };
    let token = CancellationToken::new();
    let (address, served) = serve("127.0.0.1:0".parse().expect("address"), &token).await;
    let tls = client_tls(&fleet.authority, &fleet.authority);
    let peer = Peer::new(&format!("https://localhost:{}", address.port()), &tls).expect("peer");
    let answers = async || {
        let response = peer.exchange(&fleet.request(vec![evaluate(2)])).await;
        response.shards.iter().all(|report| report.refusal.is_none())
            && evaluations(&response).iter().all(|evaluation| evaluation.nodes == 4)
    };
    // The first message finds out what the shard understands.
    for _ in 0..3 {
        assert!(answers().await);
    }
    // Two at once.
    let (one, other) = futures::join!(answers(), answers());
    assert!(one && other);
    token.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), served).await;
    ended.expect("in time").expect("served");
    let token = CancellationToken::new();
    serve(address, &token).await;
    // The news of the end may not be there yet for the first one.
    assert!(answers().await || answers().await);
    token.cancel();
}

#[tokio::test]
async fn a_tree_answers_as_a_flat_relay_does() {
    let fleet = fleet(7, 60).await;
    let metrics = Metrics::unregistered();
    let flat = Fanout::new(
        fleet.membership.clone(),
        fleet.peers(),
        HashMap::default(),
        10,
        metrics.clone(),
    );
    let tls = client_tls(&fleet.authority, &fleet.authority);
    let mut relays = HashMap::default();
    for name in ["r0", "r1"] {
        let below = Fanout::new(
            fleet.membership.clone(),
            fleet.peers(),
            HashMap::default(),
            2,
            metrics.clone(),
        );
        let loopback = "127.0.0.1:0".parse().expect("address");
        let tls_server = server_tls(&fleet.authority);
        let served =
            transport::serve(Arc::new(below), loopback, tls_server, fleet.token.clone()).await;
        let (address, _) = served.expect("serve");
        let url = format!("https://localhost:{}", address.port());
        relays.insert(Arc::from(name), Peer::new(&url, &tls).expect("peer"));
    }
    // A relay that nobody answers for is replaced by its shards at once.
    let nowhere = Peer::new("https://localhost:1", &tls).expect("peer");
    let broken: HashMap<Arc<str>, Peer> =
        [("r0".into(), nowhere), ("r1".into(), relays["r1"].clone())].into_iter().collect();
    let tree = Fanout::new(fleet.membership.clone(), fleet.peers(), relays, 4, metrics.clone());
    let patched = Fanout::new(fleet.membership.clone(), fleet.peers(), broken, 4, metrics);
    let mut request = fleet.request(vec![evaluate(8)]);
    let expected = flat.exchange(request.clone()).await;
    let expected = evaluations(&expected)[0].clone();
    assert_eq!(expected.nodes, 60);
    let nodes = eight(&expected);
    assert_eq!(nodes.len(), 8);
    request.relays = vec!["r0".into(), "r1".into()];
    for fanout in [tree, patched] {
        let response = fanout.exchange(request.clone()).await;
        assert_eq!(response.shards.len(), 7);
        assert!(response.shards.iter().all(|report| report.refusal.is_none()));
        assert_eq!(evaluations(&response), std::slice::from_ref(&expected));
    }
    // A reservation finds its way to the owner alone.
    let node = nodes[0].clone();
    let id = PodId { uid: common::uid(1).into(), namespace: "d".into(), name: "p1".into() };
    let reservation = Reservation { pod: id, node, class: class("1"), token: 1 };
    request.operations = vec![Operation::Reserve(reservation)];
    let response = flat.exchange(request).await;
    assert!(matches!(response.answers[0], Answer::Outcome(Ok(()))));
    let held: usize = fleet.shards.iter().map(|shard| shard.lock().reservations()).sum();
    assert_eq!(held, 1);
}

/// Two processes of one name: the second takes over with its tables full, once it has heard the
/// reservations; a leader that knows of neither goes to the one that holds them.
#[tokio::test]
async fn a_copy_takes_over_from_a_shard_that_dies() {
    let fleet = fleet(1, 1).await;
    let tls = client_tls(&fleet.authority, &fleet.authority);
    let mut addresses = Vec::new();
    let mut stops = Vec::new();
    for incarnation in [1, 2] {
        let mut machine = ShardMachine::new(ShardConfig {
            name: "s0".into(),
            membership: fleet.membership.clone(),
            incarnation,
            ttl: Duration::from_secs(90),
        });
        machine.node_list_begins();
        machine.node_applied(&node("n0", 4));
        machine.node_list_ends();
        machine.pod_list_begins();
        machine.pod_list_ends();
        machine.without_volumes();
        let shard = Arc::new(LocalShard::new(machine, Metrics::unregistered()));
        let stop = fleet.token.child_token();
        let loopback = "127.0.0.1:0".parse().expect("address");
        let served =
            transport::serve(shard, loopback, server_tls(&fleet.authority), stop.clone()).await;
        let (address, task) = served.expect("serve");
        addresses.push(format!("https://localhost:{}", address.port()));
        stops.push((stop, task));
    }
    let copies = || {
        let peers = addresses.iter().map(|url| Peer::new(url, &tls).expect("peer")).collect();
        Copies::new(peers)
    };
    let reservation = |number: usize, token| {
        let id = PodId {
            uid: common::uid(number).into(),
            namespace: "d".into(),
            name: format!("p{number}").into(),
        };
        Reservation { pod: id, node: "n0".into(), class: class("3"), token }
    };
    let request = |incarnation, operations| {
        let mut request = fleet.request(operations);
        request.targets[0].incarnation = incarnation;
        request
    };
    let leader = copies();
    let asked = async |copies: &Copies, incarnation, operations| {
        let response = copies.exchange(&request(incarnation, operations)).await;
        let report = response.shards[0].clone();
        (report.refusal, report.incarnation, response.answers)
    };
    // Nobody has served: the first is taken.
    let (refusal, incarnation, _) = asked(&leader, 0, Vec::new()).await;
    assert_eq!((refusal, incarnation), (Some(Refusal::NewIncarnation), 1));
    let (refusal, _, answers) =
        asked(&leader, 1, vec![Operation::Reserve(reservation(1, 7))]).await;
    assert_eq!(refusal, None);
    assert!(matches!(answers[0], Answer::Outcome(Ok(()))));
    // A new leader, and one whose first choice would be the other copy, find the reservation.
    assert_eq!(asked(&copies(), 0, Vec::new()).await.1, 1);
    let (refusal, incarnation, _) = asked(&copies(), 1, Vec::new()).await;
    assert_eq!((refusal, incarnation), (None, 1));

    let (stop, task) = stops.remove(0);
    stop.cancel();
    task.await.expect("it ends");
    let begun = std::time::Instant::now();
    let (refusal, incarnation, answers) =
        asked(&leader, 1, vec![Operation::Reserve(reservation(2, 8))]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((refusal, incarnation), (Some(Refusal::NewIncarnation), 2), "nothing is reserved");
    assert!(answers.is_empty());
    let again = vec![Operation::Restore(reservation(1, 7)), Operation::Reserve(reservation(2, 8))];
    let (refusal, _, answers) = asked(&leader, 2, again).await;
    assert_eq!(refusal, None);
    assert!(matches!(answers[0], Answer::Outcome(Ok(()))));
    assert!(matches!(answers[1], Answer::Outcome(Err(_))), "there is room for one of them");
    assert_eq!(asked(&copies(), 0, Vec::new()).await.1, 2);
}

#[tokio::test]
async fn a_copy_that_is_silent_does_not_take_all_the_time() {
    let fleet = fleet(1, 1).await;
    let tls = client_tls(&fleet.authority, &fleet.authority);
    // Takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let silent = format!("https://localhost:{}", silent.local_addr().expect("address").port());
    let copies = |first: &str, second: &str| {
        Copies::new([first, second].map(|url| Peer::new(url, &tls).expect("peer")).into())
    };
    let mut request = fleet.request(Vec::new());
    request.deadline = Duration::from_secs(4);
    let real = &fleet.url("s0");
    for (first, second) in [(&silent, real), (real, &silent)] {
        // One that has been asked before.
        request.targets[0].incarnation = if first == real { INCARNATION } else { INCARNATION + 1 };
        let begun = std::time::Instant::now();
        let copies = copies(first, second);
        let answer = copies.exchange(&request).await;
        let refusal = answer.shards[0].refusal.clone();
        let took = begun.elapsed();
        let expected = (first != real).then_some(Refusal::NewIncarnation);
        assert_eq!(refusal, expected);
        assert!(took < Duration::from_millis(2500), "{took:?}");
        if first != real {
            // From now on the other one is asked.
            request.targets[0].incarnation = answer.shards[0].incarnation;
            let begun = std::time::Instant::now();
            assert_eq!(copies.exchange(&request).await.shards[0].refusal, None);
            assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        }
    }
}

/// A relay with everything but a watch: pods in, bindings out.
#[tokio::test]
async fn pods_are_bound_through_relay_and_shards() {
    const PODS: usize = 60;
    let fleet = fleet(3, 10).await;
    let bound: Arc<Mutex<StdMap<String, String>>> = Arc::default();
    let conditions: Arc<Mutex<Vec<String>>> = Arc::default();
    let (bindings, patches) = (bound.clone(), conditions.clone());
    let requests = requests(move |method, path, body| {
        if let Some(name) = path.strip_suffix("/binding") {
            let name = name.rsplit('/').next().unwrap_or_default().to_owned();
            let node = body["target"]["name"].as_str().unwrap_or_default().to_owned();
            let before = bindings.lock().expect("lock").insert(name, node);
            assert_eq!(before, None, "bound twice");
        } else if *method == Method::PATCH {
            let message = &body["status"]["conditions"][0]["message"];
            patches.lock().expect("lock").push(message.as_str().unwrap_or_default().to_owned());
            return Some((200, json!({})));
        }
        Some(status(201, ""))
    })
    .await;
    let metrics = Metrics::unregistered();
    let membership = fleet.membership.clone();
    let fanout =
        Fanout::new(membership.clone(), fleet.peers(), HashMap::default(), 10, metrics.clone());
    let reports = report::ReportConfig { host: "test".to_owned(), events_per_second: 1000 };
    let token = CancellationToken::new();
    let (reporter, _tasks) = report::spawn(requests.clone(), reports, metrics.clone(), &token);
    let fence = std::time::Instant::now().checked_add(Duration::from_mins(10));
    let leads = Leadership { leader: true, epoch: 3, fence, ..Leadership::default() };
    let (_leader, leadership) = watch::channel(leads);
    let coordinator = Coordinator::new(
        CoordinatorConfig {
            membership,
            relays: Vec::new(),
            max_binds: 16,
            deadline: Duration::from_secs(5),
            queue: QueueConfig::default(),
            await_directory: false,
            seed: 1,
        },
        metrics.clone(),
    );
    let surroundings = Surroundings {
        fanout: Arc::new(fanout),
        requests,
        bind_concurrency: 4,
        limits: BindLimits::default(),
        reporter,
        leadership,
        readiness: Readiness::default(),
        metrics,
        list: Arc::default(),
        questions: tokio::sync::mpsc::channel(1).1,
    };
    let (sink, intake) = mpsc::channel(16);
    let relay = tokio::spawn(driver::run(coordinator, surroundings, intake, token.clone()));
    let mut compiler = Compiler::default();
    sink.send(Intake::Begin).await.expect("intake");
    for number in 0..PODS {
        let waiting = compiler.waiting(&pod(number, "1"));
        sink.send(Intake::Applied(Box::new(waiting))).await.expect("intake");
    }
    sink.send(Intake::End).await.expect("intake");
    // 10 nodes of 4 CPUs take 40 pods; the other 20 are told why not.
    let told = |conditions: &[String]| conditions.len() >= PODS - 40;
    for _ in 0..300 {
        let all = bound.lock().expect("lock").len() == 40;
        if all && told(&conditions.lock().expect("lock")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut pods_by_node: StdMap<String, usize> = StdMap::new();
    for node in bound.lock().expect("lock").values() {
        *pods_by_node.entry(node.clone()).or_default() += 1;
    }
    assert_eq!(pods_by_node.len(), 10);
    assert!(pods_by_node.values().all(|pods| *pods == 4), "{pods_by_node:?}");
    let conditions = conditions.lock().expect("lock").clone();
    assert!(conditions[0].starts_with("0/10 nodes are available: 10 Insufficient cpu."));
    token.cancel();
    tokio::time::timeout(Duration::from_secs(30), relay).await.expect("drains").expect("ends");
}
