//! Pods with claims and disks, and the objects that their claims hang on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use megacluster_scheduler::core::volumes::objects::{
    Attachment, Capacity, Claim, Class, Driver, Limits, Volume,
};
use megacluster_scheduler::core::volumes::storage::{Change, Kind, Object, Storage};
use serde_json::{Value, json};

use crate::cases::{Dice, Theme};
use crate::{Case, key, limits};

/// What a relay knows of the objects of a case.
pub(crate) fn storage(case: &Case) -> Storage {
    let mut storage = Storage::default();
    for change in changes(case) {
        storage.apply(change);
    }
    storage
}

/// The objects of a case, one by one.
pub(crate) fn changes(case: &Case) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut tell = |kind, meta: &ObjectMeta, object| {
        changes.push(Change::One(kind, key(meta), object));
    };
    for claim in &case.claims {
        tell(Kind::Claim, &claim.metadata, Some(Object::Claim(Claim::of(claim))));
    }
    for volume in &case.volumes {
        tell(Kind::Volume, &volume.metadata, Some(Object::Volume(Volume::of(volume))));
    }
    for class in &case.classes {
        tell(Kind::Class, &class.metadata, Some(Object::Class(Class::of(class))));
    }
    for driver in &case.drivers {
        tell(Kind::Driver, &driver.metadata, Some(Object::Driver(Driver::of(driver))));
    }
    for capacity in &case.capacities {
        tell(Kind::Capacity, &capacity.metadata, Capacity::of(capacity).map(Object::Capacity));
    }
    for node in &case.csi_nodes {
        tell(Kind::Limits, &node.metadata, Limits::of(node).map(Object::Limits));
    }
    for one in &case.attachments {
        tell(Kind::Attachment, &one.metadata, Attachment::of(one).map(Object::Attachment));
    }
    changes
}

/// Gives pods volumes, and makes the objects.
pub(crate) fn mount(dice: &mut Dice, theme: Theme, case: &mut Value) {
    let often = matches!(theme, Theme::Volumes | Theme::Limits);
    let main = if often { 90 } else { 30 };
    if dice.percent(main) {
        let pod = &mut case["pod"];
        // Mostly nothing else is in the way.
        if often && dice.percent(70) {
            for key in ["affinity", "nodeSelector", "topologySpreadConstraints"] {
                pod["spec"].as_object_mut().unwrap().remove(key);
            }
        }
        let volumes = volumes_of(dice, 4, true);
        pod["spec"]["volumes"] = json!(volumes);
    }
    for list in ["pods", "nominees"] {
        for pod in case.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if dice.percent(if often { 30 } else { 20 }) {
                pod["spec"]["volumes"] = json!(volumes_of(dice, 2, false));
            }
        }
    }
    let uid = case["pod"]["metadata"]["uid"].clone();
    let name = case["pod"]["metadata"]["name"].clone();
    let namespace = case["pod"]["metadata"]["namespace"].clone();
    let mut claims: Vec<Value> = Vec::new();
    for shared in CLAIMS {
        if dice.percent(98) {
            claims.push(claim(dice, shared, &namespace));
        }
    }
    for volume in ["e0", "e1"] {
        let mut claim = claim(dice, &format!("{}-{volume}", name.as_str().unwrap()), &namespace);
        let uid = if dice.percent(95) { uid.clone() } else { json!("other") };
        claim["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": dice.percent(98),
        }]);
        if dice.percent(95) {
            claims.push(claim);
        }
    }
    let mut volumes: Vec<Value> = Vec::new();
    for number in 0..12 {
        if dice.percent(97) {
            volumes.push(volume(dice, number, &claims));
        }
    }
    case["claims"] = json!(claims);
    case["volumes"] = json!(volumes);
    case["classes"] = json!(classes(dice));
    case["drivers"] = json!([{
        "metadata": {"name": "made.example.com"},
        "spec": {"storageCapacity": dice.percent(60)},
    }]);
    case["capacities"] = json!(dice.list(6, capacity));
    limits::attach(dice, theme, case);
}

const CLAIMS: [&str; 5] = ["c0", "c1", "c2", "c3", "c4"];

