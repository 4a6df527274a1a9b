//! What is kept of claims, volumes, storage classes, CSI drivers, their limits and capacities.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::attach::{Attachable, Translated, terms_of, translated};
use super::rules::Zone;
use crate::core::labels::{Labels, Selector};
use crate::core::quantity::Amount;
use crate::core::selector::{RequiredNodes, Requirement};

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Where a volume for the claim is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const MIGRATED: &str = "storage.alpha.kubernetes.io/migrated-plugins";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

fn text(text: Option<&String>) -> Arc<str> {
    text.map(String::as_str).unwrap_or_default().into()
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref()?.get(key)
}

fn storage(amounts: Option<&BTreeMap<String, Quantity>>) -> Option<Amount> {
    let amount = amounts?.get("storage")?;
    Some(Amount::parse(&amount.0).unwrap_or_default())
}

fn modes(modes: Option<&Vec<String>>) -> Vec<Arc<str>> {
    modes.into_iter().flatten().map(|mode| mode.as_str().into()).collect()
}

fn is_block(mode: Option<&String>) -> bool {
    mode.is_some_and(|mode| mode == "Block")
}

/// A `PersistentVolumeClaim`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "as many things may be true of a claim")]
pub struct Claim {
    pub(super) uid: Arc<str>,
    pub(super) version: Arc<str>,
    /// Empty for none.
    pub(super) class: Arc<str>,
    /// The volume's name; empty for none.
    pub(super) volume: Arc<str>,
    /// Whether the volume is bound for good.
    pub(super) bound: bool,
    pub(super) lost: bool,
    pub(super) deleting: bool,
    pub(super) asked: Option<Amount>,
    pub(super) modes: Vec<Arc<str>>,
    pub(super) block: bool,
    pub(super) attributes: Arc<str>,
    /// `Err`: one that doesn't parse.
    pub(super) selector: Result<Option<Selector>, ()>,
    pub(super) selected: Option<Arc<str>>,
    /// The UID of its controller; empty for none.
    pub(super) controller: Arc<str>,
}

impl Claim {
    /// Reads a claim.
    #[must_use]
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let meta = &claim.metadata;
        let spec = claim.spec.clone().unwrap_or_default();
        let class = annotation(meta, CLASS).or(spec.storage_class_name.as_ref());
        let selector = match &spec.selector {
            None => Ok(None),
            Some(selector) => Selector::of(Some(selector)).map(Some).map_err(|_| ()),
        };
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let mut owners = meta.owner_references.iter().flatten();
        let controller = owners.find(|owner| owner.controller == Some(true));
        Self {
            uid: text(meta.uid.as_ref()),
            version: text(meta.resource_version.as_ref()),
            class: text(class),
            volume: text(spec.volume_name.as_ref()),
            bound: annotation(meta, BIND_COMPLETED).is_some(),
            lost: phase == Some("Lost"),
            deleting: meta.deletion_timestamp.is_some(),
            asked: storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref())),
            modes: modes(spec.access_modes.as_ref()),
            block: is_block(spec.volume_mode.as_ref()),
            attributes: text(spec.volume_attributes_class_name.as_ref()),
            selector,
            selected: annotation(meta, SELECTED_NODE).map(|node| node.as_str().into()),
            controller: text(controller.map(|owner| &owner.uid)),
        }
    }

    pub(super) fn is_exclusive(&self) -> bool {
        self.modes.iter().any(|mode| **mode == *"ReadWriteOncePod")
    }

    pub(super) fn is_bound(&self) -> bool {
        self.bound && !self.volume.is_empty()
    }
}

/// Whom a volume is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    /// Empty: whoever has that name.
    pub(super) uid: Arc<str>,
}

