//! Budgets that let a drain take one pod of a component at a time.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{self, Labels};
use super::names::Names;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

/// Adds the budget of a workload of the same name. A workload of one pod gets none: it would only
/// block every drain.
pub(super) fn add(
    cluster: &ValidatedCluster,
    name: &str,
    labels: Labels,
    replicas: i32,
    children: &mut Children,
) {
    if replicas < 2 {
        return;
    }
    let budget = PodDisruptionBudget {
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(labels::label_selector(&labels)),
            // A pod that isn't ready protects nothing.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        metadata: labels::labelled(&Names::of(cluster), name, labels),
        ..PodDisruptionBudget::default()
    };
    children.add(cluster, Stage::Foundation, Lifetime::Owned, budget);
}
