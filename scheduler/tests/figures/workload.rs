//! What is to be placed.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// Kinds of pods.
pub(crate) const TEMPLATES: usize = 10;
const ZONES: usize = 3;
/// The priority class of pods that others make room for.
pub(crate) const HIGH: &str = "high";

/// What the pods ask for beside CPU and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Plain,
    /// A hard constraint over zones.
    Spread,
    /// Required anti-affinity by node.
    Apart,
    /// Every node is full; a pod of lower priority has to go.
    Preemption,
}

impl Case {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Spread, Self::Apart, Self::Preemption];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Spread => "zone spread",
            Self::Apart => "anti-affinity",
            Self::Preemption => "preemption",
        }
    }

    pub(crate) fn pods(self, pods: usize) -> usize {
        match self {
            Self::Plain | Self::Spread => pods,
            Self::Apart => pods * 2 / 5,
            Self::Preemption => pods / 10,
        }
    }

    /// The pods that are there, on nodes.
    pub(crate) fn before(self, nodes: usize) -> impl Iterator<Item = Pod> + Send {
        let full = if self == Self::Preemption { nodes } else { 0 };
        // Room is left for the first pods, which are small.
        (0..full).map(|number| {
            let spec =
                json!({"nodeName": node_name(number), "containers": containers(15_000, 1024)});
            pod(&format!("filler-{number}"), "filler", spec)
        })
    }

    /// The pod of this number: one of each template after the other.
    pub(crate) fn pod(self, number: usize) -> Pod {
        let template = number % TEMPLATES;
        let app = format!("{}-{template}", self.name().replace(' ', "-"));
        let selector = json!({"matchLabels": {"app": app}});
        let size = u32::try_from(template + 1).expect("few");
        let mut spec = json!({"containers": containers(100 * size, 128 * size)});
        match self {
            Self::Plain => {}
            Self::Spread => {
                spec["topologySpreadConstraints"] = json!([{
                    "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector,
                }]);
            }
            Self::Apart => {
                spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                    json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}]);
            }
            Self::Preemption => {
                spec["containers"] = containers(8000 + 100 * size, 128 * size);
                spec["priorityClassName"] = json!(HIGH);
            }
        }
        pod(&format!("{app}-{number}"), &app, spec)
    }
}

/// A pod that any scheduler places at once.
pub(crate) fn warm_up(number: usize) -> Pod {
    pod(&format!("warm-up-{number}"), "warm-up", json!({"containers": containers(10, 10)}))
}

fn containers(milli_cpu: u32, mib: u32) -> Value {
    let requests = json!({"cpu": format!("{milli_cpu}m"), "memory": format!("{mib}Mi")});
    json!([{"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": {"requests": requests}}])
}

fn pod(name: &str, app: &str, mut spec: Value) -> Pod {
    // No kubelet is there to say that a pod has ended.
    spec["terminationGracePeriodSeconds"] = json!(0);
    let metadata = json!({"name": name, "namespace": "default", "labels": {"app": app}});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
}

fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

/// The node of this number.
pub(crate) fn node(number: usize) -> Node {
    let name = node_name(number);
    let amounts =
        json!({"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"});
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES),
        }},
        "status": {
            "allocatable": amounts, "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .expect("a node")
}
