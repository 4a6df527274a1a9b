//! Nodes and pods out of nothing: the same for the same flags, one at a time, so that a million of
//! them need no room.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::error::SimulateError;
use super::flags::{Domain, SimulateFlags};
use crate::core::selector::HOSTNAME_LABEL;
use crate::core::spread::ZONE_LABEL;

/// Types of nodes: name, cores, GiB.
const TYPES: [(&str, u32, u32); 4] =
    [("small", 8, 32), ("medium", 16, 64), ("large", 32, 128), ("wide", 32, 64)];
/// Says which.
const TYPE_LABEL: &str = "node.kubernetes.io/instance-type";

/// What makes them.
#[derive(Debug)]
pub(super) struct Generator {
    nodes: u32,
    zones: u32,
    /// One node of each type.
    types: Vec<Node>,
    /// One pod of each class.
    classes: Vec<Pod>,
    seed: u64,
}

impl Generator {
    pub(super) fn new(flags: &SimulateFlags, nodes: u32) -> Result<Self, SimulateError> {
        let impossible = |error: serde_json::Error| SimulateError::Flags(error.to_string());
        let node = |(name, cores, gib): &(&str, u32, u32)| {
            let amounts = json!({
                "cpu": cores.to_string(), "memory": format!("{gib}Gi"), "pods": "110",
                "ephemeral-storage": "200Gi",
            });
            serde_json::from_value(json!({
                "metadata": {"labels": {
                    "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", TYPE_LABEL: name,
                }},
                "status": {"allocatable": amounts},
            }))
        };
        let types: Result<Vec<Node>, _> = TYPES.iter().map(node).collect();
        let mut random = SmallRng::seed_from_u64(flags.seed);
        let class = |class: u32| serde_json::from_value(template(flags, &mut random, class));
        let classes: Result<Vec<Pod>, _> = (0..flags.classes).map(class).collect();
        Ok(Self {
            nodes,
            zones: flags.zones,
            types: types.map_err(impossible)?,
            classes: classes.map_err(impossible)?,
            seed: flags.seed,
        })
    }

    fn zone_of(&self, number: u32) -> u32 {
        number % self.zones
    }

    /// The node of this number.
    pub(super) fn node(&self, number: u32) -> Node {
        // Zones and types are independent of each other.
        let kind = (number / self.zones) as usize % self.types.len();
        let mut node = self.types[kind].clone();
        let name = node_name(number);
        let labels = node.metadata.labels.get_or_insert_with(BTreeMap::new);
        labels.insert(HOSTNAME_LABEL.to_owned(), name.clone());
        labels.insert(ZONE_LABEL.to_owned(), format!("zone-{}", self.zone_of(number)));
        node.metadata.name = Some(name);
        node
    }

    /// A pod of a class.
    pub(super) fn pod(&self, class: u32, number: u32) -> Pod {
        let mut pod = self.classes[class as usize % self.classes.len()].clone();
        let whole = (u64::from(class) << 32) | u64::from(number);
        pod.metadata.name = Some(format!("class-{class}-{number}"));
        let (high, low) = (whole >> 48, whole & 0xffff_ffff_ffff);
        pod.metadata.uid = Some(format!("00000000-0000-4000-{high:04x}-{low:012x}"));
        pod
    }

    /// A pod that is on a node already: any node, which nobody asked whether the pod fits; four to
    /// a node fit any.
    pub(super) fn running(&self, number: u32) -> Pod {
        let mut random = SmallRng::seed_from_u64(self.seed ^ u64::from(number) << 8);
        let class = random.random_range(0..self.classes.len());
        let mut pod = self.classes[class].clone();
        pod.metadata.name = Some(format!("running-{number}"));
        pod.metadata.uid = Some(format!("00000000-0000-4001-0000-{number:012x}"));
        if let Some(spec) = &mut pod.spec {
            // Each node gets one before any gets two.
            let node = if self.nodes == 0 { 0 } else { number % self.nodes };
            spec.node_name = Some(node_name(node));
            spec.affinity = None;
            spec.topology_spread_constraints = None;
        }
        pod
    }
}

fn node_name(number: u32) -> String {
    format!("node-{number:07}")
}

fn template(flags: &SimulateFlags, random: &mut SmallRng, class: u32) -> Value {
    let labels = json!({"app": format!("class-{class}")});
    let cpu = format!("{}m", 50 * random.random_range(2..=40));
    let memory = format!("{}Mi", 64 * random.random_range(2..=64));
    let mut spec = json!({
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}],
    });
    if class % 10 == 3 {
        let (kind, ..) = TYPES[random.random_range(0..TYPES.len())];
        spec["nodeSelector"] = json!({TYPE_LABEL: kind});
    }
    if class % 10 == 6 {
        let zone = format!("zone-{}", random.random_range(0..flags.zones));
        let term = json!({"key": ZONE_LABEL, "operator": "In", "values": [zone]});
        spec["affinity"]["nodeAffinity"] = json!({
            "preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 10, "preference": {"matchExpressions": [term]}}],
        });
    }
    if let Some(domain) = flags.spread {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": if domain == Domain::Zone { 1 } else { 5 },
            "topologyKey": domain.key(),
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": labels},
        }]);
    }
    if let Some(domain) = flags.anti_affinity {
        spec["affinity"]["podAntiAffinity"] = json!({
            "requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": domain.key(), "labelSelector": {"matchLabels": labels}}],
        });
    }
    let mut metadata = json!({"namespace": "default", "labels": labels});
    if flags.replica_sets {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("class-{class}"),
            "uid": "", "controller": true,
        }]);
    }
    json!({"metadata": metadata, "spec": spec})
}
