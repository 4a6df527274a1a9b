//! The apiserver: which pods there are, where they are bound, and what must hold of that.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use megacluster_scheduler::relay::bind::BindOutcome;
use serde_json::json;

use crate::{SLOTS, Time};

/// What happened at the apiserver, in order: watches deliver it with a lag.
#[derive(Clone)]
pub(crate) enum Change {
    Created(u32),
    Bound(u32),
    Deleted(u32),
}

#[derive(Clone)]
pub(crate) struct ApiPod {
    pub(crate) uid: String,
    pub(crate) node: Option<String>,
    pub(crate) deleted: bool,
}

#[derive(Default)]
pub(crate) struct Api {
    pub(crate) pods: BTreeMap<u32, ApiPod>,
    pub(crate) history: Vec<(Time, Change)>,
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
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("p{number}"), "namespace": "d", "uid": pod.uid, "labels": labels,
            },
            "spec": {
                "nodeName": pod.node,
                "affinity": affinity,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            },
        }))
        .expect("pod")
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

    pub(crate) fn delete(&mut self, now: Time, number: u32) {
        self.pods.get_mut(&number).expect("known pod").deleted = true;
        self.history.push((now, Change::Deleted(number)));
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
