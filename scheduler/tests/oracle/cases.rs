//! Random small clusters, chosen so that every filter and every score has something to say.

use serde_json::{Map, Value, json};

use crate::{others, preemption, volumes};

/// A seeded source of choices (`SplitMix64`), the same on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }

    pub(crate) fn list(
        &mut self,
        bound: usize,
        mut one: impl FnMut(&mut Self, usize) -> Value,
    ) -> Vec<Value> {
        (0..self.below(bound)).map(|i| one(self, i)).collect()
    }
}

/// What a case is about. In the others of a case there is little to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Taints, node affinity, ports, requests.
    Nodes,
    /// Topology spread constraints, the default ones among them.
    Spread,
    /// Inter-pod affinity.
    Affinity,
    /// Images on nodes.
    Images,
    /// All of these.
    All,
    /// All of these under a profile of its own.
    Profile,
    /// Claims, volumes and disks.
    Volumes,
    /// How many volumes nodes take.
    Limits,
    /// Pods of lower priority in the way, budgets that protect them, pods that are promised nodes.
    Preemption,
}

impl Theme {
    pub(crate) const EACH: [Self; 9] = [
        Self::Nodes,
        Self::Spread,
        Self::Affinity,
        Self::Images,
        Self::Volumes,
        Self::Limits,
        Self::All,
        Self::Profile,
        Self::Preemption,
    ];

    fn has(self, other: Self) -> bool {
        self == other || matches!(self, Self::All | Self::Profile)
    }
}

/// One case in the oracle's own form.
pub(crate) fn case(theme: Theme, seed: u64) -> Value {
    let dice = &mut Dice::new(seed);
    let count = if dice.percent(2) { 0 } else { 1 + dice.below(12) };
    let mut nodes: Vec<Value> = (0..count).map(|i| node(dice, theme, i)).collect();
    if theme.has(Theme::Images) {
        for node in &mut nodes {
            others::images_on(dice, node);
        }
    }
    let mut pods = Vec::new();
    for i in 0..count {
        for j in 0..dice.below(4) {
            let mut pod = running(dice, &format!("node-{i}"), &format!("there-{i}-{j}"));
            others::identify(dice, theme, &mut pod);
            pods.push(pod);
        }
    }
    let mut pod = incoming(dice, theme);
    others::identify(dice, theme, &mut pod);
    pod["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    if theme.has(Theme::Images) {
        others::images_of(dice, &mut pod);
    }
    let priority = |pod: &Value| pod["spec"]["priority"].as_i64().unwrap_or_default();
    let never = pod["spec"]["preemptionPolicy"] == "Never";
    let preempt = never || pods.iter().all(|other| priority(other) >= priority(&pod));
    let mut case = json!({"nodes": nodes, "pods": pods, "pod": pod, "preempt": preempt});
    case["evict"] = json!(theme == Theme::Preemption);
    others::surroundings(dice, &mut case);
    if theme == Theme::Preemption {
        preemption::crowd(dice, &mut case);
    }
    if theme.has(Theme::Volumes) || matches!(theme, Theme::Limits | Theme::Preemption) {
        volumes::mount(dice, theme, &mut case);
    }
    if theme == Theme::Profile {
        case["configuration"] = json!(others::configuration(dice).to_string());
    }
    case
}

fn node(dice: &mut Dice, theme: Theme, number: usize) -> Value {
    let name = format!("node-{number}");
    let mut labels = Map::new();
    if theme == Theme::Nodes || dice.percent(96) {
        // Sometimes two nodes share a hostname, or it is another node's name.
        let odd = theme != Theme::Nodes && dice.percent(3);
        let hostname = if odd { format!("node-{}", dice.below(12)) } else { name.clone() };
        labels.insert("kubernetes.io/hostname".into(), json!(hostname));
    }
    if theme != Theme::Nodes {
        others::domains(dice, &mut labels);
    }
    if dice.percent(80) {
        labels.insert("zone".into(), json!(dice.pick(&["a", "b", "c"])));
    }
    if dice.percent(60) {
        labels.insert("example.com/disk".into(), json!(dice.pick(&["ssd", "hdd", ""])));
    }
    if dice.percent(60) {
        labels.insert("generation".into(), json!(dice.pick(&["1", "2", "10", "x", "-3"])));
    }
    let mut allocatable = Map::new();
    let cpu = ["0", "500m", "2", "3900m", "16", "64", "1.5"];
    let memory = ["0", "512Mi", "7680Mi", "16G", "1e10", "33554432Ki", "4000000001"];
    if dice.percent(95) {
        allocatable.insert("cpu".into(), json!(dice.pick(&cpu)));
    }
    if dice.percent(95) {
        allocatable.insert("memory".into(), json!(dice.pick(&memory)));
    }
    let pods = if dice.percent(85) { "110" } else { dice.pick(&["0", "1", "3"]) };
    allocatable.insert("pods".into(), json!(pods));
    for (name, percent) in
        [("ephemeral-storage", 50), ("example.com/gpu", 30), ("hugepages-2Mi", 30)]
    {
        if dice.percent(percent) {
            allocatable.insert(name.into(), json!(dice.pick(&["0", "2", "8", "10Gi"])));
        }
    }
    let tainted = if theme.has(Theme::Nodes) { 50 } else { 15 };
    let taints =
        if dice.percent(tainted) { dice.list(3, |dice, _| taint(dice)) } else { Vec::new() };
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"unschedulable": dice.percent(8), "taints": taints},
        "status": {"allocatable": allocatable},
    })
}

