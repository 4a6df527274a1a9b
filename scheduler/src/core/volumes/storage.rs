//! The objects that volumes hang on, and what they mean for a pod.
//!
//! Beside what the watches show there is what the leader has decided and the watches don't show
//! yet: a volume that is being bound to a claim, a node that a volume is being made on. Each such
//! assumption ends when the watch shows a newer version of its object, or is given back
//! (`passive_assume_cache.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attach::{Attachable, driver_of};
use super::late::{Candidate, Late, Provision, Unbound};
use super::mounts::{ClaimName, Mounts};
use super::objects::{Attachment, Capacity, Claim, Class, Driver, Limits, Owner, Volume};
use super::rules::{Bound, Refusal, Rules};
use crate::core::diagnosis::Plugin;
use crate::core::directory::Key;
use crate::core::event::{ClusterEvent, EventSet};
use crate::core::maps::{HashMap, HashSet};
use crate::core::pod::{PodRequest, Unsupported};
use crate::core::quantity::Amount;

/// Resolved requests that are remembered; the memory starts anew when it is full.
const MEMO: usize = 4096;

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `PersistentVolumeClaim`
    Claim(Claim),
    /// `PersistentVolume`
    Volume(Volume),
    /// `StorageClass`
    Class(Class),
    /// `CSIDriver`
    Driver(Driver),
    /// `CSIStorageCapacity`
    Capacity(Capacity),
    /// `CSINode`
    Limits(Limits),
    /// `VolumeAttachment`
    Attachment(Attachment),
}

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `PersistentVolumeClaim`
    Claim,
    /// `PersistentVolume`
    Volume,
    /// `StorageClass`
    Class,
    /// `CSIDriver`
    Driver,
    /// `CSIStorageCapacity`
    Capacity,
    /// `CSINode`
    Limits,
    /// `VolumeAttachment`
    Attachment,
}

impl Kind {
    /// Those that a relay reads.
    pub const ALL: [Self; 6] =
        [Self::Claim, Self::Volume, Self::Class, Self::Driver, Self::Capacity, Self::Limits];
    /// Those that a shard reads, to count what is attached.
    pub const COUNTED: [Self; 5] =
        [Self::Claim, Self::Volume, Self::Class, Self::Limits, Self::Attachment];
}

/// News of objects.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "few are there at a time")]
pub enum Change {
    /// All objects of a kind.
    Replace(Kind, Vec<(Key, Object)>),
    /// One object; none: it is gone.
    One(Kind, Key, Option<Object>),
}

/// Whom a change may help.
#[derive(Clone, Debug, Default)]
pub struct Helped {
    /// Whoever waits for these.
    pub events: EventSet,
    /// Whoever mounts one of these claims.
    pub claims: Vec<Key>,
}

#[derive(Debug)]
struct Resolved {
    /// Keeps the address, by which it is remembered, from being used again.
    _request: Arc<PodRequest>,
    generation: u64,
    outcome: Arc<PodRequest>,
}

/// The objects.
#[derive(Debug, Default)]
pub struct Storage {
    pub(super) claims: HashMap<Key, Claim>,
    pub(super) volumes: HashMap<Arc<str>, Volume>,
    /// Volumes by class, in the order of their names.
    by_class: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    classes: HashMap<Arc<str>, Class>,
    drivers: HashMap<Arc<str>, Driver>,
    capacities: BTreeMap<Key, Capacity>,
    pub(super) limits: HashMap<Arc<str>, Limits>,
    /// On how many nodes a driver has a limit.
    limited: HashMap<Arc<str>, usize>,
    /// Volumes being bound: for whom, and by which version of the volume.
    pub(super) assumed_volumes: HashMap<Arc<str>, (Arc<str>, Owner)>,
    /// Claims for which a volume is being made: where, and by which version of the claim.
    pub(super) assumed_claims: HashMap<Key, (Arc<str>, Arc<str>)>,
    complete: HashSet<Kind>,
    pub(super) generation: u64,
    memo: HashMap<usize, Resolved>,
}

