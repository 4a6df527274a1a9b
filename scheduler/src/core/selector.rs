//! Node selectors, compiled (`component-helpers/scheduling/corev1/nodeaffinity`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use serde::{Deserialize, Serialize};

use super::validation::{is_label_value, is_qualified_name};

/// The label that names the node itself: kept out of label profiles, since it would give each
/// node one of its own.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
const NAME_FIELD: &str = "metadata.name";

/// What a selector looks at on a node.
pub trait NodeLabels {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// `metadata.name`.
    fn name(&self) -> &str;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Operator {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
    Greater(i64),
    Less(i64),
}

/// One condition on a node's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Requirement {
    key: Arc<str>,
    operator: Operator,
}

impl Requirement {
    /// The label has this value.
    #[must_use]
    pub fn equals(key: &str, value: &str) -> Self {
        Self { key: key.into(), operator: Operator::In(vec![value.into()]) }
    }

    /// The label.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The values of which the label must have one, where that is the condition.
    #[must_use]
    pub fn values(&self) -> Option<&[Arc<str>]> {
        match &self.operator {
            Operator::In(values) => Some(values),
            _ => None,
        }
    }

    fn compile(requirement: &NodeSelectorRequirement) -> Option<Self> {
        let values = requirement.values.as_deref().unwrap_or_default();
        Self::label(&requirement.key, &requirement.operator, values)
    }

    /// `None` where `labels.NewRequirement` gives an error.
    #[must_use]
    pub fn label(key: &str, operator: &str, values: &[String]) -> Option<Self> {
        if !is_qualified_name(key) || !values.iter().all(|v| is_label_value(v)) {
            return None;
        }
        let list = || values.iter().map(|value| Arc::from(value.as_str())).collect();
        let number = || match values {
            [value] => value.parse().ok(),
            _ => None,
        };
        let operator = match (operator, values.is_empty()) {
            ("In", false) => Operator::In(list()),
            ("NotIn", false) => Operator::NotIn(list()),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            ("Gt", false) => Operator::Greater(number()?),
            ("Lt", false) => Operator::Less(number()?),
            _ => return None,
        };
        Some(Self { key: key.into(), operator })
    }

    /// Whether the labels meet the condition.
    #[must_use]
    pub fn matches(&self, node: &impl NodeLabels) -> bool {
        let value = node.label(&self.key);
        let among = |values: &[Arc<str>], value: &str| values.iter().any(|v| **v == *value);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| among(values, value)),
            Operator::NotIn(values) => value.is_none_or(|value| !among(values, value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Greater(bound) => number().is_some_and(|value| value > *bound),
            Operator::Less(bound) => number().is_some_and(|value| value < *bound),
        }
    }
}

/// One condition on a node's fields: `metadata.name` alone has a value, others are empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct FieldRequirement {
    key: Arc<str>,
    value: Arc<str>,
    equal: bool,
}

impl FieldRequirement {
    fn compile(requirement: &NodeSelectorRequirement) -> Option<Self> {
        let [value] = requirement.values.as_deref().unwrap_or_default() else { return None };
        let equal = match requirement.operator.as_str() {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        Some(Self { key: requirement.key.as_str().into(), value: value.as_str().into(), equal })
    }

    fn matches(&self, node: &impl NodeLabels) -> bool {
        let actual = if &*self.key == NAME_FIELD { node.name() } else { "" };
        (actual == &*self.value) == self.equal
    }
}

/// Conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Term {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

impl Term {
    /// `Ok(None)` for an empty term, which matches nothing; an error for one that the API's
    /// parser refuses.
    fn compile(term: &NodeSelectorTerm) -> Result<Option<Self>, InvalidTerm> {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        if expressions.is_empty() && fields.is_empty() {
            return Ok(None);
        }
        let labels: Option<_> = expressions.iter().map(Requirement::compile).collect();
        let fields: Option<_> = fields.iter().map(FieldRequirement::compile).collect();
        match (labels, fields) {
            (Some(labels), Some(fields)) => Ok(Some(Self { labels, fields })),
            _ => Err(InvalidTerm),
        }
    }