fn taint(dice: &mut Dice) -> Value {
    json!({
        "key": dice.pick(&["k1", "k2", "node.kubernetes.io/unschedulable"]),
        "value": dice.pick(&["", "v", "5"]),
        "effect": dice.pick(&["NoSchedule", "NoExecute", "PreferNoSchedule", "PreferNoSchedule"]),
    })
}

fn toleration(dice: &mut Dice) -> Value {
    let mut toleration = json!({
        "operator": dice.pick(&["Exists", "Exists", "Equal", "", "Lt", "Gt"]),
        "effect": dice.pick(&["", "", "NoSchedule", "NoExecute", "PreferNoSchedule"]),
    });
    toleration["key"] = json!(dice.pick(&["k1", "k2", "node.kubernetes.io/unschedulable", ""]));
    if toleration["operator"] != "Exists" {
        toleration["value"] = json!(dice.pick(&["", "v", "5", "7"]));
    }
    toleration
}

/// Amounts as an API server hands them out. A text such as `3.3Gi`, which it would rewrite, makes
/// the framework change the pod: `PodRequests` of component-helpers adds the overhead into a
/// quantity that it shares with the pod's spec.
fn requests(dice: &mut Dice) -> Map<String, Value> {
    let mut requests = Map::new();
    let cpu = ["0", "1m", "100m", "250m", "1", "2", "0.3335", "333u"];
    let memory = ["0", "1", "64Mi", "200M", "1Gi", "3543348019200m", "128974848000m"];
    if dice.percent(70) {
        requests.insert("cpu".into(), json!(dice.pick(&cpu)));
    }
    if dice.percent(70) {
        requests.insert("memory".into(), json!(dice.pick(&memory)));
    }
    for (name, percent) in
        [("ephemeral-storage", 10), ("example.com/gpu", 10), ("hugepages-2Mi", 8)]
    {
        if dice.percent(percent) {
            requests.insert(name.into(), json!(dice.pick(&["0", "1", "2", "4Mi"])));
        }
    }
    requests
}

fn container(dice: &mut Dice, name: &str) -> Value {
    let mut container =
        json!({"name": name, "image": "i", "resources": {"requests": requests(dice)}});
    if dice.percent(12) {
        let port = |dice: &mut Dice, _| {
            json!({
                "containerPort": 80,
                "hostPort": 80 * dice.below(2) + dice.below(2),
                "hostIP": dice.pick(&["", "0.0.0.0", "10.0.0.1", "10.0.0.2"]),
                "protocol": dice.pick(&["TCP", "UDP", ""]),
            })
        };
        container["ports"] = json!(dice.list(3, port));
    }
    container
}

fn spec(dice: &mut Dice) -> Value {
    let containers: Vec<Value> =
        (0..=dice.below(3)).map(|i| container(dice, &format!("c{i}"))).collect();
    let mut spec = json!({"containers": containers});
    if dice.percent(30) {
        spec["initContainers"] = json!(dice.list(4, |dice, i| {
            let mut container = container(dice, &format!("i{i}"));
            if dice.percent(50) {
                container["restartPolicy"] = json!("Always");
            }
            container
        }));
    }
    if dice.percent(15) {
        spec["overhead"] = json!({"cpu": "10m", "memory": "32Mi"});
    }
    if dice.percent(15) {
        let requests = requests(dice);
        spec["resources"] = json!({"requests": requests});
    }
    if dice.percent(40) {
        spec["priority"] = json!(5 * dice.below(3));
    }
    spec
}

