//! What a request asks for.

use super::feed::Part;
use super::kinds::{Field, Kind};
use super::ranges::Ranges;
use super::selector::{self, LabelSelector};
use super::table::Object;

/// Which objects a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One namespace; else all.
    pub namespace: Option<String>,
    /// One object, by its key.
    pub key: Option<String>,
    /// The value of the indexed field.
    pub index: Option<String>,
    /// Whether the namespace comes from a field selector.
    pub narrowed: bool,
    /// What else fields must be.
    pub fields: Vec<Wanted>,
    /// Labels.
    pub labels: LabelSelector,
    /// Ranges of hashes.
    pub ranges: Option<Ranges>,
}

/// What one field must be, or must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    what: What,
    value: String,
    equal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Name,
    Namespace,
    Field(&'static Field),
}

impl Filter {
    /// Reads selectors as they are sent; none where they are not fully understood.
    #[must_use]
    pub fn parse(kind: &'static Kind, namespace: &str, fields: &str, labels: &str) -> Option<Self> {
        let mut filter = Self {
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            labels: LabelSelector::parse(labels)?,
            ..Self::default()
        };
        if fields.is_empty() {
            return Some(filter);
        }
        let terms = selector::fields(fields)?;
        // As `ListPredicate` and `WatchPredicate` of k8s.io/apiserver/pkg/registry/generic/registry
        // do, where the request itself is about all namespaces. The term stays, too: a request with
        // a selector is told nothing of how much is left.
        let scope = terms.iter().find(|term| term.equal && term.name == "metadata.namespace");
        if let Some(scope) = scope.filter(|_| namespace.is_empty() && kind.namespaced) {
            if !is_plain(&scope.value) || scope.value.is_empty() || scope.value.contains('.') {
                return None;
            }
            filter.namespace = Some(scope.value.clone());
            filter.narrowed = true;
        }
        for term in terms {
            let what = match term.name.as_str() {
                "metadata.name" => What::Name,
                "metadata.namespace" if kind.namespaced => What::Namespace,
                name => What::Field(kind.field(name)?),
            };
            if what == What::Name && term.equal {
                // kube-apiserver reads the one object, and refuses what can't be a name.
                if !is_plain(&term.value) || term.value.is_empty() {
                    return None;
                }
                let key = match &filter.namespace {
                    Some(namespace) => Some(format!("{namespace}/{}", term.value)),
                    None => (!kind.namespaced).then(|| term.value.clone()),
                };
                if filter.key.is_none() && key.is_some() {
                    filter.key = key;
                    continue;
                }
            }
            if term.equal
                && filter.index.is_none()
                && !term.value.is_empty()
                && kind.index == Some(&term.name)
            {
                filter.index = Some(term.value);
                continue;
            }
            filter.fields.push(Wanted { what, value: term.value, equal: term.equal });
        }
        Some(filter)
    }

    /// Whether it has no selector.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.key.is_none()
            && self.index.is_none()
            && self.fields.is_empty()
            && self.labels.is_empty()
            && self.ranges.is_none()
    }

    /// Whether an object is asked for.
    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| object.namespace() == Some(namespace))
            && self.key.as_deref().is_none_or(|key| *object.key == *key)
            && self.index.as_deref().is_none_or(|value| *object.index == *value)
            && self.labels.matches(&object.labels)
            && self.fields.iter().all(|wanted| wanted.holds(object))
            && self.ranges.as_ref().is_none_or(|ranges| ranges.hold(object))
    }

    /// The smallest part of all objects that has a feed and holds what is asked for.
    #[must_use]
    pub fn part(&self) -> Part<'_> {
        if let Some(key) = &self.key {
            return Part::Key(key);
        }
        if let Some(value) = &self.index {
            return Part::Index(value);
        }
        self.namespace.as_deref().map_or(Part::All, Part::Namespace)
    }
}

impl Wanted {
    fn holds(&self, object: &Object) -> bool {
        let equal = match self.what {
            What::Name => object.name() == self.value,
            What::Namespace => object.namespace().unwrap_or_default() == self.value,
            What::Field(field) => field.value(object.message.bytes()) == self.value,
        };
        equal == self.equal
    }
}

/// Whether a text has only what names mostly have; others go on.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    name.len() <= 253
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    #[test]
    fn selectors_become_keys_and_indexes() {
        let pods = kinds::find("", "pods").unwrap();
        let nodes = kinds::find("", "nodes").unwrap();
        let one = Filter::parse(pods, "a", "metadata.name=p,spec.nodeName=n", "").unwrap();
        assert_eq!((one.key.as_deref(), one.index.as_deref()), (Some("a/p"), Some("n")));
        assert_eq!(one.part(), Part::Key("a/p"));
        let everywhere = Filter::parse(pods, "", "metadata.name=p", "").unwrap();
        assert_eq!((everywhere.key.is_none(), everywhere.fields.len()), (true, 1));
        let node = Filter::parse(nodes, "", "metadata.name=n", "").unwrap();
        assert_eq!(node.key.as_deref(), Some("n"));
        let other = Filter::parse(pods, "a", "status.phase!=Failed,spec.nodeName=", "").unwrap();
        assert_eq!((other.index.is_none(), other.fields.len()), (true, 2));
        assert_eq!(other.part(), Part::Namespace("a"));
        assert!(!other.is_plain() && Filter::default().is_plain());
        for fields in ["spec.x=1", "metadata.name=A", "metadata.name=", "metadata.name=..", "a"] {
            assert!(Filter::parse(pods, "a", fields, "").is_none(), "{fields}");
        }
        assert!(Filter::parse(nodes, "", "metadata.namespace=a", "").is_none());
        let scoped = Filter::parse(pods, "", "metadata.name=p,metadata.namespace=b", "").unwrap();
        assert_eq!((scoped.key.as_deref(), scoped.is_plain()), (Some("b/p"), false));
    }
}
