//! Pods with claims: what wakes them, and that two pods don't share what one alone may use.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use megacluster_scheduler::core::diagnosis::{Plugin, PluginSet};
use megacluster_scheduler::core::evaluate::survey;
use megacluster_scheduler::core::event::EventSet;
use megacluster_scheduler::core::gather::refuse;
use megacluster_scheduler::core::labels::Labels;
use megacluster_scheduler::core::pod::{PodRequest, PodUid};
use megacluster_scheduler::core::queue::{PendingPod, Queue};
use megacluster_scheduler::core::search::search;
use megacluster_scheduler::core::table::NodeTable;
use megacluster_scheduler::core::volumes::binding::Progress;
use megacluster_scheduler::core::volumes::late::Plan;
use megacluster_scheduler::core::volumes::objects::{Attachment, Claim, Limits, Volume};
use megacluster_scheduler::core::volumes::storage::{Change, Kind, Object, Storage};
use serde_json::{Value, json};

use crate::build::{node, on, pod, table, uid};

fn claim(modes: &[&str], volume: &str) -> Change {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"accessModes": modes, "volumeName": volume},
    }))
    .unwrap();
    let key = ("default".into(), "data".into());
    Change::One(Kind::Claim, key, Some(Object::Claim(Claim::of(&claim))))
}

fn volume(spec: &Value) -> Change {
    let volume: PersistentVolume = serde_json::from_value(json!({"spec": spec})).unwrap();
    let key = ("".into(), "disk".into());
    Change::One(Kind::Volume, key, Some(Object::Volume(Volume::of(&volume))))
}

fn asking() -> Value {
    json!({"spec": {
        "containers": [{"name": "c"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    }})
}

#[test]
fn a_claim_that_comes_late_lets_the_pod_in() {
    let mut storage = Storage::default();
    let request = Arc::new(PodRequest::compile(&pod("p", asking())));
    let resolved = storage.resolve(&request);
    assert_eq!(
        refuse(3, &resolved).unwrap().to_string(),
        "0/3 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/3 nodes \
         are available: 3 Preemption is not helpful for scheduling."
    );
    assert!(Arc::ptr_eq(&resolved, &storage.resolve(&request)), "one class while nothing changes");
    let helped = storage.apply(claim(&["ReadWriteOnce"], "disk"));
    assert_eq!(helped.claims, [("default".into(), "data".into())]);
    assert!(
        refuse(3, &storage.resolve(&request)).unwrap().to_string().contains("persistentvolume")
    );
    let helped = storage.apply(volume(&json!({"hostPath": {"path": "/x"}})));
    let waiting: PluginSet = [Plugin::VolumeZone].into_iter().collect();
    assert!(helped.events.may_help(waiting));
    assert!(!helped.events.may_help([Plugin::NodeResourcesFit].into_iter().collect()));
    let resolved = storage.resolve(&request);
    assert_eq!(refuse(3, &resolved), None);
    assert!(resolved.unsupported.is_empty());
}

/// A node whose driver takes so many volumes.
fn limits(name: &str, count: i32) -> Change {
    let node: CSINode = serde_json::from_value(json!({"metadata": {}, "spec": {"drivers": [
        {"name": "d.example.com", "nodeID": "n", "allocatable": {"count": count}},
    ]}}))
    .unwrap();
    let limits = Limits::of(&node).map(Object::Limits);
    Change::One(Kind::Limits, ("".into(), name.into()), limits)
}

/// A claim that is bound to a volume, and the volume, which has this handle.
fn bound(name: &str, handle: &str) -> [Change; 2] {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeName": name},
    }))
    .unwrap();
    let spec = json!({"csi": {"driver": "d.example.com", "volumeHandle": handle}});
    let volume: PersistentVolume = serde_json::from_value(json!({"spec": spec})).unwrap();
    [
        Change::One(
            Kind::Claim,
            ("default".into(), name.into()),
            Some(Object::Claim(Claim::of(&claim))),
        ),
        Change::One(
            Kind::Volume,
            ("".into(), name.into()),
            Some(Object::Volume(Volume::of(&volume))),
        ),
    ]
}

