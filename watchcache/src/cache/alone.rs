//! Metadata as kube-apiserver shows it by itself. Of some resources it turns an annotation into a
//! field as it reads them, and back only where it shows the whole object
//! (`k8s.io/kubernetes/pkg/apis/apps/v1/conversion.go`): metadata alone is without it.

use std::borrow::Cow;

use super::kinds::Kind;
use super::wire::{Fields, Message, Value};

/// A message whose metadata may be shown by itself.
#[must_use]
pub fn metadata<'a>(kind: &Kind, message: &'a Message) -> Cow<'a, Message> {
    let Some(key) = kind.hidden_annotation() else { return Cow::Borrowed(message) };
    let shown = message.shown(false);
    match (without(shown.before(), key), without(shown.after(), key)) {
        (None, None) => Cow::Borrowed(message),
        (before, after) => {
            let before = before.as_deref().unwrap_or(shown.before());
            let after = after.as_deref().unwrap_or(shown.after());
            Cow::Owned(Message::of(before, after, &[]))
        }
    }
}

/// Fields of `ObjectMeta` without an annotation; none where it is not among them.
fn without(part: &[u8], key: &str) -> Option<Vec<u8>> {
    let (mut kept, mut found) = (Vec::new(), false);
    let mut fields = Fields::of(part);
    while let Ok(Some(field)) = fields.next() {
        match field.value {
            Value::Bytes(entry) if field.number == 12 && is_of(entry, key) => found = true,
            _ => kept.extend_from_slice(part.get(field.start..field.end).unwrap_or_default()),
        }
    }
    found.then_some(kept)
}

fn is_of(entry: &[u8], key: &str) -> bool {
    let mut fields = Fields::of(entry);
    let mut found = &b""[..];
    while let Ok(Some(field)) = fields.next() {
        if let (1, Value::Bytes(text)) = (field.number, field.value) {
            found = text;
        }
    }
    found == key.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    #[test]
    fn the_annotation_is_left_out() {
        let annotation = |key: &str| {
            let key = [&[0x0a, u8::try_from(key.len()).unwrap()], key.as_bytes()].concat();
            let entry = [&key, &[0x12, 1, b'7'][..]].concat();
            [&[0x62, u8::try_from(entry.len()).unwrap()], &entry[..]].concat()
        };
        let key = "deprecated.daemonset.template.generation";
        let (before, rest) = ([0x0a, 1, b'n'], [0x12, 0]);
        let after = [annotation("a"), annotation(key), annotation("z")].concat();
        let message = Message::of(&before, &after, &rest);
        let sets = kinds::find("apps", "daemonsets").unwrap();
        let shown = metadata(sets, &message);
        let kept = [annotation("a"), annotation("z")].concat();
        assert_eq!(shown.shown(false).bytes(), Message::of(&before, &kept, &[]).bytes());
        let shown = metadata(kinds::find("apps", "deployments").unwrap(), &message);
        assert!(matches!(shown, Cow::Borrowed(_)));
        let bare = Message::of(&before, &annotation("a"), &rest);
        assert!(matches!(metadata(sets, &bare), Cow::Borrowed(_)));
    }
}