    /// Whether the node meets every condition.
    #[must_use]
    pub fn matches(&self, node: &impl NodeLabels) -> bool {
        self.labels.iter().all(|requirement| requirement.matches(node))
            && self.fields.iter().all(|requirement| requirement.matches(node))
    }

    /// Whether nodes that differ in name and hostname alone can differ in the answer.
    #[must_use]
    pub fn reads_identity(&self) -> bool {
        !self.fields.is_empty() || self.labels.iter().any(|r| &*r.key == HOSTNAME_LABEL)
    }
}

/// A term that the API's parser refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTerm;

/// `nodeSelector` and the required node affinity of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequiredNodes {
    /// `nodeSelector`: all must hold.
    selector: Vec<Requirement>,
    /// Required node affinity: one must hold. Terms that are empty or refused are left out, since
    /// they match nothing; absent when the pod has no such affinity.
    terms: Option<Vec<Term>>,
}

impl RequiredNodes {
    /// Compiles both parts.
    #[must_use]
    pub fn compile(
        selector: Option<&BTreeMap<String, String>>,
        terms: Option<&[NodeSelectorTerm]>,
    ) -> Self {
        let selector =
            selector.into_iter().flatten().map(|(key, value)| Requirement::equals(key, value));
        let valid = |terms: &[NodeSelectorTerm]| {
            terms.iter().filter_map(|term| Term::compile(term).ok().flatten()).collect()
        };
        Self { selector: selector.collect(), terms: terms.map(valid) }
    }

    /// The nodes that reach a volume. Only labels count: terms about names are checked, then
    /// ignored (`CheckNodeAffinity` looks at a node without a name).
    #[must_use]
    pub fn of_volume(terms: Option<&[NodeSelectorTerm]>) -> Self {
        let mut nodes = Self::compile(None, terms);
        for term in nodes.terms.iter_mut().flatten() {
            term.fields.clear();
        }
        nodes
    }

    /// The labels that are looked at.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let terms = self.terms.iter().flatten().flat_map(|term| &term.labels);
        self.selector.iter().chain(terms).map(|requirement| &requirement.key)
    }

    /// Whether the pod asks for nothing here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.selector.is_empty() && self.terms.is_none()
    }

    /// Whether the node is one that the pod asks for.
    #[must_use]
    pub fn matches(&self, node: &impl NodeLabels) -> bool {
        self.selector.iter().all(|requirement| requirement.matches(node))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
    }

    /// Whether nodes that differ in name and hostname alone can differ in the answer.
    #[must_use]
    pub fn reads_identity(&self) -> bool {
        self.selector.iter().any(|requirement| &*requirement.key == HOSTNAME_LABEL)
            || self.terms.iter().flatten().any(Term::reads_identity)
    }
}

/// A preferred node affinity term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Preference {
    /// 1 to 100.
    pub weight: i32,
    /// When it counts.
    pub term: Term,
}

impl Preference {
    /// Compiles a weighted term; `Ok(None)` for one that never counts, an error for one that
    /// makes the score plugin fail.
    pub fn compile(weight: i32, term: &NodeSelectorTerm) -> Result<Option<Self>, InvalidTerm> {
        if weight == 0 {
            return Ok(None);
        }
        Ok(Term::compile(term)?.map(|term| Self { weight, term }))
    }
}