/// A `PersistentVolume`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "as many things may be true of a volume")]
pub struct Volume {
    pub(super) version: Arc<str>,
    pub(super) class: Arc<str>,
    pub(super) owner: Option<Owner>,
    pub(super) capacity: Amount,
    pub(super) modes: Vec<Arc<str>>,
    pub(super) block: bool,
    pub(super) attributes: Arc<str>,
    pub(super) deleting: bool,
    pub(super) available: bool,
    pub(super) labels: Labels,
    /// Nodes that reach it; empty for all.
    pub(super) nodes: RequiredNodes,
    pub(super) zones: Vec<Zone>,
    /// What counts towards the limits of a driver.
    pub(super) attachable: Option<Attachable>,
    /// Whether it has always been a driver's.
    pub(super) native: bool,
    /// Where a driver has taken it over: its plugin, and who reaches it on nodes that say so.
    pub(super) migrated: Option<(Arc<str>, Result<RequiredNodes, ()>)>,
}

impl Volume {
    /// Reads a volume.
    #[must_use]
    pub fn of(volume: &PersistentVolume) -> Self {
        let meta = &volume.metadata;
        let spec = volume.spec.clone().unwrap_or_default();
        let class = annotation(meta, CLASS).or(spec.storage_class_name.as_ref());
        let labels = Labels::of(meta.labels.as_ref());
        let owner = spec.claim_ref.as_ref().map(|claim| Owner {
            namespace: text(claim.namespace.as_ref()),
            name: text(claim.name.as_ref()),
            uid: text(claim.uid.as_ref()),
        });
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let nodes = RequiredNodes::of_volume(terms_of(&spec));
        let native = spec.csi.as_ref();
        let translated = translated(volume, &spec);
        let attachable = match (native, &translated) {
            (Some(csi), _) => Attachable::of(&csi.driver, &csi.volume_handle),
            (None, Some((_, Ok((attachable, _))))) => attachable.clone(),
            (None, _) => None,
        };
        let migrated = |(plugin, outcome): Translated| {
            let reaches = outcome.map(|(_, nodes)| nodes);
            (reaches.as_ref() != Ok(&nodes)).then(|| (plugin.name().into(), reaches))
        };
        Self {
            version: text(meta.resource_version.as_ref()),
            class: text(class),
            owner,
            capacity: storage(spec.capacity.as_ref()).unwrap_or_default(),
            modes: modes(spec.access_modes.as_ref()),
            block: is_block(spec.volume_mode.as_ref()),
            attributes: text(spec.volume_attributes_class_name.as_ref()),
            deleting: meta.deletion_timestamp.is_some(),
            available: phase == Some("Available"),
            zones: Zone::of(|key| labels.get(key).map(|value| &**value)),
            labels,
            attachable,
            native: native.is_some(),
            migrated: translated.and_then(migrated),
            nodes,
        }
    }

    /// Which nodes reach it, of those that leave the volumes of these plugins to drivers.
    pub(super) fn reach(&self, migrated: &[Arc<str>]) -> Option<&RequiredNodes> {
        match &self.migrated {
            Some((plugin, nodes)) if migrated.contains(plugin) => nodes.as_ref().ok(),
            _ => Some(&self.nodes),
        }
    }

    /// Whether the volume is meant for a claim (`IsVolumeBoundToClaim`).
    pub(super) fn is_meant_for(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| {
            *owner.namespace == *namespace
                && *owner.name == *name
                && (owner.uid.is_empty() || *owner.uid == *uid)
        })
    }
}

/// A `StorageClass`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Empty where volumes aren't made on demand.
    pub(super) provisioner: Arc<str>,
    /// Whether claims wait for their consumer; `None`: the class doesn't say.
    pub(super) waits: Option<bool>,
    pub(super) topologies: Option<Vec<Vec<Requirement>>>,
}

