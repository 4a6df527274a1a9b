//! Usage is the sum of what the pods take, whatever happens in whatever order, and reservations
//! never exceed what a node has.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use megacluster_scheduler::core::event::{ClusterEvent, EventSet};
use megacluster_scheduler::core::pod::PodRequest;
use megacluster_scheduler::core::table::{NodeTable, Stage, Unfit};
use proptest::prelude::*;
use serde_json::json;

use crate::build::{asking, node, on, pod, table, uid};

const NODES: u8 = 4;
const PODS: u8 = 12;

#[derive(Clone, Debug)]
enum Step {
    UpsertNode { node: u8, cores: u8 },
    RemoveNode { node: u8 },
    ListNodes { shown: Vec<u8> },
    UpsertPod { pod: u8, node: u8, cores: u8, ended: bool },
    RemovePod { pod: u8 },
    ListPods { shown: Vec<(u8, u8, u8)> },
    Assume { pod: u8, node: u8, cores: u8 },
    Confirm { pod: u8 },
    Forget { pod: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (node, pod, cores) = (0..NODES, 0..PODS, 0..5_u8);
    prop_oneof![
        2 => (node.clone(), 0..9_u8).prop_map(|(node, cores)| Step::UpsertNode { node, cores }),
        1 => node.clone().prop_map(|node| Step::RemoveNode { node }),
        1 => prop::collection::vec(node.clone(), 0..5).prop_map(|shown| Step::ListNodes { shown }),
        4 => (pod.clone(), node.clone(), cores.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(pod, node, cores, a, b)| Step::UpsertPod { pod, node, cores, ended: a && b }
        ),
        1 => pod.clone().prop_map(|pod| Step::RemovePod { pod }),
        1 => prop::collection::vec((pod.clone(), node.clone(), cores.clone()), 0..5)
            .prop_map(|shown| Step::ListPods { shown }),
        4 => (pod.clone(), node, cores).prop_map(|(pod, node, cores)| Step::Assume { pod, node, cores }),
        2 => pod.clone().prop_map(|pod| Step::Confirm { pod }),
        2 => pod.prop_map(|pod| Step::Forget { pod }),
    ]
}

fn name(node: u8) -> String {
    format!("n{node}")
}

/// A pod with a request, a scalar and a host port that all follow from its size.
fn sized(number: u8, cores: u8) -> Pod {
    pod(
        &format!("p{number}"),
        json!({"spec": {"containers": [{
            "name": "c",
            "resources": {"requests": {"cpu": cores.to_string(), "example.com/x": cores.to_string()}},
            "ports": [{"containerPort": 1, "hostPort": 1000 + u16::from(number)}],
        }]}}),
    )
}

fn sized_node(number: u8, cores: u8) -> k8s_openapi::api::core::v1::Node {
    let allocatable = json!({"cpu": cores.to_string(), "example.com/x": "100"});
    node(&name(number), json!({"status": {"allocatable": allocatable}}))
}

/// What the table should hold, kept the plain way.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<u8, u8>,
    pods: BTreeMap<u8, (u8, u8, Stage)>,
    gone: BTreeSet<u8>,
}

impl Model {
    fn upsert_pod(&mut self, pod: u8, node: u8, cores: u8) {
        if !self.gone.contains(&pod) {
            self.pods.insert(pod, (node, cores, Stage::Assigned));
        }
    }

    fn remove_pod(&mut self, pod: u8) {
        self.gone.insert(pod);
        self.pods.remove(&pod);
    }

    fn cores_on(&self, node: u8) -> i64 {
        let here = self.pods.values().filter(|(on, ..)| *on == node);
        here.map(|(_, cores, _)| i64::from(*cores)).sum()
    }

