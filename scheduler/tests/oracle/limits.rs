//! How many volumes nodes take: volumes and disks of drivers and of the plugins that drivers have
//! taken over, what nodes say of these, and what is attached.

use serde_json::{Value, json};

use crate::cases::{Dice, Theme};

const DRIVERS: [&str; 7] = [
    "made.example.com",
    "pd.csi.storage.gke.io",
    "ebs.csi.aws.com",
    "disk.csi.azure.com",
    "cinder.csi.openstack.org",
    "pxd.portworx.com",
    "csi.vsphere.vmware.com",
];
const PLUGINS: [&str; 7] = [
    "kubernetes.io/gce-pd",
    "kubernetes.io/aws-ebs",
    "kubernetes.io/azure-disk",
    "kubernetes.io/cinder",
    "kubernetes.io/portworx-volume",
    "kubernetes.io/vsphere-volume",
    "kubernetes.io/azure-file",
];

/// Makes drivers' volumes of some, and limits.
pub(crate) fn attach(dice: &mut Dice, theme: Theme, case: &mut Value) {
    let often = theme == Theme::Limits;
    if !often && dice.percent(40) {
        return;
    }
    let volumes = if often { 80 } else { 15 };
    for (number, volume) in case["volumes"].as_array_mut().unwrap().iter_mut().enumerate() {
        if dice.percent(volumes) {
            let spec = volume["spec"].as_object_mut().unwrap();
            spec.remove("hostPath");
            // Few enough handles that two volumes may be one.
            spec.extend(source(dice, number));
        }
        if dice.percent(15) {
            let zone = dice.pick(&["a", "b", "x-y-z", "x-y-z__x-y-w", "x-y-z__x-v-w"]);
            let gce = !volume["spec"]["gcePersistentDisk"].is_null();
            // Zones from which no region can be told make kube-scheduler fail.
            if !gce || !zone.ends_with("v-w") {
                let old = dice.percent(30);
                let key = if old {
                    "failure-domain.beta.kubernetes.io/zone"
                } else {
                    "topology.kubernetes.io/zone"
                };
                volume["metadata"]["labels"][key] = json!(zone);
            }
        }
        let gce = !volume["spec"]["gcePersistentDisk"].is_null();
        let labels = volume["metadata"]["labels"].as_object_mut().unwrap();
        let odd = |zone: &Value| zone.as_str().is_some_and(|zone| zone.contains("__"));
        if gce {
            let telling = json!("x-y-z__x-y-w");
            labels.retain(|key, zone| !key.ends_with("/zone") || !odd(zone) || *zone == telling);
        }
        if dice.percent(if often { 30 } else { 10 })
            && let Some(terms) =
                volume["spec"].pointer_mut("/nodeAffinity/required/nodeSelectorTerms")
        {
            for term in terms.as_array_mut().unwrap() {
                let Some(expression) = term.pointer_mut("/matchExpressions/0") else { continue };
                if expression["key"] == "zone" {
                    expression["key"] = json!(dice.pick(&[
                        "topology.kubernetes.io/zone",
                        "failure-domain.beta.kubernetes.io/zone",
                        "failure-domain.beta.kubernetes.io/region",
                    ]));
                }
            }
        }
    }
    for class in case["classes"].as_array_mut().unwrap() {
        if class["metadata"]["name"] == "made" && dice.percent(40) {
            class["provisioner"] = json!(dice.pick(&PLUGINS));
        }
    }
    let inline = if often { 40 } else { 6 };
    let disks = |pod: &mut Value, dice: &mut Dice| {
        if !dice.percent(inline) {
            return;
        }
        let more: Vec<Value> = (0..=dice.below(3)).map(|number| disk(dice, number)).collect();
        let spec = pod["spec"].as_object_mut().unwrap();
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        volumes.as_array_mut().unwrap().extend(more);
    };
    disks(&mut case["pod"], dice);
    for list in ["pods", "nominees"] {
        for pod in case.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            disks(pod, dice);
        }
    }
    let nodes = case["nodes"].as_array_mut().unwrap();
    let mut csi_nodes = Vec::new();
    for node in nodes.iter_mut() {
        zones(dice, node);
        if dice.percent(if often { 92 } else { 60 }) {
            csi_nodes.push(csi_node(dice, often, &node["metadata"]["name"]));
        }
    }
    let count = nodes.len();
    case["csiNodes"] = json!(csi_nodes);
    case["attachments"] = json!(dice.list(8, |dice, number| {
        let mut source = json!({"persistentVolumeName": format!("pv-{}", dice.below(12))});
        if dice.percent(5) {
            source = json!({"inlineVolumeSpec": {"hostPath": {"path": "/"}}});
        }
        json!({
            "metadata": {"name": format!("attachment-{number}")},
            "spec": {
                "attacher": if dice.percent(4) { "" } else { dice.pick(&DRIVERS[..3]) },
                "nodeName": format!("node-{}", dice.below(count.max(1))),
                "source": source,
            },
        })
    }));
}

