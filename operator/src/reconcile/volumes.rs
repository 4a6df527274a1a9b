//! Growth of a StatefulSet's volumes.
//!
//! `volumeClaimTemplates` can't be changed. So the claims grow first; then the StatefulSet is
//! deleted without its pods and made anew by the apply that follows, which takes the pods and
//! claims up again. A reconcile that dies in between is continued by the next.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    apply::Writer,
    error::{ApplyError, CallError, bounded},
    kinds::{self, Verb},
};
use crate::{api::FIELD_MANAGER, children::Object};

/// Grows the claims of `live` to what `desired` asks for, and removes `live` if its templates
/// have to change.
pub(super) async fn grow(
    desired: &StatefulSet,
    live: &StatefulSet,
    namespace: &str,
    writer: Writer<'_>,
) -> Result<(), ApplyError> {
    let plan = plan(desired, live);
    if plan.is_empty() {
        return Ok(());
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(writer.client.clone(), namespace);
    for Growth { claim, size } in &plan {
        let failed = |source| ApplyError {
            action: "growing",
            kind: "PersistentVolumeClaim",
            name: claim.clone(),
            source,
        };
        writer.claim().map_err(failed)?;
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        match bounded(claims.patch(claim, &params, &Patch::Merge(&patch))).await {
            // A claim that was never made will be made with the new size.
            Err(error) if error.is_status(404) => {}
            other => drop(other.map_err(failed)?),
        }
    }
    let live = Object::from(live.clone());
    let failed = |source: CallError| ApplyError {
        action: "removing",
        kind: live.kind(),
        name: live.name().to_owned(),
        source,
    };
    match bounded(kinds::delete(writer.client, namespace, &live, Verb::Orphan)).await {
        Err(error) if !error.is_status(404) => Err(failed(error)),
        _ => gone(writer, namespace, live.name()).await.map_err(failed),
    }
}

/// Waits until the StatefulSet's name is free: an orphaning deletion ends when its pods are let
/// go, a moment after the call.
async fn gone(writer: Writer<'_>, namespace: &str, name: &str) -> Result<(), CallError> {
    let sets: Api<StatefulSet> = Api::namespaced(writer.client.clone(), namespace);
    let deadline = tokio::time::Instant::now() + super::CALL_TIMEOUT;
    while bounded(sets.get_metadata_opt(name)).await?.is_some() {
        if tokio::time::Instant::now() >= deadline {
            return Err(CallError::Timeout);
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A claim and the size that it should have.
#[derive(Debug, PartialEq)]
struct Growth {
    claim: String,
    size: Quantity,
}

/// Every claim of `live` whose template asks for another size in `desired`.
fn plan(desired: &StatefulSet, live: &StatefulSet) -> Vec<Growth> {
    let name = live.metadata.name.as_deref().unwrap_or_default();
    let replicas = live.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let mut plan = Vec::new();
    for template in templates(desired) {
        let Some(template_name) = template.metadata.name.as_deref() else { continue };
        let current = templates(live)
            .iter()
            .find(|other| other.metadata.name.as_deref() == Some(template_name))
            .and_then(size);
        match (size(template), current) {
            (Some(size), Some(current)) if size != current => {
                plan.extend((0..replicas).map(|ordinal| Growth {
                    claim: format!("{template_name}-{name}-{ordinal}"),
                    size: size.clone(),
                }));
            }
            _ => {}
        }
    }
    plan
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn size(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage").cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(size: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "prod-store"},
            "spec": {
                "replicas": 2,
                "selector": {},
                "serviceName": "prod-store",
                "template": {},
                "volumeClaimTemplates": [
                    {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": size}}}},
                ],
            },
        }))
        .unwrap()
    }

    #[test]
    fn every_claim_of_a_changed_template_grows() {
        let size = Quantity("20Gi".to_owned());
        let growth = |claim: &str| Growth { claim: claim.to_owned(), size: size.clone() };
        assert_eq!(
            plan(&set("20Gi"), &set("10Gi")),
            [growth("data-prod-store-0"), growth("data-prod-store-1")]
        );
    }

    #[test]
    fn nothing_grows_when_nothing_changed() {
        assert_eq!(plan(&set("20Gi"), &set("20Gi")), []);
    }
}
