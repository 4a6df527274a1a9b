//! When a workload may be written: the order of a first start and of an upgrade. Pure.
//!
//! A workload waits only where going on would do harm: at the first start, where it would fail
//! and back off without what it needs, and in an upgrade, where a component must not be newer
//! than the apiservers (the version skew policy of Kubernetes). A deleted or edited workload of a
//! running cluster never waits for the others.
//!
//! The scheduler's parts are rolled out one after the other, whatever changed in their pods: the
//! standbys of the shards, the shards, the relays. At any time one copy of a shard is warm then, and
//! a relay that takes over finds all shards.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

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
        Some(live) if images(live) != images(desired) => upgrade(stage, rollouts),
        Some(live) if !says(template(live), template(desired)) => standbys_first(stage, rollouts),
        Some(_) => Gate::Open,
    }
}

fn first_start(stage: Stage, rollouts: &Rollouts) -> Gate {
    let answers = |rollout: Option<Rollout>| rollout.is_some_and(|r| r.ready > 0);
    let default_pool = rollouts.pools.first().and_then(|(_, rollout)| *rollout);
    match stage {
        Stage::ApiServers if !answers(rollouts.store) => waiting("the store"),
        Stage::ControllerManager
        | Stage::SchedulerStandbys
        | Stage::SchedulerShards
        | Stage::SchedulerRelays => {
            if !answers(default_pool) {
                waiting("the apiservers")
            } else if !rollouts.front_door_answers() {
                waiting("the front door")
            } else {
                Gate::Open
            }
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
        (Stage::FrontDoor, "the front door", rollouts.front_door_is_done()),
        (Stage::ControllerManager, "the controller manager", done(rollouts.controller_manager)),
    ];
    earlier
        .into_iter()
        .find(|(before, _, done)| *before < stage && !done)
        .map_or_else(|| standbys_first(stage, rollouts), |(_, name, _)| waiting(name))
}

fn standbys_first(stage: Stage, rollouts: &Rollouts) -> Gate {
    let pending = |rollout: Option<Rollout>| rollout.is_some_and(|rollout| !rollout.is_done());
    let earlier = [
        (Stage::SchedulerStandbys, "the standbys of the shards", pending(rollouts.shard_standbys)),
        (Stage::SchedulerShards, "the shards", pending(rollouts.shards)),
    ];
    let scheduler = stage > Stage::SchedulerStandbys;
    earlier
        .into_iter()
        .find(|(before, _, pending)| scheduler && *before < stage && *pending)
        .map_or(Gate::Open, |(_, name, _)| waiting(name))
}

fn waiting(name: &str) -> Gate {
    Gate::Closed(format!("waiting for {name}"))
}

/// A workload's pods.
fn template(object: &Object) -> Option<&PodTemplateSpec> {
    match object {
        Object::Deployment(deployment) => deployment.spec.as_ref().map(|spec| &spec.template),
        Object::StatefulSet(set) => set.spec.as_ref().map(|spec| &spec.template),
        _ => None,
    }
}

/// Whether `live` has all that `desired` asks for; the API server fills in the rest. A value that it
/// writes in another way counts as another one: then a rollout is awaited that is none, and is over.
fn says(live: Option<&PodTemplateSpec>, desired: Option<&PodTemplateSpec>) -> bool {
    // These types have string keys only, so they always serialize.
    let value = |template| serde_json::to_value(template).unwrap_or_default();
    covers(&value(live), &value(desired))
}

fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired
            .iter()
            .all(|(field, wanted)| live.get(field).is_some_and(|found| covers(found, wanted))),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(l, d)| covers(l, d))
        }
        _ => live == desired,
    }
}

