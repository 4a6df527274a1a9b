//! The status, computed from what was applied and how it is now. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    apply::Applied,
    conditions::{
        API_SERVERS_READY, CERTIFICATES_READY, CONTROLLER_MANAGER_READY, Conditions,
        ENDPOINT_READY, PAUSED, READY, RECONCILING, SCHEDULER_READY, STALLED, STANDBY_SYNCED,
        STORE_READY, UP_TO_DATE, WATCH_CACHE_READY,
    },
    leaders::{self, Leaders},
    observed::{Rollout, Rollouts},
};
use crate::{
    api::{
        LABEL_NAME, LABEL_POOL,
        v1alpha1::{
            ApiServersStatus, ConditionStatus, ControllerManagerStatus, MegaCluster,
            MegaClusterStatus, PkiStatus, PoolStatus, ReplicaStatus, SchedulerStatus, SecretKeyRef,
        },
    },
    build::names::Names,
    children::{Children, Stage},
    validate::{DEFAULT_POOL, InvalidSpec, Part, ValidatedCluster},
};

/// A plan of the keys names a renewal only when it is nearer than this.
const A_DAY: SignedDuration = SignedDuration::from_hours(24);

/// Whether the endpoint answered an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was not asked: there is nobody yet who could answer.
    NotAsked(String),
    /// It answered.
    Yes,
    /// It did not.
    No(String),
}

/// All that a status is made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The object as it was read.
    pub object: &'a MegaCluster,
    /// Its validated spec.
    pub cluster: &'a ValidatedCluster,
    /// What should be.
    pub children: &'a Children,
    /// What is.
    pub applied: &'a Applied,
    /// Whether the endpoint answered.
    pub answer: &'a Answer,
    /// Who leads inside, where that could be asked.
    pub leaders: Option<&'a Leaders>,
    /// The keys and certificates.
    pub certificates: Certificates,
    /// The clock.
    pub now: Timestamp,
}

/// How the keys and certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// A plan was made; the next one is due then. The list is of what will need a person's hand.
    Planned(Timestamp, Vec<String>),
    /// No plan could be made: reason and message.
    Failed(&'static str, String),
}

/// Whether a part is well, in one word and for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    well: bool,
    reason: &'static str,
    message: String,
}

