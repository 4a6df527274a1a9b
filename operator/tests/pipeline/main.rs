//! The whole pipeline against an API server in memory: what is written, in which order, and what
//! the status says of it.

#![expect(clippy::unwrap_used, reason = "a test states its expectation by unwrapping")]

mod fake;

use std::time::Duration;

use fake::{CLUSTER, Fake};
use megacluster_operator::reconcile::Next;
use serde_json::{Value, json};

const SPEC: &str = "version: v1.36.3";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/mc/deployments";
const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/mc/statefulsets";
const SECRETS: &str = "/api/v1/namespaces/mc/secrets";

/// Reconciles and rolls out until nothing is written any more.
async fn settle(fake: &Fake) {
    let reconciler = fake.reconciler();
    for _ in 0..12 {
        fake.take_writes();
        reconciler.reconcile("mc", "prod").await.unwrap();
        fake.roll_out();
        if fake.take_writes().is_empty() {
            fake.take_events();
            return;
        }
    }
    assert_eq!(fake.take_writes(), Vec::<String>::new(), "it never settles");
}

fn authorities(fake: &Fake) -> Vec<Value> {
    ["cluster-ca", "front-proxy-ca", "store-ca", "scheduler-ca", "service-account"]
        .map(|name| fake.get(&format!("{SECRETS}/prod-{name}")).unwrap()["data"].clone())
        .to_vec()
}

#[tokio::test]
async fn a_first_start_goes_in_order() {
    let fake = Fake::with_cluster(SPEC);
    let reconciler = fake.reconciler();
    let next = reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(next, Next::After(Duration::ZERO));
    assert_eq!(fake.take_writes(), ["PATCH /api/v1/namespaces/mc/services/prod-api"]);

    reconciler.reconcile("mc", "prod").await.unwrap();
    let writes = fake.take_writes();
    let at = |name: &str| writes.iter().position(|write| write.ends_with(name)).unwrap();
    assert!(at("/prod-cluster-ca") < at("/prod-apiserver-tls"), "{writes:#?}");
    assert!(at("/prod-apiserver-tls") < at("/statefulsets/prod-store"), "{writes:#?}");
    assert_eq!(writes.last().unwrap(), &format!("PATCH {CLUSTER}/status"));
    assert_eq!(fake.names("statefulsets"), ["prod-store"]);
    assert_eq!(fake.names("deployments"), ["prod-watchcache"]);
    assert_eq!(fake.condition("APIServersReady", "reason"), "Waiting");
    assert_eq!(fake.condition("Ready", "status"), "False");
    assert_eq!(fake.condition("Reconciling", "status"), "True");
    assert_eq!(fake.condition("Stalled", "status"), "", "there only while true");
    assert_eq!(fake.take_events(), ["Creating"]);

    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.names("deployments"), ["prod-apiserver-default", "prod-watchcache"]);
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.names("deployments").len(), 3);
    assert_eq!(
        fake.names("statefulsets"),
        ["prod-scheduler-relay", "prod-scheduler-shard", "prod-scheduler-standby", "prod-store"]
    );
    let status = fake.get(CLUSTER).unwrap()["status"].clone();
    assert_eq!(status["version"], "v1.36.3");
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["apiServers"], json!({"replicas": 2, "ready": 2, "updated": 2}));
    assert_eq!(fake.condition("UpToDate", "status"), "True");
    assert_eq!(fake.condition("Reconciling", "status"), "");
    // The Service has no address here, so nobody could ask: not Ready, whatever the pods say.
    assert_eq!(fake.condition("Ready", "reason"), "EndpointNotReady");
}

#[tokio::test]
async fn what_is_as_it_should_be_is_not_written() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    fake.take_writes();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.take_writes(), Vec::<String>::new());
    assert_eq!(fake.take_events(), Vec::<String>::new());
}

