//! Why a pod fits nowhere, in kube-scheduler's own words.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A plugin of the default profile that rejects pods or nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Plugin {
    /// Keeps gated pods out of the queue.
    SchedulingGates,
    /// Cordoned nodes.
    NodeUnschedulable,
    /// `spec.nodeName`.
    NodeName,
    /// Taints.
    TaintToleration,
    /// `nodeSelector` and node affinity.
    NodeAffinity,
    /// Host ports.
    NodePorts,
    /// Requests against what is free.
    NodeResourcesFit,
    /// Disks and claims that pods can't share.
    VolumeRestrictions,
    /// How many volumes a node takes.
    NodeVolumeLimits,
    /// Whether a node reaches the volumes.
    VolumeBinding,
    /// Whether a node is in the volumes' zones.
    VolumeZone,
    /// Topology spread constraints.
    PodTopologySpread,
    /// Inter-pod affinity and anti-affinity.
    InterPodAffinity,
    /// The same plugin, about a pod that no further pod can help: it has no required affinity, so
    /// other pods only stand in its way.
    InterPodAntiAffinity,
    /// Ours: the pod asks for what this version doesn't do.
    Unsupported,
}

impl Plugin {
    /// Every plugin, in the order in which the default profile runs them.
    pub const ALL: [Self; 15] = [
        Self::SchedulingGates,
        Self::NodeUnschedulable,
        Self::NodeName,
        Self::TaintToleration,
        Self::NodeAffinity,
        Self::NodePorts,
        Self::NodeResourcesFit,
        Self::VolumeRestrictions,
        Self::NodeVolumeLimits,
        Self::VolumeBinding,
        Self::VolumeZone,
        Self::PodTopologySpread,
        Self::InterPodAffinity,
        Self::InterPodAntiAffinity,
        Self::Unsupported,
    ];

    /// The name under which kube-scheduler registers the plugin, for metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SchedulingGates => "SchedulingGates",
            Self::NodeUnschedulable => "NodeUnschedulable",
            Self::NodeName => "NodeName",
            Self::TaintToleration => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::NodePorts => "NodePorts",
            Self::NodeResourcesFit => "NodeResourcesFit",
            Self::VolumeRestrictions => "VolumeRestrictions",
            Self::NodeVolumeLimits => "NodeVolumeLimits",
            Self::VolumeBinding => "VolumeBinding",
            Self::VolumeZone => "VolumeZone",
            Self::PodTopologySpread => "PodTopologySpread",
            Self::InterPodAffinity | Self::InterPodAntiAffinity => "InterPodAffinity",
            Self::Unsupported => "Unsupported",
        }
    }

    fn bit(self) -> u16 {
        1 << (self as u8)
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PluginSet(u16);

impl PluginSet {
    /// No plugin.
    pub const EMPTY: Self = Self(0);

    /// Whether no plugin is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the plugin is in the set.
    #[must_use]
    pub fn contains(self, plugin: Plugin) -> bool {
        self.0 & plugin.bit() != 0
    }

    /// Adds a plugin.
    pub fn insert(&mut self, plugin: Plugin) {
        self.0 |= plugin.bit();
    }

    /// Takes a plugin out.
    pub fn remove(&mut self, plugin: Plugin) {
        self.0 &= !plugin.bit();
    }

    /// Whether the sets share a plugin.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The plugins in the set.
    pub fn iter(self) -> impl Iterator<Item = Plugin> {
        Plugin::ALL.into_iter().filter(move |plugin| self.contains(*plugin))
    }
}

impl FromIterator<Plugin> for PluginSet {
    fn from_iter<I: IntoIterator<Item = Plugin>>(plugins: I) -> Self {
        let mut set = Self::EMPTY;
        plugins.into_iter().for_each(|plugin| set.insert(plugin));
        set
    }
}

impl fmt::Debug for PluginSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Plugin::name)).finish()
    }
}

/// Why a node was rejected. Its text is that of the plugin in kube-scheduler 1.36.3 and parses
/// back, so that reasons travel as text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// The node is cordoned.
    Unschedulable,
    /// `spec.nodeName` names another node.
    NodeName,
    /// A taint isn't tolerated.
    UntoleratedTaint,
    /// `nodeSelector` or required affinity doesn't match.
    NodeAffinity,
    /// Required affinity names other nodes.
    NotPinned,
    /// A host port is taken.
    HostPorts,
    /// The node takes no more pods.
    TooManyPods,
    /// A pod on the node has a disk that can't be shared.
    DiskConflict,
    /// A pod somewhere uses a claim that one pod alone may use.
    ClaimInUse,
    /// The node reaches too many volumes already.
    VolumeLimit,
    /// The node doesn't reach a volume.
    VolumeNode,
    /// No volume suits a claim, and none can be made there.
    VolumeBind,
    /// There is too little room to make a volume.
    VolumeSpace,
    /// A claim's volume is gone.
    VolumeMissing,
    /// The node is in another zone than a volume.
    VolumeZone,
    /// A node label that a spread constraint needs is missing.
    SpreadLabel,
    /// The node's domain would be too far ahead.
    SpreadSkew,
    /// Required affinity finds no pod in the node's domains.
    PodAffinity,
    /// Required anti-affinity finds a pod in the node's domains.
    PodAntiAffinity,
    /// A pod in the node's domains keeps this one away.
    ExistingAntiAffinity,
    /// Too little of a resource is free.
    Insufficient(Arc<str>),
}

