//! What a pod's volumes ask of a node.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::attach::Attachable;
use super::late::Late;
use crate::core::diagnosis::{Plugin, Reason};
use crate::core::selector::{NodeLabels, RequiredNodes};

/// Nodes without any of these are in no zone, and take every volume.
const ZONES: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// Why a pod can't be placed whatever the nodes are like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refusal {
    /// Who says so.
    pub plugin: Plugin,
    /// In kube-scheduler's words.
    pub message: String,
}

/// What a claim that has its volume asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Bound {
    /// The volume isn't there.
    Missing,
    /// Nodes that reach the volume.
    At(RequiredNodes),
    /// The same, of a volume that a driver has taken over from a plugin.
    Migrated {
        /// The plugin.
        plugin: Arc<str>,
        /// On nodes that haven't left it to the driver.
        before: RequiredNodes,
        /// On the others.
        after: RequiredNodes,
    },
}

impl Bound {
    fn objects(&self, node: &impl NodeLabels, migrated: &[Arc<str>]) -> Option<Reason> {
        let nodes = match self {
            Self::Missing => return Some(Reason::VolumeMissing),
            Self::At(nodes) => nodes,
            Self::Migrated { plugin, after, .. } if migrated.contains(plugin) => after,
            Self::Migrated { before, .. } => before,
        };
        (!nodes.matches(node)).then_some(Reason::VolumeNode)
    }
}

/// A zone or region that a volume's label names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Zone {
    /// The label.
    pub key: Arc<str>,
    /// Any of these will do.
    pub values: Vec<Arc<str>>,
}

impl Zone {
    /// What the labels of a volume say (`getPVTopologies`); one that doesn't parse says nothing.
    pub(super) fn of<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Vec<Self> {
        let zone = |key: &&str| {
            let values: Vec<&str> = label(key)?.split("__").map(str::trim).collect();
            if values.contains(&"") {
                return None;
            }
            let values = values.into_iter().map(Arc::from).collect();
            Some(Self { key: Arc::from(*key), values })
        };
        ZONES.iter().filter_map(zone).collect()
    }

    fn has(&self, node: &impl NodeLabels) -> bool {
        let newer = match &*self.key {
            "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
            key => key,
        };
        let value = node.label(&self.key).or_else(|| node.label(newer));
        value.is_some_and(|value| self.values.iter().any(|zone| **zone == *value))
    }
}

/// All that a pod's volumes ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Why the pod can't be placed at all.
    pub refusal: Option<Refusal>,
    /// Claims that one pod alone may use.
    pub exclusive: Vec<Arc<str>>,
    /// Volumes that count, of drivers that have a limit on some node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attach: Vec<Attachable>,
    /// Claims with volumes that not every node reaches, in the pod's order.
    pub bound: Vec<Bound>,
    /// Zones of volumes.
    pub zones: Vec<Zone>,
    /// Claims that get their volumes once the node is chosen.
    pub late: Option<Late>,
}

impl Rules {
    /// Whether every node is as good as another, and other pods don't matter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.refusal.is_none()
            && self.exclusive.is_empty()
            && self.attach.is_empty()
            && self.bound.is_empty()
            && self.zones.is_empty()
            && self.late.is_none()
    }

    /// `FindPodVolumes`: why the node doesn't take the pod; none of these can be mended by
    /// eviction. The node leaves the volumes of the plugins `migrated` to drivers.
    pub(crate) fn unbindable(
        &self,
        node: &impl NodeLabels,
        name: &str,
        migrated: &[Arc<str>],
    ) -> Vec<Reason> {
        let mut reasons = Vec::new();
        reasons.extend(self.bound.iter().find_map(|bound| bound.objects(node, migrated)));
        if let Some(late) = &self.late {
            reasons.extend(late.find(node, name).err());
        }
        reasons
    }

    /// `VolumeZone`: whether the node is in the volumes' zones.
    pub(crate) fn in_zones(&self, node: &impl NodeLabels) -> bool {
        self.zones.is_empty()
            || ZONES.iter().all(|key| node.label(key).is_none())
            || self.zones.iter().all(|zone| zone.has(node))
    }
}
