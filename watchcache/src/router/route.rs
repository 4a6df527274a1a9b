//! Which pool a request goes to.

use std::collections::HashMap;

use crate::api::RequestInfo;
use crate::config::{DEFAULT_POOL, PoolConfig};

/// Stands for every resource of a group.
const ANY: &str = "*";

/// Resources and the pools they go to, by the pool's place in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    groups: HashMap<String, HashMap<String, usize>>,
    default: usize,
}

impl RouteTable {
    /// The table of checked pools: names are unique and no resource is matched twice.
    #[must_use]
    pub fn new(pools: &[PoolConfig]) -> Self {
        let mut table = Self::default();
        for (index, pool) in pools.iter().enumerate() {
            if pool.name == DEFAULT_POOL {
                table.default = index;
            }
            for resource in &pool.matches {
                table
                    .groups
                    .entry(resource.group.clone())
                    .or_default()
                    .insert(resource.resource.clone(), index);
            }
        }
        table
    }

    /// The pool's place. What is not a resource, or matched by no pool, goes to the default pool.
    #[must_use]
    pub fn pool(&self, info: &RequestInfo<'_>) -> usize {
        if !info.is_resource {
            return self.default;
        }
        self.groups
            .get(info.group)
            .and_then(|resources| resources.get(info.resource).or_else(|| resources.get(ANY)))
            .copied()
            .unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::config::ResourceMatch;

    fn pool(name: &str, matches: &[(&str, &str)]) -> PoolConfig {
        PoolConfig {
            name: name.to_owned(),
            host: "localhost".to_owned(),
            port: 6443,
            addresses: Vec::new(),
            matches: matches
                .iter()
                .map(|(group, resource)| ResourceMatch {
                    group: (*group).to_owned(),
                    resource: (*resource).to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn resources_take_their_subresources_along() {
        let table = RouteTable::new(&[
            pool("pods", &[("", "pods")]),
            pool("default", &[]),
            pool("leases", &[("coordination.k8s.io", "leases"), ("events.k8s.io", "*")]),
        ]);
        let at = |path: &str| table.pool(&RequestInfo::parse(&Method::GET, path, ""));
        assert_eq!(at("/api/v1/pods"), 0);
        assert_eq!(at("/api/v1/namespaces/a/pods/p/status"), 0);
        assert_eq!(at("/api/v1/watch/namespaces/a/pods"), 0);
        assert_eq!(at("/apis/coordination.k8s.io/v1/namespaces/a/leases/n"), 2);
        assert_eq!(at("/apis/events.k8s.io/v1/events"), 2);
        assert_eq!(at("/apis/coordination.k8s.io/v1"), 1);
        assert_eq!(at("/apis/metrics.k8s.io/v1beta1/pods"), 1);
        assert_eq!(at("/api/v1/nodes"), 1);
        assert_eq!(at("/openapi/v3"), 1);
        assert_eq!(at("/"), 1);
    }
}
