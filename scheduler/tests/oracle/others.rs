//! What pods have to do with each other, at random: labels, namespaces, spread constraints,
//! affinity terms, owners and images.

use serde_json::{Map, Value, json};

use crate::cases::{Dice, Theme};

const NAMESPACES: [&str; 3] = ["default", "second", "third"];
const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Labels of a node that name its domains.
pub(crate) fn domains(dice: &mut Dice, labels: &mut Map<String, Value>) {
    if dice.percent(85) {
        labels.insert(ZONE.into(), json!(dice.pick(&["z1", "z2", "z3", ""])));
    }
    if dice.percent(70) {
        labels.insert("rack".into(), json!(dice.pick(&["r1", "r2", "r3", "r4", "r5"])));
    }
}

fn key(dice: &mut Dice) -> &'static str {
    match dice.below(6) {
        0 | 1 => ZONE,
        2 | 3 => HOSTNAME,
        4 => "rack",
        _ => "nowhere",
    }
}

/// Gives a pod a namespace, labels, an owner, constraints and terms.
pub(crate) fn identify(dice: &mut Dice, theme: Theme, pod: &mut Value) {
    let namespace = if dice.percent(70) { NAMESPACES[0] } else { dice.pick(&NAMESPACES) };
    pod["metadata"]["namespace"] = json!(namespace);
    let mut labels = Map::new();
    if dice.percent(90) {
        labels.insert("app".into(), json!(dice.pick(&["a", "b", "c"])));
    }
    if dice.percent(50) {
        labels.insert("tier".into(), json!(dice.pick(&["x", "y"])));
    }
    if dice.percent(30) {
        labels.insert("pod-template-hash".into(), json!(dice.pick(&["1", "2"])));
    }
    pod["metadata"]["labels"] = Value::Object(labels);
    if dice.percent(8) {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    if dice.percent(40) {
        let (version, kind) = match dice.below(4) {
            0 => ("v1", "ReplicationController"),
            1 => ("apps/v1", "StatefulSet"),
            2 => ("batch/v1", "Job"),
            _ => ("apps/v1", "ReplicaSet"),
        };
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": version, "kind": kind, "name": format!("owner-{}", dice.below(2)),
            "uid": "u", "controller": dice.percent(90),
        }]);
    }
    if matches!(theme, Theme::Spread | Theme::All | Theme::Profile) && dice.percent(70)
        || theme == Theme::Preemption && dice.percent(25)
    {
        let constraints = dice.list(4, |dice, _| constraint(dice));
        pod["spec"]["topologySpreadConstraints"] = json!(constraints);
    }
    if matches!(theme, Theme::Affinity | Theme::All | Theme::Profile) && dice.percent(55)
        || theme == Theme::Preemption && dice.percent(15)
    {
        let affinity = pod["spec"]["affinity"].take();
        let mut affinity = if affinity.is_object() { affinity } else { json!({}) };
        // Required terms of running pods easily keep everything away.
        let required = if pod["metadata"]["name"] == "incoming" { 50 } else { 15 };
        for side in ["podAffinity", "podAntiAffinity"] {
            let mut rules = json!({});
            if dice.percent(required) {
                rules["requiredDuringSchedulingIgnoredDuringExecution"] =
                    json!(dice.list(3, |dice, _| term(dice)));
            }
            if dice.percent(50) {
                rules["preferredDuringSchedulingIgnoredDuringExecution"] = json!(dice.list(
                    4,
                    |dice, _| json!({"weight": 1 + dice.below(100), "podAffinityTerm": term(dice)})
                ));
            }
            affinity[side] = rules;
        }
        pod["spec"]["affinity"] = affinity;
    }
}

fn selector(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 => Value::Null,
        1 => json!({}),
        2 => json!({"matchLabels": {"app": dice.pick(&["a", "b"]), "tier": "x"}}),
        3 => json!({"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a", dice.pick(&["b", "z"])]},
        ]}),
        4 => json!({"matchExpressions": [
            {"key": "tier", "operator": dice.pick(&["Exists", "DoesNotExist"])},
        ]}),
        5 => json!({"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": [dice.pick(&["a", "b"])]},
        ]}),
        _ => json!({"matchLabels": {"app": dice.pick(&["a", "b", "c"])}}),
    }
}

