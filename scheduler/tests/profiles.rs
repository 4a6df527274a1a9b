//! A relay with several profiles: each pod is placed by the one that it names.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

mod common;

use std::time::Duration;

use common::pod;
use common::world::World;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use megacluster_scheduler::config::SchedulerConfig;
use megacluster_scheduler::relay::intake::Compiler;
use megacluster_scheduler::relay::report::Report;

const CONFIG: &str = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: careless
  plugins:
    multiPoint:
      disabled:
      - name: NodeResourcesFit
";

fn of(number: usize, profile: Option<&str>) -> Pod {
    let mut pod = pod(number, "100");
    let spec = pod.spec.get_or_insert_default();
    spec.scheduler_name = profile.map(str::to_owned);
    spec.tolerations =
        Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]);
    pod
}

#[test]
fn a_pod_is_placed_by_the_profile_that_it_names() {
    let profiles = SchedulerConfig::parse(CONFIG).expect("two profiles").policies(None);
    let mut compiler = Compiler::of_profiles(profiles.clone());
    let waits = |compiler: &mut Compiler, pod: &Pod| compiler.waiting_for_us(pod).is_some();
    assert!(waits(&mut compiler, &of(1, None)), "the default one's");
    assert!(!waits(&mut compiler, &of(1, Some("other"))));

    let mut world = World::new();
    world.compiler = compiler;
    // 100 CPUs on nodes of one: too much, but for who does not ask.
    world.show(&of(1, Some("default-scheduler")));
    world.show(&of(2, Some("careless")));
    world.pass(Duration::from_secs(1));
    let bound: Vec<&str> = world.binds.iter().map(|(pod, _)| &*pod.name).collect();
    assert_eq!(bound, ["p2"]);
    let failed: Vec<(&str, &str)> = world
        .reports
        .iter()
        .filter_map(|report| match report {
            Report::Failed { pod, profile, .. } => Some((&*pod.name, &**profile)),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [("p1", "default-scheduler")]);
}