impl Storage {
    /// Whether the objects of all kinds have been read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.len() == Kind::ALL.len()
    }

    /// Takes over what a watch shows.
    pub fn apply(&mut self, change: Change) -> Helped {
        let mut helped = Helped::default();
        match change {
            Change::One(kind, key, object) => self.set(kind, key, object, &mut helped),
            Change::Replace(kind, objects) => {
                self.complete.insert(kind);
                let kept: HashSet<Key> = objects.iter().map(|(key, _)| key.clone()).collect();
                let gone: Vec<Key> =
                    self.keys(kind).into_iter().filter(|key| !kept.contains(key)).collect();
                for key in gone {
                    self.set(kind, key, None, &mut helped);
                }
                for (key, object) in objects {
                    self.set(kind, key, Some(object), &mut helped);
                }
            }
        }
        helped
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let named = |name: &Arc<str>| (Arc::from(""), Arc::clone(name));
        match kind {
            Kind::Claim => self.claims.keys().cloned().collect(),
            Kind::Volume => self.volumes.keys().map(named).collect(),
            Kind::Class => self.classes.keys().map(named).collect(),
            Kind::Driver => self.drivers.keys().map(named).collect(),
            Kind::Capacity => self.capacities.keys().cloned().collect(),
            Kind::Limits => self.limits.keys().map(named).collect(),
            Kind::Attachment => Vec::new(),
        }
    }

    fn set(&mut self, kind: Kind, key: Key, object: Option<Object>, helped: &mut Helped) {
        let there = object.is_some();
        let (changed, event) = match (kind, object) {
            (Kind::Claim, Some(Object::Claim(claim))) => {
                let changed = self.claims.get(&key) != Some(&claim);
                if changed {
                    self.assumed_claims.remove(&key);
                    helped.claims.push(key.clone());
                    self.claims.insert(key, claim);
                }
                (changed, None)
            }
            (Kind::Claim, _) => {
                self.assumed_claims.remove(&key);
                (self.claims.remove(&key).is_some(), None)
            }
            (Kind::Volume, Some(Object::Volume(volume))) => {
                let changed = self.volumes.get(&key.1) != Some(&volume);
                if changed {
                    self.remove_volume(&key.1);
                    let class = self.by_class.entry(Arc::clone(&volume.class)).or_default();
                    class.insert(Arc::clone(&key.1));
                    self.volumes.insert(key.1, volume);
                }
                (changed, Some(ClusterEvent::VolumeChanged))
            }
            (Kind::Volume, _) => (self.remove_volume(&key.1), None),
            (Kind::Class, Some(Object::Class(class))) => {
                let changed = self.classes.get(&key.1) != Some(&class);
                self.classes.insert(key.1, class);
                (changed, Some(ClusterEvent::ClassChanged))
            }
            (Kind::Class, _) => (self.classes.remove(&key.1).is_some(), None),
            (Kind::Driver, Some(Object::Driver(driver))) => {
                let before = self.drivers.insert(key.1, driver);
                (before != Some(driver), Some(ClusterEvent::CapacityChanged))
            }
            (Kind::Driver, _) => (self.drivers.remove(&key.1).is_some(), None),
            (Kind::Capacity, Some(Object::Capacity(capacity))) => {
                let changed = self.capacities.get(&key) != Some(&capacity);
                self.capacities.insert(key, capacity);
                (changed, Some(ClusterEvent::CapacityChanged))
            }
            (Kind::Capacity, _) => (self.capacities.remove(&key).is_some(), None),
            (Kind::Limits, Some(Object::Limits(limits))) => {
                (self.set_limits(&key.1, Some(limits)), None)
            }
            (Kind::Limits, _) => (self.set_limits(&key.1, None), None),
            // Shards count.
            (Kind::Attachment, _) => (false, None),
        };
        if changed {
            self.generation += 1;
            if let Some(event) = event.filter(|_| there) {
                helped.events |= event.into();
            }
        }
    }

    /// Whether a driver has a limit now that had none, or the other way round.
    fn set_limits(&mut self, node: &Arc<str>, limits: Option<Limits>) -> bool {
        let mut changed = false;
        for (driver, _) in limits.iter().flat_map(|limits| &limits.drivers) {
            let nodes = self.limited.entry(Arc::clone(driver)).or_default();
            *nodes += 1;
            changed |= *nodes == 1;
        }
        let before = match limits {
            Some(limits) => self.limits.insert(Arc::clone(node), limits),
            None => self.limits.remove(node),
        };
        for (driver, _) in before.iter().flat_map(|limits| &limits.drivers) {
            let Some(nodes) = self.limited.get_mut(driver) else { continue };
            *nodes -= 1;
            if *nodes == 0 {
                self.limited.remove(driver);
                changed = true;
            }
        }
        changed
    }

    fn remove_volume(&mut self, name: &Arc<str>) -> bool {
        let Some(volume) = self.volumes.remove(name) else { return false };
        self.assumed_volumes.remove(name);
        if let Some(names) = self.by_class.get_mut(&volume.class) {
            names.remove(name);
            if names.is_empty() {
                self.by_class.remove(&volume.class);
            }
        }
        true
    }

    /// The request with what its volumes ask. The same request gives the same allocation for as
    /// long as nothing changes; one without claims is given back as it is.
    pub fn resolve(&mut self, request: &Arc<PodRequest>) -> Arc<PodRequest> {
        let Some(mounts) = &request.mounts else { return Arc::clone(request) };
        if mounts.claims.is_empty() && mounts.inline.is_empty() {
            return Arc::clone(request);
        }
        let address = Arc::as_ptr(request).addr();
        if let Some(known) = self.memo.get(&address)
            && known.generation == self.generation
        {
            return Arc::clone(&known.outcome);
        }
        let mut resolved = PodRequest::clone(request);
        let (rules, unsupported) = self.rules(mounts, request);
        resolved.volumes = rules;
        resolved.unsupported.extend(unsupported);
        let resolved = if resolved == **request { Arc::clone(request) } else { Arc::new(resolved) };
        if self.memo.len() >= MEMO {
            self.memo.clear();
        }
        let known = Resolved {
            _request: Arc::clone(request),
            generation: self.generation,
            outcome: Arc::clone(&resolved),
        };
        self.memo.insert(address, known);
        resolved
    }

    fn rules(&self, mounts: &Mounts, request: &PodRequest) -> (Rules, Vec<Unsupported>) {
        let runs = |plugin| request.policy.filters.contains(plugin);
        let mut rules = Rules::default();
        let mut unsupported = Vec::new();
        let refuse = |plugin, message| {
            (Rules { refusal: Some(Refusal { plugin, message }), ..Rules::default() }, Vec::new())
        };
        if runs(Plugin::VolumeRestrictions) {
            for name in mounts.claims.iter().filter(|claim| !claim.ephemeral) {
                match self.claim(mounts, name) {
                    None => return refuse(Plugin::VolumeRestrictions, not_found(name)),
                    Some(claim) if claim.is_exclusive() => {
                        if !rules.exclusive.contains(&name.name) {
                            rules.exclusive.push(Arc::clone(&name.name));
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        if runs(Plugin::VolumeBinding) {
            if let Some(message) = self.unusable(mounts) {
                return refuse(Plugin::VolumeBinding, message);
            }
            let mut waiting = Vec::new();
            for name in &mounts.claims {
                let Some(claim) = self.claim(mounts, name) else { continue };
                if claim.is_bound() {
                    rules.bound.extend(self.bound(claim));
                } else if claim.volume.is_empty() && self.waits(claim) {
                    waiting.push((name, claim));
                } else {
                    let message = "pod has unbound immediate PersistentVolumeClaims".to_owned();
                    return refuse(Plugin::VolumeBinding, message);
                }
            }
            if !waiting.is_empty() {
                rules.late = Some(self.late(mounts, waiting));
            }
        }
        if runs(Plugin::VolumeZone) {
            for name in mounts.claims.iter().filter(|claim| !claim.ephemeral) {
                match self.zone(mounts, name) {
                    Err(message) => return refuse(Plugin::VolumeZone, message),
                    Ok(None) => {}
                    Ok(Some(volume)) => rules.zones.extend(volume.zones.iter().cloned()),
                }
            }
        }
        if runs(Plugin::NodeVolumeLimits) {
            match self.attachables(mounts) {
                Err(message) => return refuse(Plugin::NodeVolumeLimits, message),
                Ok(attach) => rules.attach = attach,
            }
        }
        for name in &mounts.claims {
            if let Some(claim) = self.claim(mounts, name)
                && !self.is_supported(claim)
            {
                unsupported.push(Unsupported::Volume(name.name.to_string()));
            }
        }
        unsupported.sort();
        unsupported.dedup();
        (rules, unsupported)
    }

    fn claim(&self, mounts: &Mounts, name: &ClaimName) -> Option<&Claim> {
        self.claims.get(&(Arc::clone(&mounts.namespace), Arc::clone(&name.name)))
    }

    /// What the pod adds to its node, of drivers that have a limit somewhere
    /// (`filterAttachableVolumes`).
    fn attachables(&self, mounts: &Mounts) -> Result<Vec<Attachable>, String> {
        let mut attach: BTreeSet<Attachable> = mounts.inline.iter().cloned().collect();
        for name in &mounts.claims {
            let (namespace, claim_name) = (&mounts.namespace, &name.name);
            let Some(claim) = self.claim(mounts, name) else {
                let missing = not_found(name);
                return Err(format!("looking up PVC {namespace}/{claim_name}: {missing}"));
            };
            if let Some(message) = not_owned(mounts, name, claim) {
                return Err(message);
            }
            let volume = self.volumes.get(&claim.volume).map(|volume| &volume.attachable);
            let driver = self.classes.get(&claim.class).and_then(driver_of);
            let of = Attachable::of_claim((namespace, claim_name), volume, || driver.as_ref());
            attach.extend(of.map(std::borrow::Cow::into_owned));
        }
        attach.retain(|one| self.limited.contains_key(&one.driver));
        Ok(attach.into_iter().collect())
    }

    /// `podHasPVCs`: why the first claim that can't be used can't be.
    fn unusable(&self, mounts: &Mounts) -> Option<String> {
        mounts.claims.iter().find_map(|name| {
            let claim_name = &name.name;
            let Some(claim) = self.claim(mounts, name) else {
                return Some(if name.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the \
                         persistentvolumeclaim {claim_name:?}"
                    )
                } else {
                    not_found(name)
                });
            };
            if claim.lost {
                let volume = &claim.volume;
                return Some(format!(
                    "persistentvolumeclaim {claim_name:?} bound to non-existent persistentvolume \
                     {volume:?}"
                ));
            }
            if claim.deleting {
                return Some(format!("persistentvolumeclaim {claim_name:?} is being deleted"));
            }
            not_owned(mounts, name, claim)
        })
    }

    fn bound(&self, claim: &Claim) -> Option<Bound> {
        match self.volumes.get(&claim.volume) {
            None => Some(Bound::Missing),
            Some(volume) => match &volume.migrated {
                Some((plugin, Ok(after))) => Some(Bound::Migrated {
                    plugin: Arc::clone(plugin),
                    before: volume.nodes.clone(),
                    after: after.clone(),
                }),
                _ if volume.nodes.is_empty() => None,
                _ => Some(Bound::At(volume.nodes.clone())),
            },
        }
    }

    fn waits(&self, claim: &Claim) -> bool {
        self.classes.get(&claim.class).is_some_and(|class| class.waits == Some(true))
    }

    /// `VolumeZone.getPVbyPod`: the claim's volume, if it is in any zone.
    fn zone(&self, mounts: &Mounts, name: &ClaimName) -> Result<Option<&Volume>, String> {
        let Some(claim) = self.claim(mounts, name) else { return Err(not_found(name)) };
        if !claim.volume.is_empty() {
            let volume = self.volumes.get(&claim.volume);
            let message = || format!("persistentvolume {:?} not found", claim.volume);
            return volume.map(Some).ok_or_else(message);
        }
        if claim.class.is_empty() {
            let message = "PersistentVolumeClaim had no pv name and storageClass name";
            return Err(message.to_owned());
        }
        match self.classes.get(&claim.class).map(|class| class.waits) {
            None => {
                let class = &claim.class;
                Err(format!("storageclass.storage.k8s.io {class:?} not found"))
            }
            Some(None) => {
                Err(format!("VolumeBindingMode not set for StorageClass {:?}", claim.class))
            }
            Some(Some(true)) => Ok(None),
            Some(Some(false)) => Err("PersistentVolume had no name".to_owned()),
        }
    }

    /// Whether what hangs on the claim can be told; where it can't, kube-scheduler fails too.
    fn is_supported(&self, claim: &Claim) -> bool {
        if let Some(volume) = self.volumes.get(&claim.volume) {
            return !matches!(volume.migrated, Some((_, Err(()))));
        }
        let Some(class) = self.classes.get(&claim.class) else { return true };
        class.waits.is_some() && claim.selector.is_ok()
    }

    fn late(&self, mounts: &Mounts, waiting: Vec<(&ClaimName, &Claim)>) -> Late {
        let unbound = |(name, claim): (&ClaimName, &Claim)| {
            let key = (Arc::clone(&mounts.namespace), Arc::clone(&name.name));
            let assumed = self.assumed_claims.get(&key);
            let assumed = assumed.filter(|(version, _)| *version == claim.version);
            let selected = assumed.map(|(_, node)| node).or(claim.selected.as_ref()).cloned();
            let candidates = match selected {
                Some(_) => Vec::new(),
                None => self.candidates(&key, claim),
            };
            let unbound =
                Unbound { name: key.1, selected, candidates, provision: self.provision(claim) };
            (claim.asked.unwrap_or_default(), unbound)
        };
        let all = waiting.into_iter().map(unbound);
        let (first, mut rest): (Vec<_>, Vec<_>) = all.partition(|(_, u)| u.selected.is_some());
        rest.sort_by_key(|(asked, _)| *asked);
        Late { claims: first.into_iter().chain(rest).map(|(_, unbound)| unbound).collect() }
    }

    /// `FindMatchingVolume` but for the node.
    fn candidates(&self, key: &Key, claim: &Claim) -> Vec<Candidate> {
        let asked = claim.asked.unwrap_or_default();
        let mut found: Vec<(Amount, Candidate)> = Vec::new();
        let names = self.by_class.get(&claim.class).into_iter().flatten();
        for name in names {
            let Some(volume) = self.volumes.get(name) else { continue };
            let assumed = self.assumed_volumes.get(name);
            let assumed = assumed.filter(|(version, _)| *version == volume.version);
            let theirs = match assumed {
                Some((_, owner)) => Some(
                    owner.uid == claim.uid && (&owner.namespace, &owner.name) == (&key.0, &key.1),
                ),
                None if volume.owner.is_none() => None,
                None => Some(volume.is_meant_for(&key.0, &key.1, &claim.uid)),
            };
            let suits = theirs != Some(false)
                && volume.capacity >= asked
                && volume.block == claim.block
                && volume.attributes == claim.attributes
                && !volume.deleting;
            if !suits {
                continue;
            }
            let candidate = Candidate { name: Arc::clone(name), nodes: volume.nodes.clone() };
            if theirs == Some(true) {
                return vec![candidate];
            }
            let selected = match &claim.selector {
                Ok(None) => true,
                Ok(Some(selector)) => selector.matches(&volume.labels),
                Err(()) => false,
            };
            if volume.available
                && selected
                && claim.modes.iter().all(|mode| volume.modes.contains(mode))
            {
                found.push((volume.capacity, candidate));
            }
        }
        found.sort_by_key(|(capacity, _)| *capacity);
        found.into_iter().map(|(_, candidate)| candidate).collect()
    }

    fn provision(&self, claim: &Claim) -> Provision {
        let Some(class) = self.classes.get(&claim.class) else { return Provision::Never };
        if class.provisioner.is_empty() {
            return Provision::Never;
        }
        let driver = self.drivers.get(&class.provisioner);
        let looked_at = driver.is_some_and(|driver| driver.tells_capacity);
        let capacities = claim.asked.filter(|_| looked_at).map(|asked| {
            let enough = |capacity: &&Capacity| {
                capacity.class == claim.class
                    && capacity.limit.is_some_and(|limit| limit >= asked.value())
            };
            let mut nodes: Vec<_> =
                self.capacities.values().filter(enough).map(|c| c.nodes.clone()).collect();
            nodes.dedup();
            nodes
        });
        Provision::Where { topologies: class.topologies.clone(), capacities }
    }
}

fn not_found(claim: &ClaimName) -> String {
    format!("persistentvolumeclaim {:?} not found", claim.name)
}

/// `VolumeIsForPod`: why an ephemeral claim isn't the pod's.
fn not_owned(mounts: &Mounts, name: &ClaimName, claim: &Claim) -> Option<String> {
    let consumer = mounts.consumer.as_ref().filter(|_| name.ephemeral)?;
    let (namespace, claim_name, pod) = (&mounts.namespace, &name.name, &consumer.name);
    (claim.controller != consumer.uid).then(|| {
        format!(
            "PVC {namespace}/{claim_name} was not created for pod {namespace}/{pod} (pod is not \
             owner)"
        )
    })
}
