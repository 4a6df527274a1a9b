//! Selectors that the cache understands. What it does not understand in full goes to a
//! kube-apiserver, which also knows how to refuse it.

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

    /// Whether labels in the order of their keys fit.
    #[must_use]
    pub fn matches(&self, labels: &[(Box<str>, Box<str>)]) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels
                .binary_search_by(|(key, _)| (**key).cmp(&requirement.key))
                .ok()
                .and_then(|place| labels.get(place))
                .map(|(_, value)| &**value);
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
fn word(text: &str, fits: impl Fn(&str) -> bool) -> Option<(String, &str)> {
    let end = text
        .find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_./".contains(letter)))
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    fits(word).then(|| (word.to_owned(), rest))
}

/// A value; empty ones are left to kube-apiserver in sets, where its lexer has rules of its own.
fn value(text: &str) -> Option<(String, &str)> {
    word(text, |value| is_name(value) && !matches!(value, "in" | "notin"))
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= 253
                && !prefix.is_empty()
                && prefix.split('.').all(|label| {
                    !label.is_empty()
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(|byte| {
                            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
                        })
                })
                && is_name(name)
        }
        None => is_name(key),
    }
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`, at most 63.
fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && name.ends_with(|letter: char| letter.is_ascii_alphanumeric())
        && !name.contains('/')
}

/// The node of `spec.nodeName=NODE`; none for any other field selector.
#[must_use]
pub fn node_of(text: &str) -> Option<&str> {
    let value = text.strip_prefix("spec.nodeName=")?;
    let value = value.strip_prefix('=').unwrap_or(value);
    let plain = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter)
    };
    (!value.is_empty() && value.chars().all(plain)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(selector: &str, labels: &[(&str, &str)]) -> Option<bool> {
        let mut labels: Vec<(Box<str>, Box<str>)> =
            labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        labels.sort();
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
    fn nodes() {
        assert_eq!(node_of("spec.nodeName=node-1.x"), Some("node-1.x"));
        assert_eq!(node_of("spec.nodeName==a"), Some("a"));
        for other in [
            "",
            "spec.nodeName=",
            "spec.nodeName!=a",
            "metadata.name=a",
            "spec.nodeName=a,metadata.name=b",
            "spec.nodeName=a\\,b",
            "spec.nodeName=A",
            "spec.nodeName===a",
        ] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }
}
