//! What pods' volumes hang on: news of it, whom they wake, and claims that get their volumes once
//! the node is chosen (`Reserve`, `PreBind` and `Unreserve` of `plugins/volumebinding`).
//!
//! Once a pod has its node the next ones see its claims as if they had their volumes. When the node
//! is reserved, volumes and claims are written; the pod is bound when the watch shows that all of
//! its claims are. Until then its reservation is renewed, and it takes no place among the binds.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::{Action, Binding, Chosen, Coordinator};
use crate::core::diagnosis::{Plugin, PluginSet};
use crate::core::evaluate::Evaluation;
use crate::core::labels::Labels;
use crate::core::pod::{PodRequest, PodUid};
use crate::core::queue::Moment;
use crate::core::volumes::binding::Progress;
use crate::core::volumes::late::Plan;
use crate::core::volumes::storage::Change;
use crate::protocol::Operation;
use crate::relay::bind::BindOutcome;
use crate::relay::mount::{MountOrder, MountOutcome};

/// A reservation is renewed after this long: well before it expires.
const RENEWAL: Duration = Duration::from_secs(20);
/// Pods that wait for their volumes at most; more are tried again later.
const MAX_MOUNTING: usize = 4096;
/// How often they are looked through.
const CHECK: Duration = Duration::from_secs(1);

/// A pod that has a node and waits for its volumes.
#[derive(Debug)]
pub(super) struct Mounting {
    pub(super) binding: Binding,
    plan: Arc<Plan>,
    /// The node's labels and the versions of what was written; `None` until all is.
    written: Option<(Labels, Vec<Arc<str>>)>,
    until: Moment,
    renewed: Moment,
}

impl Coordinator {
    /// The request with all that hangs on other objects.
    pub(super) fn resolve(&mut self, request: &Arc<PodRequest>) -> Arc<PodRequest> {
        let resolved = self.directory.resolve(request);
        self.storage.resolve(&resolved)
    }

    pub(super) fn stored(&mut self, now: Moment, change: Change) {
        let helped = self.storage.apply(change);
        if !helped.events.is_empty() {
            self.queue.notify(helped.events, now);
        }
        let plugins: PluginSet = [
            Plugin::VolumeRestrictions,
            Plugin::NodeVolumeLimits,
            Plugin::VolumeBinding,
            Plugin::VolumeZone,
        ]
        .into_iter()
        .collect();
        for claim in &helped.claims {
            let pods: Vec<PodUid> = self.pods.mounting(claim).collect();
            for uid in pods {
                self.queue.touch(uid, plugins, now);
                if self.mounting.contains_key(&uid) {
                    self.mounts_checked = Moment::ZERO;
                }
            }
        }
    }

    /// What becomes of the pod's claims on the node; an error where that can't be said now.
    pub(super) fn plan(
        &self,
        class: &PodRequest,
        node: &Arc<str>,
        evaluation: &Evaluation,
    ) -> Result<Option<Arc<Plan>>, ()> {
        let Some(late) = &class.volumes.late else { return Ok(None) };
        if self.mounting.len() + self.chosen.len() >= MAX_MOUNTING {
            return Err(());
        }
        let tuple = evaluation.tuples.iter().find(|tuple| tuple.node == *node).ok_or(())?;
        let labels = Labels::from_pairs(tuple.labels.iter().cloned());
        late.find(&labels, node).map(|plan| Some(Arc::new(plan))).map_err(|_| ())
    }

    /// From now on the next pods see the claims of this one so. False where the plan can't be carried
    /// out any more.
    pub(super) fn plans(&mut self, chosen: &Chosen) -> bool {
        let Some(plan) = &chosen.plan else { return true };
        self.storage.assume(&chosen.id.namespace, plan, &chosen.node)
    }

    /// The pod doesn't get the node.
    pub(super) fn unplan(&mut self, chosen: &Chosen) {
        if let Some(plan) = &chosen.plan {
            self.storage.revert(&chosen.id.namespace, plan);
        }
    }

    /// The same, and it is tried again later.
    pub(super) fn abandon(&mut self, now: Moment, chosen: &Chosen) {
        self.unplan(chosen);
        self.queue.retry(chosen.attempt.pod.uid, now);
    }

    /// Pods that have a node and wait for their volumes.
    #[must_use]
    pub fn mounts_in_flight(&self) -> usize {
        self.mounting.len()
    }

