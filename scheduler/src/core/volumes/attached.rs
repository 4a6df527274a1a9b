//! What is attached to the nodes of a shard, and how much they take (`plugins/nodevolumelimits`).
//!
//! A shard knows which pods are on a node, so it counts by itself: for that it hears of claims,
//! volumes and storage classes, and of its nodes' drivers and attachments.

use std::borrow::Cow;
use std::sync::Arc;

use super::Mounts;
use super::attach::{Attachable, driver_of};
use super::objects::{Attachment, Limits};
use super::storage::{Change, Kind, Object};
use crate::core::directory::Key;
use crate::core::event::{ClusterEvent, EventSet};
use crate::core::maps::{HashMap, HashSet};

/// A claim's volume and class; empty for none.
#[derive(Debug)]
struct Use {
    volume: Arc<str>,
    class: Arc<str>,
}

/// Claims, volumes and what nodes say.
#[derive(Debug, Default)]
pub(in crate::core) struct Attached {
    /// By namespace, then by name.
    claims: HashMap<Arc<str>, HashMap<Arc<str>, Use>>,
    volumes: HashMap<Arc<str>, Seen>,
    /// Drivers by class.
    classes: HashMap<Arc<str>, Arc<str>>,
    nodes: HashMap<Arc<str>, Limits>,
    attachments: HashMap<Arc<str>, Attachment>,
    /// Names of attachments by node.
    by_node: HashMap<Arc<str>, HashSet<Arc<str>>>,
    complete: HashSet<Kind>,
}

/// A volume.
#[derive(Debug)]
struct Seen {
    attachable: Option<Attachable>,
    /// Whether it has always been a driver's.
    native: bool,
}

impl Attached {
    /// Whether all that counts has been read.
    pub(in crate::core) fn is_complete(&self) -> bool {
        Kind::COUNTED.iter().all(|kind| self.complete.contains(kind))
    }

