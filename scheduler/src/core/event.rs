//! What happened in the cluster that may help a pod which was rejected before.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use serde::{Deserialize, Serialize};

use super::diagnosis::{Plugin, PluginSet};

/// A kind of change, as fine as the plugins tell them apart (`EventsToRegister` of each plugin).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClusterEvent {
    /// A node appeared.
    NodeAdded,
    /// A node has more of a resource than before.
    NodeAllocatable,
    /// A node's labels changed.
    NodeLabels,
    /// A node's taints changed or it was uncordoned.
    NodeTaints,
    /// A pod left a node, or a reservation was given back.
    PodFreed,
    /// A pod that had host ports left a node.
    PortsFreed,
    /// A pod on a node asks for less than before.
    PodScaledDown,
    /// A node is gone.
    NodeRemoved,
    /// A pod got a node.
    PodAdded,
    /// A pod on a node has other labels or terms than before, or is being deleted.
    PodRelabelled,
    /// A pod that had claims or disks left a node.
    VolumesFreed,
    /// A volume appeared or changed.
    VolumeChanged,
    /// A storage class appeared or changed.
    ClassChanged,
    /// A driver's capacity grew, or isn't looked at any more.
    CapacityChanged,
    /// A driver takes more volumes on a node than before.
    LimitRaised,
    /// A node gave a volume up.
    Detached,
}

/// A set of changes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventSet(u32);

/// How many kinds a set can hold.
pub const KINDS: usize = 32;

impl EventSet {
    /// Nothing happened that could help anyone.
    pub const EMPTY: Self = Self(0);
    /// Anything may have happened: wakes every pod but gated ones.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as it travels between processes.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set from another process; bits of a newer version wake too many pods, never too few.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether one of the changes may help a pod that these plugins rejected.
    #[must_use]
    pub fn may_help(self, rejected_by: PluginSet) -> bool {
        self == Self::ALL || rejected_by.iter().any(|plugin| self.0 & interests(plugin).0 != 0)
    }

    fn contains(self, event: ClusterEvent) -> bool {
        self.0 & Self::from(event).0 != 0
    }
}

impl From<ClusterEvent> for EventSet {
    fn from(event: ClusterEvent) -> Self {
        Self(1 << (event as u8))
    }
}

impl BitOr for EventSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for EventSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl FromIterator<ClusterEvent> for EventSet {
    fn from_iter<I: IntoIterator<Item = ClusterEvent>>(events: I) -> Self {
        events.into_iter().fold(Self::EMPTY, |set, event| set | event.into())
    }
}

impl fmt::Debug for EventSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ClusterEvent as E;
        let all = [
            E::NodeAdded,
            E::NodeAllocatable,
            E::NodeLabels,
            E::NodeTaints,
            E::PodFreed,
            E::PortsFreed,
            E::PodScaledDown,
            E::NodeRemoved,
            E::PodAdded,
            E::PodRelabelled,
            E::VolumesFreed,
            E::VolumeChanged,
            E::ClassChanged,
            E::CapacityChanged,
            E::LimitRaised,
            E::Detached,
        ];
        f.debug_set().entries(all.into_iter().filter(|event| self.contains(*event))).finish()
    }
}

/// When each kind of change happened last, numbered in order, so that what passed since some
/// moment is known without keeping the events.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    count: u64,
    last: [u64; KINDS],
}

impl EventLog {
    /// The number of the last event.
    pub(super) fn now(&self) -> u64 {
        self.count
    }

    pub(super) fn record(&mut self, events: EventSet) {
        self.count += 1;
        for (bit, last) in self.last.iter_mut().enumerate() {
            if events.0 & (1 << bit) != 0 {
                *last = self.count;
            }
        }
    }

    /// All that happened after the event of this number.
    pub(super) fn since(&self, number: u64) -> EventSet {
        let after = self.last.iter().enumerate().filter(|(_, last)| **last > number);
        EventSet(after.fold(0, |set, (bit, _)| set | (1 << bit)))
    }
}

/// The changes that may turn a plugin's no into a yes. A gate, or a wish that isn't supported, goes
/// by an update of the pod alone.
fn interests(plugin: Plugin) -> EventSet {
    use ClusterEvent as E;
    let events: &[E] = match plugin {
        Plugin::SchedulingGates | Plugin::Unsupported => &[],
        Plugin::NodeUnschedulable | Plugin::TaintToleration => &[E::NodeAdded, E::NodeTaints],
        Plugin::NodeName => &[E::NodeAdded],
        Plugin::NodeAffinity => &[E::NodeAdded, E::NodeLabels],
        Plugin::NodePorts => &[E::NodeAdded, E::PortsFreed],
        Plugin::NodeResourcesFit => {
            &[E::NodeAdded, E::NodeAllocatable, E::PodFreed, E::PodScaledDown]
        }
        // News of a claim wake whoever mounts it, one by one.
        Plugin::VolumeRestrictions => &[E::NodeAdded, E::VolumesFreed],
        Plugin::NodeVolumeLimits => &[E::NodeAdded, E::VolumesFreed, E::LimitRaised, E::Detached],
        Plugin::VolumeBinding => {
            &[E::NodeAdded, E::NodeLabels, E::VolumeChanged, E::ClassChanged, E::CapacityChanged]
        }
        Plugin::VolumeZone => &[E::NodeAdded, E::NodeLabels, E::VolumeChanged, E::ClassChanged],
        Plugin::PodTopologySpread => &[
            E::NodeAdded,
            E::NodeRemoved,
            E::NodeLabels,
            E::NodeTaints,
            E::PodAdded,
            E::PodFreed,
            E::PodRelabelled,
        ],
        Plugin::InterPodAffinity => {
            &[E::NodeAdded, E::NodeLabels, E::PodAdded, E::PodFreed, E::PodRelabelled]
        }
        Plugin::InterPodAntiAffinity => {
            &[E::NodeAdded, E::NodeLabels, E::PodFreed, E::PodRelabelled]
        }
    };
    events.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_by_plugin() {
        let helps = |event: ClusterEvent, plugin| {
            EventSet::from(event).may_help([plugin].into_iter().collect())
        };
        assert!(helps(ClusterEvent::NodeTaints, Plugin::TaintToleration));
        assert!(!helps(ClusterEvent::NodeLabels, Plugin::TaintToleration));
        assert!(helps(ClusterEvent::PodFreed, Plugin::NodeResourcesFit));
        assert!(!helps(ClusterEvent::PodFreed, Plugin::NodePorts));
        assert!(helps(ClusterEvent::PortsFreed, Plugin::NodePorts));
        assert!(!helps(ClusterEvent::PodFreed, Plugin::NodeName));
        assert!(helps(ClusterEvent::PodAdded, Plugin::PodTopologySpread));
        assert!(helps(ClusterEvent::PodAdded, Plugin::InterPodAffinity));
        assert!(!helps(ClusterEvent::PodAdded, Plugin::InterPodAntiAffinity));
        assert!(helps(ClusterEvent::PodFreed, Plugin::InterPodAntiAffinity));
        assert!(!EventSet::EMPTY.may_help(Plugin::ALL.into_iter().collect()));
        assert!(EventSet::ALL.may_help(PluginSet::EMPTY));
    }
}