/// The node names that the required terms pin the pod to, when each of them pins some
/// (`NodeAffinity.PreFilter`). An empty set means that the terms contradict themselves.
#[must_use]
pub fn pinned_names(terms: &[NodeSelectorTerm]) -> Option<Vec<Arc<str>>> {
    if terms.is_empty() {
        return None;
    }
    let mut names: Vec<&String> = Vec::new();
    for term in terms {
        let mut pinned: Option<Vec<&String>> = None;
        for field in term.match_fields.iter().flatten() {
            if field.key == NAME_FIELD && field.operator == "In" {
                let values = field.values.as_deref().unwrap_or_default();
                pinned = Some(match pinned {
                    None => values.iter().collect(),
                    Some(names) => names.into_iter().filter(|n| values.contains(n)).collect(),
                });
            }
        }
        names.extend(pinned?);
    }
    names.sort();
    names.dedup();
    Some(names.into_iter().map(|name| Arc::from(name.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(&'static str, &'static [(&'static str, &'static str)]);

    impl NodeLabels for Node {
        fn label(&self, key: &str) -> Option<&str> {
            self.1.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
        }

        fn name(&self) -> &str {
            self.0
        }
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = (!values.is_empty()).then(|| values.iter().map(|v| (*v).into()).collect());
        NodeSelectorRequirement { key: key.into(), operator: operator.into(), values }
    }

    fn labels(requirements: &[NodeSelectorRequirement]) -> NodeSelectorTerm {
        NodeSelectorTerm { match_expressions: Some(requirements.into()), match_fields: None }
    }

    fn fields(requirements: &[NodeSelectorRequirement]) -> NodeSelectorTerm {
        NodeSelectorTerm { match_expressions: None, match_fields: Some(requirements.into()) }
    }

    const NODE: Node = Node("n1", &[("zone", "a"), ("cores", "8"), ("odd", "x1")]);

    #[test]
    fn operators() {
        for (key, operator, values, expected) in [
            ("zone", "In", &["a", "b"][..], true),
            ("zone", "In", &["b"], false),
            ("none", "In", &["b"], false),
            ("zone", "NotIn", &["b"], true),
            ("none", "NotIn", &["b"], true),
            ("zone", "NotIn", &["a"], false),
            ("zone", "Exists", &[], true),
            ("none", "Exists", &[], false),
            ("none", "DoesNotExist", &[], true),
            ("cores", "Gt", &["7"], true),
            ("cores", "Gt", &["8"], false),
            ("cores", "Lt", &["9"], true),
            ("odd", "Gt", &["0"], false),
            ("none", "Lt", &["9"], false),
            // What the parser refuses matches nothing.
            ("zone", "In", &[], false),
            ("zone", "Exists", &["a"], false),
            ("cores", "Gt", &["x"], false),
            ("cores", "Gt", &["1", "2"], false),
            ("zone", "Near", &["a"], false),
            ("-zone", "DoesNotExist", &[], false),
            ("cores", "Gt", &["-5"], false),
        ] {
            let term = labels(&[requirement(key, operator, values)]);
            let required = RequiredNodes::compile(None, Some(&[term]));
            assert_eq!(required.matches(&NODE), expected, "{key} {operator} {values:?}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_empty_ones_match_nothing() {
        let yes = labels(&[requirement("zone", "In", &["a"])]);
        let no = labels(&[requirement("zone", "In", &["b"])]);
        let matches =
            |terms: &[NodeSelectorTerm]| RequiredNodes::compile(None, Some(terms)).matches(&NODE);
        assert!(matches(&[no.clone(), yes.clone()]));
        assert!(!matches(&[NodeSelectorTerm::default(), no]));
        assert!(!matches(&[]));
        assert!(RequiredNodes::compile(None, None).matches(&NODE));
        let selector = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
        assert!(!RequiredNodes::compile(Some(&selector), Some(&[yes])).matches(&NODE));
    }

    #[test]
    fn names_by_field() {
        let term = fields(&[requirement("metadata.name", "In", &["n1"])]);
        assert!(RequiredNodes::compile(None, Some(&[term])).matches(&NODE));
        let term = fields(&[requirement("metadata.name", "NotIn", &["n1"])]);
        assert!(!RequiredNodes::compile(None, Some(&[term])).matches(&NODE));
        let two = fields(&[requirement("metadata.name", "In", &["n1", "n2"])]);
        assert!(!RequiredNodes::compile(None, Some(&[two])).matches(&NODE));
    }

    #[test]
    fn pinning() {
        let pin = |values: &[&str]| fields(&[requirement("metadata.name", "In", values)]);
        let names = |terms: &[NodeSelectorTerm]| {
            pinned_names(terms).map(|names| names.iter().map(ToString::to_string).collect())
        };
        assert_eq!(names(&[]), None::<Vec<String>>);
        assert_eq!(names(&[pin(&["b"]), pin(&["a"])]), Some(vec!["a".into(), "b".into()]));
        assert_eq!(names(&[pin(&["a"]), labels(&[requirement("zone", "Exists", &[])])]), None);
        let both = fields(&[
            requirement("metadata.name", "In", &["a"]),
            requirement("metadata.name", "In", &["b"]),
        ]);
        assert_eq!(names(&[both]), Some(vec![]));
    }
}
