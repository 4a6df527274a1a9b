//! Taints and tolerations (`k8s.io/api/core/v1`, `Toleration.ToleratesTaint`).

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};

/// What a taint does to pods that don't tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Effect {
    /// New pods stay away.
    NoSchedule,
    /// New pods stay away where they can.
    PreferNoSchedule,
    /// New pods stay away and running ones leave.
    NoExecute,
    /// A name this version doesn't know: filters and scores pass over it.
    Other,
}

impl Effect {
    fn parse(text: &str) -> Self {
        match text {
            "NoSchedule" => Self::NoSchedule,
            "PreferNoSchedule" => Self::PreferNoSchedule,
            "NoExecute" => Self::NoExecute,
            _ => Self::Other,
        }
    }
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Taint {
    /// The taint's key.
    pub key: Arc<str>,
    /// The taint's value, often empty.
    pub value: Arc<str>,
    /// What it does.
    pub effect: Effect,
}

impl Taint {
    /// Reads a taint of the API.
    #[must_use]
    pub fn of(taint: &v1::Taint) -> Self {
        Self {
            key: Arc::from(taint.key.as_str()),
            value: Arc::from(taint.value.as_deref().unwrap_or_default()),
            effect: Effect::parse(&taint.effect),
        }
    }

    /// Whether the filter reads this taint.
    #[must_use]
    pub fn forbids(&self) -> bool {
        matches!(self.effect, Effect::NoSchedule | Effect::NoExecute)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Operator {
    Equal,
    Exists,
    /// `Lt`, `Gt` and anything else: the comparison operators are behind a gate that 1.36 has
    /// off, and then match nothing.
    Never,
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Toleration {
    /// Empty for every key.
    key: Arc<str>,
    operator: Operator,
    value: Arc<str>,
    /// Absent for every effect.
    effect: Option<Effect>,
}

impl Toleration {
    /// Reads a toleration of the API.
    #[must_use]
    pub fn of(toleration: &v1::Toleration) -> Self {
        let text = |field: &Option<String>| Arc::from(field.as_deref().unwrap_or_default());
        Self {
            key: text(&toleration.key),
            operator: match toleration.operator.as_deref().unwrap_or_default() {
                "" | "Equal" => Operator::Equal,
                "Exists" => Operator::Exists,
                _ => Operator::Never,
            },
            value: text(&toleration.value),
            effect: toleration.effect.as_deref().filter(|e| !e.is_empty()).map(Effect::parse),
        }
    }

    /// Whether this toleration covers the taint.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match self.operator {
                Operator::Equal => self.value == taint.value,
                Operator::Exists => true,
                Operator::Never => false,
            }
    }
}

/// Whether any of the tolerations covers the taint.
#[must_use]
pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        Toleration::of(&v1::Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        })
    }

    #[test]
    fn matching() {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: Effect::NoSchedule };
        for (toleration, expected) in [
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "Equal", "w", "NoSchedule"), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "v", ""), true),
            (toleration("j", "Exists", "", ""), false),
            (toleration("k", "Gt", "1", ""), false),
        ] {
            assert_eq!(toleration.tolerates(&taint), expected, "{toleration:?}");
        }
    }
}