fn mounting(pod_name: &str, claim: &str) -> Pod {
    pod(
        pod_name,
        json!({"spec": {"volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        ]}}),
    )
}

#[test]
fn a_node_takes_as_many_volumes_as_its_driver_says() {
    let mut storage = Storage::default();
    let mut table = table([node("n1", json!({}))]);
    let tell = |storage: &mut Storage, table: &mut NodeTable, change: Change| {
        let events = table.apply_volumes(&change, |node| node == "n1");
        storage.apply(change);
        events
    };
    let changes = [bound("one", "h1"), bound("again", "h1"), bound("two", "h2")];
    for change in changes.into_iter().flatten() {
        tell(&mut storage, &mut table, change);
    }
    let resolve =
        |storage: &mut Storage, pod: &Pod| storage.resolve(&Arc::new(PodRequest::compile(pod)));
    let [one, again, two] = ["one", "again", "two"].map(|name| mounting(name, name));
    assert!(resolve(&mut storage, &one).volumes.is_empty(), "no driver has a limit");
    // Another shard's node has one.
    tell(&mut storage, &mut table, limits("n2", 0));
    let request = resolve(&mut storage, &one);
    assert!(!request.volumes.is_empty());
    assert_eq!(table.reject("n1", &request, None), Some([].into()));
    tell(&mut storage, &mut table, limits("n1", 1));
    table.assume(uid(&one), "n1", &request).unwrap();
    // It is the same volume.
    table.assume(uid(&again), "n1", &resolve(&mut storage, &again)).unwrap();
    let other = resolve(&mut storage, &two);
    let full = table.assume(uid(&two), "n1", &other).unwrap_err().to_string();
    assert!(full.contains("node(s) exceed max volume count"), "{full}");
    let limited: PluginSet = [Plugin::NodeVolumeLimits].into_iter().collect();
    assert!(table.forget(uid(&one)).may_help(limited));
    assert!(table.assume(uid(&two), "n1", &other).is_err(), "one pod still has the volume");
    table.forget(uid(&again));
    // What the node is to give up counts too.
    let attachment: VolumeAttachment = serde_json::from_value(json!({
        "metadata": {"name": "a"},
        "spec": {
            "attacher": "d.example.com", "nodeName": "n1",
            "source": {"persistentVolumeName": "one"},
        },
    }))
    .unwrap();
    let key = || ("".into(), "a".into());
    let there = Attachment::of(&attachment).map(Object::Attachment);
    tell(&mut storage, &mut table, Change::One(Kind::Attachment, key(), there));
    assert!(table.assume(uid(&two), "n1", &other).is_err());
    let gone = tell(&mut storage, &mut table, Change::One(Kind::Attachment, key(), None));
    assert!(gone.may_help(limited));
    assert!(tell(&mut storage, &mut table, limits("n1", 2)).may_help(limited));
    assert!(!tell(&mut storage, &mut table, limits("n1", 1)).may_help(limited));
    table.assume(uid(&two), "n1", &other).unwrap();
    assert!(table.assume(uid(&one), "n1", &request).is_err());
}

#[test]
fn a_reservation_counts_volumes_that_only_the_relay_knows_of() {
    let mut storage = Storage::default();
    let mut table = table([node("n1", json!({}))]);
    for change in [bound("one", "h1"), bound("two", "h2")].into_iter().flatten() {
        storage.apply(change);
    }
    table.apply_volumes(&limits("n1", 1), |_| true);
    storage.apply(limits("n1", 1));
    let [one, two] = ["one", "two"].map(|name| mounting(name, name));
    let [first, second] =
        [&one, &two].map(|pod| storage.resolve(&Arc::new(PodRequest::compile(pod))));
    table.assume(uid(&one), "n1", &first).unwrap();
    assert!(table.assume(uid(&two), "n1", &second).is_err());
    // Seen where it was reserved it counts once, by what the shard knows.
    for change in bound("one", "h1") {
        table.apply_volumes(&change, |_| true);
    }
    table.upsert_pod(&on(one, "n1"));
    assert!(table.assume(uid(&two), "n1", &second).is_err());
    table.apply_volumes(&limits("n1", 2), |_| true);
    table.assume(uid(&two), "n1", &second).unwrap();
}

#[test]
fn what_one_pod_alone_may_use_is_refused_to_a_second() {
    let mut storage = Storage::default();
    storage.apply(claim(&["ReadWriteOncePod"], "disk"));
    storage.apply(volume(&json!({"hostPath": {"path": "/x"}})));
    let resolve = |storage: &mut Storage, name: &str| {
        storage.resolve(&Arc::new(PodRequest::compile(&pod(name, asking()))))
    };
    let request = resolve(&mut storage, "p");
    assert!(request.minds_others());
    let mut table = table([node("n1", json!({})), node("n2", json!({}))]);
    let known = survey(&table, &request, false);
    assert_eq!(search(&mut table, &request, 1, Some(&known)).feasible, 2);
    // Both were asked about before one of them was reserved.
    table.assume(PodUid::new("first"), "n1", &request).unwrap();
    let message = table.assume(PodUid::new("second"), "n2", &request).unwrap_err().to_string();
    assert!(message.contains("ReadWriteOncePod"), "{message}");
    let known = survey(&table, &request, false);
    assert_eq!(search(&mut table, &request, 1, Some(&known)).feasible, 0);
    let freed = table.forget(PodUid::new("first"));
    assert!(freed.may_help([Plugin::VolumeRestrictions].into_iter().collect()));
    let known = survey(&table, &request, false);
    assert_eq!(search(&mut table, &request, 1, Some(&known)).feasible, 2);
    // The watch shows it as it was reserved: nothing is counted twice.
    table.assume(PodUid::new("p"), "n1", &request).unwrap();
    table.upsert_pod(&on(pod("p", asking()), "n1"));
    table.remove_pod(PodUid::of(&pod("p", asking())));
    assert!(survey(&table, &request, false).claims_in_use.is_empty());
}

/// A claim in this version that waits for its consumer, or is bound.
fn waiting_claim(version: &str, volume: Option<&str>) -> Change {
    let mut claim = json!({
        "metadata": {"uid": "u", "resourceVersion": version, "annotations": {}},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "volumeName": volume},
    });
    if volume.is_some() {
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
    }
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    let object = Some(Object::Claim(Claim::of(&claim)));
    Change::One(Kind::Claim, ("default".into(), "data".into()), object)
}

/// A volume in this version, meant for a claim of this UID.
fn free_volume(name: &str, version: &str, owner: Option<&str>) -> Change {
    let owner = owner.map(|uid| json!({"namespace": "default", "name": "data", "uid": uid}));
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"resourceVersion": version},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "claimRef": owner},
        "status": {"phase": "Available"},
    }))
    .unwrap();
    let object = Some(Object::Volume(Volume::of(&volume)));
    Change::One(Kind::Volume, ("".into(), name.into()), object)
}