const INSUFFICIENT: &str = "Insufficient ";

impl Reason {
    /// Too little CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self::Insufficient("cpu".into())
    }

    /// The plugin that gives this reason.
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        match self {
            Self::Unschedulable => Plugin::NodeUnschedulable,
            Self::NodeName => Plugin::NodeName,
            Self::UntoleratedTaint => Plugin::TaintToleration,
            Self::NodeAffinity | Self::NotPinned => Plugin::NodeAffinity,
            Self::HostPorts => Plugin::NodePorts,
            Self::TooManyPods | Self::Insufficient(_) => Plugin::NodeResourcesFit,
            Self::DiskConflict | Self::ClaimInUse => Plugin::VolumeRestrictions,
            Self::VolumeLimit => Plugin::NodeVolumeLimits,
            Self::VolumeNode | Self::VolumeBind | Self::VolumeSpace | Self::VolumeMissing => {
                Plugin::VolumeBinding
            }
            Self::VolumeZone => Plugin::VolumeZone,
            Self::SpreadLabel | Self::SpreadSkew => Plugin::PodTopologySpread,
            Self::PodAffinity | Self::PodAntiAffinity | Self::ExistingAntiAffinity => {
                Plugin::InterPodAffinity
            }
        }
    }

    fn fixed(&self) -> &'static str {
        match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::NodeName => "node(s) didn't match the requested node name",
            Self::UntoleratedTaint => "node(s) had untolerated taint(s)",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::NotPinned => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::HostPorts => "node(s) didn't have free ports for the requested pod ports",
            Self::TooManyPods => "Too many pods",
            Self::DiskConflict => "node(s) had no available disk",
            Self::ClaimInUse => {
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
            }
            Self::VolumeLimit => "node(s) exceed max volume count",
            Self::VolumeNode => "node(s) didn't match PersistentVolume's node affinity",
            Self::VolumeBind => "node(s) didn't find available persistent volumes to bind",
            Self::VolumeSpace => "node(s) did not have enough free storage",
            Self::VolumeMissing => {
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
            }
            Self::VolumeZone => "node(s) had no available volume zone",
            Self::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::SpreadSkew => "node(s) didn't match pod topology spread constraints",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
            Self::Insufficient(_) => INSUFFICIENT,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fixed())?;
        match self {
            Self::Insufficient(resource) => f.write_str(resource),
            _ => Ok(()),
        }
    }
}

impl FromStr for Reason {
    type Err = Infallible;

    /// A text of no other reason is taken as the name of a resource, so that a peer of a newer
    /// version is still understood.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let fixed = [
            Self::Unschedulable,
            Self::NodeName,
            Self::UntoleratedTaint,
            Self::NodeAffinity,
            Self::NotPinned,
            Self::HostPorts,
            Self::TooManyPods,
            Self::DiskConflict,
            Self::ClaimInUse,
            Self::VolumeLimit,
            Self::VolumeNode,
            Self::VolumeBind,
            Self::VolumeSpace,
            Self::VolumeMissing,
            Self::VolumeZone,
            Self::SpreadLabel,
            Self::SpreadSkew,
            Self::PodAffinity,
            Self::PodAntiAffinity,
            Self::ExistingAntiAffinity,
        ];
        let known = fixed.into_iter().find(|reason| reason.fixed() == text);
        let resource = text.strip_prefix(INSUFFICIENT).unwrap_or(text);
        Ok(known.unwrap_or_else(|| Self::Insufficient(resource.into())))
    }
}

/// How many nodes were rejected for which reason.
pub type Rejections = BTreeMap<Reason, u64>;

/// Why a pod fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// All nodes there are.
    pub nodes: u64,
    /// Nodes by reason; a node short of two resources counts twice.
    pub rejections: Rejections,
    /// Set when the pod was rejected before any node was looked at.
    pub pod_reason: Option<String>,
    /// What came of preemption.
    pub preemption: Option<Preemption>,
    /// The plugins to blame: events that they don't care about needn't wake the pod.
    pub plugins: PluginSet,
}

