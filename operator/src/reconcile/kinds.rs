//! The API calls for a child of any kind.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{api::FIELD_MANAGER, children::Object};

/// What a deletion does to an object's own dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// They go too.
    Cascade,
    /// They go before it: it is there until its pods are gone.
    CascadeFirst,
    /// They stay: the pods and volumes of a StatefulSet that is only replaced.
    Orphan,
}

/// Creates a Secret; fails if there is one of its name. The owner references are left to the
/// apply that follows, so that they have one owner who can take them away again.
pub(super) async fn create(
    client: &Client,
    namespace: &str,
    secret: &Secret,
) -> kube::Result<Secret> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut secret = secret.clone();
    secret.metadata.owner_references = None;
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), dry_run: false };
    api.create(&params, &secret).await
}

/// Server-side apply: the object's fields become ours, also those that someone else has set.
pub(super) async fn apply(
    client: &Client,
    namespace: &str,
    object: &Object,
) -> kube::Result<Object> {
    match object {
        Object::Secret(o) => patch(client, namespace, o).await,
        Object::ConfigMap(o) => patch(client, namespace, o).await,
        Object::ServiceAccount(o) => patch(client, namespace, o).await,
        Object::Service(o) => patch(client, namespace, &**o).await,
        Object::NetworkPolicy(o) => patch(client, namespace, o).await,
        Object::PodDisruptionBudget(o) => patch(client, namespace, o).await,
        Object::StatefulSet(o) => patch(client, namespace, &**o).await,
        Object::Deployment(o) => patch(client, namespace, &**o).await,
    }
}

async fn patch<K>(client: &Client, namespace: &str, object: &K) -> kube::Result<Object>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned
        + Into<Object>,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let name = object.meta().name.as_deref().unwrap_or_default();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    Ok(api.patch(name, &params, &Patch::Apply(object)).await?.into())
}

/// Deletes this very object: one that has taken its name meanwhile stays.
pub(super) async fn delete(
    client: &Client,
    namespace: &str,
    object: &Object,
    verb: Verb,
) -> kube::Result<()> {
    let metadata = object.metadata();
    let params = DeleteParams {
        propagation_policy: Some(match verb {
            Verb::Cascade => PropagationPolicy::Background,
            Verb::CascadeFirst => PropagationPolicy::Foreground,
            Verb::Orphan => PropagationPolicy::Orphan,
        }),
        preconditions: Some(Preconditions { uid: metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    let name = object.name();
    match object {
        Object::Secret(_) => remove::<Secret>(client, namespace, name, &params).await,
        Object::ConfigMap(_) => remove::<ConfigMap>(client, namespace, name, &params).await,
        Object::ServiceAccount(_) => {
            remove::<ServiceAccount>(client, namespace, name, &params).await
        }
        Object::Service(_) => remove::<Service>(client, namespace, name, &params).await,
        Object::NetworkPolicy(_) => remove::<NetworkPolicy>(client, namespace, name, &params).await,
        Object::PodDisruptionBudget(_) => {
            remove::<PodDisruptionBudget>(client, namespace, name, &params).await
        }
        Object::StatefulSet(_) => remove::<StatefulSet>(client, namespace, name, &params).await,
        Object::Deployment(_) => remove::<Deployment>(client, namespace, name, &params).await,
    }
}

async fn remove<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    params: &DeleteParams,
) -> kube::Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.delete(name, params).await.map(|_| ())
}

/// Whether two states of an object differ in more than status and bookkeeping.
pub(super) fn differs(before: &Object, after: &Object) -> bool {
    let resource_version = |object: &Object| object.metadata().resource_version.clone();
    resource_version(before) != resource_version(after) && intent(before) != intent(after)
}

/// What an object asks for: all of it but its status and the API server's bookkeeping.
pub(super) fn intent(object: &Object) -> Value {
    let value = match object {
        Object::Secret(o) => serde_json::to_value(o),
        Object::ConfigMap(o) => serde_json::to_value(o),
        Object::ServiceAccount(o) => serde_json::to_value(o),
        Object::Service(o) => serde_json::to_value(o),
        Object::NetworkPolicy(o) => serde_json::to_value(o),
        Object::PodDisruptionBudget(o) => serde_json::to_value(o),
        Object::StatefulSet(o) => serde_json::to_value(o),
        Object::Deployment(o) => serde_json::to_value(o),
    };
    // These types have string keys only, so they always serialize.
    let mut value = value.unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for field in ["resourceVersion", "generation", "managedFields"] {
            metadata.remove(field);
        }
    }
    value
}
