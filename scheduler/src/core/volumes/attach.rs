//! Volumes as CSI drivers attach them, and what becomes of the disks of plugins that CSI drivers
//! have taken over (`csi-translation-lib`, and `isCSIMigrationOn` of `plugins/nodevolumelimits`).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeSpec, Volume,
};
use serde::{Deserialize, Serialize};

use super::objects::Class;
use crate::core::selector::RequiredNodes;

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
const UNSPECIFIED: &str = "UNSPECIFIED";

/// What a node may only have so many of. Two that are equal are one volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachable {
    /// The driver.
    pub driver: Arc<str>,
    /// The driver's name for the volume, or else that of the claim that is to get one.
    pub handle: Arc<str>,
    /// Whether there is no volume yet.
    pub awaited: bool,
}

impl Attachable {
    /// A volume that is there; `None` for one that can't be told from others.
    pub(super) fn of(driver: &str, handle: &str) -> Option<Self> {
        let there = !driver.is_empty() && !handle.is_empty();
        there.then(|| Self { driver: driver.into(), handle: handle.into(), awaited: false })
    }

    /// Of a claim (`getCSIDriverInfo`): its volume, or one that its class will have made.
    pub(super) fn of_claim<'a>(
        (namespace, name): (&str, &str),
        volume: Option<&'a Option<Self>>,
        driver: impl FnOnce() -> Option<&'a Arc<str>>,
    ) -> Option<Cow<'a, Self>> {
        match volume {
            Some(there) => there.as_ref().map(Cow::Borrowed),
            None => driver().map(|driver| {
                let handle = format!("{namespace}/{name}").into();
                Cow::Owned(Self { driver: Arc::clone(driver), handle, awaited: true })
            }),
        }
    }
}

/// The plugins whose disks count as those of their drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InTree {
    GcePd,
    AwsEbs,
    AzureDisk,
    Cinder,
    Portworx,
}

impl InTree {
    const ALL: [Self; 5] =
        [Self::GcePd, Self::AwsEbs, Self::AzureDisk, Self::Cinder, Self::Portworx];

    /// The plugin's name, as nodes tell it and storage classes name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GcePd => "kubernetes.io/gce-pd",
            Self::AwsEbs => "kubernetes.io/aws-ebs",
            Self::AzureDisk => "kubernetes.io/azure-disk",
            Self::Cinder => "kubernetes.io/cinder",
            Self::Portworx => "kubernetes.io/portworx-volume",
        }
    }

    fn driver(self) -> &'static str {
        match self {
            Self::GcePd => "pd.csi.storage.gke.io",
            Self::AwsEbs => "ebs.csi.aws.com",
            Self::AzureDisk => "disk.csi.azure.com",
            Self::Cinder => "cinder.csi.openstack.org",
            Self::Portworx => "pxd.portworx.com",
        }
    }

    /// The label by which the driver tells zones apart.
    fn zone(self) -> Option<&'static str> {
        match self {
            Self::GcePd => Some("topology.gke.io/zone"),
            Self::AwsEbs => Some("topology.ebs.csi.aws.com/zone"),
            Self::Cinder => Some("topology.cinder.csi.openstack.org/zone"),
            Self::AzureDisk | Self::Portworx => None,
        }
    }

    fn attachable(self, handle: &str) -> Option<Attachable> {
        Attachable::of(self.driver(), handle)
    }
}

/// The driver that makes volumes of a class; none that counts for plugins that were taken over in
/// name alone (`kubernetes.io/azure-file`, `kubernetes.io/vsphere-volume`).
pub(super) fn driver_of(class: &Class) -> Option<Arc<str>> {
    let provisioner = &class.provisioner;
    match &**provisioner {
        "" | "kubernetes.io/azure-file" | "kubernetes.io/vsphere-volume" => None,
        name => match InTree::ALL.into_iter().find(|plugin| plugin.name() == name) {
            Some(plugin) => Some(plugin.driver().into()),
            None => Some(Arc::clone(provisioner)),
        },
    }
}

