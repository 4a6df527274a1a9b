//! One reconcile, as a pipeline that data passes once: dereference → validate → plan keys and
//! build children → apply → probe → status.

pub mod apply;
pub mod conditions;
mod deletion_cost;
mod dereference;
pub mod error;
pub mod events;
pub mod gate;
mod kinds;
pub mod leaders;
mod memory;
pub mod observed;
mod probe;
pub mod status;
mod volumes;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use apply::{Applied, ChangeKind, Prepared, Writer};
use error::{ReconcileError, bounded};
use leaders::Leaders;
use observed::Observed;
use status::{Answer, Certificates, Facts};

use crate::{
    api::{
        FIELD_MANAGER,
        v1alpha1::{Condition, ConditionStatus, MegaCluster, MegaClusterStatus},
    },
    build,
    children::Children,
    pki::{self, Change, PkiPlan, SystemKeys},
    validate::{self, ImageDefaults, ValidatedCluster},
};

pub use memory::Memory;

/// The longest that one call to the management cluster's API may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How soon to look again while the cluster is not Ready and no event may tell.
const SOON: Duration = Duration::from_secs(2);

/// How often to ask a Ready cluster's endpoint.
const STEADY: Duration = Duration::from_secs(30);

/// What a reconcile needs beside the object.
pub struct Reconciler {
    /// The management cluster.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// Where images come from when the spec doesn't say.
    pub images: ImageDefaults,
    /// What was written before.
    pub memory: Memory,
    /// Whether this process still leads: asked before each write.
    pub may_act: Box<dyn Fn() -> bool + Send + Sync>,
    /// The process shall stop: whoever leads next waits for the reconciles that run.
    pub stopping: CancellationToken,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("images", &self.images).finish_non_exhaustive()
    }
}

/// What to do after a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until the object or a child changes.
    AwaitChange,
    /// Look again after this long.
    After(Duration),
}

impl Reconciler {
    /// Brings the MegaCluster `name` to what its spec asks, as far as it goes now, and reports.
    pub async fn reconcile(&self, namespace: &str, name: &str) -> Result<Next, ReconcileError> {
        let Some(object) = dereference::mega_cluster(&self.client, namespace, name).await? else {
            self.memory.forget(namespace, name);
            return Ok(Next::AwaitChange);
        };
        if object.metadata.deletion_timestamp.is_some() {
            // The garbage collector takes what carries our owner reference; see `Lifetime`.
            return Ok(Next::AwaitChange);
        }
        let live = Box::pin(dereference::children(&self.client, namespace, name)).await?;
        let facts = live.facts(&format!("{name}-api"));
        let cluster = match validate::validate(&object, &self.images, facts) {
            Ok(cluster) => cluster,
            Err(error) => {
                let status = status::invalid(&object, &error, Timestamp::now());
                self.report(&object, status).await?;
                return Ok(Next::AwaitChange);
            }
        };
        self.run(&object, cluster, live).await
    }

    async fn run(
        &self,
        object: &MegaCluster,
        cluster: ValidatedCluster,
        live: Observed,
    ) -> Result<Next, ReconcileError> {
        let now = Timestamp::now();
        let planned = pki::plan(&cluster, &live.secrets(), now, &SystemKeys)
            .map_err(ReconcileError::from)
            .and_then(|plan| Ok((children(&cluster, &plan)?, plan)));
        let (children, plan) = match planned {
            Ok(planned) => planned,
            Err(error) => return self.run_without_plan(object, &cluster, live, error).await,
        };
        if !object.spec.paused && live.service(&cluster.endpoint_service()).is_none() {
            let introduced = self.introduce(object, &cluster, &children, &plan).await;
            // If it failed, so will the apply below, which reports.
            if introduced.is_ok() {
                return introduced;
            }
        }
        let mut applied = if object.spec.paused {
            Applied::untouched(live)
        } else {
            let started = object.status.as_ref().is_some_and(|status| status.version.is_some());
            let prepared = Prepared { cluster: &cluster, children: &children, live, started };
            prepared.apply(self.writer()).await
        };
        log(object, &applied);
        // What was just written may have told what the management cluster decided.
        let cluster = ValidatedCluster {
            facts: applied.observed.facts(&cluster.endpoint_service()),
            ..cluster
        };
        self.publish(object, events::of_writes(object, &applied, &plan)).await;
        let Some((answer, leaders)) = self.ask(&cluster, &applied.observed).await else {
            return Ok(Next::AwaitChange);
        };
        self.spare_leader(&cluster, leaders.as_ref()).await;
        let notices = plan.warnings.iter().map(ToString::to_string).collect();
        let status = status::compute(&Facts {
            object,
            cluster: &cluster,
            children: &children,
            applied: &applied,
            answer: &answer,
            leaders: leaders.as_ref(),
            certificates: Certificates::Planned(plan.next_rotation, notices),
            now,
        });
        let pause = pause(&status, plan.next_rotation, now);
        self.report(object, status).await?;
        match applied.failure.take() {
            Some(failure) => Err(failure.into()),
            None => Ok(Next::After(pause)),
        }
    }

