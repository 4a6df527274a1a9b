//! Claims that wait for their pods: who writes what for them, who binds them to volumes and makes
//! new ones, and what must hold of that: no volume is meant for two claims, and no pod is bound
//! before its claim is, nor where the volume isn't reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use megacluster_scheduler::core::labels::Labels;
use megacluster_scheduler::core::volumes::binding::Step;
use megacluster_scheduler::core::volumes::objects::{Claim, Class, Volume};
use megacluster_scheduler::core::volumes::storage::{Change, Kind, Object};
use megacluster_scheduler::relay::mount::{MountOrder, MountOutcome};
use megacluster_scheduler::relay::pods::Intake;
use rand::RngExt;
use serde_json::json;

use crate::api::{node, role, zone_of};
use crate::world::{Event, Simulation};
use crate::{NODES, SLOTS, Time, ms, number};

/// Volumes that are there from the beginning, one for each zone.
const STATIC: u32 = 4;

/// What a pod's claim is like.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiClaim {
    version: u64,
    volume: Option<String>,
    selected: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct ApiVolume {
    version: u64,
    zone: u32,
    /// For whose claim it is meant.
    owner: Option<u32>,
}

/// Claims by pod, volumes by name, and which of them changed when.
#[derive(Default)]
pub(crate) struct Claims {
    by_pod: BTreeMap<u32, ApiClaim>,
    volumes: BTreeMap<String, ApiVolume>,
    pub(crate) history: Vec<(Time, Stored)>,
    version: u64,
    /// How many were bound to volumes that were there, and to volumes that were made.
    pub(crate) bound: (u32, u32),
}

#[derive(Clone)]
pub(crate) enum Stored {
    Claim(u32),
    Volume(String),
}

/// Orders under way: the next step, and what the ones before gave.
pub(crate) struct Writing {
    relay: usize,
    run: u64,
    order: MountOrder,
    versions: Vec<Arc<str>>,
}

pub(crate) fn has_claim(number: u32) -> bool {
    number % 6 == 1 && role(number) == "plain"
}

/// A volume of a zone is reached from every other zone, so that there mostly is room for its pod.
fn reach(zone: u32) -> [String; 2] {
    [zone % 2, zone % 2 + 2].map(|zone| zone.to_string())
}

fn owner(claim: &str) -> u32 {
    claim.trim_start_matches('c').parse().expect("a claim of ours")
}

impl Claims {
    pub(crate) fn begin(&mut self) {
        for zone in 0..STATIC {
            let volume = ApiVolume { version: 1, zone, owner: None };
            self.volumes.insert(format!("v{zone}"), volume);
        }
        self.version = 1;
    }

    pub(crate) fn create(&mut self, now: Time, number: u32) {
        self.version += 1;
        self.by_pod.insert(number, ApiClaim { version: self.version, ..ApiClaim::default() });
        self.history.push((now, Stored::Claim(number)));
    }