#[test]
fn a_volume_that_was_given_away_since_is_not_taken_back() {
    let mut storage = Storage::default();
    storage.apply(waiting_claim("1", None));
    storage.apply(free_volume("a", "1", None));
    let (namespace, node): (Arc<str>, Arc<str>) = ("default".into(), "n1".into());
    let bind: Plan = vec![("data".into(), Some("a".into()))];
    let make: Plan = vec![("data".into(), None)];
    assert!(storage.assume(&namespace, &bind, &node));
    assert_eq!(storage.steps(&namespace, &bind).map(|steps| steps.len()), Some(1));
    // Before the node was reserved the watch showed what another leader had written.
    storage.apply(free_volume("a", "2", Some("another")));
    assert_eq!(storage.steps(&namespace, &bind), None);
    assert!(storage.assume(&namespace, &make, &node));
    assert_eq!(storage.steps(&namespace, &make).map(|steps| steps.len()), Some(1));
    storage.apply(waiting_claim("2", None));
    assert_eq!(storage.steps(&namespace, &make), None);
}

#[test]
fn a_plan_that_was_overtaken_while_shards_were_asked_is_not_assumed() {
    let mut storage = Storage::default();
    storage.apply(waiting_claim("1", None));
    storage.apply(free_volume("a", "1", None));
    let (namespace, node): (Arc<str>, Arc<str>) = ("default".into(), "n1".into());
    let bind: Plan = vec![("data".into(), Some("a".into()))];
    // The plan was made of the volume's first version; its second one is known when the answer comes.
    storage.apply(free_volume("a", "2", Some("another")));
    assert!(!storage.assume(&namespace, &bind, &node));
    assert_eq!(storage.steps(&namespace, &bind), None);
    // One that is meant for the claim itself is what a try before this one has written.
    storage.apply(free_volume("a", "3", Some("u")));
    assert!(storage.assume(&namespace, &bind, &node));
    // Another claim of the same round is second.
    let other: Plan = vec![("more".into(), Some("a".into()))];
    let claim = |version: &str| {
        let Change::One(kind, _, object) = waiting_claim(version, None) else { panic!("a claim") };
        Change::One(kind, ("default".into(), "more".into()), object)
    };
    storage.apply(claim("1"));
    assert!(!storage.assume(&namespace, &other, &node));
    // A claim that got its volume meanwhile is not given a node.
    storage.apply(waiting_claim("4", Some("a")));
    assert!(!storage.assume(&namespace, &vec![("data".into(), None)], &node));
    assert!(!storage.assume(&namespace, &vec![("gone".into(), None)], &node));
}