    /// The first write of all is the Service in front of the cluster: its address belongs into
    /// certificates, which are made once that is known.
    async fn introduce(
        &self,
        object: &MegaCluster,
        cluster: &ValidatedCluster,
        children: &Children,
        plan: &PkiPlan,
    ) -> Result<Next, ReconcileError> {
        let name = cluster.endpoint_service();
        let endpoint = children
            .iter()
            .find(|child| child.object.kind() == "Service" && child.object.name() == name);
        let live = Observed::default();
        let mut prepared = Prepared { cluster, children, live, started: false };
        let mut applied = Applied::untouched(Observed::default());
        if let Some(endpoint) = endpoint {
            applied.changes.extend(prepared.apply_one(endpoint, self.writer()).await?);
        }
        log(object, &applied);
        if object.status.as_ref().is_some_and(|status| status.version.is_some()) {
            self.publish(object, events::of_writes(object, &applied, plan)).await;
        }
        Ok(Next::After(Duration::ZERO))
    }

    /// Without keys nothing can be built; what runs goes on, and the status says both.
    async fn run_without_plan(
        &self,
        object: &MegaCluster,
        cluster: &ValidatedCluster,
        live: Observed,
        error: ReconcileError,
    ) -> Result<Next, ReconcileError> {
        let Some((answer, leaders)) = self.ask(cluster, &live).await else {
            return Ok(Next::AwaitChange);
        };
        let status = status::compute(&Facts {
            object,
            cluster,
            children: &Children::default(),
            applied: &Applied::untouched(live),
            answer: &answer,
            leaders: leaders.as_ref(),
            certificates: Certificates::Failed(error.condition_reason(), error.to_string()),
            now: Timestamp::now(),
        });
        self.report(object, status).await?;
        Err(error)
    }

    /// Sees to it that a rollout of the controller manager takes its leader last. Without it
    /// leadership is handed over more often, which is no reason to stop here.
    async fn spare_leader(&self, cluster: &ValidatedCluster, leaders: Option<&Leaders>) {
        let Some(leader) = leaders.and_then(|leaders| leaders.controller_manager.pod.as_deref())
        else {
            return;
        };
        if cluster.controller_manager.hot_standby
            && let Err(error) = deletion_cost::keep_for_last(self.writer(), cluster, leader).await
        {
            warn!(%error, leader, "the order in which its pods go was not set");
        }
    }

    fn writer(&self) -> Writer<'_> {
        Writer { client: &self.client, may_act: &*self.may_act, memory: &self.memory }
    }

    /// Asks the endpoint, once there is somebody who could answer, and who leads inside. `None`
    /// where the process shall stop: a front door that doesn't answer would hold up the next leader.
    async fn ask(
        &self,
        cluster: &ValidatedCluster,
        observed: &Observed,
    ) -> Option<(Answer, Option<Leaders>)> {
        let not_asked = |why: &str| Some((Answer::NotAsked(why.to_owned()), None));
        let rollouts = observed.rollouts(cluster);
        let some = |rollout: Option<observed::Rollout>| rollout.is_some_and(|r| r.ready > 0);
        let default_pool = rollouts.pools.first().and_then(|(_, rollout)| *rollout);
        if !some(default_pool) {
            return not_asked("no apiserver of the default pool is ready");
        }
        if !rollouts.front_door_answers() {
            return not_asked("no replica of the front door is ready");
        }
        let name = format!("{}-admin-kubeconfig", cluster.name);
        match observed.secrets().get(&name) {
            Some(admin) => {
                Box::pin(self.stopping.run_until_cancelled(probe::ask(cluster, admin))).await
            }
            None => not_asked(&format!("Secret {name} does not exist")),
        }
    }

    /// Writes `status` if it differs from the stored one, and tells what changed.
    async fn report(
        &self,
        object: &MegaCluster,
        status: MegaClusterStatus,
    ) -> Result<(), ReconcileError> {
        if object.status.as_ref() == Some(&status) {
            return Ok(());
        }
        self.writer().claim().map_err(ReconcileError::Status)?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let api: Api<MegaCluster> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({
            "apiVersion": MegaCluster::api_version(&()),
            "kind": MegaCluster::kind(&()),
            // An object of the same name that was made meanwhile is not the one this is about.
            "metadata": {"name": name, "uid": object.metadata.uid},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        bounded(api.patch_status(name, &params, &Patch::Apply(&patch)))
            .await
            .map_err(ReconcileError::Status)?;
        self.publish(object, events::of_status(object, &status)).await;
        Ok(())
    }

    /// Publishes events. One that is lost is no reason to reconcile again.
    async fn publish(&self, object: &MegaCluster, notes: Vec<events::Note>) {
        let reference = object.object_ref(&());
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason.to_owned(),
                // The API's bound on a note.
                note: Some(note.message.chars().take(900).collect()),
                action: note.action.to_owned(),
                secondary: note.child.map(|(kind, name)| ObjectReference {
                    kind: Some(kind.to_owned()),
                    name: Some(name),
                    namespace: object.metadata.namespace.clone(),
                    ..ObjectReference::default()
                }),
            };
            if let Err(error) = bounded(self.recorder.publish(&event, &reference)).await {
                warn!(%error, reason = note.reason, "event was not published");
            }
        }
    }
}