    /// The pod's claim goes with it; its volume is free again, or goes as well.
    pub(crate) fn delete(&mut self, now: Time, number: u32) {
        if self.by_pod.remove(&number).is_none() {
            return;
        }
        self.history.push((now, Stored::Claim(number)));
        let meant = |(_, volume): &(&String, &ApiVolume)| volume.owner == Some(number);
        let names: Vec<String> =
            self.volumes.iter().filter(meant).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.free(now, &name);
        }
    }

    fn free(&mut self, now: Time, name: &str) {
        self.version += 1;
        let version = self.version;
        if name.starts_with("made") {
            self.volumes.remove(name);
        } else if let Some(volume) = self.volumes.get_mut(name) {
            (volume.owner, volume.version) = (None, version);
        }
        self.history.push((now, Stored::Volume(name.to_owned())));
    }

    /// Writes a step, if the object is still as the relay knows it; its version since.
    fn write(&mut self, now: Time, order: &MountOrder, step: &Step) -> Option<u64> {
        let next = self.version + 1;
        match step {
            Step::Bind { volume: name, version, claim, .. } => {
                let volume = self.volumes.get_mut(&**name)?;
                if volume.version.to_string() != **version {
                    return None;
                }
                let claim = owner(claim);
                let free = volume.owner.is_none_or(|owner| owner == claim);
                assert!(free, "{now:?}: {name} is meant for {:?} and for {claim}", volume.owner);
                (volume.owner, volume.version) = (Some(claim), next);
                self.history.push((now, Stored::Volume(name.to_string())));
            }
            Step::Select { claim, version } => {
                let number = owner(claim);
                let claim = self.by_pod.get_mut(&number)?;
                if claim.version.to_string() != **version {
                    return None;
                }
                (claim.selected, claim.version) = (Some(order.node.to_string()), next);
                self.history.push((now, Stored::Claim(number)));
            }
        }
        self.version = next;
        Some(next)
    }

    /// What the controllers do for a claim: bind it to a volume that is meant for it, or to one
    /// that is made where the scheduler said; or fail at that.
    pub(crate) fn settle(&mut self, now: Time, number: u32, fails: bool) {
        let Some(claim) = self.by_pod.get_mut(&number).filter(|c| c.volume.is_none()) else {
            return;
        };
        let meant = self.volumes.iter().find(|(_, volume)| volume.owner == Some(number));
        let meant = meant.map(|(name, _)| name.clone());
        if meant.is_none() && claim.selected.is_none() {
            // Nothing is written, and so no watch hears of it.
            return;
        }
        self.version += 1;
        claim.version = self.version;
        match (meant, &claim.selected) {
            (Some(name), _) => {
                claim.volume = Some(name);
                self.bound.0 += 1;
            }
            (None, Some(_)) if fails => claim.selected = None,
            (None, None) => {}
            (None, Some(node)) => {
                let name = format!("made-{number}");
                let zone = zone_of(node);
                claim.volume = Some(name.clone());
                let volume = ApiVolume { version: self.version, zone, owner: Some(number) };
                self.volumes.insert(name.clone(), volume);
                self.history.push((now, Stored::Volume(name)));
                self.bound.1 += 1;
            }
        }
        self.history.push((now, Stored::Claim(number)));
    }

    /// Volumes that are meant for claims that have others, or none any more: the volume controller
    /// takes them back.
    pub(crate) fn release(&mut self, now: Time) {
        let unused = |(name, volume): &(&String, &ApiVolume)| {
            volume.owner.is_some_and(|owner| {
                let claim = self.by_pod.get(&owner);
                claim.is_none_or(|claim| claim.volume.as_ref().is_some_and(|has| has != *name))
            })
        };
        let names: Vec<String> =
            self.volumes.iter().filter(unused).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.free(now, name);
        }
    }

    /// A pod gets a node: its claim must have a volume, and the node must reach it.
    pub(crate) fn check_bind(&self, now: Time, number: u32, node: &str) {
        if !has_claim(number) {
            return;
        }
        let zone = self.zone(number);
        let there = zone.is_some_and(|zone| zone % 2 == zone_of(node) % 2);
        assert!(there, "{now:?}: p{number} on {node}, its volume elsewhere: {zone:?}");
    }

    fn zone(&self, number: u32) -> Option<u32> {
        let volume = self.by_pod.get(&number)?.volume.as_ref()?;
        Some(self.volumes.get(volume).expect("the volume of a claim").zone)
    }

    /// Whether a pod may have a node by its claim: the node reaches its volume, or is the one for
    /// which a volume is to be made, as far as there is either.
    pub(crate) fn allows(&self, number: u32, node: &str) -> bool {
        let Some(claim) = self.by_pod.get(&number) else { return true };
        match self.zone(number) {
            Some(zone) => zone % 2 == zone_of(node) % 2,
            None => claim.selected.as_deref().is_none_or(|selected| selected == node),
        }
    }

    /// Whether some node has room for a pod, given how many pods each has.
    pub(crate) fn has_room(&self, number: u32, taken: &BTreeMap<String, u32>) -> bool {
        let zone = self.zone(number);
        (0..NODES).map(|node| format!("n{node}")).any(|node| {
            zone.is_none_or(|zone| zone % 2 == zone_of(&node) % 2)
                && taken.get(&node).copied().unwrap_or_default() < SLOTS
        })
    }

    /// A pod's claim, and the volumes that are meant for it.
    pub(crate) fn tell(&self, number: u32) -> String {
        let meant = self.volumes.iter().filter(|(_, volume)| volume.owner == Some(number));
        format!("{:?}, {:?}", self.by_pod.get(&number), meant.collect::<Vec<_>>())
    }

    pub(crate) fn object(&self, stored: &Stored) -> Change {
        match stored {
            Stored::Claim(number) => {
                let key = ("d".into(), format!("c{number}").into());
                let claim = self.by_pod.get(number).map(|claim| claim_object(*number, claim));
                Change::One(Kind::Claim, key, claim)
            }
            Stored::Volume(name) => {
                let volume = self.volumes.get(name).map(volume_object);
                Change::One(Kind::Volume, ("".into(), name.as_str().into()), volume)
            }
        }
    }

    /// All there is, as a relay lists it.
    pub(crate) fn all(&self) -> Vec<Change> {
        let claims = self.by_pod.keys().map(|number| Stored::Claim(*number));
        let volumes = self.volumes.keys().map(|name| Stored::Volume(name.clone()));
        let list = |kind: Kind, all: Vec<Stored>| {
            let objects = all.iter().filter_map(|one| match self.object(one) {
                Change::One(_, key, Some(object)) => Some((key, object)),
                _ => None,
            });
            Change::Replace(kind, objects.collect())
        };
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {}, "provisioner": "made.example.com",
            "volumeBindingMode": "WaitForFirstConsumer",
        }))
        .expect("class");
        vec![
            list(Kind::Claim, claims.collect()),
            list(Kind::Volume, volumes.collect()),
            Change::Replace(
                Kind::Class,
                vec![(("".into(), "late".into()), Object::Class(Class::of(&class)))],
            ),
        ]
    }
}

