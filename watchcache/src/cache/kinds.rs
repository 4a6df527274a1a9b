//! The built-in resources, as data: `kinds.tsv`, which `tests/oracle/kinds` writes from
//! Kubernetes' own types. Each is served in the version in which it is stored.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::wire::{self, Value};

/// One resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// The version in the group.
    pub version: &'static str,
    /// Both, as `apiVersion` has them.
    pub api_version: String,
    /// The plural name in the path.
    pub resource: &'static str,
    /// Of one object.
    pub name: &'static str,
    /// Of a list.
    pub list: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Where it is stored, under kube-apiserver's `--etcd-prefix`.
    pub prefix: &'static str,
    /// Whether kube-apiserver keeps it in its watch cache; else it reads it from the store, which
    /// knows no list that is allowed to be old.
    pub cached: bool,
    /// An object that is empty but for its metadata, from its second field on, as
    /// kube-apiserver's encoder writes it: bookmarks carry one.
    pub empty: Vec<u8>,
    /// The field whose values are indexed.
    pub index: Option<&'static str>,
    /// What a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub fields: Vec<(&'static str, Field)>,
    /// Whether it is a custom resource, which is stored in JSON ([`super::custom`]).
    pub custom: bool,
}

impl Kind {
    /// A field that a selector may name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field)
    }

    /// An annotation that kube-apiserver turns into a field as it reads a resource, and back only
    /// where it shows the whole object (`k8s.io/kubernetes/pkg/apis/apps/v1/conversion.go`).
    #[must_use]
    pub fn hidden_annotation(&self) -> Option<&'static str> {
        match (self.group, self.resource) {
            ("apps", "daemonsets") => Some("deprecated.daemonset.template.generation"),
            ("apps", "deployments") => Some("deprecated.deployment.rollback.to"),
            _ => None,
        }
    }

    /// An annotation that kube-apiserver gives to whatever it shows of a resource, also to the empty
    /// object of a bookmark.
    #[must_use]
    pub fn annotation(&self) -> Option<(&'static str, &'static str)> {
        (self.group == "apps" && self.resource == "daemonsets")
            .then_some(("deprecated.daemonset.template.generation", "0"))
    }

    /// `resource` or `resource.group`, as kube-apiserver's `--watch-cache-sizes` names it.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.group {
            "" => self.resource.to_owned(),
            group => format!("{}.{group}", self.resource),
        }
    }
}

/// Where a selectable field lies in an object's message, and how it is written as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The first of these paths whose value is not empty.
    paths: Vec<Vec<u64>>,
    is: Type,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Bool,
    Number,
}

impl Field {
    /// A text that stands in an object's message itself.
    pub(super) fn text(number: u64) -> Self {
        Self { paths: vec![vec![number]], is: Type::Text }
    }

    /// `2.10:text`, or `8.1:text|14:text`.
    fn parse(text: &str) -> Option<Self> {
        let (mut paths, mut is) = (Vec::new(), Type::Text);
        for place in text.split('|') {
            let (path, kind) = place.split_once(':')?;
            is = match kind {
                "text" => Type::Text,
                "bool" => Type::Bool,
                "number" => Type::Number,
                _ => return None,
            };
            paths.push(path.split('.').map(str::parse).collect::<Result<_, _>>().ok()?);
        }
        Some(Self { paths, is })
    }

    /// Its value in an object's message.
    #[must_use]
    pub fn value<'a>(&self, message: &'a [u8]) -> Cow<'a, str> {
        let number = |path: &Vec<u64>| match wire::find(message, path) {
            Some(Value::Number(number)) => number,
            _ => 0,
        };
        match self.is {
            Type::Text => self
                .paths
                .iter()
                .find_map(|path| match wire::find(message, path) {
                    Some(Value::Bytes(bytes)) if !bytes.is_empty() => {
                        Some(String::from_utf8_lossy(bytes))
                    }
                    _ => None,
                })
                .unwrap_or_default(),
            Type::Bool => {
                let holds = self.paths.iter().any(|path| number(path) != 0);
                Cow::Borrowed(if holds { "true" } else { "false" })
            }
            // Numbers are of 32 bits; a negative one fills 64.
            Type::Number => Cow::Owned(
                self.paths.iter().map(number).next().unwrap_or(0).cast_signed().to_string(),
            ),
        }
    }
}

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| lines().filter_map(parse).collect());

fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("kinds.tsv").lines().filter(|line| !line.starts_with('#'))
}

/// All resources that can be cached.
#[must_use]
pub fn all() -> &'static [Kind] {
    &KINDS
}

/// A resource by its group and plural name.
#[must_use]
pub fn find(group: &str, resource: &str) -> Option<&'static Kind> {
    all().iter().find(|kind| kind.group == group && kind.resource == resource)
}

fn parse(line: &'static str) -> Option<Kind> {
    let mut columns = line.split('\t');
    let mut next = || columns.next();
    let (group, version, resource, name) = (next()?, next()?, next()?, next()?);
    let (namespaced, prefix, cached) = (next()?.parse().ok()?, next()?, next()?.parse().ok()?);
    let (empty, index, fields) = (hex(next()?)?, next()?, next()?);
    let fields = fields.split(' ').filter(|field| !field.is_empty()).map(|field| {
        let (name, place) = field.split_once('=')?;
        Some((name, Field::parse(place)?))
    });
    Some(Kind {
        group,
        version,
        api_version: if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        },
        resource,
        name,
        list: format!("{name}List"),
        namespaced,
        prefix,
        cached,
        empty,
        index: Some(index).filter(|index| !index.is_empty()),
        fields: fields.collect::<Option<_>>()?,
        custom: false,
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        assert_eq!(all().len(), lines().count());
        assert!(all().len() > 40);
        let pods = find("", "pods").unwrap();
        assert_eq!((pods.prefix, pods.index), ("pods", Some("spec.nodeName")));
        let leases = find("coordination.k8s.io", "leases").unwrap();
        assert_eq!((&*leases.api_version, &*leases.list), ("coordination.k8s.io/v1", "LeaseList"));
        assert_eq!(leases.full_name(), "leases.coordination.k8s.io");
        assert!(find("", "leases").is_none());
        for kind in all() {
            assert!(kind.index.is_none_or(|index| kind.field(index).is_some()), "{kind:?}");
        }
    }

    #[test]
    fn values_are_texts() {
        let text = Field::parse("2.1:text|3:text").unwrap();
        assert_eq!(text.value(b"\x12\x03\x0a\x01a\x1a\x01b"), "a");
        assert_eq!(text.value(b"\x12\x02\x0a\x00\x1a\x01b"), "b");
        assert_eq!(text.value(b""), "");
        let flag = Field::parse("2.4:bool").unwrap();
        assert_eq!(flag.value(b"\x12\x02\x20\x01"), "true");
        assert_eq!(flag.value(b"\x12\x02\x20\x00"), "false");
        assert_eq!(flag.value(b""), "false");
        let number = Field::parse("3.1:number").unwrap();
        assert_eq!(number.value(b"\x1a\x02\x08\x07"), "7");
        assert_eq!(number.value(b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "-1");
        assert_eq!(number.value(b"\xff"), "0");
    }
}
