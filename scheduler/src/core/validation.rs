//! Which names and values the API's own parsers take (`k8s.io/apimachinery/pkg/util/validation`).
//! A selector term that its parser refuses matches nothing, so the refusals matter here.

const MAX_NAME: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

/// A resource that a node counts in whole units: extended, huge pages, in the `kubernetes.io`
/// namespace, or attachable volumes (`schedutil.IsScalarResourceName`).
pub(super) fn is_scalar_resource(name: &str) -> bool {
    is_extended_resource(name)
        || name.starts_with("hugepages-")
        || name.contains("kubernetes.io/")
        || name.starts_with("attachable-volumes-")
}

fn is_extended_resource(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.") && is_qualified_name(&format!("requests.{name}"))
}

/// A label key: an optional DNS subdomain, a slash, and a name.
pub(super) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(text),
    }
}

/// A label value: empty, or like a name.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(inner)
}

fn is_subdomain(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
    };
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_qualified_name("zone"));
        assert!(is_qualified_name("topology.kubernetes.io/zone"));
        assert!(is_qualified_name("A_b.c-1"));
        for bad in ["", "-a", "a-", "/a", "a/", "a/b/c", "UPPER/a", "a b", &"x".repeat(64)] {
            assert!(!is_qualified_name(bad), "{bad:?}");
        }
        assert!(is_label_value(""));
        assert!(!is_label_value("-5"));
    }

    #[test]
    fn scalars() {
        assert!(is_scalar_resource("nvidia.com/gpu"));
        assert!(is_scalar_resource("hugepages-2Mi"));
        assert!(is_scalar_resource("attachable-volumes-aws-ebs"));
        assert!(is_scalar_resource("example.kubernetes.io/thing"));
        assert!(!is_scalar_resource("gpu"));
        assert!(!is_scalar_resource("storage"));
        assert!(!is_scalar_resource("requests.example.com/gpu"));
    }
}
