//! A pod as filters and scores see it.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde::{Deserialize, Serialize};

use super::affinity::{Identity, Reach};
use super::diagnosis::Plugin;
use super::images;
use super::labels::Labels;
use super::policy::Policy;
use super::ports::{HostPort, host_ports};
use super::resources::{self, PodResources};
use super::selector::{HOSTNAME_LABEL, Preference, RequiredNodes, pinned_names};
use super::spread::Spread;
use super::taint::Toleration;
use super::volumes::{Mounts, Rules, is_untold};

/// A pod's `metadata.uid` in 128 bits: the UUID itself, or a hash of any other text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodUid(u128);

impl PodUid {
    /// Takes the 32 hexadecimal digits of a UUID as they are and hashes anything else.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        let digits = || uid.bytes().filter(|byte| *byte != b'-');
        let value = digits().try_fold(0_u128, |value, byte| {
            Some((value << 4) | u128::from(char::from(byte).to_digit(16)?))
        });
        match value {
            Some(value) if digits().count() == 32 => Self(value),
            _ => Self(fnv(uid.as_bytes())),
        }
    }

    /// The UID of a pod of the API; pods from an API server always have one.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self::new(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From [`Self::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// FNV-1a in 128 bits. UIDs come from the API server, not from users, so none collide on purpose.
fn fnv(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// Something a pod insists on that this scheduler doesn't do yet. A pod with any of these stays
/// Pending and its condition says which: a wrong bind can't be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unsupported {
    /// A volume of which can't be told what it is to a driver or where it is, by name of the volume
    /// or claim.
    Volume(String),
    /// Dynamic resource claims.
    ResourceClaims,
    /// A pod group.
    SchedulingGroup,
    /// A feature that a node must declare (`component-helpers/nodedeclaredfeatures`), by name.
    NodeFeature(String),
    /// A preferred node affinity term that the API's parser refuses; kube-scheduler can't score
    /// such a pod either.
    InvalidPreference,
    /// A label selector that the API's parser refuses, among affinity terms or spread constraints.
    InvalidSelector,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name} that can't be translated"),
            Self::ResourceClaims => f.write_str("dynamic resource claims"),
            Self::SchedulingGroup => f.write_str("scheduling group"),
            Self::NodeFeature(name) => write!(f, "node feature {name}"),
            Self::InvalidPreference => f.write_str("preferred node affinity that doesn't parse"),
            Self::InvalidSelector => f.write_str("label selector that doesn't parse"),
        }
    }
}

/// All that filters and scores read of a pod that is to be placed. Pods of one template compile
/// to equal requests, so that what is computed for one holds for all ([`super::class`]).
///
/// What hangs on other objects, namespaces and owners among them, is worked out by
/// [`super::directory::Directory::resolve`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRequest {
    /// `spec.priority`, 0 when absent.
    pub priority: i32,
    /// Whether the pod may have others evicted (`preemptionPolicy` other than `Never`).
    pub may_preempt: bool,
    /// Requests for the fit filter, for accounting and for the scores.
    pub resources: PodResources,
    /// Taints that the pod accepts.
    pub tolerations: Vec<Toleration>,
    /// `spec.nodeName`, which a pending pod doesn't have.
    pub node_name: Option<Arc<str>>,
    /// `nodeSelector` and required node affinity.
    pub required: RequiredNodes,
    /// The only nodes worth looking at, when required affinity names them; empty when the terms
    /// contradict themselves.
    pub pinned: Option<Vec<Arc<str>>>,
    /// Preferred node affinity.
    pub preferred: Vec<Preference>,
    /// Host ports.
    pub ports: Vec<HostPort>,
    /// The pod as other pods see it, its own affinity terms among it.
    pub identity: Arc<Identity>,
    /// The labels of its namespace.
    pub namespace_labels: Labels,
    /// Where each of the identity's terms looks, in their order.
    pub reaches: Vec<Reach>,
    /// Topology spread constraints.
    pub spread: Spread,
    /// Who made the pod: gives default spread constraints their selector.
    pub owner: Option<Owner>,
    /// Images by normalised name, one for each use.
    pub images: Vec<Arc<str>>,
    /// Containers, initial ones among them.
    pub containers: i64,
    /// Claims and disks; most pods have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Arc<Mounts>>,
    /// What these ask, worked out by [`super::volumes::storage::Storage::resolve`].
    #[serde(default, skip_serializing_if = "Rules::is_empty")]
    pub volumes: Rules,
    /// The profile's plugins, weights and arguments.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Arc<Policy>,
    /// What keeps this pod from being placed by this version at all.
    pub unsupported: Vec<Unsupported>,
}

fn is_default(policy: &Arc<Policy>) -> bool {
    policy.is_default()
}

impl PodRequest {
    /// The same pod under a profile.
    #[must_use]
    pub fn under(mut self, policy: &Arc<Policy>) -> Self {
        let policy = Arc::clone(policy);
        if !policy.filters.contains(Plugin::NodeAffinity) {
            self.pinned = None;
        }
        self.spread.restrict(&policy);
        self.policy = policy;
        self
    }