/// A disk that a pod names itself; an error where it can't be translated, which makes
/// kube-scheduler fail as well.
pub(super) fn inline(volume: &Volume) -> Result<Option<Attachable>, ()> {
    if let Some(disk) = &volume.gce_persistent_disk {
        return Ok(InTree::GcePd.attachable(&zonal(UNSPECIFIED, &disk.pd_name)));
    }
    if let Some(disk) = &volume.aws_elastic_block_store {
        return Ok(InTree::AwsEbs.attachable(ebs_handle(&disk.volume_id)?));
    }
    if let Some(disk) = &volume.azure_disk {
        is_managed(disk.kind.as_ref())?;
        return Ok(InTree::AzureDisk.attachable(&disk.disk_uri));
    }
    if let Some(disk) = &volume.cinder {
        return Ok(InTree::Cinder.attachable(&disk.volume_id));
    }
    let disk = volume.portworx_volume.as_ref();
    Ok(disk.and_then(|disk| InTree::Portworx.attachable(&disk.volume_id)))
}

/// A volume's plugin, where a driver has taken it over, and what becomes of the volume for nodes
/// that say so: what is attached, and which nodes reach it. An error where that can't be said.
pub(super) type Translated = (InTree, Result<(Option<Attachable>, RequiredNodes), ()>);

/// `TranslateInTreePVToCSI`
pub(super) fn translated(
    volume: &PersistentVolume,
    spec: &PersistentVolumeSpec,
) -> Option<Translated> {
    let label = |key: &str| volume.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let (plugin, handle) = if let Some(disk) = &spec.gce_persistent_disk {
        (InTree::GcePd, gce_handle(&disk.pd_name, label).map(Cow::Owned))
    } else if let Some(disk) = &spec.aws_elastic_block_store {
        (InTree::AwsEbs, ebs_handle(&disk.volume_id).map(Cow::Borrowed))
    } else if let Some(disk) = &spec.cinder {
        (InTree::Cinder, Ok(Cow::Borrowed(&*disk.volume_id)))
    } else if let Some(disk) = &spec.azure_disk {
        let handle = is_managed(disk.kind.as_ref()).map(|()| Cow::Borrowed(&*disk.disk_uri));
        (InTree::AzureDisk, handle)
    } else if let Some(disk) = &spec.portworx_volume {
        (InTree::Portworx, Ok(Cow::Borrowed(&*disk.volume_id)))
    } else {
        return None;
    };
    let outcome = handle.map(|handle| {
        let terms = terms_of(spec);
        let nodes = match plugin.zone() {
            None => RequiredNodes::of_volume(terms),
            Some(key) => {
                let terms = with_zones(terms, label, key);
                RequiredNodes::of_volume(terms.as_deref())
            }
        };
        (plugin.attachable(&handle), nodes)
    });
    Some((plugin, outcome))
}

/// The terms of a volume's node affinity.
pub(super) fn terms_of(spec: &PersistentVolumeSpec) -> Option<&[NodeSelectorTerm]> {
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    Some(required.node_selector_terms.as_slice())
}

fn zonal(zone: &str, name: &str) -> String {
    format!("projects/{UNSPECIFIED}/zones/{zone}/disks/{name}")
}

fn gce_handle<'a>(name: &str, label: impl Fn(&str) -> Option<&'a str>) -> Result<String, ()> {
    let given = |key: &str| label(key).filter(|zones| !zones.is_empty());
    let zones = given(OLD_ZONE).or_else(|| given(ZONE)).unwrap_or(UNSPECIFIED);
    if !zones.contains("__") {
        return Ok(zonal(zones, name));
    }
    // `gceGetRegionFromZones`
    let region = |zone: &'a str| match zone.split('-').collect::<Vec<_>>()[..] {
        [locale, region, _] => Ok(format!("{locale}-{region}")),
        _ => Err(()),
    };
    let regions: BTreeSet<String> = zones.split("__").map(region).collect::<Result<_, ()>>()?;
    match regions.first().filter(|_| regions.len() == 1) {
        Some(region) => Ok(format!("projects/{UNSPECIFIED}/regions/{region}/disks/{name}")),
        None => Err(()),
    }
}

