//! The apiserver: which pods there are, where they are bound, and what must hold of that.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use megacluster_scheduler::core::preempt::Budget;
use megacluster_scheduler::relay::bind::BindOutcome;
use megacluster_scheduler::relay::lookup::News;
use serde_json::json;

use crate::claims::{Claims, has_claim};
use crate::{SLOTS, Time};

/// What happened at the apiserver, in order: watches deliver it with a lag.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Created(u32),
    Bound(u32),
    /// A waiting pod is promised a node, or none any more.
    Promised(u32, Option<String>),
    /// A pod on a node begins to end.
    Leaving(u32),
    Deleted(u32),
}

#[derive(Clone)]
pub(crate) struct ApiPod {
    pub(crate) uid: String,
    pub(crate) node: Option<String>,
    pub(crate) promised: Option<String>,
    /// Evicted, for this pod.
    pub(crate) leaving_for: Option<u32>,
    pub(crate) deleted: bool,
}

impl ApiPod {
    pub(crate) fn new(number: u32) -> Self {
        let uid = format!("00000000-0000-0000-0000-{number:012x}");
        Self { uid, node: None, promised: None, leaving_for: None, deleted: false }
    }
}

#[derive(Default)]
pub(crate) struct Api {
    pub(crate) pods: BTreeMap<u32, ApiPod>,
    pub(crate) history: Vec<(Time, Change)>,
    pub(crate) evictions: u32,
    pub(crate) claims: Claims,
}

impl Api {
    pub(crate) fn object(&self, number: u32) -> Pod {
        let pod = &self.pods[&number];
        let labels = json!({"app": role(number)});
        let zone = |app: &str| json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
        let node = |app: &str| {
            let mut term = zone(app);
            term["topologyKey"] = json!("kubernetes.io/hostname");
            term
        };
        // One to a zone, and none to a node of the shy ones, who know nothing of it.
        let lonely = json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [zone("lonely"), node("shy")],
        }});
        let affinity = if role(number) == "lonely" { lonely } else { json!({}) };
        let leaving = pod.leaving_for.map(|_| "2026-01-01T00:00:00Z");
        let marked = json!([
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
        ]);
        let claim = json!([
            {"name": "v", "persistentVolumeClaim": {"claimName": format!("c{number}")}},
        ]);
        let volumes = if has_claim(number) { claim } else { json!([]) };
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("p{number}"), "namespace": "d", "uid": pod.uid, "labels": labels,
                "deletionTimestamp": leaving,
            },
            "status": {
                "nominatedNodeName": pod.promised,
                "conditions": if leaving.is_some() { marked } else { json!([]) },
            },
            "spec": {
                "nodeName": pod.node, "priority": priority(number),
                "affinity": affinity, "volumes": volumes,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            },
        }))
        .expect("pod")
    }

    /// The version of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.history.len() as u64
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = (&u32, &ApiPod)> {
        self.pods.iter().filter(|(_, pod)| !pod.deleted)
    }

    /// Binds, and checks the invariant that matters most.
    pub(crate) fn bind(&mut self, now: Time, number: u32, node: &str) -> BindOutcome {
        let pod = self.pods.get_mut(&number).expect("known pod");
        if pod.deleted {
            return BindOutcome::Gone;
        }
        match &pod.node {
            Some(other) if other == node => return BindOutcome::Bound,
            Some(other) => return BindOutcome::Elsewhere(other.clone()),
            None => pod.node = Some(node.to_owned()),
        }
        self.history.push((now, Change::Bound(number)));
        let taken = self.live().filter(|(_, pod)| pod.node.as_deref() == Some(node)).count();
        assert!(taken <= SLOTS as usize, "{now:?}: {node} takes {taken} pods of {SLOTS}");
        self.check_company(now, number, node);
        self.claims.check_bind(now, number, node);
        BindOutcome::Bound
    }

    /// No lonely pod shares a zone with another, nor a node with a shy one.
    pub(crate) fn check_company(&self, now: Time, number: u32, node: &str) {
        for (other, pod) in self.live().filter(|(other, _)| **other != number) {
            let Some(at) = &pod.node else { continue };
            let company = match (role(number), role(*other)) {
                ("lonely", "lonely") => zone_of(at) == zone_of(node),
                ("lonely", "shy") | ("shy", "lonely") => at == node,
                _ => false,
            };
            assert!(!company, "{now:?}: p{number} on {node} beside p{other} on {at}");
        }
    }

    /// Promises a waiting pod a node, or takes it back. Whether the pod still waits.
    pub(crate) fn promise(&mut self, now: Time, number: u32, node: Option<&str>) -> bool {
        let pod = self.pods.get_mut(&number).expect("known pod");
        if pod.deleted || pod.node.is_some() {
            return false;
        }
        pod.promised = node.map(ToOwned::to_owned);
        self.history.push((now, Change::Promised(number, pod.promised.clone())));
        true
    }

    /// Has a pod leave its node for another, and checks that this is right. Whether it does so
    /// because of this.
    pub(crate) fn evict(&mut self, now: Time, number: u32, node: &str, preemptor: u32) -> bool {
        let victim = &self.pods[&number];
        if victim.deleted || victim.leaving_for.is_some() || victim.node.as_deref() != Some(node) {
            return false;
        }
        let (low, high) = (priority(number), priority(preemptor));
        assert!(low < high, "{now:?}: p{number} of {low} goes for p{preemptor} of {high}");
        let promised = self.pods[&preemptor].promised.as_deref();
        assert_eq!(promised, Some(node), "{now:?}: p{preemptor} evicts p{number}");
        self.evictions += 1;
        self.pods.get_mut(&number).expect("known pod").leaving_for = Some(preemptor);
        self.history.push((now, Change::Leaving(number)));
        true
    }

    pub(crate) fn delete(&mut self, now: Time, number: u32) {
        self.pods.get_mut(&number).expect("known pod").deleted = true;
        self.history.push((now, Change::Deleted(number)));
        self.claims.delete(now, number);
    }
}

/// Some pods have rules about others.
pub(crate) fn role(number: u32) -> &'static str {
    match number % 8 {
        3 => "lonely",
        5 => "shy",
        _ => "plain",
    }
}

/// Some pods are more important than others.
pub(crate) fn priority(number: u32) -> i32 {
    match number % 5 {
        0 => 10,
        1 => 5,
        _ => 0,
    }
}

pub(crate) fn zone_of(node: &str) -> u32 {
    node.trim_start_matches('n').parse::<u32>().expect("a node of ours") % 4
}

pub(crate) fn node(number: u32) -> Node {
    let amounts = json!({"cpu": SLOTS.to_string(), "memory": "64Gi", "pods": "110"});
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("n{number}"),
            "labels": {
                "kubernetes.io/hostname": format!("n{number}"),
                "zone": zone_of(&format!("n{number}")).to_string(),
            },
        },
        "status": {"allocatable": amounts, "capacity": amounts},
    }))
    .expect("node")
}

/// One protects the shy ones.
pub(crate) fn budgets() -> News<Budget> {
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": "shy", "namespace": "d"},
        "spec": {"selector": {"matchLabels": {"app": "shy"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0,
            "expectedPods": 0},
    }))
    .expect("budget");
    let key = ("d".into(), "shy".into());
    News::All(vec![(key, Budget::of(&budget).expect("one that means pods"))])
}