#[tokio::test]
async fn deleted_and_edited_children_come_back() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    let door = format!("{DEPLOYMENTS}/prod-watchcache");
    let before = fake.get(&door).unwrap();
    fake.edit(&door, |object| object["spec"]["replicas"] = json!(0));
    fake.remove(&format!("{DEPLOYMENTS}/prod-controller-manager"));
    // The store is down meanwhile: that is no reason to wait.
    fake.edit(&format!("{STATEFUL_SETS}/prod-store"), |object| {
        object["status"]["readyReplicas"] = json!(0);
    });
    fake.take_events();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.get(&door).unwrap()["spec"], before["spec"]);
    assert!(fake.get(&format!("{DEPLOYMENTS}/prod-controller-manager")).is_some());
    assert_eq!(fake.condition("StoreReady", "status"), "False");
    assert_eq!(fake.condition("Ready", "reason"), "StoreNotReady");
    let events = fake.take_events();
    assert!(events.contains(&"ChildRestored".to_owned()), "{events:?}");
    assert!(events.contains(&"ChildReset".to_owned()), "{events:?}");
}

#[tokio::test]
async fn an_invalid_spec_stalls_and_is_left_alone() {
    let fake =
        Fake::with_cluster("{version: v1.36.3, apiServers: {extraArgs: ['--etcd-servers=x']}}");
    let reconciler = fake.reconciler();
    assert_eq!(reconciler.reconcile("mc", "prod").await.unwrap(), Next::AwaitChange);
    assert_eq!(fake.take_writes(), [format!("PATCH {CLUSTER}/status")]);
    assert_eq!(fake.condition("Ready", "status"), "False");
    assert_eq!(fake.condition("Stalled", "reason"), "InvalidSpec");
    assert!(fake.condition("Stalled", "message").starts_with("spec.apiServers.extraArgs[0]: "));
    assert_eq!(fake.take_events(), ["InvalidSpec"]);
    assert_eq!(reconciler.reconcile("mc", "prod").await.unwrap(), Next::AwaitChange);
    assert_eq!(fake.take_writes(), Vec::<String>::new());

    fake.edit_spec(|spec| spec["apiServers"]["extraArgs"] = json!([]));
    settle(&fake).await;
    assert_eq!(fake.condition("Stalled", "status"), "");
}

#[tokio::test]
async fn every_spec_that_only_the_operator_can_refuse_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/invalid/accepted-but-stalled");
    let mut samples = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
        let sample: Value = serde_saphyr::from_str(&text).unwrap();
        let fake = Fake::with_cluster(&sample["spec"].to_string());
        let next = fake.reconciler().reconcile("mc", "prod").await.unwrap();
        assert_eq!(next, Next::AwaitChange, "{text}");
        let message = fake.condition("Stalled", "message");
        assert!(message.contains(expected), "{message:?} instead of {expected:?}");
        assert_eq!(fake.take_writes(), [format!("PATCH {CLUSTER}/status")]);
        samples += 1;
    }
    assert!(samples >= 6, "only {samples} samples");
}

#[tokio::test]
async fn an_invalid_change_leaves_what_runs() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    fake.edit_spec(|spec| spec["version"] = json!("v1.37.0"));
    let next = fake.reconciler().reconcile("mc", "prod").await.unwrap();
    assert_eq!(next, Next::AwaitChange);
    assert_eq!(fake.names("deployments").len(), 3);
    assert_eq!(fake.get(CLUSTER).unwrap()["status"]["version"], "v1.36.3");
    assert_eq!(fake.condition("StoreReady", "status"), "True", "still known from before");
}

#[tokio::test]
async fn a_paused_cluster_is_watched_but_not_touched() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    fake.edit_spec(|spec| spec["paused"] = json!(true));
    fake.remove(&format!("{STATEFUL_SETS}/prod-scheduler-relay"));
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.take_writes(), [format!("PATCH {CLUSTER}/status")]);
    assert_eq!(fake.condition("Paused", "status"), "True");
    assert_eq!(fake.condition("SchedulerReady", "reason"), "Missing");
    assert_eq!(fake.condition("UpToDate", "status"), "Unknown");
    assert_eq!(fake.condition("Reconciling", "status"), "");
    fake.edit_spec(|spec| spec["paused"] = json!(false));
    settle(&fake).await;
    assert_eq!(fake.names("deployments").len(), 3);
    assert_eq!(fake.condition("Paused", "status"), "");
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let fake = Fake::with_cluster(SPEC);
    let error = fake.reconciler_that(false).reconcile("mc", "prod").await.unwrap_err();
    assert_eq!(error.reason(), "not_leader");
    assert_eq!(fake.take_writes(), Vec::<String>::new());
}