    /// Reads a pod of the API. Never fails: what isn't understood ends up in `unsupported`.
    #[must_use]
    pub fn compile(pod: &Pod) -> Self {
        let resources = resources::pending(pod);
        let Some(spec) = &pod.spec else { return Self { resources, ..Self::default() } };
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let terms = affinity
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|selector| selector.node_selector_terms.as_slice());
        let preferences = affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        let mut unsupported = unsupported(spec);
        let (identity, invalid) = Identity::of(pod);
        let constraints = spec.topology_spread_constraints.as_deref().unwrap_or_default();
        let spread = Spread::compile(constraints, &identity.labels);
        if invalid || spread.is_err() {
            unsupported.push(Unsupported::InvalidSelector);
        }
        let nowhere: [(&Arc<str>, &Labels); 0] = [];
        let reaches = identity.terms().map(|term| Reach::of(term, nowhere)).collect();
        let init = spec.init_containers.as_ref().map_or(0, Vec::len);
        let preferred: Result<Vec<_>, _> = preferences
            .iter()
            .filter_map(|p| Preference::compile(p.weight, &p.preference).transpose())
            .collect();
        let preferred = preferred.unwrap_or_else(|_| {
            unsupported.push(Unsupported::InvalidPreference);
            Vec::new()
        });
        Self {
            priority: spec.priority.unwrap_or_default(),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            resources,
            tolerations: spec.tolerations.iter().flatten().map(Toleration::of).collect(),
            node_name: spec.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
            required: RequiredNodes::compile(spec.node_selector.as_ref(), terms),
            pinned: terms.and_then(pinned_names),
            preferred,
            ports: host_ports(pod),
            identity: Arc::new(identity),
            namespace_labels: Labels::default(),
            reaches,
            spread: spread.unwrap_or_default(),
            owner: Owner::of(pod),
            images: images::of_pod(spec),
            containers: i64::try_from(spec.containers.len() + init).unwrap_or(i64::MAX),
            mounts: Mounts::of(pod),
            volumes: Rules::default(),
            policy: Arc::default(),
            unsupported,
        }
    }

    /// Whether the pod's own rules hang on where other pods are, so that nodes can't be weighed
    /// without a survey of all of them.
    #[must_use]
    pub fn minds_others(&self) -> bool {
        !self.spread.is_empty() || self.identity.has_terms() || !self.volumes.exclusive.is_empty()
    }

    /// Whether its volumes are the same to all nodes alike.
    #[must_use]
    pub(super) fn has_plain_volumes(&self) -> bool {
        let same = self.volumes.is_empty() || self.volumes.refusal.is_some();
        same && self.mounts.as_ref().is_none_or(|mounts| mounts.disks.is_empty())
    }

    /// The labels whose values are the domains of its rules about other pods, the hostname left
    /// out.
    #[must_use]
    pub fn domain_keys(&self) -> Vec<Arc<str>> {
        let spread = self.spread.hard.iter().chain(&self.spread.soft);
        let keys = spread.map(|c| &c.key).chain(self.identity.terms().map(|term| &term.key));
        let mut keys: Vec<_> = keys.filter(|key| ***key != *HOSTNAME_LABEL).cloned().collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// The labels that are told of the best nodes: those of its domains, where there was a survey,
    /// and those by which volumes are found.
    pub(super) fn tuple_keys(&self, surveyed: bool) -> Vec<Arc<str>> {
        let mut keys = if surveyed { self.domain_keys() } else { Vec::new() };
        if let Some(late) = &self.volumes.late {
            keys.extend(late.keys());
            keys.sort();
            keys.dedup();
        }
        keys
    }

    /// Whether it does so by rules that must hold.
    #[must_use]
    pub fn insists_on_others(&self) -> bool {
        let identity = &self.identity;
        !self.spread.hard.is_empty()
            || !identity.affinity.is_empty()
            || !identity.anti_affinity.is_empty()
            || !self.volumes.exclusive.is_empty()
    }
}

/// The kinds of owners whose selectors say which pods belong together
/// (`plugins/helper/spread.go`, `DefaultSelector`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OwnerKind {
    /// `v1`
    ReplicationController,
    /// `apps/v1`
    ReplicaSet,
    /// `apps/v1`
    StatefulSet,
}

/// The controller that made a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its name, in the pod's namespace.
    pub name: Arc<str>,
}

impl Owner {
    fn of(pod: &Pod) -> Option<Self> {
        let owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true))?;
        let kind = match (&*owner.api_version, &*owner.kind) {
            ("v1", "ReplicationController") => OwnerKind::ReplicationController,
            ("apps/v1", "ReplicaSet") => OwnerKind::ReplicaSet,
            ("apps/v1", "StatefulSet") => OwnerKind::StatefulSet,
            _ => return None,
        };
        Some(Self { kind, name: owner.name.as_str().into() })
    }
}

fn unsupported(spec: &PodSpec) -> Vec<Unsupported> {
    let mut found = Vec::new();
    let volumes = spec.volumes.iter().flatten().filter(|volume| is_untold(volume));
    found.extend(volumes.map(|volume| Unsupported::Volume(volume.name.clone())));
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        found.push(Unsupported::ResourceClaims);
    }
    if spec.scheduling_group.is_some() {
        found.push(Unsupported::SchedulingGroup);
    }
    let init = spec.init_containers.iter().flatten();
    let mut rules =
        spec.containers.iter().chain(init).flat_map(|c| c.restart_policy_rules.iter().flatten());
    if rules.any(|rule| rule.action == "RestartAllContainers") {
        found.push(Unsupported::NodeFeature("RestartAllContainersOnContainerExits".into()));
    }
    if spec.host_network == Some(true) && spec.host_users == Some(false) {
        found.push(Unsupported::NodeFeature("UserNamespacesHostNetworkSupport".into()));
    }
    found.sort();
    found.dedup();
    found
}
