//! The mounts of pods on nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::attached::Attached;
use super::{Attachable, Disk, Mounts};
use crate::core::maps::HashMap;
use crate::core::pod::PodRequest;

/// Mounts by row, and how many pods use which claim. Empty where no pod has claims or disks.
#[derive(Debug, Default)]
pub(in crate::core) struct InUse {
    by_row: HashMap<u32, Vec<Arc<Mounts>>>,
    /// By namespace, then by name.
    claims: HashMap<Arc<str>, HashMap<Arc<str>, u32>>,
    /// What the limits of drivers hang on.
    pub(in crate::core) attached: Attached,
}

impl InUse {
    pub(in crate::core) fn add(&mut self, row: u32, mounts: &Arc<Mounts>) {
        self.by_row.entry(row).or_default().push(Arc::clone(mounts));
        for claim in mounts.claims.iter().filter(|claim| !claim.ephemeral) {
            let named = self.claims.entry(Arc::clone(&mounts.namespace)).or_default();
            *named.entry(Arc::clone(&claim.name)).or_default() += 1;
        }
    }

    pub(in crate::core) fn remove(&mut self, row: u32, mounts: &Arc<Mounts>) {
        if let Some(on) = self.by_row.get_mut(&row) {
            if let Some(place) = on.iter().position(|other| other == mounts) {
                on.swap_remove(place);
            }
            if on.is_empty() {
                self.by_row.remove(&row);
            }
        }
        for claim in mounts.claims.iter().filter(|claim| !claim.ephemeral) {
            let Some(named) = self.claims.get_mut(&mounts.namespace) else { continue };
            if let Some(pods) = named.get_mut(&claim.name) {
                *pods -= 1;
                if *pods == 0 {
                    named.remove(&claim.name);
                }
            }
            if named.is_empty() {
                self.claims.remove(&mounts.namespace);
            }
        }
    }

    /// Those of a pod's claims that one pod alone may use and some pod on a node does.
    pub(in crate::core) fn used_of(&self, request: &PodRequest) -> BTreeSet<Arc<str>> {
        let exclusive = &request.volumes.exclusive;
        let named = self.claims.get(&request.identity.namespace).filter(|_| !exclusive.is_empty());
        let used = named.into_iter().flat_map(|named| {
            exclusive.iter().filter(|claim| named.contains_key(&***claim)).cloned()
        });
        used.collect()
    }

    /// Whether a pod on the node has one of these disks.
    pub(in crate::core) fn conflicts(&self, row: u32, disks: &[Disk]) -> bool {
        let on = self.by_row.get(&row).into_iter().flatten();
        let mut theirs = on.flat_map(|mounts| &mounts.disks);
        theirs.any(|theirs| disks.iter().any(|disk| disk.conflicts(theirs)))
    }

    /// Whether the node would have more volumes than its drivers take.
    pub(in crate::core) fn exceeds(&self, row: u32, node: &str, new: &[Attachable]) -> bool {
        let on = self.by_row.get(&row).map_or(&[][..], Vec::as_slice);
        self.attached.exceeds(node, on, new)
    }
}
