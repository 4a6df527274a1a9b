//! A label selector as people read it: `LabelSelectorAsSelector` and `String` of
//! `k8s.io/apimachinery/pkg/{apis/meta/v1,labels}`.

use super::super::super::selector::{is_key, is_value};
use super::cells::join;
use super::view::View;

/// Why it has no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// Go makes no selector of it.
    Invalid,
    /// Go puts it in no order that could be told.
    Unordered,
}

/// Go's sort keeps the order of so many that are equal.
const STABLE: usize = 12;

/// Its text. That of nothing is empty, as is that of everything.
pub(super) fn text(selector: Option<View<'_>>) -> Result<Vec<u8>, Bad> {
    let Some(selector) = selector else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (key, value) in selector.map("matchLabels") {
        if !is_key(key) || !is_value(value) {
            return Err(Bad::Invalid);
        }
        all.push((key, [key, b"=", value].concat()));
    }
    for expression in selector.list("matchExpressions") {
        let key = expression.text("key");
        all.push((key, requirement(key, expression).ok_or(Bad::Invalid)?));
    }
    all.sort_by_key(|(key, _)| *key);
    let twice = all.array_windows().any(|[(one, _), (other, _)]| one == other);
    if twice && all.len() > STABLE {
        return Err(Bad::Unordered);
    }
    Ok(join(all.iter().map(|(_, text)| text)))
}

fn requirement(key: &[u8], expression: View<'_>) -> Option<Vec<u8>> {
    let mut values: Vec<_> = expression.texts("values").collect();
    if !is_key(key) || !values.iter().all(|value| is_value(value)) {
        return None;
    }
    values.sort_unstable();
    let set = |operator: &[u8]| {
        (!values.is_empty()).then(|| [key, operator, &join(&values), b")"].concat())
    };
    match expression.text("operator") {
        b"In" => set(b" in ("),
        b"NotIn" => set(b" notin ("),
        b"Exists" => values.is_empty().then(|| key.to_vec()),
        b"DoesNotExist" => values.is_empty().then(|| [b"!", key].concat()),
        _ => None,
    }
}
