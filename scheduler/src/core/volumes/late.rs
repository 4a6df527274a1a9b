//! Claims that wait for their consumer (`WaitForFirstConsumer`): on a node, a volume that is there
//! already and suits, or else one that can be made there (`findMatchingVolumes`,
//! `checkVolumeProvisions`).
//!
//! What doesn't hang on the node is settled before: which volumes suit a claim but for their place,
//! and which capacities are large enough.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::diagnosis::Reason;
use crate::core::selector::{HOSTNAME_LABEL, NodeLabels, RequiredNodes, Requirement};

/// A volume for a claim, if the node reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// The volume.
    pub name: Arc<str>,
    /// Nodes that reach it.
    pub nodes: RequiredNodes,
}

/// Where a volume can be made for a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Provision {
    /// Nowhere.
    Never,
    /// On nodes that meet all of these.
    Where {
        /// One of these topologies; anywhere where there is none.
        topologies: Option<Vec<Vec<Requirement>>>,
        /// In reach of one of these capacities; absent where capacity isn't looked at.
        capacities: Option<Vec<Vec<Requirement>>>,
    },
}

/// A claim without a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unbound {
    /// Its name, in the pod's namespace.
    pub name: Arc<str>,
    /// The node that was chosen for it: a volume is being made there.
    pub selected: Option<Arc<str>>,
    /// Volumes, the best first. One that is meant for the claim is the only one.
    pub candidates: Vec<Candidate>,
    /// What if none suits.
    pub provision: Provision,
}

/// All such claims of a pod: those with a node first, then by size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Late {
    /// The claims.
    pub claims: Vec<Unbound>,
}

/// What to do once the node is chosen: for each claim the volume to be bound to it, or none: one is
/// to be made.
pub type Plan = Vec<(Arc<str>, Option<Arc<str>>)>;

impl Late {
    /// What to do on a node, or why it doesn't take the pod.
    pub fn find(&self, node: &impl NodeLabels, name: &str) -> Result<Plan, Reason> {
        let elsewhere = |claim: &Unbound| claim.selected.as_deref().is_some_and(|at| at != name);
        if self.claims.iter().any(elsewhere) {
            return Err(Reason::VolumeBind);
        }
        let mut taken: Vec<&Arc<str>> = Vec::new();
        let mut plan = Plan::new();
        let mut wanting: Vec<&Unbound> = Vec::new();
        for claim in &self.claims {
            let suits =
                |volume: &&Candidate| !taken.contains(&&volume.name) && volume.nodes.matches(node);
            let found = match claim.selected {
                Some(_) => None,
                None => claim.candidates.iter().find(suits),
            };
            match found {
                None => wanting.push(claim),
                Some(volume) => {
                    taken.push(&volume.name);
                    plan.push((Arc::clone(&claim.name), Some(Arc::clone(&volume.name))));
                }
            }
        }
        let meets = |terms: &[Requirement]| terms.iter().all(|term| term.matches(node));
        let any = |list: &Option<Vec<Vec<Requirement>>>| {
            list.as_ref().is_none_or(|list| list.iter().any(|terms| meets(terms)))
        };
        for claim in wanting {
            match &claim.provision {
                Provision::Never => return Err(Reason::VolumeBind),
                Provision::Where { topologies, .. } if !any(topologies) => {
                    return Err(Reason::VolumeBind);
                }
                Provision::Where { capacities, .. } if !any(capacities) => {
                    return Err(Reason::VolumeSpace);
                }
                Provision::Where { .. } => plan.push((Arc::clone(&claim.name), None)),
            }
        }
        Ok(plan)
    }

    /// The labels of nodes that [`Self::find`] reads.
    #[must_use]
    pub fn keys(&self) -> Vec<Arc<str>> {
        let mut keys: Vec<Arc<str>> = vec![Arc::from(HOSTNAME_LABEL)];
        for claim in &self.claims {
            keys.extend(claim.candidates.iter().flat_map(|volume| volume.nodes.keys()).cloned());
            if let Provision::Where { topologies, capacities } = &claim.provision {
                let terms = topologies.iter().chain(capacities).flatten().flatten();
                keys.extend(terms.map(Requirement::key).cloned());
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }
}