/// A front door that takes connections and says nothing is asked for 5 s; whoever leads next would
/// wait as long for the Lease.
#[tokio::test]
async fn who_shall_stop_does_not_wait_for_an_answer() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let fake = Fake::with_cluster(&format!(
        "{{version: v1.36.3, networking: {{endpoint: {{type: ClusterIP, port: {port}}}}}}}"
    ));
    settle(&fake).await;
    fake.edit("/api/v1/namespaces/mc/services/prod-api", |object| {
        object["spec"]["clusterIP"] = json!("127.0.0.1");
    });
    let reconciler = fake.reconciler();
    let stopping = reconciler.stopping.clone();
    let stop = async {
        let connection = silent.accept().await.unwrap();
        fake.take_writes();
        stopping.cancel();
        connection
    };
    let both = async { tokio::join!(reconciler.reconcile("mc", "prod"), stop).0 };
    let next = tokio::time::timeout(Duration::from_secs(2), both).await.unwrap();
    assert_eq!(next.unwrap(), Next::AwaitChange);
    assert_eq!(fake.take_writes(), Vec::<String>::new(), "nothing is known of the endpoint");
}

#[tokio::test]
async fn a_refused_write_is_told_and_tried_again() {
    let fake = Fake::with_cluster(SPEC);
    fake.forbid(Some("/networkpolicies/"));
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    let error = reconciler.reconcile("mc", "prod").await.unwrap_err();
    assert_eq!(error.reason(), "apply");
    assert_eq!(fake.condition("UpToDate", "reason"), "ApplyFailed");
    assert!(fake.condition("UpToDate", "message").contains("not yours"));
    assert!(fake.take_events().contains(&"ApplyFailed".to_owned()));
    fake.forbid(None);
    settle(&fake).await;
    assert_eq!(fake.condition("UpToDate", "status"), "True");
}

#[tokio::test]
async fn an_upgrade_waits_for_the_apiservers() {
    // The stock controller manager has the cluster's version.
    let fake = Fake::with_cluster("{version: v1.36.3, controllerManager: {hotStandby: false}}");
    settle(&fake).await;
    fake.edit_spec(|spec| spec["version"] = json!("v1.36.4"));
    let reconciler = fake.reconciler();
    let image = |name: &str| {
        let deployment = fake.get(&format!("{DEPLOYMENTS}/{name}")).unwrap();
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        image.as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    };
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(image("prod-apiserver-default"), "v1.36.4");
    assert_eq!(image("prod-controller-manager"), "v1.36.3", "never newer than the apiservers");
    assert_eq!(fake.get(CLUSTER).unwrap()["status"]["version"], "v1.36.3");
    assert_eq!(fake.condition("UpToDate", "reason"), "Waiting");
    assert!(fake.take_events().contains(&"Upgrading".to_owned()));
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(image("prod-controller-manager"), "v1.36.4");
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(fake.get(CLUSTER).unwrap()["status"]["version"], "v1.36.4");
    assert!(fake.take_events().contains(&"Upgraded".to_owned()));
}

#[tokio::test]
async fn only_own_children_are_removed_and_only_when_nobody_is_sent_there() {
    let fake = Fake::with_cluster(
        "{version: v1.36.3, apiServers: {pools: [{name: pods, match: [{resource: pods}]}]}}",
    );
    settle(&fake).await;
    let pool = format!("{DEPLOYMENTS}/prod-apiserver-pods");
    assert!(fake.get(&pool).is_some());
    let strangers = "/api/v1/namespaces/mc/configmaps/notes";
    fake.put(
        strangers,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "notes", "namespace": "mc", "labels": {"megacluster.io/name": "prod"}}}),
    );
    fake.edit_spec(|spec| spec["apiServers"]["pools"] = json!([]));
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert!(fake.get(&pool).is_some(), "the front door still knows it");
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert!(fake.get(&pool).is_none());
    assert!(fake.get(strangers).is_some());
    assert!(fake.take_events().contains(&"ChildRemoved".to_owned()));
}