fn log(object: &MegaCluster, applied: &Applied) {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let cluster = object.metadata.name.as_deref().unwrap_or_default();
    let list = |what: ChangeKind| -> Vec<String> {
        let changes = applied.changes.iter().filter(|change| change.what == what);
        changes.map(|change| format!("{}/{}", change.key.0, change.key.1)).collect()
    };
    if !applied.changes.is_empty() {
        info!(
            namespace,
            cluster,
            created = ?list(ChangeKind::Created),
            updated = ?list(ChangeKind::Updated),
            removed = ?list(ChangeKind::Removed),
            "applied"
        );
    }
    for held in &applied.held {
        debug!(namespace, cluster, child = held.key.1, reason = held.reason, "held");
    }
}

/// All children: the keys, then what `build` makes.
fn children(cluster: &ValidatedCluster, plan: &PkiPlan) -> Result<Children, ReconcileError> {
    let mut children = build::build(cluster, &plan.digests)?;
    for planned in &plan.secrets {
        let create_only = planned.change == Change::Create;
        children.add_keys(cluster, planned.lifetime, planned.secret.clone(), create_only);
    }
    Ok(children)
}

/// When to look again although nothing has changed: a Ready cluster's endpoint is asked now and
/// then, and one that is not Ready, or whose standbys are not warm yet, the more rarely the longer
/// that lasts.
fn pause(status: &MegaClusterStatus, next_rotation: Timestamp, now: Timestamp) -> Duration {
    let since = |from: Timestamp, to: Timestamp| {
        Duration::try_from(from.duration_until(to)).unwrap_or_default()
    };
    let growing = |condition: &Condition| {
        (since(condition.last_transition_time.0, now) / 8).clamp(SOON, STEADY)
    };
    let cold = conditions::find(&status.conditions, conditions::STANDBY_SYNCED).filter(|standby| {
        standby.status == ConditionStatus::False && leaders::may_become_warm(&standby.reason)
    });
    match conditions::find(&status.conditions, conditions::READY) {
        Some(ready) if ready.status == ConditionStatus::True => {
            let steady = since(now, next_rotation).clamp(SOON, STEADY);
            cold.map_or(steady, |cold| growing(cold).min(steady))
        }
        Some(ready) => growing(ready),
        None => SOON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(ready: bool, since: i64) -> MegaClusterStatus {
        let mut list = conditions::Conditions::new(&[], None, at(since));
        list.set_bool(conditions::READY, ready, "Test", "");
        MegaClusterStatus { conditions: list.into_list(), ..MegaClusterStatus::default() }
    }

    #[test]
    fn a_ready_cluster_is_asked_now_and_then_and_before_a_renewal() {
        assert_eq!(pause(&status(true, 0), at(90_000), at(1000)), STEADY);
        assert_eq!(pause(&status(true, 0), at(1010), at(1000)), Duration::from_secs(10));
        assert_eq!(pause(&status(true, 0), at(900), at(1000)), SOON);
    }

    #[test]
    fn a_standby_that_may_become_warm_is_looked_for_soon() {
        let with = |reason| {
            let mut list = conditions::Conditions::new(&[], None, at(0));
            list.set_bool(conditions::READY, true, "Test", "");
            list.set_bool(conditions::STANDBY_SYNCED, false, reason, "");
            MegaClusterStatus { conditions: list.into_list(), ..MegaClusterStatus::default() }
        };
        assert_eq!(pause(&with("NoStandby"), at(90_000), at(10)), SOON);
        assert_eq!(pause(&with("OneReplica"), at(90_000), at(10)), STEADY);
    }

    #[test]
    fn one_that_stays_unready_is_asked_more_rarely() {
        assert_eq!(pause(&status(false, 1000), at(90_000), at(1000)), SOON);
        assert_eq!(pause(&status(false, 1000), at(90_000), at(1080)), Duration::from_secs(10));
        assert_eq!(pause(&status(false, 1000), at(90_000), at(9000)), STEADY);
    }
}