fn volumes_of(dice: &mut Dice, bound: usize, main: bool) -> Vec<Value> {
    let mut volumes: Vec<Value> = Vec::new();
    for number in 0..=dice.below(bound) {
        let name = format!("e{}", number % 2);
        let mut volume = match dice.below(20) {
            0..=10 => {
                json!({"persistentVolumeClaim": {"claimName": dice.pick(&CLAIMS)}})
            }
            11..=12 if main && !volumes.iter().any(|other| other["name"] == name.as_str()) => {
                json!({"name": name, "ephemeral": {}})
            }
            13..=14 => json!({"iscsi": {
                "targetPortal": "p", "lun": 1, "iqn": dice.pick(&["i1", "i2", "i3"]),
                "readOnly": dice.percent(40),
            }}),
            15..=16 => json!({"rbd": {
                "monitors": if dice.percent(50) { json!(["m1", "m2"]) } else { json!([dice.pick(&["m2", "m3"])]) },
                "image": dice.pick(&["x", "y"]), "pool": dice.pick(&["rbd", "p"]),
                "readOnly": dice.percent(40),
            }}),
            17 => json!({"csi": {"driver": "inline.example.com"}}),
            18 => json!({"hostPath": {"path": "/"}}),
            _ => json!({"emptyDir": {}}),
        };
        if volume["name"].is_null() {
            volume["name"] = json!(format!("v{number}"));
        }
        volumes.push(volume);
    }
    volumes
}

fn size(dice: &mut Dice) -> Value {
    json!(dice.pick(&["1Gi", "2Gi", "5Gi", "1500Mi"]))
}

