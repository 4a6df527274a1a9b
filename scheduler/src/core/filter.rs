//! The filters of the default profile, in its order; the first one that objects settles a node.

use std::cell::OnceCell;

use super::columns::{Columns, Slot as ColumnSlot};
use super::diagnosis::{Plugin, Reason, Rejections};
use super::facts::Anonymous;
use super::others::Others;
use super::pod::PodRequest;
use super::taint::{Effect, Taint, tolerated};

/// The taint that stands for a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What the filters say of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every filter passed; the raw scores came with them.
    Pass {
        /// Untolerated `PreferNoSchedule` taints.
        taints: i64,
        /// Weights of the preferred terms that match.
        affinity: i64,
    },
    /// Some filter objected.
    Rejected,
}

/// What a set of taints means for one pod.
#[derive(Clone, Copy, Default)]
struct Tainted {
    forbids: bool,
    preferred_away: i64,
}

/// What labels mean for one pod.
#[derive(Clone, Copy, Default)]
struct Affine {
    matches: bool,
    preferred: i64,
}

/// One pod's view of the nodes. What depends on shared taints or labels alone is worked out once
/// for each distinct set.
pub(super) struct Filter<'a> {
    columns: &'a Columns,
    request: &'a PodRequest,
    tolerates_cordon: OnceCell<bool>,
    others: Option<&'a Others<'a>>,
    /// Whether volumes have a say.
    volumes: bool,
    /// Whether a pod somewhere uses a claim that one pod alone may use.
    in_use: bool,
    taints: Option<Vec<Tainted>>,
    labels: Option<Vec<Affine>>,
}

impl<'a> Filter<'a> {
    /// A view for one node or a few. Without the survey the rules about other pods aren't looked
    /// at.
    pub(super) fn single(
        columns: &'a Columns,
        request: &'a PodRequest,
        others: Option<&'a Others<'a>>,
    ) -> Self {
        let tolerates_cordon = OnceCell::new();
        let volumes = !request.has_plain_volumes();
        let (in_use, taints, labels) = (false, None, None);
        Self { columns, request, tolerates_cordon, others, volumes, in_use, taints, labels }
    }

    /// Whether a pod somewhere uses a claim that one pod alone may use.
    pub(super) fn claims_in_use(self, in_use: bool) -> Self {
        Self { in_use, ..self }
    }

    fn tolerates_cordon(&self) -> bool {
        *self.tolerates_cordon.get_or_init(|| {
            let cordon =
                Taint { key: UNSCHEDULABLE.into(), value: "".into(), effect: Effect::NoSchedule };
            tolerated(&self.request.tolerations, &cordon)
        })
    }

    /// A view for all nodes.
    pub(super) fn memoised(
        columns: &'a Columns,
        request: &'a PodRequest,
        others: Option<&'a Others<'a>>,
    ) -> Self {
        let preferred = &request.preferred;
        let identity =
            request.required.reads_identity() || preferred.iter().any(|p| p.term.reads_identity());
        let affine = || {
            columns.profiles().map(|profile| {
                let node = Anonymous(profile);
                let matching = preferred.iter().filter(|p| p.term.matches(&node));
                Affine {
                    matches: request.required.matches(&node),
                    preferred: matching.map(|p| i64::from(p.weight)).sum(),
                }
            })
        };
        Self {
            taints: Some(columns.taint_sets().map(|taints| tainted(request, taints))),
            labels: (!identity).then(affine),
            ..Self::single(columns, request, others)
        }
    }

    /// Runs the filters on a node that is present and counts its rejection.
    pub(super) fn check(&self, index: usize, tally: &mut Tally) -> Verdict {
        let columns = self.columns;
        let runs = |plugin| self.request.policy.filters.contains(plugin);
        let (taints, affinity) = match self.by_kind(index) {
            Ok(raw) => raw,
            Err(reason) => return tally.unresolvable(reason),
        };
        let taken = &columns.ports[index];
        let collides = || {
            self.request.ports.iter().any(|port| taken.iter().any(|other| port.conflicts(other)))
        };
        if runs(Plugin::NodePorts) && collides() {
            return tally.resolvable(Slot::HostPorts);
        }
        if runs(Plugin::NodeResourcesFit) && !self.fits(index, tally) {
            return Verdict::Rejected;
        }
        if self.volumes && !self.takes_volumes(index, tally) {
            return Verdict::Rejected;
        }
        if let Some(others) = self.others
            && let Err(reason) = others.check(index)
        {
            return match reason {
                Reason::SpreadLabel => tally.unresolvable(Slot::SpreadLabel),
                Reason::SpreadSkew => tally.resolvable(Slot::SpreadSkew),
                Reason::PodAffinity => tally.unresolvable(Slot::PodAffinity),
                Reason::PodAntiAffinity => tally.resolvable(Slot::PodAntiAffinity),
                _ => tally.resolvable(Slot::ExistingAntiAffinity),
            };
        }
        Verdict::Pass { taints, affinity }
    }

