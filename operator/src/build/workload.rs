//! Deployments that never have fewer pods than they should.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{self, Labels};
use super::names::Names;

/// Superseded revisions of a workload that are kept to go back to.
pub(super) const REVISIONS: i32 = 2;

/// A Deployment whose old pods go when new ones are ready, up to `max_surge` at a time.
pub(super) fn deployment(
    names: &Names,
    name: &str,
    labels: Labels,
    replicas: i32,
    max_surge: IntOrString,
    template: PodTemplateSpec,
) -> Deployment {
    Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            revision_history_limit: Some(REVISIONS),
            selector: labels::label_selector(&labels),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(max_surge),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        metadata: labels::labelled(names, name, labels),
        ..Deployment::default()
    }
}