/// `KubernetesVolumeIDToEBSVolumeID`: the volume of `aws://zone/volume`.
fn ebs_handle(id: &str) -> Result<&str, ()> {
    let Some(rest) = id.strip_prefix("aws://") else { return Ok(id) };
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = path.find('/').map_or("", |slash| &path[slash..]).trim_matches('/');
    let plain = path.starts_with("vol-") && !path.contains(['/', '%']);
    if plain { Ok(path) } else { Err(()) }
}

fn is_managed(kind: Option<&String>) -> Result<(), ()> {
    if kind.is_none_or(|kind| kind.eq_ignore_ascii_case("managed")) { Ok(()) } else { Err(()) }
}

/// `translateTopologyFromInTreeToCSI`
fn with_zones<'a>(
    terms: Option<&[NodeSelectorTerm]>,
    label: impl Fn(&str) -> Option<&'a str>,
    key: &str,
) -> Option<Vec<NodeSelectorTerm>> {
    let mut terms = terms.map(<[_]>::to_vec);
    let (zone, region) = {
        let expressions = || {
            let terms = terms.iter().flatten();
            terms.flat_map(|term| term.match_expressions.iter().flatten())
        };
        let named = |key: &str| expressions().any(|expression| expression.key == key);
        let current =
            named(ZONE) || !named(OLD_ZONE) && (label(ZONE).is_some() || label(OLD_ZONE).is_none());
        if current { (ZONE, REGION) } else { (OLD_ZONE, OLD_REGION) }
    };
    if has_values(terms.as_deref(), zone) {
        rename(&mut terms, zone, key);
    } else if let Some(zones) = label(zone) {
        let zones: BTreeSet<&str> =
            zones.split("__").map(str::trim).filter(|zone| !zone.is_empty()).collect();
        if !zones.is_empty() {
            add(&mut terms, key, zones.into_iter().map(str::to_owned).collect());
        }
    }
    if region == OLD_REGION && has_values(terms.as_deref(), region) {
        rename(&mut terms, region, REGION);
    }
    terms
}

fn has_values(terms: Option<&[NodeSelectorTerm]>, key: &str) -> bool {
    let expressions =
        terms.unwrap_or_default().iter().flat_map(|term| term.match_expressions.iter().flatten());
    let mut values = expressions.filter(|e| e.key == key).flat_map(|e| e.values.iter().flatten());
    values.next().is_some()
}

fn rename(terms: &mut Option<Vec<NodeSelectorTerm>>, from: &str, to: &str) {
    let terms = terms.iter_mut().flatten();
    let expressions = terms.flat_map(|term| term.match_expressions.iter_mut().flatten());
    expressions.filter(|e| e.key == from).for_each(|e| to.clone_into(&mut e.key));
}

/// `addTopology`: to each term, and to a new one where there is none.
fn add(terms: &mut Option<Vec<NodeSelectorTerm>>, key: &str, values: Vec<String>) {
    let expression = NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(values),
    };
    let terms = terms.get_or_insert_default();
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        term.match_expressions.get_or_insert_default().push(expression.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles() {
        assert_eq!(ebs_handle("vol-1"), Ok("vol-1"));
        assert_eq!(ebs_handle("anything"), Ok("anything"));
        assert_eq!(ebs_handle("aws://us-east-1a/vol-1"), Ok("vol-1"));
        assert_eq!(ebs_handle("aws:///vol-1/"), Ok("vol-1"));
        assert_eq!(ebs_handle("aws://us-east-1a/disk-1"), Err(()));
        assert_eq!(ebs_handle("aws://vol-1"), Err(()));
        let gce = |zones: &'static str| gce_handle("d", move |key| (key == ZONE).then_some(zones));
        assert_eq!(gce("").unwrap_or_default(), "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d");
        assert_eq!(gce("a-b-c").unwrap_or_default(), "projects/UNSPECIFIED/zones/a-b-c/disks/d");
        let two = gce("a-b-c__a-b-d").unwrap_or_default();
        assert_eq!(two, "projects/UNSPECIFIED/regions/a-b/disks/d");
        assert_eq!(gce("a-b-c__a-e-d"), Err(()));
        assert_eq!(gce("a__b"), Err(()));
    }
}
