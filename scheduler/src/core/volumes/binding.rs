//! From a plan for a pod's claims to what has to be written, and whether it has come true
//! (`AssumePodVolumes`, `bindAPIUpdate`, `checkBindings`).

use std::sync::Arc;

use super::late::Plan;
use super::objects::{Owner, Volume};
use super::storage::Storage;
use crate::core::directory::Key;
use crate::core::labels::Labels;

/// One object to write, if it still is in this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Means a volume for a claim.
    Bind {
        /// The volume.
        volume: Arc<str>,
        /// Its version.
        version: Arc<str>,
        /// The claim's name.
        claim: Arc<str>,
        /// The claim's UID.
        uid: Arc<str>,
        /// The claim's version.
        claim_version: Arc<str>,
        /// Whether nobody had meant it for the claim before.
        ours: bool,
    },
    /// Has a volume made for a claim.
    Select {
        /// The claim's name.
        claim: Arc<str>,
        /// Its version.
        version: Arc<str>,
    },
}

/// How far the binding of a pod's claims is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not there yet.
    Waiting,
    /// All claims are bound.
    Done,
    /// It won't come to that.
    Failed(String),
}

fn key(namespace: &Arc<str>, claim: &Arc<str>) -> Key {
    (Arc::clone(namespace), Arc::clone(claim))
}

/// Whether a version comes before another.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

impl Storage {
    /// What to write for a plan, one step for each claim; `None` where something of it is gone or has
    /// changed since the plan was assumed: a volume may be meant for another claim by now.
    #[must_use]
    pub fn steps(&self, namespace: &Arc<str>, plan: &Plan) -> Option<Vec<Step>> {
        let step = |(name, volume): &(Arc<str>, Option<Arc<str>>)| {
            let key = key(namespace, name);
            let claim = self.claims.get(&key)?;
            let Some(volume) = volume else {
                let (version, _) = self.assumed_claims.get(&key)?;
                if *version != claim.version {
                    return None;
                }
                return Some(Step::Select { claim: name.clone(), version: claim.version.clone() });
            };
            let there = self.volumes.get(volume)?;
            let (version, owner) = self.assumed_volumes.get(volume)?;
            if *version != there.version || owner.uid != claim.uid {
                return None;
            }
            Some(Step::Bind {
                volume: volume.clone(),
                version: there.version.clone(),
                claim: name.clone(),
                uid: claim.uid.clone(),
                claim_version: claim.version.clone(),
                ours: !there.is_meant_for(namespace, name, &claim.uid),
            })
        };
        plan.iter().map(step).collect()
    }

    /// Whether what was written has come true. `written`: the versions of the objects that were
    /// written, one for each step; what is older tells nothing.
    #[must_use]
    pub fn progress(
        &self,
        namespace: &Arc<str>,
        plan: &Plan,
        (node, labels): (&str, &Labels),
        written: &[Arc<str>],
    ) -> Progress {
        let misplaced = |volume: &str| {
            Progress::Failed(format!("pv {volume:?} node affinity doesn't match node {node:?}"))
        };
        let migrated = self.limits.get(node).map_or(&[][..], |limits| &limits.migrated);
        let reached =
            |volume: &Volume| volume.reach(migrated).is_some_and(|nodes| nodes.matches(labels));
        for ((name, volume), written) in plan.iter().zip(written) {
            let Some(claim) = self.claims.get(&key(namespace, name)) else {
                return Progress::Failed(format!("persistentvolumeclaim {name:?} is gone"));
            };
            if let Some(name) = volume {
                // Somebody else meant another one for it before.
                if claim.is_bound() && claim.volume != *name {
                    let other = &claim.volume;
                    return Progress::Failed(format!("the claim got pv {other:?}, not {name:?}"));
                }
                let Some(volume) = self.volumes.get(name) else {
                    return Progress::Failed(format!("persistentvolume {name:?} is gone"));
                };
                if is_older(&volume.version, written) {
                    return Progress::Waiting;
                }
                if !reached(volume) {
                    return misplaced(name);
                }
                if volume.owner.as_ref().is_none_or(|owner| owner.uid.is_empty()) {
                    return Progress::Failed(format!("ClaimRef got reset for pv {name:?}"));
                }
            } else {
                if is_older(&claim.version, written) {
                    return Progress::Waiting;
                }
                // Who makes volumes takes the node back where that fails.
                if claim.selected.as_deref() != Some(node) {
                    return Progress::Failed(format!("provisioning failed for PVC {name:?}"));
                }
                if !claim.volume.is_empty() {
                    let Some(volume) = self.volumes.get(&claim.volume) else {
                        return Progress::Waiting;
                    };
                    if !reached(volume) {
                        return misplaced(&claim.volume);
                    }
                }
            }
            if !claim.is_bound() {
                return Progress::Waiting;
            }
        }
        Progress::Done
    }

    /// A pod is being placed: its claims get these volumes, or volumes made on this node. The next
    /// pods see it so. False, and nothing is assumed, where that can't be any more: the plan was made
    /// of what was known when the question was asked, and since then somebody else may have meant a
    /// volume for another claim, or have chosen a node for a claim.
    #[must_use]
    pub fn assume(&mut self, namespace: &Arc<str>, plan: &Plan, node: &Arc<str>) -> bool {
        if !plan.iter().all(|(name, volume)| self.may_get(namespace, name, volume.as_ref(), node)) {
            return false;
        }
        for (name, volume) in plan {
            let key = key(namespace, name);
            let Some(claim) = self.claims.get(&key) else { continue };
            match volume {
                None => {
                    let version = Arc::clone(&claim.version);
                    self.assumed_claims.insert(key, (version, Arc::clone(node)));
                }
                Some(name) => {
                    let Some(volume) = self.volumes.get(name) else { continue };
                    let owner = Owner { namespace: key.0, name: key.1, uid: claim.uid.clone() };
                    let assumed = (Arc::clone(&volume.version), owner);
                    self.assumed_volumes.insert(Arc::clone(name), assumed);
                }
            }
        }
        self.generation += 1;
        true
    }

    /// Whether a claim may still get this volume, or one made on this node.
    fn may_get(
        &self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        volume: Option<&Arc<str>>,
        node: &str,
    ) -> bool {
        let Some(claim) = self.claims.get(&key(namespace, name)) else { return false };
        let Some(volume) = volume else {
            return claim.volume.is_empty()
                && claim.selected.as_deref().is_none_or(|at| at == node);
        };
        let Some(there) = self.volumes.get(volume) else { return false };
        let free = there.owner.is_none() || there.is_meant_for(namespace, name, &claim.uid);
        let assumed = self.assumed_volumes.get(volume);
        free && assumed.is_none_or(|(version, owner)| {
            // What was assumed of an older version has come true or has failed since.
            *version != there.version || owner.uid == claim.uid
        })
    }

    /// The pod isn't placed after all.
    pub fn revert(&mut self, namespace: &Arc<str>, plan: &Plan) {
        for (name, volume) in plan {
            match volume {
                None => {
                    self.assumed_claims.remove(&(Arc::clone(namespace), Arc::clone(name)));
                }
                Some(volume) => {
                    let ours = |(_, owner): &(Arc<str>, Owner)| {
                        owner.namespace == *namespace && owner.name == *name
                    };
                    if self.assumed_volumes.get(volume).is_some_and(ours) {
                        self.assumed_volumes.remove(volume);
                    }
                }
            }
        }
        self.generation += 1;
    }
}
