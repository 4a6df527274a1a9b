//! What pods want of each other: inter-pod affinity terms, and the identity by which other pods'
//! terms and spread constraints know a pod
//! (`kube-scheduler/framework/types.go`, `plugins/interpodaffinity`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use serde::{Deserialize, Serialize};

use super::labels::{InvalidSelector, Labels, Selector};
use super::selector::HOSTNAME_LABEL;

/// One affinity term of a pod, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodTerm {
    /// The node label whose values are the domains.
    pub key: Arc<str>,
    /// Which pods are meant.
    pub selector: Selector,
    /// In which namespaces, by name.
    pub namespaces: Vec<Arc<str>>,
    /// In which namespaces, by label.
    pub namespace_selector: Selector,
}

impl PodTerm {
    fn compile(namespace: &Arc<str>, term: &PodAffinityTerm) -> Result<Self, InvalidSelector> {
        let named = term.namespaces.as_deref().unwrap_or_default();
        let namespaces = if named.is_empty() && term.namespace_selector.is_none() {
            vec![Arc::clone(namespace)]
        } else {
            named.iter().map(|name| Arc::from(name.as_str())).collect()
        };
        Ok(Self {
            key: term.topology_key.as_str().into(),
            selector: Selector::of(term.label_selector.as_ref())?,
            namespaces,
            namespace_selector: Selector::of(term.namespace_selector.as_ref())?,
        })
    }

    /// Whether the term of a pod that has a node means this one, whose namespace has these labels.
    #[must_use]
    pub fn means(&self, pod: &Identity, namespace_labels: &Labels) -> bool {
        (self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(&pod.labels)
    }
}

/// A preferred term; anti-affinity has a negative weight.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightedTerm {
    /// -100 to 100.
    pub weight: i32,
    /// The term.
    pub term: PodTerm,
}

/// All that other pods see of a pod. Pods of one template share it, but for those that carry
/// labels of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.labels`
    pub labels: Labels,
    /// Being deleted: spread constraints count it no more.
    pub terminating: bool,
    /// Required affinity.
    pub affinity: Vec<PodTerm>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<PodTerm>,
    /// Preferred affinity and, with negative weights, anti-affinity.
    pub preferred: Vec<WeightedTerm>,
}

impl Identity {
    /// Reads a pod. A list of terms that the API's parser refuses is left out, as by
    /// kube-scheduler for a pod that has a node; the flag says that there is such a list.
    #[must_use]
    pub fn of(pod: &Pod) -> (Self, bool) {
        let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or_default().into();
        let mut invalid = false;
        let mut valid = |terms: Result<Vec<_>, InvalidSelector>| {
            invalid |= terms.is_err();
            terms.unwrap_or_default()
        };
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let (pods, anti) = sides(affinity);
        let required = |terms: &[PodAffinityTerm]| {
            terms.iter().map(|term| PodTerm::compile(&namespace, term)).collect()
        };
        let affinity = valid(required(pods.0));
        let anti_affinity = valid(required(anti.0));
        let mut weighted = |terms: &[WeightedPodAffinityTerm], sign: i32| {
            let term = |t: &WeightedPodAffinityTerm| {
                let term = PodTerm::compile(&namespace, &t.pod_affinity_term)?;
                Ok(WeightedTerm { weight: t.weight.saturating_mul(sign), term })
            };
            let terms: Result<Vec<_>, InvalidSelector> = terms.iter().map(term).collect();
            invalid |= terms.is_err();
            terms.unwrap_or_default()
        };
        let mut preferred = weighted(pods.1, 1);
        preferred.extend(weighted(anti.1, -1));
        let identity = Self {
            labels: Labels::of(pod.metadata.labels.as_ref()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            affinity,
            anti_affinity,
            preferred,
            namespace,
        };
        (identity, invalid)
    }

    /// All terms: required, required against, preferred. A [`Reach`] goes with each.
    pub fn terms(&self) -> impl Iterator<Item = &PodTerm> {
        let preferred = self.preferred.iter().map(|weighted| &weighted.term);
        self.affinity.iter().chain(&self.anti_affinity).chain(preferred)
    }

    /// Whether the pod has any affinity term.
    #[must_use]
    pub fn has_terms(&self) -> bool {
        self.terms().next().is_some()
    }

    /// Whether its required anti-affinity reaches beyond its own node.
    #[must_use]
    pub fn keeps_domains_free(&self) -> bool {
        self.anti_affinity.iter().any(|term| &*term.key != HOSTNAME_LABEL)
    }
}

type Side<'a> = (&'a [PodAffinityTerm], &'a [WeightedPodAffinityTerm]);

fn sides(affinity: Option<&Affinity>) -> (Side<'_>, Side<'_>) {
    let pods = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let anti = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let pods = (
        pods.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()),
        pods.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()),
    );
    let anti = (
        anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()),
        anti.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()),
    );
    (
        (pods.0.unwrap_or_default(), pods.1.unwrap_or_default()),
        (anti.0.unwrap_or_default(), anti.1.unwrap_or_default()),
    )
}

/// The namespaces in which an incoming pod's term looks for pods, worked out from the labels of
/// the namespaces there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reach {
    /// All of them. So it is, too, for a selector that an unlabelled namespace would pass: that is
    /// how `InterPodAffinity` of 1.36.3 matches, which hands no labels to `AffinityTerm.Matches`
    /// and keeps the selector (`mergeAffinityTermNamespacesIfNotEmpty` works on a copy).
    Everywhere,
    /// These, sorted.
    Named(Vec<Arc<str>>),
}

impl Reach {
    /// Where a term looks, given all namespaces.
    pub fn of<'a>(
        term: &PodTerm,
        namespaces: impl IntoIterator<Item = (&'a Arc<str>, &'a Labels)>,
    ) -> Self {
        if term.namespace_selector.matches(&Labels::default()) {
            return Self::Everywhere;
        }
        let mut names = term.namespaces.clone();
        if term.namespace_selector != Selector::Nothing {
            let selected = namespaces
                .into_iter()
                .filter(|(_, labels)| term.namespace_selector.matches(labels))
                .map(|(name, _)| Arc::clone(name));
            names.extend(selected);
        }
        names.sort();
        names.dedup();
        Self::Named(names)
    }

    /// Whether a namespace is within reach.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Named(names) => names.binary_search_by(|name| (**name).cmp(namespace)).is_ok(),
        }
    }
}