fn claim_object(number: u32, claim: &ApiClaim) -> Object {
    let mut annotations = json!({});
    if let Some(node) = &claim.selected {
        annotations["volume.kubernetes.io/selected-node"] = json!(node);
    }
    if claim.volume.is_some() {
        annotations["pv.kubernetes.io/bind-completed"] = json!("yes");
    }
    let object: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {
            "uid": format!("u{number}"), "resourceVersion": claim.version.to_string(),
            "annotations": annotations,
        },
        "spec": {
            "storageClassName": "late", "accessModes": ["ReadWriteOnce"],
            "volumeName": claim.volume,
        },
    }))
    .expect("claim");
    Object::Claim(Claim::of(&object))
}

fn volume_object(volume: &ApiVolume) -> Object {
    let mut object = json!({
        "metadata": {"resourceVersion": volume.version.to_string()},
        "spec": {
            "storageClassName": "late", "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "zone", "operator": "In", "values": reach(volume.zone)},
            ]}]}},
        },
        "status": {"phase": "Available"},
    });
    if let Some(number) = volume.owner {
        object["spec"]["claimRef"] =
            json!({"namespace": "d", "name": format!("c{number}"), "uid": format!("u{number}")});
    }
    let object: PersistentVolume = serde_json::from_value(object).expect("volume");
    Object::Volume(Volume::of(&object))
}

impl Simulation {
    pub(crate) fn mount(&mut self, relay: usize, run: u64, order: MountOrder) {
        let writing = Writing { relay, run, order, versions: Vec::new() };
        let after = ms(self.random.random_range(1..40));
        self.at(after, Event::MountStep(writing));
    }

    /// The next request of an order. A dead process sends none.
    pub(crate) fn mount_step(&mut self, mut writing: Writing) {
        let Some(process) = &self.relays[writing.relay] else { return };
        if process.run != writing.run {
            return;
        }
        let fenced = process.state.fenced || process.state.term.is_none();
        let lost = self.faulty(50);
        let failed = |message: &str| Some(MountOutcome::Failed(message.to_owned()));
        let outcome = if fenced {
            failed("not leading any more")
        } else if lost && self.chance(500) {
            failed("lost on the way")
        } else if let Some(step) = writing.order.steps.get(writing.versions.len()) {
            let version = self.api.claims.write(self.now, &writing.order, step);
            let pod = number(&writing.order.pod);
            let after = ms(self.random.random_range(20..3_000));
            self.at(after, Event::Settle(pod));
            match version {
                None => failed("conflict"),
                Some(_) if lost => failed("the answer is lost"),
                Some(version) => {
                    writing.versions.push(version.to_string().into());
                    None
                }
            }
        } else {
            let at: u32 = writing.order.node.trim_start_matches('n').parse().expect("a node");
            let labels = Labels::of(node(at).metadata.labels.as_ref());
            Some(MountOutcome::Written { labels, versions: writing.versions.clone() })
        };
        match outcome {
            None => {
                let after = ms(self.random.random_range(1..40));
                self.at(after, Event::MountStep(writing));
            }
            Some(outcome) => {
                let after = ms(self.random.random_range(1..40));
                self.at(after, Event::MountEnds { writing, outcome });
            }
        }
    }

    pub(crate) fn mount_ends(&mut self, writing: &Writing, outcome: MountOutcome) {
        let Some(process) = &mut self.relays[writing.relay] else { return };
        if process.run == writing.run {
            let actions = process.state.coordinator.mounted(self.now, &writing.order, outcome);
            self.act(writing.relay, writing.run, actions);
        }
    }

    /// The watches of claims and volumes, each relay's with a lag of its own.
    pub(crate) fn watch_claims(&mut self) {
        for index in 0..self.relays.len() {
            let seen_until = self.now.saturating_sub(ms(self.random.random_range(0..2_000)));
            let Some(relay) = &mut self.relays[index] else { continue };
            while let Some((at, stored)) = self.api.claims.history.get(relay.state.stored) {
                if *at > seen_until {
                    break;
                }
                relay.state.stored += 1;
                let change = Box::new(self.api.claims.object(stored));
                relay.state.coordinator.intake(self.now, Intake::Storage(change));
            }
        }
    }
}
