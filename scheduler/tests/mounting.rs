//! A leader whose pods have claims that wait for them: which volumes they get, when they are bound,
//! and what is given back where they don't.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::time::Duration;

use common::world::{TTL, World, id};
use common::{apiserver, pod, status};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use megacluster_scheduler::core::labels::Labels;
use megacluster_scheduler::core::volumes::binding::Step;
use megacluster_scheduler::core::volumes::objects::{Claim, Class, Volume};
use megacluster_scheduler::core::volumes::storage::{Change, Kind, Object};
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::mount::{MountOrder, MountOutcome, mount};
use megacluster_scheduler::relay::pods::Intake;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

fn mounting(number: usize) -> Pod {
    let mut pod = pod(number, "100m");
    let spec = json!([{"name": "v", "persistentVolumeClaim": {"claimName": format!("c{number}")}}]);
    let volumes = serde_json::from_value(spec).expect("volumes");
    pod.spec.get_or_insert_default().volumes = Some(volumes);
    pod
}

impl World {
    fn store(&mut self, kind: Kind, namespace: &str, name: &str, object: Option<Object>) {
        let change = Change::One(kind, (namespace.into(), name.into()), object);
        self.leader.intake(self.now, Intake::Storage(Box::new(change)));
    }

    /// The claim of a pod, in this version.
    fn claim(&mut self, number: usize, version: u32, patch: &Value) {
        let mut claim = json!({
            "metadata": {"uid": format!("u{number}"), "resourceVersion": version.to_string()},
            "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"]},
        });
        for (part, fields) in patch.as_object().into_iter().flatten() {
            for (key, value) in fields.as_object().into_iter().flatten() {
                claim[part][key] = value.clone();
            }
        }
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("claim");
        let object = Object::Claim(Claim::of(&claim));
        self.store(Kind::Claim, "d", &format!("c{number}"), Some(object));
    }

    fn volume(&mut self, name: &str, version: u32, owner: Option<usize>) {
        let mut volume = json!({
            "metadata": {"resourceVersion": version.to_string()},
            "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Available"},
        });
        if let Some(number) = owner {
            volume["spec"]["claimRef"] = json!({"namespace": "d", "name": format!("c{number}"), "uid": format!("u{number}")});
        }
        let volume: PersistentVolume = serde_json::from_value(volume).expect("volume");
        self.store(Kind::Volume, "", name, Some(Object::Volume(Volume::of(&volume))));
    }

    fn class(&mut self, provisioner: &str) {
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer",
        }))
        .expect("class");
        self.store(Kind::Class, "", "late", Some(Object::Class(Class::of(&class))));
    }

    fn mounted(&mut self, order: &MountOrder, outcome: MountOutcome) {
        let actions = self.leader.mounted(self.now, order, outcome);
        self.take(actions);
    }

    fn reserved(&self) -> usize {
        self.shards.iter().map(|(shard, _)| shard.reservations()).sum()
    }
}

fn written(version: &str) -> MountOutcome {
    MountOutcome::Written { labels: Labels::default(), versions: vec![version.into()] }
}

/// Two pods, and a class whose volumes are there already.
fn two(volumes: &[&str]) -> World {
    let mut world = World::new();
    world.class("kubernetes.io/no-provisioner");
    for name in volumes {
        world.volume(name, 1, None);
    }
    for number in 0..2 {
        world.claim(number, 1, &json!({}));
        world.show(&mounting(number));
    }
    world
}

fn volume_of(order: &MountOrder) -> &str {
    match order.steps.as_slice() {
        [Step::Bind { volume, .. }] => volume,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_pods_get_two_volumes_and_are_bound_when_their_claims_are() {
    let mut world = two(&["a", "b"]);
    world.pass(SECOND);
    let orders = std::mem::take(&mut world.mounts);
    let mut volumes: Vec<&str> = orders.iter().map(volume_of).collect();
    volumes.sort_unstable();
    assert_eq!(volumes, ["a", "b"], "no volume is given out twice");
    assert!(world.binds.is_empty());
    assert_eq!(world.leader.mounts_in_flight(), 2);
    assert_eq!(world.leader.binds_in_flight(), 0, "they take no place among the binds");

    let first = orders.iter().find(|order| order.pod == id(0)).expect("of the first");
    world.mounted(first, written("5"));
    // The watch doesn't show what was written yet, then it does, then the claim is bound.
    world.pass(2 * SECOND);
    world.volume(volume_of(first), 5, Some(0));
    world.pass(2 * SECOND);
    assert!(world.binds.is_empty());
    let bound = json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": volume_of(first)},
    });
    world.claim(0, 6, &bound);
    world.pass(2 * SECOND);
    assert_eq!(world.binds, [(id(0), first.node.clone())]);
    let actions = world.leader.bound(world.now, &id(0), BindOutcome::Bound);
    world.take(actions);
    world.pass(SECOND);
    assert_eq!(world.binds.len(), 1, "bound once");
    assert_eq!(world.leader.mounts_in_flight(), 1);
}