/// The images of a workload's containers; empty for what is no workload.
fn images(object: &Object) -> Vec<&str> {
    template(object)
        .and_then(|template| template.spec.as_ref())
        .map(|spec| spec.containers.iter().filter_map(|c| c.image.as_deref()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;
    use crate::validate::Part;

    const ONE: Part = Part { index: 0, of: 1 };

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
            front_doors: vec![(ONE, Some(rollout(2, 2, 2)))],
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
            front_doors: vec![(ONE, None)],
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
        assert_eq!(at(Stage::SchedulerRelays, &nothing), waiting("the apiservers"));
        let store = Rollouts { store: Some(rollout(1, 1, 1)), ..nothing };
        assert_eq!(at(Stage::ApiServers, &store), Gate::Open);
        let one_apiserver =
            Rollouts { pools: vec![("default".to_owned(), Some(rollout(3, 1, 3)))], ..store };
        assert_eq!(at(Stage::ControllerManager, &one_apiserver), waiting("the front door"));
        let one_door =
            Rollouts { front_doors: vec![(ONE, Some(rollout(2, 1, 2)))], ..one_apiserver.clone() };
        assert_eq!(at(Stage::ControllerManager, &one_door), Gate::Open);
        let [first, second] = [0, 1].map(|index| Part { index, of: 2 });
        let doors = vec![(first, Some(rollout(2, 0, 2))), (second, Some(rollout(2, 1, 2)))];
        let one_part = Rollouts { front_doors: doors, ..one_apiserver };
        assert_eq!(at(Stage::ControllerManager, &one_part), Gate::Open);
    }

    #[test]
    fn a_deleted_workload_of_a_running_cluster_comes_back_at_once() {
        let down = Rollouts { store: Some(rollout(1, 0, 1)), ..rollouts() };
        let gate =
            check(Stage::SchedulerRelays, &deployment("i:1"), &Observed::default(), &down, true);
        assert_eq!(gate, Gate::Open);
    }

    #[test]
    fn an_edited_workload_is_mended_whatever_the_others_do() {
        let live: Observed = [deployment("i:1")].into_iter().collect();
        let down = Rollouts { store: Some(rollout(1, 0, 1)), ..rollouts() };
        assert_eq!(
            check(Stage::SchedulerRelays, &deployment("i:1"), &live, &down, true),
            Gate::Open
        );
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
        let doors = vec![(ONE, Some(rollout(2, 2, 2))), (ONE, Some(rollout(2, 2, 1)))];
        let parts = Rollouts { front_doors: doors, ..rollouts() };
        assert_eq!(at(&parts), waiting("the front door"));
        let later = Rollouts { relays: Some(rollout(2, 0, 0)), ..rollouts() };
        assert_eq!(at(&later), Gate::Open, "later stages don't matter");
    }

    #[test]
    fn the_scheduler_is_rolled_out_standbys_first_whatever_changed() {
        let live: Observed = [deployment("i:1")].into_iter().collect();
        let mut other = deployment("i:1");
        let Object::Deployment(changed) = &mut other else { unreachable!() };
        let pod = changed.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.containers[0].args = Some(vec!["--more".to_owned()]);
        let all = Rollouts { shard_standbys: Some(rollout(2, 2, 2)), ..rollouts() };
        let standbys = Rollouts { shard_standbys: Some(rollout(2, 2, 1)), ..rollouts() };
        let unseen = Rollout { observed: false, ..rollout(2, 2, 2) };
        let shards = Rollouts { shards: Some(unseen), ..rollouts() };
        for next in [other, deployment("i:2")] {
            let at = |stage, rollouts: &Rollouts| check(stage, &next, &live, rollouts, true);
            for stage in [Stage::SchedulerStandbys, Stage::SchedulerShards, Stage::SchedulerRelays]
            {
                assert_eq!(at(stage, &all), Gate::Open, "{stage:?}");
                assert_eq!(at(stage, &rollouts()), Gate::Open, "{stage:?} without standbys");
            }
            let wait = waiting("the standbys of the shards");
            assert_eq!(at(Stage::SchedulerStandbys, &standbys), Gate::Open);
            assert_eq!(at(Stage::SchedulerShards, &standbys), wait);
            assert_eq!(at(Stage::SchedulerRelays, &standbys), wait);
            assert_eq!(at(Stage::SchedulerShards, &shards), Gate::Open);
            assert_eq!(at(Stage::SchedulerRelays, &shards), waiting("the shards"));
            assert_eq!(at(Stage::ControllerManager, &shards), Gate::Open);
        }
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_change() {
        let mut filled = deployment("i:1");
        let Object::Deployment(object) = &mut filled else { unreachable!() };
        let pod = object.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.dns_policy = Some("ClusterFirst".to_owned());
        pod.containers[0].termination_message_path = Some("/dev/termination-log".to_owned());
        let live: Observed = [filled].into_iter().collect();
        let down = Rollouts { shards: Some(rollout(2, 0, 0)), ..rollouts() };
        let gate = check(Stage::SchedulerRelays, &deployment("i:1"), &live, &down, true);
        assert_eq!(gate, Gate::Open);
    }
}
