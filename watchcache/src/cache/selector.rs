//! Selectors that the cache understands. What it does not understand in full goes to a
//! kube-apiserver, which also knows how to refuse it.

use std::sync::Arc;

/// Label requirements, all of which must hold (`k8s.io/apimachinery/pkg/labels`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    /// Holds too where the label is missing.
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl LabelSelector {
    /// Reads `a=1,b!=2,c in (3,4),d notin (5),e,!f`; none for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut requirements = Vec::new();
        let mut rest = text.trim_ascii();
        if rest.is_empty() {
            return Some(Self::default());
        }
        loop {
            let requirement;
            (requirement, rest) = requirement_of(rest)?;
            requirements.push(requirement);
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return Some(Self(requirements));
            }
            rest = rest.strip_prefix(',')?.trim_ascii_start();
        }
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Labels, as `key=value`, each of which an object must have.
    pub fn required(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => match &values[..] {
                [value] => Some(format!("{}={value}", requirement.key)),
                _ => None,
            },
            _ => None,
        })
    }

    /// Whether labels, each `key=value`, fit.
    #[must_use]
    pub fn matches(&self, labels: &[Arc<str>]) -> bool {
        self.0.iter().all(|requirement| {
            // A key holds no `=`.
            let value = labels
                .iter()
                .find_map(|label| label.strip_prefix(requirement.key.as_str())?.strip_prefix('='));
            match (&requirement.operator, value) {
                (Operator::In(values), Some(value)) => values.iter().any(|one| one == value),
                (Operator::NotIn(values), Some(value)) => values.iter().all(|one| one != value),
                (Operator::NotIn(_) | Operator::Missing, None) | (Operator::Exists, Some(_)) => {
                    true
                }
                (Operator::In(_) | Operator::Exists, None) | (Operator::Missing, Some(_)) => false,
            }
        })
    }
}

