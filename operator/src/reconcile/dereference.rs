//! First stage: reads all that a reconcile looks at, straight from the API server, so that no
//! decision rests on a cache that is behind our own writes.

use futures::TryFutureExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Client, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    error::{CallError, ReconcileError, bounded},
    observed::Observed,
};
use crate::{
    api::{LABEL_NAME, v1alpha1::MegaCluster},
    children::Object,
};

/// The MegaCluster as it is now; `None` if it is gone.
pub(super) async fn mega_cluster(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<MegaCluster>, ReconcileError> {
    let api: Api<MegaCluster> = Api::namespaced(client.clone(), namespace);
    bounded(api.get_opt(name))
        .await
        .map_err(|source| ReconcileError::Dereference { what: "the MegaCluster", source })
}

/// Every child of the MegaCluster `name`.
pub(super) async fn children(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Observed, ReconcileError> {
    let selector = format!("{LABEL_NAME}={name}");
    let lists = futures::try_join!(
        list::<Secret>(client, namespace, &selector).map_err(reading("Secrets")),
        list::<ConfigMap>(client, namespace, &selector).map_err(reading("ConfigMaps")),
        list::<ServiceAccount>(client, namespace, &selector).map_err(reading("ServiceAccounts")),
        list::<Service>(client, namespace, &selector).map_err(reading("Services")),
        list::<NetworkPolicy>(client, namespace, &selector).map_err(reading("NetworkPolicies")),
        list::<PodDisruptionBudget>(client, namespace, &selector)
            .map_err(reading("PodDisruptionBudgets")),
        list::<StatefulSet>(client, namespace, &selector).map_err(reading("StatefulSets")),
        list::<Deployment>(client, namespace, &selector).map_err(reading("Deployments")),
    )?;
    let (secrets, config_maps, accounts, services, policies, budgets, sets, deployments) = lists;
    Ok(objects(secrets)
        .chain(objects(config_maps))
        .chain(objects(accounts))
        .chain(objects(services))
        .chain(objects(policies))
        .chain(objects(budgets))
        .chain(objects(sets))
        .chain(objects(deployments))
        .collect())
}

fn objects<K: Into<Object>>(list: Vec<K>) -> impl Iterator<Item = Object> {
    list.into_iter().map(Into::into)
}

fn reading(what: &'static str) -> impl FnOnce(CallError) -> ReconcileError {
    move |source| ReconcileError::Dereference { what, source }
}

async fn list<K>(client: &Client, namespace: &str, selector: &str) -> Result<Vec<K>, CallError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    Ok(bounded(api.list(&ListParams::default().labels(selector))).await?.items)
}