/// Another number of parts makes new front doors beside the old ones, which go when the new ones
/// are ready; and what they need goes after them.
#[tokio::test]
async fn parts_are_changed_by_front_doors_beside_the_old_ones() {
    let fake = Fake::with_cluster("{version: v1.36.3, watchCache: {cached: [{resource: pods}]}}");
    settle(&fake).await;
    let undivided = ["prod-watchcache".to_owned()];
    let parts = |of: i32| (0..of).map(move |part| format!("prod-watchcache-{part}-of-{of}"));
    let doors = || -> Vec<String> {
        fake.names("deployments").into_iter().filter(|name| name.contains("watchcache")).collect()
    };
    let services = || -> Vec<String> {
        fake.names("services").into_iter().filter(|name| name.contains("-of-")).collect()
    };
    let ready = || fake.get(CLUSTER).unwrap()["status"]["watchCache"].clone();
    let reconciler = fake.reconciler();
    let mut before = undivided.to_vec();
    for number in [2, 3, 1] {
        let wanted: Vec<String> =
            if number == 1 { undivided.to_vec() } else { parts(number).collect() };
        let served = services();
        fake.edit_spec(|spec| spec["watchCache"]["parts"] = json!(number));
        reconciler.reconcile("mc", "prod").await.unwrap();
        let mut both: Vec<String> = before.iter().chain(&wanted).cloned().collect();
        both.sort();
        assert_eq!(doors(), both, "{number}");
        assert_eq!(fake.condition("WatchCacheReady", "status"), "False");
        assert_eq!(fake.condition("UpToDate", "reason"), "RollingOut");
        assert_eq!(ready(), json!({"replicas": 2 * number, "ready": 0}));
        // One part is ready, the other is not.
        let first = format!("{DEPLOYMENTS}/{}", wanted[0]);
        fake.edit(&first, |door| {
            door["status"] = json!({"observedGeneration": door["metadata"]["generation"],
                "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2});
        });
        if number > 1 {
            reconciler.reconcile("mc", "prod").await.unwrap();
            assert_eq!(doors(), both, "{number}");
            assert_eq!(ready(), json!({"replicas": 2 * number, "ready": 2}));
            let message = fake.condition("WatchCacheReady", "message");
            assert_eq!(message, format!("front door 1-of-{number}: 0 of 2 ready"));
        }
        fake.roll_out();
        reconciler.reconcile("mc", "prod").await.unwrap();
        assert_eq!(doors(), wanted);
        assert_eq!(ready(), json!({"replicas": 2 * number, "ready": 2 * number}));
        // Old front doors find each other until they are gone.
        assert!(served.iter().all(|service| services().contains(service)));
        reconciler.reconcile("mc", "prod").await.unwrap();
        assert_eq!(services(), if number == 1 { Vec::new() } else { wanted.clone() });
        before = wanted;
    }
}

/// Front doors that are being deleted hold up what they need, and are wanted again only when they
/// are gone.
#[tokio::test]
async fn front_doors_that_go_are_waited_for() {
    let fake = Fake::with_cluster(
        "{version: v1.36.3, watchCache: {cached: [{resource: pods}], parts: 2}}",
    );
    settle(&fake).await;
    fake.edit_spec(|spec| spec["watchCache"]["parts"] = json!(1));
    let reconciler = fake.reconciler();
    reconciler.reconcile("mc", "prod").await.unwrap();
    let going = format!("{DEPLOYMENTS}/prod-watchcache-0-of-2");
    fake.edit(&going, |door| door["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    fake.roll_out();
    fake.take_writes();
    reconciler.reconcile("mc", "prod").await.unwrap();
    reconciler.reconcile("mc", "prod").await.unwrap();
    let deletes = || -> Vec<String> {
        fake.take_writes().into_iter().filter(|write| write.starts_with("DELETE")).collect()
    };
    assert_eq!(deletes(), [format!("DELETE {DEPLOYMENTS}/prod-watchcache-1-of-2")]);
    fake.edit_spec(|spec| spec["watchCache"]["parts"] = json!(2));
    reconciler.reconcile("mc", "prod").await.unwrap();
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(deletes(), Vec::<String>::new(), "not before all parts are there again");
    assert_eq!(fake.condition("UpToDate", "reason"), "RollingOut");
    fake.remove(&going);
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert!(fake.get(&going).is_some());
    fake.roll_out();
    reconciler.reconcile("mc", "prod").await.unwrap();
    assert_eq!(deletes(), [format!("DELETE {DEPLOYMENTS}/prod-watchcache")]);
}

#[tokio::test]
async fn a_lost_authority_is_not_replaced() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    fake.remove(&format!("{SECRETS}/prod-cluster-ca"));
    let reconciler = fake.reconciler();
    let error = reconciler.reconcile("mc", "prod").await.unwrap_err();
    assert_eq!(error.reason(), "AuthorityLost");
    assert!(fake.get(&format!("{SECRETS}/prod-cluster-ca")).is_none());
    assert_eq!(fake.condition("CertificatesReady", "reason"), "AuthorityLost");
    assert_eq!(fake.condition("Ready", "reason"), "CertificatesNotReady");
    assert_eq!(fake.condition("StoreReady", "status"), "True", "what runs goes on");
}

#[tokio::test]
async fn retained_secrets_have_no_owner_until_the_policy_says_so() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    let owners = |name: &str| {
        fake.get(&format!("{SECRETS}/prod-{name}")).unwrap()["metadata"]["ownerReferences"].clone()
    };
    assert_eq!(owners("cluster-ca"), Value::Null);
    assert_eq!(owners("store-tls")[0]["uid"], "u-prod");
    fake.edit_spec(|spec| spec["deletionPolicy"] = json!("Delete"));
    settle(&fake).await;
    assert_eq!(owners("cluster-ca")[0]["uid"], "u-prod");
    fake.edit_spec(|spec| spec["deletionPolicy"] = json!("Retain"));
    settle(&fake).await;
    assert_eq!(owners("cluster-ca"), Value::Null);
}

#[tokio::test]
async fn a_deleted_cluster_is_left_to_the_garbage_collector() {
    let fake = Fake::with_cluster(SPEC);
    settle(&fake).await;
    fake.edit(CLUSTER, |object| {
        object["metadata"]["deletionTimestamp"] = json!("2026-11-22T02:00:00Z");
    });
    fake.remove(&format!("{DEPLOYMENTS}/prod-watchcache"));
    assert_eq!(fake.reconciler().reconcile("mc", "prod").await.unwrap(), Next::AwaitChange);
    fake.remove(CLUSTER);
    assert_eq!(fake.reconciler().reconcile("mc", "prod").await.unwrap(), Next::AwaitChange);
    assert_eq!(fake.take_writes(), Vec::<String>::new());
}

/// The process dies after each possible number of writes; the next one finishes the work, with
/// the same children and without ever replacing a key that was there.
#[tokio::test]
async fn killed_after_any_write_the_next_one_converges() {
    let whole = Fake::with_cluster(SPEC);
    settle(&whole).await;
    let kinds = ["secrets", "services", "configmaps", "deployments", "statefulsets"];
    let mut kills = 0;
    // Every write of a key, and a sample of the others.
    for limit in (0..24).chain((24..).step_by(4)) {
        let fake = Fake::with_cluster(SPEC);
        let reconciler = fake.reconciler();
        reconciler.reconcile("mc", "prod").await.unwrap();
        fake.fail_after(Some(limit));
        let survived = reconciler.reconcile("mc", "prod").await.is_ok();
        fake.fail_after(None);
        if survived {
            break;
        }
        kills += 1;
        let keys: Vec<(String, Value)> = fake
            .names("secrets")
            .into_iter()
            .filter(|name| name.ends_with("-ca") || name.ends_with("-service-account"))
            .map(|name| {
                (name.clone(), fake.get(&format!("{SECRETS}/{name}")).unwrap()["data"].clone())
            })
            .collect();
        settle(&fake).await;
        for kind in kinds {
            assert_eq!(fake.names(kind), whole.names(kind), "after {limit} writes");
        }
        for (name, data) in keys {
            let now = fake.get(&format!("{SECRETS}/{name}")).unwrap()["data"].clone();
            assert_eq!(now, data, "{name} was replaced after {limit} writes");
        }
        assert_eq!(authorities(&fake).len(), 5);
    }
    assert!(kills > 24, "only {kills} kills in a first start");
}