impl Class {
    /// Reads a class.
    #[must_use]
    pub fn of(class: &StorageClass) -> Self {
        let terms = class.allowed_topologies.as_ref().filter(|terms| !terms.is_empty());
        let topologies = terms.map(|terms| {
            let term = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
                let expressions = term.match_label_expressions.as_ref()?;
                if expressions.is_empty() {
                    return None;
                }
                expressions.iter().map(|e| Requirement::label(&e.key, "In", &e.values)).collect()
            };
            terms.iter().filter_map(term).collect()
        });
        let provides = class.provisioner != NO_PROVISIONER;
        let mode = class.volume_binding_mode.as_deref();
        Self {
            provisioner: if provides { class.provisioner.as_str().into() } else { "".into() },
            waits: mode.map(|mode| mode == "WaitForFirstConsumer"),
            topologies,
        }
    }
}

/// A `CSIDriver`: whether its capacity is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Driver {
    pub(super) tells_capacity: bool,
}

impl Driver {
    /// Reads a driver.
    #[must_use]
    pub fn of(driver: &CSIDriver) -> Self {
        Self { tells_capacity: driver.spec.storage_capacity == Some(true) }
    }
}

/// A `CSINode`: how many volumes its drivers take, and which plugins leave theirs to drivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(super) drivers: Vec<(Arc<str>, i64)>,
    pub(super) migrated: Vec<Arc<str>>,
}

impl Limits {
    /// Reads a node's drivers; `None` where there is nothing to know.
    #[must_use]
    pub fn of(node: &CSINode) -> Option<Self> {
        // Of two of one name the last one counts.
        let mut drivers = BTreeMap::new();
        for driver in &node.spec.drivers {
            if let Some(count) = driver.allocatable.as_ref().and_then(|some| some.count) {
                drivers.insert(Arc::from(driver.name.as_str()), i64::from(count));
            }
        }
        let migrated = annotation(&node.metadata, MIGRATED).filter(|plugins| !plugins.is_empty());
        let migrated: Vec<Arc<str>> =
            migrated.into_iter().flat_map(|plugins| plugins.split(',')).map(Arc::from).collect();
        let drivers: Vec<_> = drivers.into_iter().collect();
        (!drivers.is_empty() || !migrated.is_empty()).then_some(Self { drivers, migrated })
    }

    pub(super) fn of_driver(&self, name: &str) -> Option<i64> {
        let driver = self.drivers.iter().find(|(driver, _)| **driver == *name);
        driver.map(|(_, limit)| *limit)
    }

    /// Whether some driver takes more than before.
    pub(super) fn exceed(&self, before: Option<&Self>) -> bool {
        let before = |driver: &str| before.and_then(|before| before.of_driver(driver));
        self.drivers.iter().any(|(driver, limit)| *limit > before(driver).unwrap_or_default())
    }
}

/// A `VolumeAttachment`: a volume that a node has, or is to have or to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub(super) node: Arc<str>,
    pub(super) attacher: Arc<str>,
    pub(super) volume: Arc<str>,
}

impl Attachment {
    /// Reads an attachment; `None` for one that counts for nothing.
    #[must_use]
    pub fn of(attachment: &VolumeAttachment) -> Option<Self> {
        let spec = &attachment.spec;
        let volume = spec.source.persistent_volume_name.as_deref()?;
        (!spec.attacher.is_empty()).then(|| Self {
            node: spec.node_name.as_str().into(),
            attacher: spec.attacher.as_str().into(),
            volume: volume.into(),
        })
    }
}

/// A `CSIStorageCapacity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub(super) class: Arc<str>,
    /// The largest volume, in bytes; `None`: it isn't known.
    pub(super) limit: Option<i64>,
    /// Which nodes reach it.
    pub(super) nodes: Vec<Requirement>,
}

impl Capacity {
    /// Reads a capacity; `None` for one that no node reaches.
    #[must_use]
    pub fn of(capacity: &CSIStorageCapacity) -> Option<Self> {
        let Ok(Selector::All(nodes)) = Selector::of(capacity.node_topology.as_ref()) else {
            return None;
        };
        let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let limit = limit.map(|limit| Amount::parse(&limit.0).unwrap_or_default().value());
        Some(Self { class: capacity.storage_class_name.as_str().into(), limit, nodes })
    }
}