    /// The node is reserved: its claims get their volumes.
    pub(super) fn mount(
        &mut self,
        now: Moment,
        binding: Binding,
        plan: Arc<Plan>,
    ) -> Option<Action> {
        let (pod, node) = (binding.reservation.pod.clone(), binding.reservation.node.clone());
        let token = binding.reservation.token;
        let steps = self.storage.steps(&pod.namespace, &plan);
        let uid = binding.attempt.pod.uid;
        let (until, renewed) = (now + binding.reservation.class.policy.bind_timeout, now);
        self.mounting.insert(uid, Mounting { binding, plan, written: None, until, renewed });
        let Some(steps) = steps else {
            self.mount_failed(now, uid, "claims or volumes are gone".to_owned());
            return None;
        };
        Some(Action::Mount(Box::new(MountOrder { pod, node, token, steps })))
    }

    /// Takes over the outcome of [`Action::Mount`].
    pub fn mounted(
        &mut self,
        now: Moment,
        order: &MountOrder,
        outcome: MountOutcome,
    ) -> Vec<Action> {
        let uid = PodUid::new(&order.pod.uid);
        let meant = |m: &&mut Mounting| m.binding.reservation.token == order.token;
        let Some(mounting) = self.mounting.get_mut(&uid).filter(meant) else { return Vec::new() };
        match outcome {
            MountOutcome::Written { labels, versions } => {
                mounting.written = Some((labels, versions));
                self.mounts_checked = Moment::ZERO;
                Vec::new()
            }
            MountOutcome::Ready => self.mount_done(uid).into_iter().collect(),
            MountOutcome::Failed(message) => {
                self.mount_failed(now, uid, message);
                Vec::new()
            }
        }
    }

    /// Which pods have all their volumes now, and which never will.
    pub(super) fn check_mounts(&mut self, now: Moment) -> Vec<Action> {
        if self.mounting.is_empty() || now < self.mounts_checked + CHECK {
            return Vec::new();
        }
        self.mounts_checked = now;
        let (mut done, mut failed, mut renew) = (Vec::new(), Vec::new(), Vec::new());
        for (uid, mounting) in &mut self.mounting {
            let reservation = &mounting.binding.reservation;
            let progress = match &mounting.written {
                None => Progress::Waiting,
                Some((labels, versions)) => {
                    let node = (&*reservation.node, labels);
                    let namespace = &reservation.pod.namespace;
                    self.storage.progress(namespace, &mounting.plan, node, versions)
                }
            };
            match progress {
                _ if self.pods.id(*uid).is_none() => {
                    failed.push((*uid, "the pod is gone".to_owned()));
                }
                Progress::Done => done.push(*uid),
                Progress::Failed(message) => failed.push((*uid, message)),
                Progress::Waiting if now >= mounting.until => {
                    failed.push((*uid, "claims were not bound in time".to_owned()));
                }
                Progress::Waiting if now >= mounting.renewed + RENEWAL => {
                    mounting.renewed = now;
                    renew.push(reservation.clone());
                }
                Progress::Waiting => {}
            }
        }
        for reservation in renew {
            if let Some(owner) = self.config.membership.owner(&reservation.node).cloned() {
                self.shards.tell(&owner, Operation::Restore(reservation));
            }
        }
        for (uid, message) in failed {
            self.mount_failed(now, uid, message);
        }
        done.into_iter().filter_map(|uid| self.mount_done(uid)).collect()
    }

    fn mount_done(&mut self, uid: PodUid) -> Option<Action> {
        let Mounting { binding, .. } = self.mounting.remove(&uid)?;
        let (pod, node) = (binding.reservation.pod.clone(), binding.reservation.node.clone());
        info!(%pod, %node, "claims are bound");
        self.binds.insert(uid, binding);
        Some(Action::Bind { pod, node })
    }

    /// What was written stays; the pod is tried again, and finds it.
    fn mount_failed(&mut self, now: Moment, uid: PodUid, message: String) {
        let Some(Mounting { binding, plan, .. }) = self.mounting.remove(&uid) else { return };
        let pod = binding.reservation.pod.clone();
        warn!(%pod, node = %binding.reservation.node, %message, "claims are not bound");
        self.storage.revert(&pod.namespace, &plan);
        // As with a bind that was refused.
        self.binds.insert(uid, binding);
        let actions = self.bound(now, &pod, BindOutcome::Refused(message));
        debug_assert!(actions.is_empty(), "a bind that was refused asks for nothing");
    }

    /// We lead no more: whoever leads next goes on from what is written.
    pub(super) fn give_up_mounts(&mut self, now: Moment) {
        let waiting: Vec<PodUid> = self.mounting.keys().copied().collect();
        for uid in waiting {
            self.mount_failed(now, uid, "not leading any more".to_owned());
        }
    }
}