    /// `VolumeRestrictions`, `NodeVolumeLimits`, `VolumeBinding` and `VolumeZone`.
    fn takes_volumes(&self, index: usize, tally: &mut Tally) -> bool {
        let (columns, rules) = (self.columns, &self.request.volumes);
        let runs = |plugin| self.request.policy.filters.contains(plugin);
        if runs(Plugin::VolumeRestrictions) {
            let disks = self.request.mounts.as_ref().map_or(&[][..], |mounts| &mounts.disks);
            if !disks.is_empty() && columns.mounts.conflicts(ColumnSlot::of(index).row(), disks) {
                tally.count(Slot::DiskConflict);
                return false;
            }
            if self.in_use {
                tally.count(Slot::ClaimInUse);
                return false;
            }
        }
        let (row, name) = (ColumnSlot::of(index).row(), columns.name_at(index));
        if !rules.attach.is_empty() && columns.mounts.exceeds(row, name, &rules.attach) {
            tally.count(Slot::VolumeLimit);
            return false;
        }
        let node = columns.named(index);
        let unbindable = rules.unbindable(&node, name, columns.mounts.attached.migrated(name));
        if !unbindable.is_empty() {
            tally.unresolvable += 1;
            for reason in unbindable {
                tally.count(match reason {
                    Reason::VolumeNode => Slot::VolumeNode,
                    Reason::VolumeSpace => Slot::VolumeSpace,
                    Reason::VolumeMissing => Slot::VolumeMissing,
                    _ => Slot::VolumeBind,
                });
            }
            return false;
        }
        if !rules.in_zones(&node) {
            tally.unresolvable(Slot::VolumeZone);
            return false;
        }
        true
    }

    /// The filters that nodes of one cell pass or fail together, unless the request asks for a node
    /// by its name, and the raw scores of those that pass.
    fn by_kind(&self, index: usize) -> Result<(i64, i64), Slot> {
        let columns = self.columns;
        let runs = |plugin| self.request.policy.filters.contains(plugin);
        if runs(Plugin::NodeUnschedulable)
            && columns.unschedulable[index]
            && !self.tolerates_cordon()
        {
            return Err(Slot::Unschedulable);
        }
        if let Some(name) = &self.request.node_name
            && runs(Plugin::NodeName)
            && *name != *columns.name_at(index)
        {
            return Err(Slot::NodeName);
        }
        let tainted = self.tainted(index);
        if tainted.forbids && runs(Plugin::TaintToleration) {
            return Err(Slot::UntoleratedTaint);
        }
        let affine = self.affine(index);
        if !affine.matches && runs(Plugin::NodeAffinity) {
            return Err(Slot::NodeAffinity);
        }
        Ok((tainted.preferred_away, affine.preferred))
    }

    /// Untolerated `PreferNoSchedule` taints and weights of preferred terms, the same on all nodes
    /// of a cell; `None` where none of them takes the pod.
    pub(super) fn of_cell(&self, index: usize) -> Option<(i64, i64)> {
        self.by_kind(index).ok()
    }

    fn tainted(&self, index: usize) -> Tainted {
        let id = self.columns.taint_set[index];
        if let Some(memo) = &self.taints {
            return memo.get(id as usize).copied().unwrap_or_default();
        }
        let taints = self.columns.taint_sets().get(id);
        taints.map_or_else(Tainted::default, |taints| tainted(self.request, taints))
    }

    fn affine(&self, index: usize) -> Affine {
        if let Some(memo) = &self.labels {
            let id = self.columns.profile[index];
            return memo.get(id as usize).copied().unwrap_or_default();
        }
        let node = self.columns.named(index);
        let matching = self.request.preferred.iter().filter(|p| p.term.matches(&node));
        Affine {
            matches: self.request.required.matches(&node),
            preferred: matching.map(|p| i64::from(p.weight)).sum(),
        }
    }

    /// `fitsRequest` in `noderesources/fit.go`: every resource that is short counts.
    fn fits(&self, index: usize, tally: &mut Tally) -> bool {
        let columns = self.columns;
        let wanted = &self.request.resources.requests;
        let mut fits = true;
        let mut resolvable = true;
        if columns.pods[index] + 1 > columns.allocatable_pods[index] {
            tally.count(Slot::TooManyPods);
            fits = false;
        }
        let mut short = |reason: Slot, amount: i64, allocatable: i64, used: i64| {
            if amount > 0 && amount > allocatable.saturating_sub(used) {
                tally.count(reason);
                resolvable &= amount <= allocatable;
                fits = false;
            }
        };
        let (i, c) = (index, columns);
        short(Slot::Cpu, wanted.milli_cpu, c.allocatable_cpu[i], c.cpu[i]);
        short(Slot::Memory, wanted.memory, c.allocatable_memory[i], c.memory[i]);
        short(Slot::Storage, wanted.ephemeral_storage, c.allocatable_storage[i], c.storage[i]);
        for (number, (name, amount)) in wanted.scalars.iter().enumerate() {
            let (allocatable, used) = columns.scalar(index, name);
            short(Slot::Scalar(number), *amount, allocatable, used);
        }
        if !fits && !resolvable {
            tally.unresolvable += 1;
        }
        fits
    }
}