/// Labels by which drivers tell zones.
fn zones(dice: &mut Dice, node: &mut Value) {
    for key in [
        "topology.gke.io/zone",
        "topology.ebs.csi.aws.com/zone",
        "topology.cinder.csi.openstack.org/zone",
        "topology.kubernetes.io/region",
    ] {
        if dice.percent(50) {
            node["metadata"]["labels"][key] = json!(dice.pick(&["a", "b", "c", "x-y-z"]));
        }
    }
}

fn csi_node(dice: &mut Dice, often: bool, name: &Value) -> Value {
    let mut drivers = Vec::new();
    for driver in DRIVERS {
        if dice.percent(70) {
            let mut entry = json!({"name": driver, "nodeID": "n", "topologyKeys": []});
            if dice.percent(if often { 75 } else { 40 }) {
                let count = if often { dice.below(5) } else { 1 + dice.below(8) };
                entry["allocatable"] = json!({"count": count});
            } else if dice.percent(30) {
                entry["allocatable"] = json!({});
            }
            drivers.push(entry);
        }
    }
    let mut node = json!({"metadata": {"name": name}, "spec": {"drivers": drivers}});
    if dice.percent(70) {
        let some: Vec<&str> = PLUGINS.into_iter().filter(|_| dice.percent(70)).collect();
        node["metadata"]["annotations"] =
            json!({"storage.alpha.kubernetes.io/migrated-plugins": some.join(",")});
    }
    node
}

fn source(dice: &mut Dice, number: usize) -> serde_json::Map<String, Value> {
    let handle =
        if dice.percent(85) { format!("h{number}") } else { format!("h{}", dice.below(3)) };
    let source = match dice.below(12) {
        0..=4 => json!({"csi": {"driver": dice.pick(&DRIVERS[..3]), "volumeHandle": handle}}),
        5 => json!({"gcePersistentDisk": {"pdName": handle}}),
        6 => {
            let zone = if dice.percent(50) { "aws://a/vol-" } else { "vol-" };
            json!({"awsElasticBlockStore": {"volumeID": format!("{zone}{handle}")}})
        }
        7 => {
            let mut disk = json!({"diskName": "d", "diskURI": handle});
            if dice.percent(60) {
                disk["kind"] = json!(dice.pick(&["Managed", "managed"]));
            }
            json!({"azureDisk": disk})
        }
        8 => json!({"cinder": {"volumeID": handle}}),
        9 => json!({"portworxVolume": {"volumeID": handle}}),
        10 => json!({"vsphereVolume": {"volumePath": handle}}),
        _ => json!({"azureFile": {"secretName": "s", "shareName": handle}}),
    };
    source.as_object().unwrap().clone()
}

fn disk(dice: &mut Dice, number: usize) -> Value {
    let handle = format!("h{}", dice.below(4));
    let mut volume = match dice.below(7) {
        0 | 1 => json!({"gcePersistentDisk": {"pdName": handle, "readOnly": dice.percent(70)}}),
        2 => {
            let zone = if dice.percent(50) { "aws:///vol-" } else { "vol-" };
            json!({"awsElasticBlockStore": {"volumeID": format!("{zone}{handle}")}})
        }
        3 => json!({"azureDisk": {"diskName": "d", "diskURI": handle, "kind": "Managed"}}),
        4 => json!({"cinder": {"volumeID": handle}}),
        5 => json!({"portworxVolume": {"volumeID": handle}}),
        _ => json!({"vsphereVolume": {"volumePath": handle}}),
    };
    volume["name"] = json!(format!("disk-{number}"));
    volume
}
