//! Nodes as columns: what a filter or a score reads of all nodes lies side by side.

use std::sync::Arc;

use super::bound::{Load, Offer};
use super::event::{ClusterEvent, EventSet};
use super::facts::{Hostname, Kind, Named, NodeFacts, Profile};
use super::hash;
use super::images::Images;
use super::intern::Interner;
use super::maps::HashMap;
use super::ports::HostPort;
use super::resources::{CpuMemory, Resources};
use super::selector::HOSTNAME_LABEL;
use super::table::Share;
use super::taint::Taint;
use super::volumes::in_use::InUse;

/// A row of the table; stays the same for as long as the node or a pod on it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Slot(u32);

impl Slot {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn row(self) -> u32 {
        self.0
    }

    pub(super) fn of(index: usize) -> Self {
        // 2^32 nodes are more than anyone's memory holds rows for.
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }
}

/// What became of a node.
pub(super) struct NodeChange {
    pub(super) events: EventSet,
    /// The kind before and after.
    pub(super) kinds: (Option<u32>, Option<u32>),
}

/// A node's room and what is taken of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// What the node offers.
    pub allocatable: Resources,
    /// Sum of the requests of its pods; `pods` is their number.
    pub requested: Resources,
    /// The sum with defaults for containers that ask for nothing.
    pub non_zero: CpuMemory,
    /// Host ports taken, sorted.
    pub ports: Vec<HostPort>,
}

/// A resource that few nodes have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    name: Arc<str>,
    allocatable: i64,
    requested: i64,
}

const NO_ID: u32 = u32::MAX;
/// Spreads small numbers over all bits.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Amounts beyond this are beyond reason: sums of them may overflow.
const WILD: i64 = 1 << 56;

/// The lot of a node by the hash of its name, if it had so many pods.
pub(super) fn lot(seed: u64, name: u64, pods: i64) -> u64 {
    hash::mix(seed ^ name.wrapping_add(pods.cast_unsigned().wrapping_mul(ODD)))
}

/// One row for each node that is known or has pods.
#[derive(Debug, Default)]
pub(super) struct Columns {
    by_name: HashMap<Arc<str>, Slot>,
    free_slots: Vec<Slot>,
    nodes: usize,
    profiles: Interner<Profile>,
    taint_sets: Interner<Vec<Taint>>,
    kinds: Interner<Kind>,
    kind: Vec<u32>,
    /// By kind: a number that no other kind ever has, while ids are given out again.
    kind_serials: Vec<u64>,
    last_serial: u64,
    /// Rows that have changed since the cells were brought up to date, and which those are.
    dirty: Vec<u32>,
    is_dirty: Vec<bool>,
    odd_hostnames: usize,
    pub(super) images: Images,
    pub(super) mounts: InUse,

    pub(super) present: Vec<bool>,
    pub(super) unschedulable: Vec<bool>,
    pub(super) profile: Vec<u32>,
    pub(super) taint_set: Vec<u32>,
    pub(super) allocatable_cpu: Vec<i64>,
    pub(super) allocatable_memory: Vec<i64>,
    pub(super) allocatable_storage: Vec<i64>,
    pub(super) allocatable_pods: Vec<i64>,
    pub(super) cpu: Vec<i64>,
    pub(super) memory: Vec<i64>,
    pub(super) storage: Vec<i64>,
    pub(super) pods: Vec<i64>,
    pub(super) non_zero_cpu: Vec<i64>,
    pub(super) non_zero_memory: Vec<i64>,
    pub(super) scalars: Vec<Vec<Scalar>>,
    pub(super) ports: Vec<Vec<HostPort>>,
    pub(super) name_hash: Vec<u64>,
    names: Vec<Arc<str>>,
    hostnames: Vec<Option<Arc<str>>>,
    seen: Vec<u64>,
}

