//! Labels of children. Those that every child has are set where children are gathered
//! ([`crate::children::Children::add`]).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::names::Names;
use crate::api::{LABEL_NAME, LABEL_PART, LABEL_POOL};
use crate::children::common_labels;

const NAME: &str = "app.kubernetes.io/name";
const INSTANCE: &str = "app.kubernetes.io/instance";
const COMPONENT: &str = "app.kubernetes.io/component";

pub(crate) type Labels = BTreeMap<String, String>;

/// Labels of one component's objects.
pub(crate) fn component(names: &Names, component: &str) -> Labels {
    let mut labels = common_labels(names.cluster());
    labels.extend([
        (NAME.to_owned(), "megacluster".to_owned()),
        (INSTANCE.to_owned(), names.cluster().to_owned()),
        (COMPONENT.to_owned(), component.to_owned()),
    ]);
    labels
}

/// Labels of an apiserver pool's objects.
pub(crate) fn pool(names: &Names, pool: &str) -> Labels {
    let mut labels = component(names, super::apiserver::COMPONENT);
    labels.insert(LABEL_POOL.to_owned(), pool.to_owned());
    labels
}

/// Labels of the objects of a part of the front doors.
pub(crate) fn part(names: &Names, part: &str) -> Labels {
    let mut labels = component(names, super::watchcache::COMPONENT);
    labels.insert(LABEL_PART.to_owned(), part.to_owned());
    labels
}

/// What tells the pods of `labels` from all others: the cluster, the component, and the pool or the
/// part. It is a workload's selector, which can never change.
pub(crate) fn selector(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(key, _)| [LABEL_NAME, COMPONENT, LABEL_POOL, LABEL_PART].contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

pub(crate) fn label_selector(labels: &Labels) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(labels)), match_expressions: None }
}

/// Whether an object with this metadata is of the component.
pub(crate) fn is_of(metadata: &ObjectMeta, component: &str) -> bool {
    let found = metadata.labels.as_ref().and_then(|labels| labels.get(COMPONENT));
    found.is_some_and(|found| found == component)
}

/// Metadata of an object of one component.
pub(crate) fn metadata(names: &Names, name: &str, of: &str) -> ObjectMeta {
    labelled(names, name, component(names, of))
}

/// Metadata of an object with these labels.
pub(crate) fn labelled(names: &Names, name: &str, labels: Labels) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(names.namespace().to_owned()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