#[test]
fn a_claim_that_got_another_volume_is_not_where_it_was_meant_to_be() {
    let mut storage = Storage::default();
    storage.apply(free_volume("a", "2", Some("u")));
    storage.apply(free_volume("b", "2", Some("u")));
    let plan: Plan = vec![("data".into(), Some("a".into()))];
    let labels = Labels::default();
    let written = ["2".into()];
    let mut progress = |bound: Option<&str>| {
        storage.apply(waiting_claim("3", bound));
        storage.progress(&"default".into(), &plan, ("n1", &labels), &written)
    };
    assert_eq!(progress(None), Progress::Waiting);
    assert!(matches!(progress(Some("b")), Progress::Failed(_)));
    assert_eq!(progress(Some("a")), Progress::Done);
}

#[test]
fn news_of_a_claim_wake_whom_they_concern() {
    let mut queue = Queue::default();
    let now = std::time::Duration::from_secs(100);
    let volumes: PluginSet = [Plugin::VolumeBinding].into_iter().collect();
    let fit: PluginSet = [Plugin::NodeResourcesFit].into_iter().collect();
    let uids = ["a", "b", "c"].map(PodUid::new);
    for uid in uids {
        let request = Arc::new(PodRequest::default());
        let (namespace, name) = ("default".into(), "p".into());
        queue.upsert(PendingPod { uid, namespace, name, gates: Vec::new(), request }, now);
    }
    for (uid, by) in uids.iter().zip([volumes, fit, volumes]) {
        assert_eq!(queue.pop(now).unwrap().pod.uid, *uid);
        if *uid == uids[2] {
            // The news come while it is being tried.
            queue.touch(*uid, volumes, now);
        }
        queue.unschedulable(*uid, by, false, now);
    }
    assert_eq!(queue.depths().unschedulable, 2);
    queue.touch(uids[0], volumes, now);
    queue.touch(uids[1], volumes, now);
    queue.touch(PodUid::new("nobody"), volumes, now);
    assert_eq!(queue.depths().unschedulable, 1);
    assert_eq!(queue.notify(EventSet::EMPTY, now), 0);
    assert_eq!(queue.depths().backoff, 2);
}
