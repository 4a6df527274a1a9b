//! What was last applied, so that a reconcile that changes nothing writes nothing.
//!
//! A child is current if it is asked for as last time and is in the management cluster as the
//! last write left it. Both are remembered as hashes; losing the memory costs one round of
//! writes that change nothing.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, PoisonError},
};

use super::kinds::intent;
use crate::{api::LABEL_NAME, children::Object};

/// Namespace and name of a MegaCluster.
type Owner = (String, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hashes {
    desired: u64,
    live: u64,
}

/// Hashes by kind and name of a child.
type Kept = HashMap<(&'static str, String), Hashes>;

/// Hashes of what was last applied, by MegaCluster and child.
#[derive(Debug, Default)]
pub struct Memory {
    clusters: Mutex<HashMap<Owner, Kept>>,
}

impl Memory {
    /// Whether `desired` needs no write: `live` is what the last one left.
    pub(super) fn is_current(&self, namespace: &str, desired: &Object, live: &Object) -> bool {
        let hashes = Hashes { desired: hash(desired), live: hash(live) };
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters
            .get(&owner(namespace, desired))
            .and_then(|children| children.get(&(desired.kind(), desired.name().to_owned())))
            .is_some_and(|kept| *kept == hashes)
    }

    /// Whether `desired` is asked for just as it was at the last write.
    pub(super) fn asked_before(&self, namespace: &str, desired: &Object) -> bool {
        let asked = hash(desired);
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters
            .get(&owner(namespace, desired))
            .and_then(|children| children.get(&(desired.kind(), desired.name().to_owned())))
            .is_some_and(|kept| kept.desired == asked)
    }

    /// Keeps that applying `desired` gave `live`.
    pub(super) fn keep(&self, namespace: &str, desired: &Object, live: &Object) {
        let hashes = Hashes { desired: hash(desired), live: hash(live) };
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters
            .entry(owner(namespace, desired))
            .or_default()
            .insert((desired.kind(), desired.name().to_owned()), hashes);
    }

    /// Forgets a MegaCluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

fn owner(namespace: &str, object: &Object) -> Owner {
    let name = object.metadata().labels.as_ref().and_then(|labels| labels.get(LABEL_NAME));
    (namespace.to_owned(), name.cloned().unwrap_or_default())
}

fn hash(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    // serde_json keeps the keys of its maps sorted, so equal objects give equal text.
    intent(object).to_string().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn config(version: &str, value: &str) -> Object {
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "c", "labels": {LABEL_NAME: "prod"}, "resourceVersion": version},
            "data": {"k": value},
        }))
        .unwrap();
        map.into()
    }

    #[test]
    fn only_what_is_as_it_was_left_is_current() {
        let memory = Memory::default();
        let desired = config("", "a");
        assert!(!memory.is_current("ns", &desired, &config("1", "a")), "never applied");
        memory.keep("ns", &desired, &config("1", "a"));
        assert!(memory.is_current("ns", &desired, &config("2", "a")), "only bookkeeping moved");
        assert!(!memory.is_current("ns", &desired, &config("2", "edited")), "edited");
        assert!(!memory.is_current("ns", &config("", "b"), &config("1", "a")), "wanted otherwise");
        assert!(memory.asked_before("ns", &desired));
        assert!(!memory.asked_before("ns", &config("", "b")));
        assert!(!memory.is_current("other", &desired, &config("1", "a")), "another namespace");
        memory.forget("ns", "prod");
        assert!(!memory.is_current("ns", &desired, &config("1", "a")));
    }
}