#[test]
fn a_volume_comes_back_from_a_pod_that_does_not_get_it() {
    let mut world = two(&["a"]);
    world.pass(SECOND);
    let [order] = &std::mem::take(&mut world.mounts)[..] else { panic!("one volume, one pod") };
    assert_eq!(world.reserved(), 1);
    assert_eq!(world.failures().len(), 1, "the other says so: {:?}", world.failures());
    assert!(world.failures()[0].contains("didn't find available persistent volumes to bind"));
    world.mounted(order, MountOutcome::Failed("conflict".to_owned()));
    world.pass(SECOND / 2);
    assert_eq!(world.reserved(), 0, "the node's room is given back");
    assert_eq!(world.leader.mounts_in_flight(), 0);
    world.pass(5 * SECOND);
    let again = std::mem::take(&mut world.mounts);
    assert_eq!(again.len(), 1, "someone tries again");
    // What was answered late is of the earlier try.
    world.mounted(order, MountOutcome::Ready);
    assert!(world.binds.is_empty() || again[0].token == order.token);
    assert_eq!(world.leader.mounts_in_flight(), 1);
}

#[test]
fn a_slow_provisioner_keeps_the_reservation_and_a_failing_one_gives_it_back() {
    let mut world = World::new();
    world.class("made.example.com");
    world.claim(0, 1, &json!({}));
    world.show(&mounting(0));
    world.pass(SECOND);
    let [order] = &std::mem::take(&mut world.mounts)[..] else { panic!("one pod") };
    let select = Step::Select { claim: "c0".into(), version: "1".into() };
    assert_eq!(order.steps, [select]);
    world.mounted(order, written("2"));
    let node = order.node.to_string();
    let selected =
        json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
    world.claim(0, 2, &selected);
    for _ in 0..5 {
        world.pass(TTL / 2);
        let now = world.now;
        let due: usize = world.shards.iter_mut().map(|(shard, _)| shard.due(now).len()).sum();
        assert_eq!(due, 0, "it is renewed");
    }
    assert_eq!(world.reserved(), 1);
    // Whoever makes volumes takes the node back.
    world.claim(0, 3, &json!({}));
    world.pass(2 * SECOND);
    assert_eq!(world.leader.mounts_in_flight() + world.mounts.len(), 2 * world.mounts.len());
    world.pass(5 * SECOND);
    let [again] = &std::mem::take(&mut world.mounts)[..] else { panic!("it is tried again") };
    world.mounted(again, written("4"));
    // And if nothing ever happens, its time ends.
    let node = again.node.to_string();
    world.claim(
        0,
        4,
        &json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}),
    );
    world.pass(SECOND * 605);
    let [last] = &world.mounts[..] else { panic!("another try: {:?}", world.mounts.len()) };
    assert_eq!(last.node, again.node, "the claim's node is settled");
    assert_eq!(world.reserved(), 1);
    assert!(world.binds.is_empty());
}

#[test]
fn a_pod_that_goes_and_a_leader_that_leads_no_more_leave_nothing_behind() {
    let mut world = two(&["a", "b"]);
    world.pass(SECOND);
    assert_eq!(world.reserved(), 2);
    let gone = megacluster_scheduler::core::pod::PodUid::new(&id(0).uid);
    world.leader.intake(world.now, Intake::Gone(gone));
    world.pass(2 * SECOND);
    assert_eq!(world.leader.mounts_in_flight(), 1);
    assert_eq!(world.reserved(), 1);
    world.leader.step_down(world.now);
    assert_eq!(world.leader.mounts_in_flight(), 0);
    let orders = std::mem::take(&mut world.mounts);
    for order in &orders {
        world.mounted(order, MountOutcome::Ready);
    }
    assert!(world.binds.is_empty(), "nobody is bound by who leads no more");
}

#[tokio::test]
async fn objects_are_written_as_they_were_seen_or_not_at_all() {
    let client = apiserver(|method, path, body| {
        let labels = json!({"zone": "a"});
        Some(match (method.as_str(), path) {
            ("GET", "/api/v1/nodes/n") => {
                (200, json!({"metadata": {"name": "n", "labels": labels}}))
            }
            ("PATCH", "/api/v1/persistentvolumes/pv") => {
                assert_eq!(body["metadata"]["resourceVersion"], "3");
                assert_eq!(body["spec"]["claimRef"]["uid"], "u");
                assert_eq!(body["spec"]["claimRef"]["namespace"], "d");
                let annotation = &body["metadata"]["annotations"];
                assert_eq!(annotation["pv.kubernetes.io/bound-by-controller"], "yes");
                (200, json!({"metadata": {"name": "pv", "resourceVersion": "7"}}))
            }
            ("PATCH", "/api/v1/namespaces/d/persistentvolumeclaims/c1") => {
                let annotation = &body["metadata"]["annotations"];
                assert_eq!(annotation["volume.kubernetes.io/selected-node"], "n");
                (200, json!({"metadata": {"name": "c1", "resourceVersion": "8"}}))
            }
            _ => status(409, "the object has been modified"),
        })
    })
    .await;
    let bind = Step::Bind {
        volume: "pv".into(),
        version: "3".into(),
        claim: "c0".into(),
        uid: "u".into(),
        claim_version: "4".into(),
        ours: true,
    };
    let select = Step::Select { claim: "c1".into(), version: "5".into() };
    let steps = vec![bind, select];
    let mut order = MountOrder { pod: id(0), node: "n".into(), token: 1, steps };
    let labels = Labels::from_pairs([("zone".into(), "a".into())]);
    let versions = vec!["7".into(), "8".into()];
    let outcome = mount(&client, &order, &|| true).await;
    assert_eq!(outcome, MountOutcome::Written { labels, versions });
    let fenced = mount(&client, &order, &|| false).await;
    assert_eq!(fenced, MountOutcome::Failed("not leading any more".to_owned()));
    order.steps = vec![Step::Select { claim: "other".into(), version: "5".into() }];
    let refused = mount(&client, &order, &|| true).await;
    assert!(matches!(refused, MountOutcome::Failed(_)), "{refused:?}");
}