/// The status of a cluster whose spec is valid.
#[must_use]
pub fn compute(facts: &Facts<'_>) -> MegaClusterStatus {
    let Facts { object, cluster, applied, .. } = facts;
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let rollouts = applied.observed.rollouts(cluster);
    let name = &cluster.name;

    let parts = [
        (STORE_READY, "StoreNotReady", store_verdict(applied, &rollouts)),
        (API_SERVERS_READY, "APIServersNotReady", pools_verdict(applied, &rollouts)),
        (WATCH_CACHE_READY, "WatchCacheNotReady", front_door_verdict(cluster, applied, &rollouts)),
        (
            CONTROLLER_MANAGER_READY,
            "ControllerManagerNotReady",
            one(
                "the controller manager",
                "-controller-manager",
                rollouts.controller_manager,
                applied,
            ),
        ),
        (SCHEDULER_READY, "SchedulerNotReady", scheduler_verdict(applied, &rollouts)),
        (CERTIFICATES_READY, "CertificatesNotReady", certificates_verdict(facts)),
        (ENDPOINT_READY, "EndpointNotReady", endpoint_verdict(facts)),
    ];
    let up_to_date = up_to_date(facts, &rollouts);

    let mut conditions = Conditions::new(&old.conditions, generation, facts.now);
    match parts.iter().find(|(_, _, part)| !part.well) {
        None => conditions.set_bool(
            READY,
            true,
            "Available",
            "the cluster answers and every component is available",
        ),
        Some((_, reason, part)) => conditions.set_bool(READY, false, reason, part.message.clone()),
    }
    if object.spec.paused {
        conditions.set_bool(
            PAUSED,
            true,
            "PausedByUser",
            "spec.paused is true: nothing is applied",
        );
    } else if !up_to_date.well {
        conditions.set_bool(RECONCILING, true, up_to_date.reason, up_to_date.message.clone());
    }
    for (type_, _, part) in &parts {
        conditions.set_bool(type_, part.well, part.reason, part.message.clone());
    }
    let standbys = ready(rollouts.shard_standbys);
    leaders::condition(cluster, facts.leaders, standbys, &mut conditions);
    if object.spec.paused {
        let message = "the spec is not compared with what runs while it is paused";
        conditions.set(UP_TO_DATE, ConditionStatus::Unknown, "PausedByUser", message);
    } else {
        conditions.set_bool(UP_TO_DATE, up_to_date.well, up_to_date.reason, up_to_date.message);
    }

    let stock_is_new = rollouts.pools.iter().all(|(_, pool)| pool.is_some_and(|p| p.is_done()))
        && rollouts.controller_manager.is_some_and(|r| r.is_done())
        && up_to_date.well
        && !object.spec.paused;
    let (controller_manager, scheduler) = led(facts, &rollouts);
    MegaClusterStatus {
        observed_generation: generation,
        version: if stock_is_new { Some(format!("v{}", cluster.version)) } else { old.version },
        endpoint: cluster.endpoint_url(),
        kubeconfig_secret_ref: applied
            .observed
            .get(&("Secret", format!("{name}-admin-kubeconfig")))
            .map(|secret| SecretKeyRef { name: secret.name().to_owned(), key: "value".to_owned() }),
        selector: Some(format!("{LABEL_NAME}={name},{LABEL_POOL}={DEFAULT_POOL}")),
        pki: match &facts.certificates {
            // A renewal that is far away is not told: only the next plan knows its time.
            Certificates::Planned(next, _) if next.duration_since(facts.now) < A_DAY => {
                Some(PkiStatus { next_rotation: Some(Time(*next)) })
            }
            Certificates::Planned(..) => None,
            Certificates::Failed(..) => old.pki,
        },
        store: Some(replicas(1, rollouts.store)),
        watch_cache: Some(front_doors(cluster, &rollouts)),
        api_servers: Some(api_servers(cluster, &rollouts)),
        controller_manager: Some(controller_manager),
        scheduler: Some(scheduler),
        conditions: conditions.into_list(),
    }
}

/// The components that have a leader.
fn led(facts: &Facts<'_>, rollouts: &Rollouts) -> (ControllerManagerStatus, SchedulerStatus) {
    let cluster = facts.cluster;
    let old = facts.object.status.clone().unwrap_or_default();
    let known = [
        old.controller_manager.map(|manager| manager.leadership).unwrap_or_default(),
        old.scheduler.map(|scheduler| scheduler.leadership).unwrap_or_default(),
    ];
    let [manager, relay] = leaders::status(cluster, facts.leaders, known);
    let controller_manager = ControllerManagerStatus {
        replicas: cluster.controller_manager.replicas,
        ready: ready(rollouts.controller_manager),
        leadership: manager,
    };
    let scheduler = SchedulerStatus {
        shards: cluster.scheduler.shards,
        shards_ready: ready(rollouts.shards),
        standbys_ready: (cluster.scheduler.standby_per_shard > 0)
            .then(|| ready(rollouts.shard_standbys)),
        relays: cluster.scheduler.relays,
        relays_ready: ready(rollouts.relays),
        leadership: relay,
    };
    (controller_manager, scheduler)
}

/// The status of a cluster whose spec is invalid: what ran goes on running, so all else that was
/// known stays.
#[must_use]
pub fn invalid(object: &MegaCluster, error: &InvalidSpec, now: Timestamp) -> MegaClusterStatus {
    let old = object.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(&old.conditions, object.metadata.generation, now);
    conditions.set_bool(READY, false, "InvalidSpec", error.to_string());
    conditions.set_bool(STALLED, true, "InvalidSpec", error.to_string());
    if object.spec.paused {
        conditions.set_bool(
            PAUSED,
            true,
            "PausedByUser",
            "spec.paused is true: nothing is applied",
        );
    }
    for type_ in [
        STORE_READY,
        API_SERVERS_READY,
        WATCH_CACHE_READY,
        CONTROLLER_MANAGER_READY,
        SCHEDULER_READY,
        CERTIFICATES_READY,
        ENDPOINT_READY,
        STANDBY_SYNCED,
    ] {
        conditions.keep(type_);
    }
    conditions.set_bool(UP_TO_DATE, false, "InvalidSpec", error.to_string());
    MegaClusterStatus {
        observed_generation: object.metadata.generation,
        conditions: conditions.into_list(),
        ..old
    }
}