fn claim(dice: &mut Dice, name: &str, namespace: &Value) -> Value {
    let modes = match dice.below(10) {
        0..=1 => json!(["ReadWriteOncePod"]),
        2..=3 => json!(["ReadWriteOnce", "ReadOnlyMany"]),
        _ => json!(["ReadWriteOnce"]),
    };
    let mut claim = json!({
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-{name}"),
            "resourceVersion": "1", "annotations": {},
        },
        "spec": {"accessModes": modes, "resources": {"requests": {}}},
        "status": {"phase": "Pending"},
    });
    if dice.percent(95) {
        claim["spec"]["resources"]["requests"]["storage"] = size(dice);
    }
    let late = dice.percent(50);
    let class = if late {
        dice.pick(&["static", "static", "made", "made-in", "made"])
    } else {
        dice.pick(&["static", "now", "made", ""])
    };
    match dice.below(20) {
        0 => {}
        1 => {
            claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"] =
                json!(class);
        }
        2 if dice.percent(30) => claim["spec"]["storageClassName"] = json!("gone"),
        _ => claim["spec"]["storageClassName"] = json!(class),
    }
    if late {
        if dice.percent(12) {
            claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] =
                json!(format!("node-{}", dice.below(5)));
        }
        if dice.percent(15) {
            claim["spec"]["selector"] = json!({"matchLabels": {"tier": dice.pick(&["x", "y"])}});
        }
        if dice.percent(5) {
            claim["spec"]["volumeMode"] = json!("Block");
        }
        if dice.percent(4) {
            claim["spec"]["volumeAttributesClassName"] = json!("gold");
        }
    } else {
        claim["spec"]["volumeName"] = json!(format!("pv-{}", dice.below(12)));
        if dice.percent(96) {
            claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            claim["status"]["phase"] = json!("Bound");
        }
    }
    if dice.percent(1) {
        claim["status"]["phase"] = json!("Lost");
    }
    if dice.percent(1) {
        claim["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    claim
}

fn volume(dice: &mut Dice, number: usize, claims: &[Value]) -> Value {
    let name = format!("pv-{number}");
    // Each of another size: kube-scheduler takes any of the smallest.
    let size = [900, 1100, 1600, 2200, 3000, 5200, 5300, 6000, 1500, 2048, 5120, 7000][number];
    let mut labels = json!({"tier": dice.pick(&["x", "y"])});
    if dice.percent(20) {
        let zone = dice.pick(&["z1", "z2", "z1__z2", "z3 __z1", "z1__", "", "a", "a__b", "b__c"]);
        let key = dice.pick(&[
            "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/zone",
            "topology.kubernetes.io/region",
        ]);
        labels[key] = json!(zone);
    }
    let modes = if dice.percent(80) {
        json!(["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"])
    } else {
        json!(["ReadOnlyMany"])
    };
    let mut volume = json!({
        "metadata": {"name": name, "labels": labels, "resourceVersion": "1"},
        "spec": {
            "capacity": {"storage": format!("{size}Mi")}, "accessModes": modes,
            "storageClassName": dice.pick(&["static", "static", "static", "made", ""]),
            "hostPath": {"path": "/x"},
        },
        "status": {"phase": if dice.percent(90) { "Available" } else { "Released" }},
    });
    if dice.percent(70) {
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms(dice)}});
    }
    if dice.percent(15) {
        let claim = &claims[dice.below(claims.len())]["metadata"];
        let mut owner = json!({"name": claim["name"], "namespace": claim["namespace"]});
        if dice.percent(70) {
            owner["uid"] = if dice.percent(80) { claim["uid"].clone() } else { json!("former") };
        }
        // At most one is meant for a claim: kube-scheduler takes any of them.
        if number == 0 || number == 5 && owner["name"] != "c0" {
            volume["spec"]["claimRef"] = owner;
        } else {
            volume["spec"]["claimRef"] =
                json!({"name": "gone", "namespace": "default", "uid": "u"});
        }
    }
    if dice.percent(4) {
        volume["spec"]["volumeMode"] = json!("Block");
    }
    if dice.percent(4) {
        volume["spec"]["volumeAttributesClassName"] = json!("gold");
    }
    if dice.percent(3) {
        volume["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    volume
}

fn terms(dice: &mut Dice) -> Vec<Value> {
    (0..=dice.below(2))
        .map(|_| match dice.below(12) {
            0..=3 => json!({"matchExpressions": [{
                "key": "kubernetes.io/hostname", "operator": "In",
                "values": (0..=dice.below(5)).map(|_| format!("node-{}", dice.below(8))).collect::<Vec<_>>(),
            }]}),
            4..=8 => json!({"matchExpressions": [{
                "key": "zone", "operator": dice.pick(&["In", "NotIn", "In"]),
                "values": [dice.pick(&["a", "b", "c"]), dice.pick(&["a", "b"])],
            }]}),
            9 => json!({"matchExpressions": [{"key": "example.com/disk", "operator": "Exists"}]}),
            10 => json!({"matchFields": [{
                "key": "metadata.name", "operator": "In", "values": [format!("node-{}", dice.below(5))],
            }]}),
            _ => json!({"matchExpressions": [{"key": "zone", "operator": "Exists", "values": ["a"]}]}),
        })
        .collect()
}

fn classes(dice: &mut Dice) -> Vec<Value> {
    let late = "WaitForFirstConsumer";
    let terms = dice.list(3, |dice, _| match dice.below(8) {
        0 => json!({"matchLabelExpressions": []}),
        1 => json!({"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["node-1", "node-2", "node-3"]}]}),
        _ => json!({"matchLabelExpressions": [{"key": "zone", "values": [dice.pick(&["a", "b"]), "c"]}]}),
    });
    let class = |name: &str, provisioner: &str, mode: &str| {
        json!({
            "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
        })
    };
    let mut within = class("made-in", "made.example.com", late);
    within["allowedTopologies"] = json!(terms);
    vec![
        class("static", "kubernetes.io/no-provisioner", late),
        class("now", "now.example.com", "Immediate"),
        class("made", "made.example.com", late),
        within,
    ]
}

fn capacity(dice: &mut Dice, number: usize) -> Value {
    let mut capacity = json!({
        "metadata": {"name": format!("capacity-{number}"), "namespace": "default"},
        "storageClassName": dice.pick(&["made", "made", "made-in"]),
    });
    if dice.percent(90) {
        capacity["capacity"] = json!(dice.pick(&["1Gi", "10Gi", "2Gi"]));
    }
    if dice.percent(30) {
        capacity["maximumVolumeSize"] = json!(dice.pick(&["1Gi", "5Gi"]));
    }
    match dice.below(6) {
        0 => {}
        1 => capacity["nodeTopology"] = json!({}),
        _ => {
            capacity["nodeTopology"] =
                json!({"matchLabels": {"zone": dice.pick(&["a", "b", "c"])}});
        }
    }
    capacity
}