    /// Takes over news, of nodes only those that `owns` names; says what of it may help a waiting
    /// pod.
    pub(in crate::core) fn apply(
        &mut self,
        change: &Change,
        owns: impl Fn(&str) -> bool,
    ) -> EventSet {
        match change {
            Change::One(kind, key, object) => self.set(*kind, key, object.as_ref(), &owns),
            Change::Replace(kind, objects) => {
                self.complete.insert(*kind);
                let kept: HashSet<&Key> = objects.iter().map(|(key, _)| key).collect();
                let mut gone = self.keys(*kind);
                gone.retain(|key| !kept.contains(key));
                let gone = gone.iter().map(|key| (key, None));
                let there = objects.iter().map(|(key, object)| (key, Some(object)));
                let all: Vec<_> = gone.chain(there).collect();
                let events =
                    all.into_iter().map(|(key, object)| self.set(*kind, key, object, &owns));
                events.fold(EventSet::EMPTY, |all, events| all | events)
            }
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let named = |name: &Arc<str>| (Arc::from(""), Arc::clone(name));
        match kind {
            Kind::Claim => {
                let claims = self.claims.iter();
                let key = |(space, named): (&Arc<str>, &HashMap<Arc<str>, Use>)| {
                    let space = Arc::clone(space);
                    let keys = named.keys().map(move |name| (Arc::clone(&space), Arc::clone(name)));
                    keys.collect::<Vec<_>>()
                };
                claims.flat_map(key).collect()
            }
            Kind::Volume => self.volumes.keys().map(named).collect(),
            Kind::Class => self.classes.keys().map(named).collect(),
            Kind::Limits => self.nodes.keys().map(named).collect(),
            Kind::Attachment => self.attachments.keys().map(named).collect(),
            Kind::Driver | Kind::Capacity => Vec::new(),
        }
    }

    fn set(
        &mut self,
        kind: Kind,
        (namespace, name): &Key,
        object: Option<&Object>,
        owns: &impl Fn(&str) -> bool,
    ) -> EventSet {
        match (kind, object) {
            (Kind::Claim, Some(Object::Claim(claim))) => {
                let named = self.claims.entry(Arc::clone(namespace)).or_default();
                let (volume, class) = (Arc::clone(&claim.volume), Arc::clone(&claim.class));
                named.insert(Arc::clone(name), Use { volume, class });
            }
            (Kind::Claim, _) => {
                if let Some(named) = self.claims.get_mut(namespace) {
                    named.remove(name);
                    if named.is_empty() {
                        self.claims.remove(namespace);
                    }
                }
            }
            (Kind::Volume, Some(Object::Volume(volume))) => {
                let attachable = volume.attachable.clone();
                self.volumes.insert(Arc::clone(name), Seen { attachable, native: volume.native });
            }
            (Kind::Volume, _) => {
                self.volumes.remove(name);
            }
            (Kind::Class, Some(Object::Class(class))) => {
                match driver_of(class) {
                    Some(driver) => self.classes.insert(Arc::clone(name), driver),
                    None => self.classes.remove(name),
                };
            }
            (Kind::Class, _) => {
                self.classes.remove(name);
            }
            (Kind::Limits, Some(Object::Limits(limits))) if owns(name) => {
                let before = self.nodes.insert(Arc::clone(name), limits.clone());
                if limits.exceed(before.as_ref()) {
                    return ClusterEvent::LimitRaised.into();
                }
            }
            (Kind::Limits, _) => {
                self.nodes.remove(name);
            }
            (Kind::Attachment, Some(Object::Attachment(attachment))) if owns(&attachment.node) => {
                self.detach(name);
                let node = self.by_node.entry(Arc::clone(&attachment.node)).or_default();
                node.insert(Arc::clone(name));
                self.attachments.insert(Arc::clone(name), attachment.clone());
            }
            (Kind::Attachment, _) => {
                if self.detach(name) {
                    return ClusterEvent::Detached.into();
                }
            }
            (Kind::Driver | Kind::Capacity, _) => {}
        }
        EventSet::EMPTY
    }

    fn detach(&mut self, name: &Arc<str>) -> bool {
        let Some(attachment) = self.attachments.remove(name) else { return false };
        if let Some(names) = self.by_node.get_mut(&attachment.node) {
            names.remove(name);
            if names.is_empty() {
                self.by_node.remove(&attachment.node);
            }
        }
        true
    }

    /// The plugins whose volumes the node leaves to their drivers.
    pub(in crate::core) fn migrated(&self, node: &str) -> &[Arc<str>] {
        self.nodes.get(node).map_or(&[], |limits| &limits.migrated)
    }

    /// Whether a node, where pods with these mounts are, would have too many volumes with these as
    /// well.
    pub(super) fn exceeds(&self, node: &str, mounts: &[Arc<Mounts>], new: &[Attachable]) -> bool {
        let Some(limits) = self.nodes.get(node) else { return false };
        let limit = |driver: &str| limits.of_driver(driver);
        let attached = self.by_node.get(node);
        // As if all were different: mostly there is room enough even so.
        let most = mounts.iter().map(|mounts| mounts.claims.len() + mounts.inline.len());
        let most = most.sum::<usize>() + attached.map_or(0, HashSet::len) + new.len();
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        if new.iter().all(|new| limit(&new.driver).is_none_or(|limit| limit >= most)) {
            return false;
        }
        let mut there: HashSet<Cow<'_, Attachable>> = HashSet::default();
        for mounts in mounts {
            there.extend(mounts.inline.iter().map(Cow::Borrowed));
            let claims = self.claims.get(&mounts.namespace);
            for name in mounts.claims.iter().map(|claim| &claim.name) {
                match claims.and_then(|claims| claims.get(name)) {
                    Some(claim) => there.extend(self.of_claim(&mounts.namespace, name, claim)),
                    None => there.extend(mounts.expected.iter().map(Cow::Borrowed)),
                }
            }
        }
        let new: Vec<&Attachable> = new.iter().filter(|new| !there.contains(*new)).collect();
        let names = attached.into_iter().flatten();
        let of = |name| Some(Cow::Owned(self.of_attachment(self.attachments.get(name)?)?));
        there.extend(names.filter_map(of));
        let count = |driver: &str, all: &mut dyn Iterator<Item = &Attachable>| {
            i64::try_from(all.filter(|one| *one.driver == *driver).count()).unwrap_or(i64::MAX)
        };
        new.iter().any(|one| {
            let sum = count(&one.driver, &mut there.iter().map(|one| &**one))
                + count(&one.driver, &mut new.iter().copied());
            limit(&one.driver).is_some_and(|limit| sum > limit)
        })
    }

    fn of_claim(&self, namespace: &str, name: &str, claim: &Use) -> Option<Cow<'_, Attachable>> {
        let volume = self.volumes.get(&claim.volume).map(|volume| &volume.attachable);
        Attachable::of_claim((namespace, name), volume, || self.classes.get(&claim.class))
    }

    /// `getNodeVolumeAttachmentInfo`
    fn of_attachment(&self, attachment: &Attachment) -> Option<Attachable> {
        let volume = self.volumes.get(&attachment.volume).filter(|volume| volume.native)?;
        let attachable = volume.attachable.as_ref()?;
        let (driver, handle) = (Arc::clone(&attachment.attacher), Arc::clone(&attachable.handle));
        Some(Attachable { driver, handle, awaited: false })
    }
}