fn ready(rollout: Option<Rollout>) -> i32 {
    rollout.map_or(0, |rollout| rollout.ready)
}

fn replicas(wanted: i32, rollout: Option<Rollout>) -> ReplicaStatus {
    ReplicaStatus { replicas: wanted, ready: ready(rollout) }
}

fn front_doors(cluster: &ValidatedCluster, rollouts: &Rollouts) -> ReplicaStatus {
    ReplicaStatus {
        replicas: cluster.watch_cache.replicas * cluster.watch_cache.parts,
        ready: rollouts.front_doors.iter().map(|(_, rollout)| ready(*rollout)).sum(),
    }
}

/// What the front doors of a part are called.
fn front_door(part: Part) -> String {
    match part.label() {
        None => "the front door".to_owned(),
        Some(label) => format!("front door {label}"),
    }
}

fn api_servers(cluster: &ValidatedCluster, rollouts: &Rollouts) -> ApiServersStatus {
    let default = rollouts.pools.first().and_then(|(_, rollout)| *rollout).unwrap_or_default();
    let others = cluster.api_servers.pools.iter().zip(&rollouts.pools).skip(1);
    ApiServersStatus {
        replicas: default.existing,
        ready: default.ready,
        updated: default.updated,
        pools: others
            .map(|(pool, (_, rollout))| {
                let rollout = rollout.unwrap_or_default();
                PoolStatus {
                    name: pool.name.clone(),
                    desired: pool.replicas,
                    ready: rollout.ready,
                    updated: rollout.updated,
                }
            })
            .collect(),
    }
}

/// The verdict on a component of one workload, whose name ends in `suffix`.
fn one(what: &str, suffix: &str, rollout: Option<Rollout>, applied: &Applied) -> Verdict {
    match rollout {
        Some(rollout) if rollout.is_ready() => Verdict {
            well: true,
            reason: "Available",
            message: format!("{} of {} ready", rollout.ready, rollout.desired),
        },
        Some(rollout) => Verdict {
            well: false,
            reason: "NotReady",
            message: format!("{what}: {} of {} ready", rollout.ready, rollout.desired),
        },
        None => missing(what, suffix, applied),
    }
}

fn missing(what: &str, suffix: &str, applied: &Applied) -> Verdict {
    let held = applied.held.iter().find(|held| held.key.1.ends_with(suffix));
    let (reason, why) = match (&applied.failure, held) {
        (Some(failure), _) => ("ApplyFailed", failure.to_string()),
        (None, Some(held)) => ("Waiting", held.reason.clone()),
        (None, None) => ("Missing", "it does not exist".to_owned()),
    };
    Verdict { well: false, reason, message: format!("{what}: {why}") }
}

fn front_door_verdict(
    cluster: &ValidatedCluster,
    applied: &Applied,
    rollouts: &Rollouts,
) -> Verdict {
    let names = Names::of(cluster);
    let mut verdict = all(rollouts.front_doors.iter().map(|(part, rollout)| {
        one(&front_door(*part), &names.watchcache_part(*part), *rollout, applied)
    }));
    if let (true, Some(why)) = (verdict.well, cluster.watch_cache.uncached) {
        verdict.message = format!("{}; it caches nothing, since {why}", verdict.message);
    }
    verdict
}

fn store_verdict(applied: &Applied, rollouts: &Rollouts) -> Verdict {
    one("the store", "-store", rollouts.store, applied)
}

fn pools_verdict(applied: &Applied, rollouts: &Rollouts) -> Verdict {
    all(rollouts.pools.iter().map(|(name, rollout)| {
        one(&format!("apiserver pool {name}"), &format!("-apiserver-{name}"), *rollout, applied)
    }))
}