    fn apply(&mut self, table: &mut NodeTable, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::UpsertNode { node, cores } => {
                table.upsert_node(&sized_node(*node, *cores));
                self.nodes.insert(*node, *cores);
            }
            Step::RemoveNode { node } => {
                let known = table.remove_node(&name(*node));
                prop_assert_eq!(!known.is_empty(), self.nodes.remove(node).is_some());
            }
            Step::ListNodes { shown } => {
                table.begin_node_list();
                for node in shown {
                    table.upsert_node(&sized_node(*node, 4));
                }
                table.end_node_list();
                self.nodes = shown.iter().map(|node| (*node, 4)).collect();
            }
            Step::UpsertPod { pod, node, cores, ended } => {
                let mut object = on(sized(*pod, *cores), &name(*node));
                if *ended {
                    object.status.get_or_insert_default().phase = Some("Succeeded".into());
                    self.remove_pod(*pod);
                } else {
                    self.upsert_pod(*pod, *node, *cores);
                }
                table.upsert_pod(&object);
            }
            Step::RemovePod { pod } => {
                table.remove_pod(uid(&sized(*pod, 0)));
                self.remove_pod(*pod);
            }
            Step::ListPods { shown } => {
                table.begin_pod_list();
                for (pod, node, cores) in shown {
                    table.upsert_pod(&on(sized(*pod, *cores), &name(*node)));
                }
                table.end_pod_list();
                for (pod, node, cores) in shown {
                    self.upsert_pod(*pod, *node, *cores);
                }
                let listed: BTreeSet<u8> = shown.iter().map(|(pod, ..)| *pod).collect();
                let unseen = |(pod, (_, _, stage)): (&u8, &(u8, u8, Stage))| {
                    (*stage != Stage::Assumed && !listed.contains(pod)).then_some(*pod)
                };
                let unseen: Vec<u8> = self.pods.iter().filter_map(unseen).collect();
                for pod in unseen {
                    self.pods.remove(&pod);
                }
            }
            Step::Assume { pod, node, cores } => self.assume(table, *pod, *node, *cores)?,
            Step::Confirm { pod } => {
                let known = table.confirm(uid(&sized(*pod, 0)));
                prop_assert_eq!(known, self.pods.contains_key(pod));
                if let Some((_, _, stage)) = self.pods.get_mut(pod)
                    && *stage == Stage::Assumed
                {
                    *stage = Stage::Confirmed;
                }
            }
            Step::Forget { pod } => {
                table.forget(uid(&sized(*pod, 0)));
                if self.pods.get(pod).is_some_and(|(_, _, stage)| *stage == Stage::Assumed) {
                    self.pods.remove(pod);
                }
            }
        }
        Ok(())
    }

    fn assume(
        &mut self,
        table: &mut NodeTable,
        pod: u8,
        node: u8,
        cores: u8,
    ) -> Result<(), TestCaseError> {
        let object = sized(pod, cores);
        let outcome = table.assume(uid(&object), &name(node), &PodRequest::compile(&object));
        let fits = self.nodes.get(&node).is_some_and(|allocatable| {
            cores == 0 || self.cores_on(node) + i64::from(cores) <= i64::from(*allocatable)
        });
        match (outcome, self.pods.get(&pod)) {
            (Ok(()), Some((at, _, Stage::Assumed))) => prop_assert_eq!(*at, node),
            (Ok(()), None) => {
                prop_assert!(fits && !self.gone.contains(&pod));
                self.pods.insert(pod, (node, cores, Stage::Assumed));
            }
            (Ok(()), Some(other)) => prop_assert!(false, "reserved though it is {other:?}"),
            (Err(Unfit::PodGone), _) => prop_assert!(self.gone.contains(&pod)),
            (Err(Unfit::NodeUnknown(_)), _) => prop_assert!(!self.nodes.contains_key(&node)),
            (Err(Unfit::Placed(at)), Some((on, ..))) => prop_assert_eq!(&*at, name(*on)),
            (Err(Unfit::Rejected(_)), None) => prop_assert!(!fits),
            (outcome, state) => prop_assert!(false, "{outcome:?} though it is {state:?}"),
        }
        Ok(())
    }

    fn check(&self, table: &NodeTable) -> Result<(), TestCaseError> {
        prop_assert_eq!(table.node_count(), self.nodes.len());
        prop_assert_eq!(table.pod_count(), self.pods.len());
        for (pod, (node, _, stage)) in &self.pods {
            let (at, at_stage) = table.placement(uid(&sized(*pod, 0))).unwrap();
            prop_assert_eq!((at.to_string(), at_stage), (name(*node), *stage));
        }
        for (node, allocatable) in &self.nodes {
            let usage = table.usage(&name(*node)).unwrap();
            let cores = self.cores_on(*node);
            let pods: Vec<_> = self.pods.iter().filter(|(_, (on, ..))| on == node).collect();
            prop_assert_eq!(usage.allocatable.milli_cpu, i64::from(*allocatable) * 1000);
            prop_assert_eq!(usage.requested.milli_cpu, cores * 1000);
            let scalars: Vec<i64> = usage.requested.scalars.iter().map(|(_, v)| *v).collect();
            prop_assert_eq!(scalars, if cores == 0 { vec![] } else { vec![cores] });
            prop_assert_eq!(usage.requested.pods, i64::try_from(pods.len()).unwrap());
            prop_assert_eq!(usage.ports.len(), pods.len());
            let defaults: i64 = i64::try_from(pods.len()).unwrap() * 200 * 1024 * 1024;
            prop_assert_eq!(usage.non_zero.memory, defaults);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn usage_is_the_sum_of_the_pods(steps in prop::collection::vec(step(), 1..80)) {
        let mut table = NodeTable::new();
        let mut model = Model::default();
        for step in &steps {
            model.apply(&mut table, step)?;
            model.check(&table)?;
        }
    }

    #[test]
    fn reservations_never_exceed_a_node(
        tries in prop::collection::vec((0..40_u8, 0..NODES, 0..4_u8), 1..120),
    ) {
        let mut table = table((0..NODES).map(|number| sized_node(number, 6)));
        for (number, at, fate) in tries {
            let object = sized(number, number % 5);
            if table.assume(uid(&object), &name(at), &PodRequest::compile(&object)).is_ok() {
                match fate {
                    0 => _ = table.forget(uid(&object)),
                    1 => _ = table.confirm(uid(&object)),
                    2 => _ = table.upsert_pod(&on(object, &name(at))),
                    _ => {}
                }
            }
            for number in 0..NODES {
                let usage = table.usage(&name(number)).unwrap();
                prop_assert!(usage.requested.milli_cpu <= usage.allocatable.milli_cpu);
            }
        }
    }
}

#[test]
fn pods_may_come_before_their_node() {
    let mut table = NodeTable::new();
    table.upsert_pod(&on(asking("p", "3", "1Gi"), "n"));
    assert_eq!(table.usage("n"), None);
    assert_eq!(table.upsert_node(&node("n", json!({}))), ClusterEvent::NodeAdded.into());
    assert_eq!(table.usage("n").unwrap().requested.milli_cpu, 3000);
    assert!(!table.remove_node("n").is_empty());
    table.upsert_node(&node("n", json!({})));
    assert_eq!(table.usage("n").unwrap().requested.milli_cpu, 3000);
}

#[test]
fn a_pod_bound_elsewhere_counts_there() {
    let mut table = table([node("a", json!({})), node("b", json!({}))]);
    let pod = asking("p", "1", "1Gi");
    table.assume(uid(&pod), "a", &PodRequest::compile(&pod)).unwrap();
    table.upsert_pod(&on(pod, "b"));
    assert_eq!(table.usage("a").unwrap().requested.pods, 0);
    assert_eq!(table.usage("b").unwrap().requested.pods, 1);
}

#[test]
fn what_is_bound_is_not_given_back() {
    let mut table = table([node("a", json!({}))]);
    let pod = asking("p", "1", "1Gi");
    let request = PodRequest::compile(&pod);
    table.assume(uid(&pod), "a", &request).unwrap();
    assert!(table.confirm(uid(&pod)));
    assert_eq!(table.forget(uid(&pod)), EventSet::EMPTY);
    assert_eq!(table.usage("a").unwrap().requested.pods, 1);
    // A list that began after the binding and doesn't show it speaks against it, until the watch
    // shows the pod after all.
    table.begin_pod_list();
    assert_eq!(table.end_pod_list(), ClusterEvent::PodFreed.into());
    assert_eq!(table.usage("a").unwrap().requested.pods, 0);
    table.upsert_pod(&on(pod.clone(), "a"));
    assert_eq!(table.usage("a").unwrap().requested.pods, 1);
    // What is deleted stays so, however late the events come.
    table.remove_pod(uid(&pod));
    table.upsert_pod(&on(pod.clone(), "a"));
    assert_eq!(table.usage("a").unwrap().requested.pods, 0);
    assert_eq!(table.assume(uid(&pod), "a", &request), Err(Unfit::PodGone));
}

#[test]
fn a_list_spares_reservations_and_bindings_made_meanwhile() {
    let mut table = table([node("a", json!({}))]);
    let (one, two) = (asking("one", "1", "1Gi"), asking("two", "1", "1Gi"));
    table.assume(uid(&one), "a", &PodRequest::compile(&one)).unwrap();
    table.assume(uid(&two), "a", &PodRequest::compile(&two)).unwrap();
    table.begin_pod_list();
    table.confirm(uid(&two));
    table.end_pod_list();
    assert_eq!(table.pod_count(), 2);
}

#[test]
fn changes_tell_whom_they_may_help() {
    use ClusterEvent as E;
    let mut table = NodeTable::new();
    let set = |events: &[E]| events.iter().copied().collect::<EventSet>();
    assert_eq!(table.upsert_node(&node("n", json!({}))), set(&[E::NodeAdded]));
    assert_eq!(table.upsert_node(&node("n", json!({}))), EventSet::EMPTY);
    let bigger = node(
        "n",
        json!({
            "metadata": {"labels": {"zone": "a"}},
            "spec": {"unschedulable": true},
            "status": {"allocatable": {"cpu": "8"}},
        }),
    );
    assert_eq!(table.upsert_node(&bigger), set(&[E::NodeAllocatable, E::NodeLabels]));
    assert_eq!(table.upsert_node(&node("n", json!({}))), set(&[E::NodeLabels, E::NodeTaints]));

    let ports = json!({"spec": {"containers": [{"name": "c", "ports": [
        {"containerPort": 1, "hostPort": 1},
    ]}]}});
    table.upsert_pod(&on(pod("with", ports), "n"));
    assert_eq!(table.remove_pod(uid(&pod("with", json!({})))), set(&[E::PodFreed, E::PortsFreed]));
    table.upsert_pod(&on(asking("p", "2", "1Gi"), "n"));
    assert_eq!(table.upsert_pod(&on(asking("p", "3", "1Gi"), "n")), EventSet::EMPTY);
    assert_eq!(table.upsert_pod(&on(asking("p", "1", "1Gi"), "n")), set(&[E::PodScaledDown]));
    let mut ended = on(asking("p", "1", "1Gi"), "n");
    ended.status.get_or_insert_default().phase = Some("Failed".into());
    assert_eq!(table.upsert_pod(&ended), set(&[E::PodFreed]));
    assert_eq!(table.upsert_pod(&on(asking("p", "1", "1Gi"), "n")), EventSet::EMPTY);
    assert_eq!(table.pod_count(), 0);
}