fn running(dice: &mut Dice, node: &str, name: &str) -> Value {
    let mut spec = spec(dice);
    spec["nodeName"] = json!(node);
    let mut status = json!({"phase": "Running"});
    if dice.percent(25) {
        let statuses = |dice: &mut Dice, names: &[String]| -> Vec<Value> {
            names
                .iter()
                .map(|name| {
                    let mut status = json!({
                        "name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    });
                    if dice.percent(70) {
                        status["resources"] = json!({"requests": requests(dice)});
                    }
                    if dice.percent(70) {
                        status["allocatedResources"] = Value::Object(requests(dice));
                    }
                    status
                })
                .collect()
        };
        let names: Vec<String> = (0..3).map(|i| format!("c{i}")).collect();
        status["containerStatuses"] = json!(statuses(dice, &names));
        let names: Vec<String> = (0..4).map(|i| format!("i{i}")).collect();
        status["initContainerStatuses"] = json!(statuses(dice, &names));
        if dice.percent(30) {
            let reason = dice.pick(&["Infeasible", "Deferred"]);
            status["conditions"] =
                json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
        }
        if dice.percent(40) {
            status["resources"] = json!({"requests": requests(dice)});
            status["allocatedResources"] = Value::Object(requests(dice));
        }
    }
    json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec, "status": status})
}

fn incoming(dice: &mut Dice, theme: Theme) -> Value {
    let mut spec = spec(dice);
    if !theme.has(Theme::Nodes) {
        // Small and tolerant, so that the theme decides.
        let requests = json!({"requests": {"cpu": dice.pick(&["0", "100m", "250m"])}});
        let container = json!({"name": "c0", "image": "i", "resources": requests});
        spec = json!({"containers": [container], "priority": 5 * dice.below(3)});
    }
    spec["tolerations"] =
        if dice.percent(60) { json!(dice.list(4, |dice, _| toleration(dice))) } else { json!([]) };
    if theme.has(Theme::Nodes) && dice.percent(15) {
        spec["nodeSelector"] = match dice.below(3) {
            0 => json!({"zone": dice.pick(&["a", "b", "z"])}),
            1 => json!({"zone": "a", "example.com/disk": "ssd"}),
            _ => json!({"kubernetes.io/hostname": format!("node-{}", dice.below(12))}),
        };
    }
    let mut affinity = json!({});
    if dice.percent(if theme.has(Theme::Nodes) { 25 } else { 8 }) {
        let terms = dice.list(4, |dice, _| term(dice, true));
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": terms});
    }
    if dice.percent(50) {
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] =
            json!(dice.list(5, |dice, _| {
                json!({"weight": 1 + dice.below(100), "preference": term(dice, false)})
            }));
    }
    spec["affinity"] = json!({"nodeAffinity": affinity});
    if dice.percent(3) {
        spec["nodeName"] = json!(format!("node-{}", dice.below(12)));
    }
    if dice.percent(10) {
        spec["preemptionPolicy"] = json!(dice.pick(&["Never", "PreemptLowerPriority"]));
    }
    json!({"metadata": {"name": "incoming", "namespace": "default", "uid": "incoming"}, "spec": spec})
}

/// A node selector term; `wild` ones may be such that the API's parser refuses them.
fn term(dice: &mut Dice, wild: bool) -> Value {
    let mut term = json!({});
    if dice.percent(85) {
        term["matchExpressions"] = json!(dice.list(3, |dice, _| expression(dice, wild)));
    }
    if dice.percent(25) {
        let field = |dice: &mut Dice, _| {
            let values = 1 + usize::from(wild && dice.percent(15));
            let values: Vec<String> =
                (0..values).map(|_| format!("node-{}", dice.below(12))).collect();
            json!({
                "key": "metadata.name",
                "operator": dice.pick(&["In", "In", "NotIn"]),
                "values": values,
            })
        };
        term["matchFields"] = json!(dice.list(3, field));
    }
    term
}

fn expression(dice: &mut Dice, wild: bool) -> Value {
    if wild && dice.percent(8) {
        return match dice.below(5) {
            0 => json!({"key": "zone", "operator": "In", "values": []}),
            1 => json!({"key": "zone", "operator": "Exists", "values": ["a"]}),
            2 => json!({"key": "generation", "operator": "Gt", "values": ["1", "2"]}),
            3 => json!({"key": "-bad-", "operator": "DoesNotExist"}),
            _ => json!({"key": "generation", "operator": "Lt", "values": ["-1"]}),
        };
    }
    match dice.below(6) {
        0 => json!({"key": "zone", "operator": "In", "values": ["a", dice.pick(&["b", "z"])]}),
        1 => json!({"key": "zone", "operator": "NotIn", "values": [dice.pick(&["a", "b"])]}),
        2 => json!({"key": "example.com/disk", "operator": "Exists"}),
        3 => json!({"key": "example.com/disk", "operator": "DoesNotExist"}),
        4 => json!({
            "key": "generation",
            "operator": dice.pick(&["Gt", "Lt"]),
            "values": [dice.pick(&["1", "5", "10"])],
        }),
        _ => json!({
            "key": "kubernetes.io/hostname",
            "operator": dice.pick(&["In", "NotIn"]),
            "values": [format!("node-{}", dice.below(12))],
        }),
    }
}
