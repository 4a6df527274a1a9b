//! Labels of pods and namespaces, and the selectors over them
//! (`apimachinery/pkg/apis/meta/v1`, `LabelSelectorAsSelector`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use serde::{Deserialize, Serialize};

use super::selector::{NodeLabels, Requirement};

/// Labels, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Labels(Vec<(Arc<str>, Arc<str>)>);

impl Labels {
    /// Reads labels of the API.
    #[must_use]
    pub fn of(labels: Option<&BTreeMap<String, String>>) -> Self {
        let pair = |(key, value): (&String, &String)| (key.as_str().into(), value.as_str().into());
        Self(labels.into_iter().flatten().map(pair).collect())
    }

    /// From pairs of keys and values.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort();
        Self(pairs)
    }

    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let index = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[index].1)
    }
}

impl Labels {
    /// All labels.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.0.iter()
    }

    /// Whether `others` has each of these with the same value.
    #[must_use]
    pub fn are_among(&self, others: &Self) -> bool {
        self.0.iter().all(|(key, value)| others.get(key) == Some(value))
    }
}

impl NodeLabels for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(|value| &**value)
    }

    fn name(&self) -> &'static str {
        ""
    }
}

/// A selector over labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Selector {
    /// An absent selector matches nothing.
    #[default]
    Nothing,
    /// All must hold; an empty selector matches everything.
    All(Vec<Requirement>),
}

/// A selector that the API's parser refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSelector;

impl Selector {
    /// Reads a selector of the API.
    pub fn of(selector: Option<&v1::LabelSelector>) -> Result<Self, InvalidSelector> {
        let Some(selector) = selector else { return Ok(Self::Nothing) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::label(key, "In", std::slice::from_ref(value)));
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.as_deref().unwrap_or_default();
            // Node selectors have operators that label selectors don't.
            let known = matches!(&*expression.operator, "In" | "NotIn" | "Exists" | "DoesNotExist");
            let requirement = known
                .then(|| Requirement::label(&expression.key, &expression.operator, values))
                .flatten();
            requirements.push(requirement);
        }
        let requirements: Option<Vec<_>> = requirements.into_iter().collect();
        requirements.map(Self::All).ok_or(InvalidSelector)
    }

    /// Adds requirements; what matches nothing stays so.
    pub fn and(&mut self, more: impl IntoIterator<Item = Requirement>) {
        if let Self::All(requirements) = self {
            requirements.extend(more);
        }
    }

    /// The requirements; none for a selector that matches nothing.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        match self {
            Self::Nothing => &[],
            Self::All(requirements) => requirements,
        }
    }

    /// Whether it selects everything (`labels.Selector.Empty`).
    #[must_use]
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All(requirements) if requirements.is_empty())
    }

    /// Whether the labels are selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::Nothing => false,
            Self::All(requirements) => requirements.iter().all(|r| r.matches(labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(json: serde_json::Value) -> Result<Selector, InvalidSelector> {
        let parsed: Option<v1::LabelSelector> = serde_json::from_value(json).expect("selector");
        Selector::of(parsed.as_ref())
    }

    #[test]
    fn absent_empty_and_filled() {
        use serde_json::json;
        let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
        let labels = Labels::of(Some(&labels));
        let matches = |json| selector(json).map(|selector| selector.matches(&labels));
        assert_eq!(matches(json!(null)), Ok(false));
        assert_eq!(matches(json!({})), Ok(true));
        assert_eq!(matches(json!({"matchLabels": {"app": "a"}})), Ok(true));
        assert_eq!(matches(json!({"matchLabels": {"app": "b"}})), Ok(false));
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        assert_eq!(matches(expression("NotIn", &["b"])), Ok(true));
        assert_eq!(matches(expression("DoesNotExist", &[])), Ok(false));
        assert_eq!(matches(expression("Gt", &["1"])), Err(InvalidSelector));
        assert_eq!(matches(expression("In", &[])), Err(InvalidSelector));
        assert!(selector(json!({})).is_ok_and(|selector| selector.is_everything()));
        assert!(!selector(json!(null)).is_ok_and(|selector| selector.is_everything()));
    }
}