fn constraint(dice: &mut Dice) -> Value {
    let mut constraint = json!({
        "maxSkew": 1 + dice.below(3),
        "topologyKey": key(dice),
        "whenUnsatisfiable": dice.pick(&["DoNotSchedule", "ScheduleAnyway"]),
        "labelSelector": selector(dice),
    });
    if constraint["topologyKey"] == "nowhere" && dice.percent(80) {
        constraint["topologyKey"] = json!(ZONE);
    }
    if constraint["whenUnsatisfiable"] == "DoNotSchedule" && dice.percent(25) {
        constraint["minDomains"] = json!(1 + dice.below(5));
    }
    if dice.percent(20) {
        constraint["nodeAffinityPolicy"] = json!(dice.pick(&["Honor", "Ignore"]));
    }
    if dice.percent(30) {
        constraint["nodeTaintsPolicy"] = json!(dice.pick(&["Honor", "Ignore"]));
    }
    if !constraint["labelSelector"].is_null() && dice.percent(25) {
        constraint["matchLabelKeys"] = json!([dice.pick(&["pod-template-hash", "tier"])]);
    }
    constraint
}

fn term(dice: &mut Dice) -> Value {
    let mut term = json!({"topologyKey": key(dice), "labelSelector": selector(dice)});
    if dice.percent(20) {
        let names = 1 + dice.below(2);
        let names: Vec<&str> = (0..names).map(|_| dice.pick(&NAMESPACES)).collect();
        term["namespaces"] = json!(names);
    }
    if dice.percent(25) {
        term["namespaceSelector"] = match dice.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"team": dice.pick(&["red", "blue"])}}),
            2 => json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]}),
            _ => json!({"matchExpressions": [
                {"key": "team", "operator": "NotIn", "values": ["red"]},
            ]}),
        };
    }
    term
}

const IMAGES: [(&str, u64); 5] = [
    ("small:1", 10 << 20),
    ("registry.example:5000/middle:latest", 300 << 20),
    ("large:2", 900 << 20),
    ("huge:latest", 5 << 30),
    ("odd", 444_444_444),
];

/// Images that a node has.
pub(crate) fn images_on(dice: &mut Dice, node: &mut Value) {
    let images = dice.list(5, |dice, _| {
        let (name, size) = IMAGES[dice.below(IMAGES.len())];
        let digest = format!("{name}@sha256:{}", dice.below(2));
        json!({"names": [digest, name], "sizeBytes": size})
    });
    node["status"]["images"] = json!(images);
}

/// Images that a pod needs.
pub(crate) fn images_of(dice: &mut Dice, pod: &mut Value) {
    let wanted = ["small:1", "registry.example:5000/middle", "large:2", "huge", "odd", "none:1"];
    for kind in ["containers", "initContainers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            container["image"] = json!(dice.pick(&wanted));
        }
    }
    if dice.percent(20) {
        pod["spec"]["volumes"] = json!([{"name": "v", "image": {"reference": dice.pick(&wanted)}}]);
    }
}

/// Namespaces, Services and owners.
pub(crate) fn surroundings(dice: &mut Dice, case: &mut Value) {
    let namespaces = NAMESPACES.iter().filter(|_| dice.percent(90)).copied().collect::<Vec<_>>();
    let namespace = |name: &str, dice: &mut Dice| {
        let mut labels = json!({"kubernetes.io/metadata.name": name});
        if dice.percent(60) {
            labels["team"] = json!(dice.pick(&["red", "blue"]));
        }
        json!({"metadata": {"name": name, "labels": labels}})
    };
    let namespaces: Vec<Value> = namespaces.into_iter().map(|n| namespace(n, dice)).collect();
    case["namespaces"] = json!(namespaces);
    case["services"] = json!(dice.list(3, |dice, i| {
        let selector = match dice.below(4) {
            0 => Value::Null,
            1 => json!({}),
            2 => json!({"app": dice.pick(&["a", "b"]), "tier": "x"}),
            _ => json!({"app": dice.pick(&["a", "b"])}),
        };
        json!({
            "metadata": {"name": format!("service-{i}"), "namespace": dice.pick(&NAMESPACES)},
            "spec": {"selector": selector},
        })
    }));
    for (kind, plain) in
        [("replicationControllers", true), ("replicaSets", false), ("statefulSets", false)]
    {
        let mut owners = Vec::new();
        for namespace in NAMESPACES {
            for number in 0..dice.below(3) {
                let metadata = json!({"name": format!("owner-{number}"), "namespace": namespace});
                let equal = json!({"app": dice.pick(&["a", "b"])});
                let selector = if plain {
                    equal
                } else if dice.percent(30) {
                    json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]})
                } else {
                    json!({"matchLabels": equal})
                };
                owners.push(json!({"metadata": metadata, "spec": {"selector": selector}}));
            }
        }
        case[kind] = json!(owners);
    }
}