fn requirement_of(text: &str) -> Option<(Requirement, &str)> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_ascii_start(), is_key)?;
        return Some((Requirement { key, operator: Operator::Missing }, rest));
    }
    let (key, rest) = word(text, is_key)?;
    // As keys these need care that only kube-apiserver's own lexer takes.
    if matches!(key.as_str(), "in" | "notin") {
        return None;
    }
    let rest = rest.trim_ascii_start();
    let of = |operator, rest| Some((Requirement { key: key.clone(), operator }, rest));
    if rest.is_empty() || rest.starts_with(',') {
        return of(Operator::Exists, rest);
    }
    let negated = rest.strip_prefix("!=");
    if let Some(rest) =
        negated.or_else(|| rest.strip_prefix("==")).or_else(|| rest.strip_prefix('='))
    {
        let (value, rest) = value(rest.trim_ascii_start())?;
        let values = vec![value];
        let operator =
            if negated.is_some() { Operator::NotIn(values) } else { Operator::In(values) };
        return of(operator, rest);
    }
    let negated = rest.strip_prefix("notin");
    let rest = negated.or_else(|| rest.strip_prefix("in"))?;
    let mut rest = rest.trim_ascii_start().strip_prefix('(')?;
    let mut values = Vec::new();
    loop {
        let one;
        (one, rest) = value(rest.trim_ascii_start())?;
        values.push(one);
        rest = rest.trim_ascii_start();
        if let Some(rest) = rest.strip_prefix(')') {
            let operator =
                if negated.is_some() { Operator::NotIn(values) } else { Operator::In(values) };
            return of(operator, rest);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// A label key: names of at most 63 characters, a prefix before one slash.
fn word(text: &str, fits: impl Fn(&[u8]) -> bool) -> Option<(String, &str)> {
    let end = text
        .find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_./".contains(letter)))
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    fits(word.as_bytes()).then(|| (word.to_owned(), rest))
}

/// A value; empty ones are left to kube-apiserver in sets, where its lexer has rules of its own.
fn value(text: &str) -> Option<(String, &str)> {
    word(text, |value| is_name(value) && !matches!(value, b"in" | b"notin"))
}

/// A label key: a name, and before a slash the name of a domain.
pub(super) fn is_key(key: &[u8]) -> bool {
    let Some(slash) = key.iter().position(|byte| *byte == b'/') else { return is_name(key) };
    let (prefix, name) = key.split_at(slash);
    let is_label = |label: &[u8]| {
        !label.is_empty()
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
            && label.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    prefix.len() <= 253
        && prefix.split(|byte| *byte == b'.').all(is_label)
        && is_name(name.get(1..).unwrap_or_default())
}

/// A label's value: a name, or nothing.
pub(super) fn is_value(value: &[u8]) -> bool {
    value.is_empty() || is_name(value)
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`, at most 63.
fn is_name(name: &[u8]) -> bool {
    let ends = |end: Option<&u8>| end.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 63
        && ends(name.first())
        && ends(name.last())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// What a field selector asks of an object, all of which must hold
/// (`k8s.io/apimachinery/pkg/fields`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The field's name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether it must have the value; else it must not.
    pub equal: bool,
}

/// Reads `a=1,b!=2`; none where it needs an escape, or is malformed.
#[must_use]
pub fn fields(text: &str) -> Option<Vec<Term>> {
    if text.contains('\\') {
        return None;
    }
    let term = |text: &str| {
        let place = text.find(['=', '!'])?;
        let (name, rest) = text.split_at(place);
        let (equal, value) = match rest.strip_prefix("!=") {
            Some(value) => (false, value),
            None => (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
        };
        (!name.is_empty() && !value.contains(['=', '!'])).then(|| Term {
            name: name.to_owned(),
            value: value.to_owned(),
            equal,
        })
    };
    text.split(',').map(term).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(selector: &str, labels: &[(&str, &str)]) -> Option<bool> {
        let labels: Vec<Arc<str>> =
            labels.iter().map(|(key, value)| format!("{key}={value}").into()).collect();
        LabelSelector::parse(selector).map(|selector| selector.matches(&labels))
    }

    #[test]
    fn requirements() {
        let labels = [("app", "web"), ("tier", "front"), ("x.io/y", ""), ("b", "2")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , b=2", true),
            ("app=api", false),
            ("app!=api", true),
            ("app!=web", false),
            ("none!=web", true),
            ("app in (api,web)", true),
            ("app in ( api , web ),tier", true),
            ("app in (api)", false),
            ("none in (api)", false),
            ("app notin (api)", true),
            ("none notin (api)", true),
            ("app notin (web,x)", false),
            ("tier", true),
            ("none", false),
            ("!none", true),
            ("!tier", false),
            ("x.io/y", true),
            ("x.io/y=1", false),
            ("tier,!tier", false),
        ] {
            assert_eq!(fits(selector, &labels), Some(expected), "{selector}");
        }
    }

    #[test]
    fn what_is_unclear_is_left_to_others() {
        for selector in [
            "a=",
            "a in ()",
            "a in (1",
            "a in (1,)",
            ",a",
            "a,",
            "a,,b",
            "a b",
            "a=1 b",
            "a>1",
            "in",
            "in in (in)",
            "a=in",
            "notin",
            "!a=1",
            "!",
            "=a",
            "a===1",
            "a=1=2",
            "/a",
            "a/",
            "a/b/c",
            "A.io/x",
            "-a",
            "a-",
            "ä",
            "a=ä",
            "a=-",
            "a\t\u{b}",
            "a in(1) (2)",
        ] {
            assert_eq!(fits(selector, &[]), None, "{selector:?}");
        }
        let long = "a".repeat(64);
        assert_eq!(fits(&long, &[]), None);
        assert_eq!(fits(&format!("a={long}"), &[]), None);
    }

    #[test]
    fn field_selectors() {
        let term = |name: &str, value: &str, equal| Term {
            name: name.to_owned(),
            value: value.to_owned(),
            equal,
        };
        assert_eq!(
            fields("spec.nodeName=node-1.x"),
            Some(vec![term("spec.nodeName", "node-1.x", true)])
        );
        assert_eq!(
            fields("a==b,status.phase!=Failed,c="),
            Some(vec![
                term("a", "b", true),
                term("status.phase", "Failed", false),
                term("c", "", true)
            ])
        );
        for other in ["", ",", "a", "=a", "a=b,", "a=b=c", "a===b", "a=b\\,c", "a!b", "!=a", "a=!b"]
        {
            assert_eq!(fields(other), None, "{other}");
        }
    }
}