fn tainted(request: &PodRequest, taints: &[Taint]) -> Tainted {
    let untolerated = || taints.iter().filter(|taint| !tolerated(&request.tolerations, taint));
    let avoided = untolerated().filter(|taint| taint.effect == Effect::PreferNoSchedule).count();
    Tainted {
        forbids: untolerated().any(Taint::forbids),
        preferred_away: i64::try_from(avoided).unwrap_or(i64::MAX),
    }
}

/// Where a reason is counted.
#[derive(Clone, Copy)]
enum Slot {
    Unschedulable,
    NodeName,
    UntoleratedTaint,
    NodeAffinity,
    HostPorts,
    TooManyPods,
    Cpu,
    Memory,
    Storage,
    DiskConflict,
    ClaimInUse,
    VolumeLimit,
    VolumeNode,
    VolumeBind,
    VolumeSpace,
    VolumeMissing,
    VolumeZone,
    SpreadLabel,
    SpreadSkew,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    /// The scalar resource of this number in the request.
    Scalar(usize),
}

const FIXED: usize = 22;

impl Slot {
    fn index(self) -> usize {
        match self {
            Self::Unschedulable => 0,
            Self::NodeName => 1,
            Self::UntoleratedTaint => 2,
            Self::NodeAffinity => 3,
            Self::HostPorts => 4,
            Self::TooManyPods => 5,
            Self::Cpu => 6,
            Self::Memory => 7,
            Self::Storage => 8,
            Self::DiskConflict => 9,
            Self::ClaimInUse => 10,
            Self::VolumeLimit => 11,
            Self::VolumeNode => 12,
            Self::VolumeBind => 13,
            Self::VolumeSpace => 14,
            Self::VolumeMissing => 15,
            Self::VolumeZone => 16,
            Self::SpreadLabel => 17,
            Self::SpreadSkew => 18,
            Self::PodAffinity => 19,
            Self::PodAntiAffinity => 20,
            Self::ExistingAntiAffinity => 21,
            Self::Scalar(number) => FIXED + number,
        }
    }
}

/// Rejections as they are counted.
pub(super) struct Tally<'a> {
    request: &'a PodRequest,
    fixed: [u64; FIXED],
    scalars: Vec<u64>,
    unresolvable: u64,
}

impl<'a> Tally<'a> {
    pub(super) fn new(request: &'a PodRequest) -> Self {
        let scalars = vec![0; request.resources.requests.scalars.len()];
        Self { request, fixed: [0; FIXED], scalars, unresolvable: 0 }
    }

    fn count(&mut self, slot: Slot) {
        let index = slot.index();
        let count = match index.checked_sub(FIXED) {
            None => self.fixed.get_mut(index),
            Some(number) => self.scalars.get_mut(number),
        };
        if let Some(count) = count {
            *count += 1;
        }
    }

    fn resolvable(&mut self, slot: Slot) -> Verdict {
        self.count(slot);
        Verdict::Rejected
    }

    fn unresolvable(&mut self, slot: Slot) -> Verdict {
        self.unresolvable += 1;
        self.resolvable(slot)
    }

    /// The counts by reason and the nodes where no eviction helps; `absent` nodes weren't looked
    /// at, since the pod is pinned to others.
    pub(super) fn finish(self, absent: u64) -> (Rejections, u64) {
        let scalars = self.request.resources.requests.scalars.iter();
        let reasons = [
            Reason::Unschedulable,
            Reason::NodeName,
            Reason::UntoleratedTaint,
            Reason::NodeAffinity,
            Reason::HostPorts,
            Reason::TooManyPods,
            Reason::cpu(),
            Reason::Insufficient("memory".into()),
            Reason::Insufficient("ephemeral-storage".into()),
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
        ];
        let reasons =
            reasons.into_iter().chain(scalars.map(|(name, _)| Reason::Insufficient(name.clone())));
        let counts = self.fixed.into_iter().chain(self.scalars);
        let mut rejections: Rejections =
            reasons.zip(counts).filter(|(_, count)| *count > 0).collect();
        if absent > 0 {
            rejections.insert(Reason::NotPinned, absent);
        }
        (rejections, self.unresolvable + absent)
    }
}
