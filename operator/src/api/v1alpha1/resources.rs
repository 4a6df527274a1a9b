//! Compute resources of a component's container.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// Compute resources of each container of a component.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What the container is guaranteed and scheduled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What the container may not exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of compute resources.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceAmounts {
    /// CPU, such as `500m` or `16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,
    /// Memory, such as `128Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Option<Quantity>,
}

impl ResourceAmounts {
    fn to_map(&self) -> Option<BTreeMap<String, Quantity>> {
        let amounts: BTreeMap<String, Quantity> = [("cpu", &self.cpu), ("memory", &self.memory)]
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), amount.clone()?)))
            .collect();
        (!amounts.is_empty()).then_some(amounts)
    }
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        Self {
            requests: resources.requests.as_ref().and_then(ResourceAmounts::to_map),
            limits: resources.limits.as_ref().and_then(ResourceAmounts::to_map),
            claims: None,
        }
    }
}