/// What came of preemption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// The pod's policy forbids it.
    Never,
    /// It waits for pods to end that it has had evicted.
    Terminating,
    /// No eviction makes room anywhere.
    Unhelpful {
        /// Nodes whose rejection no eviction can mend.
        unresolvable: u64,
        /// Nodes without a pod of lower priority.
        no_victims: u64,
        /// Why the others don't take the pod even without all of these.
        rejections: Rejections,
        /// All nodes.
        nodes: u64,
    },
    /// Evicting pods might help: the shards have to be asked.
    Possible,
}

const NEVER: &str = "not eligible due to preemptionPolicy=Never.";
const TERMINATING: &str = "not eligible due to a terminating pod on the nominated node.";

impl fmt::Display for Preemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("preemption: ")?;
        match self {
            Self::Never => f.write_str(NEVER),
            Self::Possible => f.write_str("not tried."),
            Self::Terminating => f.write_str(TERMINATING),
            Self::Unhelpful { unresolvable, no_victims, rejections, nodes } => {
                let reasons = [
                    (*no_victims, "No preemption victims found for incoming pod".to_owned()),
                    (*unresolvable, "Preemption is not helpful for scheduling".to_owned()),
                ];
                let reasons = reasons.into_iter().filter(|(nodes, _)| *nodes > 0);
                let others = rejections.iter().map(|(reason, nodes)| (*nodes, reason.to_string()));
                write_histogram(f, *nodes, reasons.chain(others))
            }
        }
    }
}

/// `0/5 nodes are available: 3 Insufficient cpu, 2 Too many pods.`, counts sorted as text
/// (`FitError.Error` in `pkg/scheduler/framework/types.go`).
fn write_histogram<R: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    nodes: u64,
    reasons: impl Iterator<Item = (u64, R)>,
) -> fmt::Result {
    write!(f, "0/{nodes} nodes are available:")?;
    let mut parts: Vec<String> =
        reasons.map(|(nodes, reason)| format!("{nodes} {reason}")).collect();
    parts.sort();
    if parts.is_empty() { Ok(()) } else { write!(f, " {}.", parts.join(", ")) }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod_reason {
            Some(reason) => write!(f, "0/{} nodes are available: {reason}.", self.nodes)?,
            // `ErrNoNodesAvailable`.
            None if self.nodes == 0 => return f.write_str("no nodes available to schedule pods"),
            None => {
                let reasons = self.rejections.iter().map(|(reason, nodes)| (*nodes, reason));
                write_histogram(f, self.nodes, reasons)?;
            }
        }
        match &self.preemption {
            Some(preemption) => write!(f, " {preemption}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_travel_as_text() {
        let reasons = [
            Reason::Unschedulable,
            Reason::NodeName,
            Reason::UntoleratedTaint,
            Reason::NodeAffinity,
            Reason::NotPinned,
            Reason::HostPorts,
            Reason::TooManyPods,
            Reason::DiskConflict,
            Reason::ClaimInUse,
            Reason::VolumeLimit,
            Reason::VolumeNode,
            Reason::VolumeBind,
            Reason::VolumeSpace,
            Reason::VolumeMissing,
            Reason::VolumeZone,
            Reason::SpreadLabel,
            Reason::SpreadSkew,
            Reason::PodAffinity,
            Reason::PodAntiAffinity,
            Reason::ExistingAntiAffinity,
            Reason::cpu(),
            Reason::Insufficient("example.com/gpu".into()),
        ];
        for reason in reasons {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
    }

    #[test]
    fn message() {
        let mut diagnosis = Diagnosis {
            nodes: 12,
            rejections: [(Reason::cpu(), 10), (Reason::UntoleratedTaint, 2)].into(),
            pod_reason: None,
            preemption: Some(Preemption::Unhelpful {
                unresolvable: 2,
                no_victims: 10,
                rejections: Rejections::new(),
                nodes: 12,
            }),
            plugins: PluginSet::EMPTY,
        };
        assert_eq!(
            diagnosis.to_string(),
            "0/12 nodes are available: 10 Insufficient cpu, 2 node(s) had untolerated taint(s). \
             preemption: 0/12 nodes are available: 10 No preemption victims found for incoming \
             pod, 2 Preemption is not helpful for scheduling."
        );
        diagnosis.pod_reason = Some("pod affinity terms conflict".into());
        diagnosis.preemption = Some(Preemption::Never);
        assert_eq!(
            diagnosis.to_string(),
            "0/12 nodes are available: pod affinity terms conflict. preemption: not eligible due \
             to preemptionPolicy=Never."
        );
        diagnosis.nodes = 0;
        diagnosis.pod_reason = None;
        assert_eq!(diagnosis.to_string(), "no nodes available to schedule pods");
    }
}
