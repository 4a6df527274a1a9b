//! What the scheduler reads of a node of the API, and how selectors see a node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::images::Images;
use super::resources::{self, Resources};
use super::selector::{HOSTNAME_LABEL, NodeLabels};
use super::taint::Taint;

/// Labels that nodes share: all but the hostname, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Profile(Vec<(Arc<str>, Arc<str>)>);

impl Profile {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let index = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[index].1)
    }
}

/// A profile as a selector sees it when it doesn't ask who the node is.
pub(super) struct Anonymous<'a>(pub(super) &'a Profile);

impl NodeLabels for Anonymous<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    fn name(&self) -> &'static str {
        ""
    }
}

/// A node's hostname label against its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hostname {
    /// It has none.
    Absent,
    /// The label is the name: no other node has it, unless that one is [`Self::Odd`].
    Own,
    /// The label is something else, which other nodes may have too.
    Odd,
}

/// What many nodes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) profile: u32,
    pub(super) taints: u32,
    pub(super) hostname: Hostname,
}

/// One node as a selector sees it.
pub(super) struct Named<'a> {
    pub(super) profile: Option<&'a Profile>,
    pub(super) hostname: Option<&'a str>,
    pub(super) name: &'a str,
}

impl NodeLabels for Named<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        if key == HOSTNAME_LABEL { self.hostname } else { self.profile?.get(key) }
    }

    fn name(&self) -> &str {
        self.name
    }
}

/// What the scheduler reads of a node of the API.
#[derive(Debug)]
pub(super) struct NodeFacts {
    pub(super) allocatable: Resources,
    pub(super) profile: Profile,
    pub(super) hostname: Option<Arc<str>>,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) images: Vec<(Arc<str>, i64)>,
}

impl NodeFacts {
    pub(super) fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.iter().flatten();
        let mut profile: Vec<(Arc<str>, Arc<str>)> = labels
            .filter(|(key, _)| *key != HOSTNAME_LABEL)
            .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
            .collect();
        profile.sort();
        let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME_LABEL));
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        Self {
            allocatable: resources::allocatable(status.and_then(|s| s.allocatable.as_ref())),
            profile: Profile(profile),
            hostname: hostname.map(|hostname| Arc::from(hostname.as_str())),
            taints: spec
                .into_iter()
                .flat_map(|s| s.taints.iter().flatten())
                .map(Taint::of)
                .collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            images: Images::of_node(node),
        }
    }
}
