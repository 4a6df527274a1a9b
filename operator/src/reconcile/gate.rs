//! When a workload may be written: the order of a first start and of an upgrade. Pure.
//!
//! A workload waits only where going on would do harm: at the first start, where it would fail
//! and back off without what it needs, and in an upgrade, where a component must not be newer
//! than the apiservers (the version skew policy of Kubernetes). A deleted or edited workload of a
//! running cluster never waits for the others.

use super::observed::{Observed, Rollout, Rollouts, key};
use crate::children::{Object, Stage};

/// What a workload has to wait for, for a person; or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may be written.
    Open,
    /// It waits.
    Closed(String),
}

/// Whether `desired`, of `stage`, may be written now.
///
/// `observed` and `rollouts` are how the children are, with the writes of earlier stages already
/// in; `started` is whether the cluster has ever been complete.
#[must_use]
pub fn check(
    stage: Stage,
    desired: &Object,
    observed: &Observed,
    rollouts: &Rollouts,
    started: bool,
) -> Gate {
    match observed.get(&key(desired)) {
        _ if images(desired).is_empty() => Gate::Open,
        None if started => Gate::Open,
        None => first_start(stage, rollouts),
        Some(live) if images(live) == images(desired) => Gate::Open,
        Some(_) => upgrade(stage, rollouts),
    }
}

fn first_start(stage: Stage, rollouts: &Rollouts) -> Gate {
    let answers = |rollout: Option<Rollout>| rollout.is_some_and(|r| r.ready > 0);
    let default_pool = rollouts.pools.first().and_then(|(_, rollout)| *rollout);
    match stage {
        Stage::ApiServers if !answers(rollouts.store) => waiting("the store"),
        Stage::ControllerManager | Stage::Scheduler if !answers(default_pool) => {
            waiting("the apiservers")
        }
        Stage::ControllerManager | Stage::Scheduler if !answers(rollouts.front_door) => {
            waiting("the front door")
        }
        _ => Gate::Open,
    }
}

fn upgrade(stage: Stage, rollouts: &Rollouts) -> Gate {
    let done = |rollout: Option<Rollout>| rollout.is_some_and(|r| r.is_done());
    let earlier: [(Stage, &str, bool); 4] = [
        (Stage::Store, "the store", done(rollouts.store)),
        (
            Stage::ApiServers,
            "the apiservers",
            rollouts.pools.iter().all(|(_, rollout)| done(*rollout)),
        ),
        (Stage::FrontDoor, "the front door", done(rollouts.front_door)),
        (Stage::ControllerManager, "the controller manager", done(rollouts.controller_manager)),
    ];
    earlier
        .into_iter()
        .find(|(before, _, done)| *before < stage && !done)
        .map_or(Gate::Open, |(_, name, _)| waiting(name))
}

fn waiting(name: &str) -> Gate {
    Gate::Closed(format!("waiting for {name}"))
}

/// The images of a workload's containers; empty for what is no workload.
fn images(object: &Object) -> Vec<&str> {
    let template = match object {
        Object::Deployment(deployment) => deployment.spec.as_ref().map(|spec| &spec.template),
        Object::StatefulSet(set) => set.spec.as_ref().map(|spec| &spec.template),
        _ => None,
    };
    template
        .and_then(|template| template.spec.as_ref())
        .map(|spec| spec.containers.iter().filter_map(|c| c.image.as_deref()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    fn deployment(image: &str) -> Object {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "prod-controller-manager"},
            "spec": {
                "selector": {},
                "template": {"spec": {"containers": [{"name": "c", "image": image}]}},
            },
        }))
        .unwrap();
        deployment.into()
    }

    fn rollout(desired: i32, ready: i32, updated: i32) -> Rollout {
        Rollout { desired, existing: desired, ready, updated, observed: true }
    }

    fn rollouts() -> Rollouts {
        Rollouts {
            store: Some(rollout(1, 1, 1)),
            pools: vec![
                ("default".to_owned(), Some(rollout(2, 2, 2))),
                ("pods".to_owned(), Some(rollout(1, 1, 1))),
            ],
            front_door: Some(rollout(2, 2, 2)),
            controller_manager: Some(rollout(2, 2, 2)),
            shards: Some(rollout(2, 2, 2)),
            shard_standbys: None,
            relays: Some(rollout(2, 2, 2)),
        }
    }

    #[test]
    fn at_first_each_waits_for_what_it_needs() {
        let nothing = Rollouts {
            store: None,
            pools: vec![("default".to_owned(), None)],
            front_door: None,
            controller_manager: None,
            shards: None,
            shard_standbys: None,
            relays: None,
        };
        let empty = Observed::default();
        let at =
            |stage, rollouts: &Rollouts| check(stage, &deployment("i:1"), &empty, rollouts, false);
        assert_eq!(at(Stage::Store, &nothing), Gate::Open);
        assert_eq!(at(Stage::FrontDoor, &nothing), Gate::Open);
        assert_eq!(at(Stage::ApiServers, &nothing), waiting("the store"));
        assert_eq!(at(Stage::Scheduler, &nothing), waiting("the apiservers"));
        let store = Rollouts { store: Some(rollout(1, 1, 1)), ..nothing };
        assert_eq!(at(Stage::ApiServers, &store), Gate::Open);
        let one_apiserver =
            Rollouts { pools: vec![("default".to_owned(), Some(rollout(3, 1, 3)))], ..store };
        assert_eq!(at(Stage::ControllerManager, &one_apiserver), waiting("the front door"));
        let one_door = Rollouts { front_door: Some(rollout(2, 1, 2)), ..one_apiserver };
        assert_eq!(at(Stage::ControllerManager, &one_door), Gate::Open);
    }

    #[test]
    fn a_deleted_workload_of_a_running_cluster_comes_back_at_once() {
        let down = Rollouts { store: Some(rollout(1, 0, 1)), ..rollouts() };
        let gate = check(Stage::Scheduler, &deployment("i:1"), &Observed::default(), &down, true);
        assert_eq!(gate, Gate::Open);
    }

    #[test]
    fn an_edited_workload_is_mended_whatever_the_others_do() {
        let live: Observed = [deployment("i:1")].into_iter().collect();
        let down = Rollouts { store: Some(rollout(1, 0, 1)), ..rollouts() };
        assert_eq!(check(Stage::Scheduler, &deployment("i:1"), &live, &down, true), Gate::Open);
    }

    #[test]
    fn a_new_image_waits_for_the_rollouts_before_it() {
        let live: Observed = [deployment("i:1")].into_iter().collect();
        let next = deployment("i:2");
        let at =
            |rollouts: &Rollouts| check(Stage::ControllerManager, &next, &live, rollouts, true);
        assert_eq!(at(&rollouts()), Gate::Open);
        let half = Rollouts {
            pools: vec![
                ("default".to_owned(), Some(rollout(2, 2, 2))),
                ("pods".to_owned(), Some(rollout(2, 2, 1))),
            ],
            ..rollouts()
        };
        assert_eq!(at(&half), waiting("the apiservers"));
        let later = Rollouts { relays: Some(rollout(2, 0, 0)), ..rollouts() };
        assert_eq!(at(&later), Gate::Open, "later stages don't matter");
    }
}