fn scheduler_verdict(applied: &Applied, rollouts: &Rollouts) -> Verdict {
    let shards = one("the scheduler's shards", "-scheduler-shard", rollouts.shards, applied);
    let relays = one("the scheduler's relays", "-scheduler-relay", rollouts.relays, applied);
    all([shards, relays].into_iter())
}

/// The first that is not well, or that all are.
fn all(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let mut messages = Vec::new();
    for verdict in verdicts {
        if !verdict.well {
            return verdict;
        }
        messages.push(verdict.message);
    }
    Verdict { well: true, reason: "Available", message: messages.join(", ") }
}

fn certificates_verdict(facts: &Facts<'_>) -> Verdict {
    let notices = match &facts.certificates {
        Certificates::Failed(reason, message) => {
            return Verdict { well: false, reason, message: message.clone() };
        }
        Certificates::Planned(_, notices) => notices,
    };
    let absent =
        facts.children.iter().filter(|child| child.stage == Stage::Secrets).find(|child| {
            facts.applied.observed.get(&super::observed::key(&child.object)).is_none()
        });
    match absent {
        Some(child) => Verdict {
            well: false,
            reason: "Missing",
            message: format!("Secret {} does not exist", child.object.name()),
        },
        None if notices.is_empty() => Verdict {
            well: true,
            reason: "Valid",
            message: "every certificate is in place".to_owned(),
        },
        None => Verdict { well: true, reason: "ExpiryNear", message: notices.join("; ") },
    }
}

fn endpoint_verdict(facts: &Facts<'_>) -> Verdict {
    match (facts.answer, facts.cluster.endpoint_url()) {
        (Answer::Yes, Some(url)) => {
            Verdict { well: true, reason: "Answering", message: format!("{url} answers") }
        }
        (Answer::Yes, None) => Verdict {
            well: false,
            reason: "AddressPending",
            message: "the management cluster has not given the Service its address yet".to_owned(),
        },
        (Answer::No(why), _) => Verdict {
            well: false,
            reason: "NotAnswering",
            message: format!("the front door does not answer an administrator: {why}"),
        },
        (Answer::NotAsked(why), _) => {
            Verdict { well: false, reason: "Waiting", message: why.clone() }
        }
    }
}

/// Whether every child is as the spec asks and every rollout over.
fn up_to_date(facts: &Facts<'_>, rollouts: &Rollouts) -> Verdict {
    let behind = |reason, message| Verdict { well: false, reason, message };
    if let Certificates::Failed(reason, message) = &facts.certificates {
        return behind(reason, message.clone());
    }
    if let Some(failure) = &facts.applied.failure {
        return behind("ApplyFailed", failure.to_string());
    }
    if let Some(held) = facts.applied.held.first() {
        return behind("Waiting", format!("{}/{}: {}", held.key.0, held.key.1, held.reason));
    }
    let pools =
        rollouts.pools.iter().map(|(name, rollout)| (format!("apiserver pool {name}"), *rollout));
    let standbys = (facts.cluster.scheduler.standby_per_shard > 0)
        .then(|| ("the standbys of the scheduler's shards".to_owned(), rollouts.shard_standbys));
    let workloads = [
        ("the controller manager".to_owned(), rollouts.controller_manager),
        ("the scheduler's shards".to_owned(), rollouts.shards),
        ("the scheduler's relays".to_owned(), rollouts.relays),
    ];
    let doors = rollouts.front_doors.iter().map(|(part, rollout)| (front_door(*part), *rollout));
    let store = std::iter::once(("the store".to_owned(), rollouts.store));
    for (what, rollout) in store.chain(doors).chain(workloads).chain(standbys).chain(pools) {
        match rollout {
            None => return behind("Missing", format!("{what}: it does not exist")),
            Some(r) if !r.is_done() => {
                return behind(
                    "RollingOut",
                    format!(
                        "{what}: {} of {} updated, {} ready",
                        r.updated.min(r.desired),
                        r.desired,
                        r.ready
                    ),
                );
            }
            Some(_) => {}
        }
    }
    Verdict { well: true, reason: "RolledOut", message: "every component runs as asked".to_owned() }
}