impl Columns {
    /// Rows, those of gone nodes among them.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn node_count(&self) -> usize {
        self.nodes
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter().zip(&self.present).filter(|(_, present)| **present).map(|(name, _)| name)
    }

    pub(super) fn name(&self, slot: Slot) -> &Arc<str> {
        &self.names[slot.index()]
    }

    pub(super) fn name_at(&self, index: usize) -> &Arc<str> {
        &self.names[index]
    }

    /// The slots of all nodes that are known.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..self.len()).filter(|row| self.present[*row]).map(Slot::of)
    }

    /// The slot of a node that is known.
    pub(super) fn find(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied().filter(|slot| self.present[slot.index()])
    }

    pub(super) fn profiles(&self) -> &Interner<Profile> {
        &self.profiles
    }

    pub(super) fn taint_sets(&self) -> &Interner<Vec<Taint>> {
        &self.taint_sets
    }

    pub(super) fn kinds(&self) -> &Interner<Kind> {
        &self.kinds
    }

    /// The kind of a node that is known.
    pub(super) fn kind(&self, slot: Slot) -> Option<u32> {
        Some(self.kind[slot.index()]).filter(|kind| *kind != NO_ID)
    }

    /// What tells the kind of a node that is known from any other there ever was.
    pub(super) fn kind_serial(&self, slot: Slot) -> Option<u64> {
        self.kind_serials.get(self.kind(slot)? as usize).copied()
    }

    /// What a node offers.
    pub(super) fn offer(&self, index: usize) -> Offer {
        Offer {
            cpu_memory: (self.allocatable_cpu[index], self.allocatable_memory[index]),
            storage: self.allocatable_storage[index],
            pods: self.allocatable_pods[index],
        }
    }

    /// What is taken on a node.
    pub(super) fn load(&self, index: usize) -> Load {
        Load {
            non_zero: (self.non_zero_cpu[index], self.non_zero_memory[index]),
            used: (self.cpu[index], self.memory[index]),
            storage: self.storage[index],
            pods: self.pods[index],
        }
    }

    /// Whether amounts on a node are such that sums of them may overflow.
    pub(super) fn is_wild(&self, index: usize) -> bool {
        let (offer, load) = (self.offer(index), self.load(index));
        let amounts = [
            offer.cpu_memory.0,
            offer.cpu_memory.1,
            offer.storage,
            load.non_zero.0,
            load.non_zero.1,
            load.used.0,
            load.used.1,
            load.storage,
        ];
        amounts.into_iter().any(|amount| !(0..=WILD).contains(&amount))
    }

    /// The lot that decides among equal nodes: the highest. It hangs on the seed, on the node's
    /// name and on how many pods it has, so not on how nodes are divided into tables, and a node
    /// draws anew when a pod comes or goes. That it says nothing of the pod that is to be placed is
    /// what lets an index keep the highest of many nodes.
    pub(super) fn lot(&self, seed: u64, index: usize) -> u64 {
        self.lot_with(seed, index, self.pods[index])
    }

    /// The lot that a node would draw if it had so many pods.
    pub(super) fn lot_with(&self, seed: u64, index: usize, pods: i64) -> u64 {
        lot(seed, self.name_hash[index], pods)
    }

    fn touch(&mut self, index: usize) {
        if !std::mem::replace(&mut self.is_dirty[index], true) {
            self.dirty.push(Slot::of(index).row());
        }
    }

    /// The rows that have changed since the last time, to be given back when they are read.
    pub(super) fn take_dirty(&mut self) -> Vec<u32> {
        let dirty = std::mem::take(&mut self.dirty);
        for row in &dirty {
            self.is_dirty[*row as usize] = false;
        }
        dirty
    }

    /// Takes the room for changed rows back.
    pub(super) fn give_back(&mut self, mut dirty: Vec<u32>) {
        // After a list of all nodes it isn't needed any more.
        if dirty.capacity() <= 4096 {
            dirty.clear();
            self.dirty = dirty;
        }
    }

    /// Whether some node's hostname label isn't its name, so that two nodes may share one.
    pub(super) fn has_odd_hostnames(&self) -> bool {
        self.odd_hostnames > 0
    }

    /// A node's hostname label.
    pub(super) fn hostname(&self, index: usize) -> Option<&Arc<str>> {
        self.hostnames[index].as_ref()
    }

    /// A node's label.
    pub(super) fn label(&self, index: usize, key: &str) -> Option<&str> {
        if key == HOSTNAME_LABEL {
            return self.hostnames[index].as_deref();
        }
        self.profiles.get(self.profile[index])?.get(key)
    }

    pub(super) fn named(&self, index: usize) -> Named<'_> {
        Named {
            profile: self.profiles.get(self.profile[index]),
            hostname: self.hostnames[index].as_deref(),
            name: &self.names[index],
        }
    }

    /// What is left of a scalar resource on a node.
    pub(super) fn scalar(&self, index: usize, name: &str) -> (i64, i64) {
        let scalar = self.scalars[index].iter().find(|scalar| *scalar.name == *name);
        scalar.map_or((0, 0), |scalar| (scalar.allocatable, scalar.requested))
    }

    pub(super) fn usage(&self, slot: Slot) -> NodeUsage {
        let i = slot.index();
        let scalars = |amount: fn(&Scalar) -> i64| {
            let mut scalars: Vec<_> = self.scalars[i]
                .iter()
                .map(|scalar| (Arc::clone(&scalar.name), amount(scalar)))
                .filter(|(_, amount)| *amount != 0)
                .collect();
            scalars.sort();
            scalars
        };
        let mut ports = self.ports[i].clone();
        ports.sort();
        NodeUsage {
            allocatable: Resources {
                milli_cpu: self.allocatable_cpu[i],
                memory: self.allocatable_memory[i],
                ephemeral_storage: self.allocatable_storage[i],
                pods: self.allocatable_pods[i],
                scalars: scalars(|scalar| scalar.allocatable),
            },
            requested: Resources {
                milli_cpu: self.cpu[i],
                memory: self.memory[i],
                ephemeral_storage: self.storage[i],
                pods: self.pods[i],
                scalars: scalars(|scalar| scalar.requested),
            },
            non_zero: CpuMemory {
                milli_cpu: self.non_zero_cpu[i],
                memory: self.non_zero_memory[i],
            },
            ports,
        }
    }

    /// The slot for a name, a new one when the name is new.
    pub(super) fn slot(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let name: Arc<str> = Arc::from(name);
        let slot = self.free_slots.pop().unwrap_or_else(|| self.grow());
        let i = slot.index();
        self.name_hash[i] = hash::hash(name.as_bytes());
        self.names[i] = Arc::clone(&name);
        self.by_name.insert(name, slot);
        slot
    }

    fn grow(&mut self) -> Slot {
        let slot = Slot::of(self.names.len());
        self.present.push(false);
        self.unschedulable.push(false);
        self.profile.push(NO_ID);
        self.taint_set.push(NO_ID);
        self.kind.push(NO_ID);
        self.images.grow();
        for column in [
            &mut self.allocatable_cpu,
            &mut self.allocatable_memory,
            &mut self.allocatable_storage,
            &mut self.allocatable_pods,
            &mut self.cpu,
            &mut self.memory,
            &mut self.storage,
            &mut self.pods,
            &mut self.non_zero_cpu,
            &mut self.non_zero_memory,
        ] {
            column.push(0);
        }
        self.scalars.push(Vec::new());
        self.ports.push(Vec::new());
        self.name_hash.push(0);
        self.names.push(Arc::from(""));
        self.hostnames.push(None);
        self.seen.push(0);
        self.is_dirty.push(false);
        slot
    }

    pub(super) fn set_node(&mut self, slot: Slot, facts: NodeFacts, seen: u64) -> NodeChange {
        let i = slot.index();
        self.touch(i);
        let before = self.usage(slot).allocatable;
        let was_present = std::mem::replace(&mut self.present[i], true);
        let uncordoned = std::mem::replace(&mut self.unschedulable[i], facts.unschedulable)
            && !facts.unschedulable;
        self.nodes += usize::from(!was_present);
        self.seen[i] = seen;

        let old_kind = self.kind(slot);
        let profile = self.profiles.hold(facts.profile);
        let old_profile = std::mem::replace(&mut self.profile[i], profile);
        self.profiles.release(old_profile);
        let relabelled = old_profile != profile || self.hostnames[i] != facts.hostname;
        // Mostly it is the name, which is there already.
        let named = facts.hostname.as_ref().is_some_and(|hostname| *hostname == self.names[i]);
        self.hostnames[i] = if named { Some(Arc::clone(&self.names[i])) } else { facts.hostname };

        let taints = self.taint_sets.hold(facts.taints);
        let old_taints = std::mem::replace(&mut self.taint_set[i], taints);
        self.taint_sets.release(old_taints);
        let kinds = (old_kind, Some(self.set_kind(slot, profile, taints)));
        self.images.set(i, facts.images);

        let grew = more(&facts.allocatable, &before);
        self.set_allocatable(i, facts.allocatable);
        if !was_present {
            return NodeChange { events: ClusterEvent::NodeAdded.into(), kinds };
        }
        let changes = [
            (grew, ClusterEvent::NodeAllocatable),
            (relabelled, ClusterEvent::NodeLabels),
            (uncordoned || old_taints != taints, ClusterEvent::NodeTaints),
        ];
        let events = changes.into_iter().filter(|(changed, _)| *changed);
        NodeChange { events: events.map(|(_, event)| event).collect(), kinds }
    }

    /// Holds the new kind before the old one is let go, so that no id means both.
    fn set_kind(&mut self, slot: Slot, profile: u32, taints: u32) -> u32 {
        let i = slot.index();
        let hostname = match &self.hostnames[i] {
            None => Hostname::Absent,
            Some(hostname) if *hostname == self.names[i] => Hostname::Own,
            Some(_) => Hostname::Odd,
        };
        let kind = self.kinds.hold(Kind { profile, taints, hostname });
        if self.kinds.holders(kind) == 1 {
            self.last_serial += 1;
            if self.kind_serials.len() <= kind as usize {
                self.kind_serials.resize(kind as usize + 1, 0);
            }
            self.kind_serials[kind as usize] = self.last_serial;
        }
        self.odd_hostnames += usize::from(hostname == Hostname::Odd);
        let old = std::mem::replace(&mut self.kind[i], kind);
        self.release_kind(old);
        kind
    }

    fn release_kind(&mut self, kind: u32) {
        let odd = self.kinds.get(kind).is_some_and(|kind| kind.hostname == Hostname::Odd);
        self.odd_hostnames -= usize::from(odd);
        self.kinds.release(kind);
    }

    fn set_allocatable(&mut self, i: usize, allocatable: Resources) {
        self.allocatable_cpu[i] = allocatable.milli_cpu;
        self.allocatable_memory[i] = allocatable.memory;
        self.allocatable_storage[i] = allocatable.ephemeral_storage;
        self.allocatable_pods[i] = allocatable.pods;
        for scalar in &mut self.scalars[i] {
            scalar.allocatable = 0;
        }
        for (name, amount) in allocatable.scalars {
            self.scalar_mut(i, &name).allocatable = amount;
        }
        self.scalars[i].retain(|scalar| scalar.allocatable != 0 || scalar.requested != 0);
    }

    fn scalar_mut(&mut self, i: usize, name: &Arc<str>) -> &mut Scalar {
        let scalars = &mut self.scalars[i];
        let index = scalars.iter().position(|scalar| scalar.name == *name).unwrap_or_else(|| {
            scalars.push(Scalar { name: Arc::clone(name), allocatable: 0, requested: 0 });
            scalars.len() - 1
        });
        &mut scalars[index]
    }

    /// The node is gone; its pods stay counted.
    pub(super) fn clear_node(&mut self, slot: Slot) {
        let i = slot.index();
        if !std::mem::replace(&mut self.present[i], false) {
            return;
        }
        self.touch(i);
        self.nodes -= 1;
        self.unschedulable[i] = false;
        let kind = std::mem::replace(&mut self.kind[i], NO_ID);
        self.release_kind(kind);
        self.images.set(i, Vec::new());
        self.profiles.release(std::mem::replace(&mut self.profile[i], NO_ID));
        self.taint_sets.release(std::mem::replace(&mut self.taint_set[i], NO_ID));
        self.hostnames[i] = None;
        self.set_allocatable(i, Resources::default());
        self.recycle(slot);
    }

    /// The nodes that the list of this number didn't show.
    pub(super) fn unseen(&self, list: u64) -> Vec<Slot> {
        let unseen = |i: &usize| self.present[*i] && self.seen[*i] < list;
        (0..self.len()).filter(unseen).map(Slot::of).collect()
    }

    /// Gives the row of a node back that is neither known nor has pods.
    fn recycle(&mut self, slot: Slot) {
        let i = slot.index();
        if !self.present[i] && self.pods[i] == 0 {
            let name = std::mem::replace(&mut self.names[i], Arc::from(""));
            self.by_name.remove(&name);
            self.free_slots.push(slot);
        }
    }

    pub(super) fn add(&mut self, slot: Slot, share: &Share) {
        self.pods[slot.index()] += 1;
        self.account(slot, share, i64::wrapping_add);
        self.ports[slot.index()].extend(share.ports.iter().cloned());
        if let Some(mounts) = &share.mounts {
            self.mounts.add(slot.row(), mounts);
        }
    }

    pub(super) fn subtract(&mut self, slot: Slot, share: &Share) {
        let i = slot.index();
        self.pods[i] -= 1;
        self.account(slot, share, i64::wrapping_sub);
        if let Some(mounts) = &share.mounts {
            self.mounts.remove(slot.row(), mounts);
        }
        for port in &share.ports {
            if let Some(index) = self.ports[i].iter().position(|taken| taken == port) {
                self.ports[i].swap_remove(index);
            }
        }
        self.recycle(slot);
    }

    fn account(&mut self, slot: Slot, share: &Share, apply: fn(i64, i64) -> i64) {
        let i = slot.index();
        self.touch(i);
        let (requests, non_zero) = (&share.resources.requests, &share.resources.non_zero);
        for (column, amount) in [
            (&mut self.cpu, requests.milli_cpu),
            (&mut self.memory, requests.memory),
            (&mut self.storage, requests.ephemeral_storage),
            (&mut self.non_zero_cpu, non_zero.milli_cpu),
            (&mut self.non_zero_memory, non_zero.memory),
        ] {
            column[i] = apply(column[i], amount);
        }
        for (name, amount) in &requests.scalars {
            let scalar = self.scalar_mut(i, name);
            scalar.requested = apply(scalar.requested, *amount);
        }
        self.scalars[i].retain(|scalar| scalar.allocatable != 0 || scalar.requested != 0);
    }
}

/// Whether the new amounts exceed the old ones anywhere.
fn more(new: &Resources, old: &Resources) -> bool {
    let scalar = |name: &str| {
        old.scalars.iter().find(|(n, _)| **n == *name).map(|(_, v)| *v).unwrap_or_default()
    };
    new.milli_cpu > old.milli_cpu
        || new.memory > old.memory
        || new.ephemeral_storage > old.ephemeral_storage
        || new.pods > old.pods
        || new.scalars.iter().any(|(name, amount)| *amount > scalar(name))
}
