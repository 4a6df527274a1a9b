//! What a pod mounts, as far as any filter reads it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Volume};
use serde::{Deserialize, Serialize};

use super::attach::{Attachable, inline};
use super::rules::Rules;

/// A claim that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimName {
    /// Its name, in the pod's namespace.
    pub name: Arc<str>,
    /// The pod's own: made for it by the controller of ephemeral volumes.
    pub ephemeral: bool,
}

/// A disk that pods may not share at will (`isVolumeConflict`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Disk {
    /// By name.
    GcePd {
        /// The name.
        name: Arc<str>,
        /// Mounted for reading alone.
        read_only: bool,
    },
    /// By volume ID.
    AwsEbs {
        /// The ID.
        id: Arc<str>,
    },
    /// By target.
    Iscsi {
        /// The target.
        iqn: Arc<str>,
        /// Mounted for reading alone.
        read_only: bool,
    },
    /// By monitors, pool and image.
    Rbd {
        /// Two images are the same only if they share one of these.
        monitors: Vec<Arc<str>>,
        /// The pool.
        pool: Arc<str>,
        /// The image.
        image: Arc<str>,
        /// Mounted for reading alone.
        read_only: bool,
    },
}

impl Disk {
    fn of(volume: &Volume) -> Option<Self> {
        if let Some(disk) = &volume.gce_persistent_disk {
            let read_only = disk.read_only.unwrap_or_default();
            return Some(Self::GcePd { name: disk.pd_name.as_str().into(), read_only });
        }
        if let Some(disk) = &volume.aws_elastic_block_store {
            return Some(Self::AwsEbs { id: disk.volume_id.as_str().into() });
        }
        if let Some(iscsi) = &volume.iscsi {
            let read_only = iscsi.read_only.unwrap_or_default();
            return Some(Self::Iscsi { iqn: iscsi.iqn.as_str().into(), read_only });
        }
        let rbd = volume.rbd.as_ref()?;
        Some(Self::Rbd {
            monitors: rbd.monitors.iter().map(|monitor| monitor.as_str().into()).collect(),
            pool: rbd.pool.as_deref().unwrap_or_default().into(),
            image: rbd.image.as_str().into(),
            read_only: rbd.read_only.unwrap_or_default(),
        })
    }

    /// Whether two pods of one node can't have these two.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::GcePd { name, read_only },
                Self::GcePd { name: other, read_only: other_read_only },
            ) => name == other && !(*read_only && *other_read_only),
            (Self::AwsEbs { id }, Self::AwsEbs { id: other }) => id == other,
            (
                Self::Iscsi { iqn, read_only },
                Self::Iscsi { iqn: other, read_only: other_read_only },
            ) => iqn == other && !(*read_only && *other_read_only),
            (
                Self::Rbd { monitors, pool, image, read_only },
                Self::Rbd {
                    monitors: other_monitors,
                    pool: other_pool,
                    image: other_image,
                    read_only: other_read_only,
                },
            ) => {
                pool == other_pool
                    && image == other_image
                    && !(*read_only && *other_read_only)
                    && monitors.iter().any(|monitor| other_monitors.contains(monitor))
            }
            _ => false,
        }
    }
}

/// Whose claims the ephemeral ones have to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Consumer {
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
}

/// Whether a disk that the pod names itself can't be told from others, or is of a kind that no
/// driver has taken over.
#[must_use]
pub(in crate::core) fn is_untold(volume: &Volume) -> bool {
    inline(volume).is_err()
}

/// Claims and disks of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mounts {
    /// The pod's.
    pub namespace: Arc<str>,
    /// In the pod's order; one that is named twice is there twice.
    pub claims: Vec<ClaimName>,
    /// In the pod's order.
    pub disks: Vec<Disk>,
    /// Those of the pod's own disks that count towards the limits of drivers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inline: Vec<Attachable>,
    /// What the claims are to drivers, as the relay sees them that had the place reserved: it may
    /// know a claim before the shard does.
    #[serde(skip)]
    pub(super) expected: Vec<Attachable>,
    /// Where some claim is ephemeral.
    pub(super) consumer: Option<Consumer>,
}

impl Mounts {
    /// Reads a pod; `None` for one with neither claims nor disks, as most are.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Arc<Self>> {
        let volumes = pod.spec.as_ref()?.volumes.as_deref()?;
        let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
        let meta = &pod.metadata;
        let claim = |volume: &Volume| {
            if let Some(claim) = &volume.persistent_volume_claim {
                return Some(ClaimName {
                    name: claim.claim_name.as_str().into(),
                    ephemeral: false,
                });
            }
            volume.ephemeral.as_ref()?;
            let pod = meta.name.as_deref().unwrap_or_default();
            Some(ClaimName { name: format!("{pod}-{}", volume.name).into(), ephemeral: true })
        };
        let claims: Vec<ClaimName> = volumes.iter().filter_map(claim).collect();
        let disks: Vec<Disk> = volumes.iter().filter_map(Disk::of).collect();
        let counted = |volume: &Volume| inline(volume).ok().flatten();
        let inline: Vec<Attachable> = volumes.iter().filter_map(counted).collect();
        if claims.is_empty() && disks.is_empty() && inline.is_empty() {
            return None;
        }
        let ephemeral = claims.iter().any(|claim| claim.ephemeral);
        let consumer = ephemeral.then(|| Consumer { name: text(&meta.name), uid: text(&meta.uid) });
        let (namespace, expected) = (text(&meta.namespace), Vec::new());
        Some(Arc::new(Self { namespace, claims, disks, inline, expected, consumer }))
    }

    /// As they count before the watch shows the pod on its node.
    pub(in crate::core) fn reserved(self: &Arc<Self>, rules: &Rules) -> Arc<Self> {
        if rules.attach.is_empty() {
            return Arc::clone(self);
        }
        Arc::new(Self { expected: rules.attach.clone(), ..Self::clone(self) })
    }

    /// How often the pod names one of these claims.
    #[must_use]
    pub fn references(&self, claims: &[Arc<str>]) -> i64 {
        let theirs = self.claims.iter().filter(|claim| !claim.ephemeral);
        let count = theirs.filter(|claim| claims.contains(&claim.name)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }
}