/// A `KubeSchedulerConfiguration` with a profile out of the common.
pub(crate) fn configuration(dice: &mut Dice) -> Value {
    let filters = [
        "NodeUnschedulable",
        "NodeName",
        "TaintToleration",
        "NodeAffinity",
        "NodePorts",
        "NodeResourcesFit",
        "VolumeRestrictions",
        "NodeVolumeLimits",
        "VolumeBinding",
        "VolumeZone",
        "PodTopologySpread",
        "InterPodAffinity",
    ];
    let scores = [
        "TaintToleration",
        "NodeAffinity",
        "NodeResourcesFit",
        "PodTopologySpread",
        "InterPodAffinity",
        "NodeResourcesBalancedAllocation",
        "ImageLocality",
    ];
    let named = |names: &[&str], dice: &mut Dice| {
        let mut list = dice.list(3, |dice, _| json!({"name": dice.pick(names)}));
        list.dedup();
        list
    };
    let weighted = |dice: &mut Dice| {
        let mut left: Vec<&str> = scores.to_vec();
        let mut list = Vec::new();
        for _ in 0..dice.below(4) {
            let name = left.swap_remove(dice.below(left.len()));
            let mut plugin = json!({"name": name});
            if dice.percent(80) {
                plugin["weight"] = json!(dice.below(9));
            }
            list.push(plugin);
        }
        // Another order than the default one is refused.
        list.sort_by_key(|plugin| filters.iter().position(|name| plugin["name"] == *name));
        list
    };
    let enabled = weighted(dice);
    let mut disabled = named(&filters, dice);
    disabled.retain(|off| enabled.iter().all(|on| on["name"] != off["name"]));
    let mut many = json!({"enabled": enabled, "disabled": disabled});
    if dice.percent(20) {
        let mut enabled: Vec<Value> = ["SchedulingGates", "PrioritySort", "DefaultBinder"]
            .into_iter()
            .map(|name| json!({"name": name}))
            .collect();
        enabled.extend(weighted(dice));
        many = json!({"enabled": enabled, "disabled": [{"name": "*"}]});
    }
    let mut plugins = json!({"multiPoint": many.clone()});
    if dice.percent(50) {
        let listed = |list: &Value| -> Vec<Value> {
            let list = list.as_array().into_iter().flatten();
            list.map(|plugin| plugin["name"].clone()).collect()
        };
        let (on, off) = (listed(&many["enabled"]), listed(&many["disabled"]));
        // A score without the plugin's other steps makes kube-scheduler fail.
        let runs = |plugin: &Value| {
            let name = &plugin["name"];
            on.contains(name) || !(off.contains(name) || off.contains(&json!("*")))
        };
        let enabled: Vec<Value> = weighted(dice).into_iter().filter(runs).collect();
        let all = dice.percent(15);
        let disabled = if all { vec![json!({"name": "*"})] } else { named(&scores, dice) };
        plugins["score"] = json!({"enabled": enabled, "disabled": disabled});
    }
    let mut arguments = Vec::new();
    if dice.percent(50) {
        arguments.push(json!({"name": "InterPodAffinity", "args": {
            "hardPodAffinityWeight": dice.below(101),
            "ignorePreferredTermsOfExistingPods": dice.percent(50),
        }}));
    }
    if dice.percent(50) {
        let mut keys = vec![ZONE, HOSTNAME, "rack"];
        let mut constraints = Vec::new();
        for _ in 0..dice.below(4) {
            constraints.push(json!({
                "maxSkew": 1 + dice.below(3),
                "topologyKey": keys.swap_remove(dice.below(keys.len())),
                "whenUnsatisfiable": dice.pick(&["DoNotSchedule", "ScheduleAnyway"]),
            }));
        }
        arguments.push(json!({"name": "PodTopologySpread", "args": {
            "defaultingType": "List", "defaultConstraints": constraints,
        }}));
    }
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": [{"plugins": plugins, "pluginConfig": arguments}],
    })
}
