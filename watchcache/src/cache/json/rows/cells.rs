//! The cells of a row, and what the printers of several resources write alike.

use std::collections::BTreeSet;

use super::super::text;
use super::age::{Now, human};
use super::selector::{self, Bad};
use super::view::{View, ZERO};

pub(super) const NONE: &[u8] = b"<none>";
pub(super) const UNKNOWN: &[u8] = b"<unknown>";
pub(super) const UNSET: &[u8] = b"<unset>";

/// Cells that are written one after the other.
pub(super) struct Cells<'o> {
    out: &'o mut Vec<u8>,
    now: Now,
    first: bool,
    /// What a row says of its object, too.
    pub(super) conditions: Option<&'static str>,
    /// Why kube-apiserver would make no row of it, or not always the same.
    pub(super) wrong: Option<&'static str>,
}

impl<'o> Cells<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, now: Now) -> Self {
        Self { out, now, first: true, conditions: None, wrong: None }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, text: impl AsRef<[u8]>) {
        super::super::separate(self.out, &mut self.first);
        text::put_text(self.out, text.as_ref());
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: i64) {
        super::super::separate(self.out, &mut self.first);
        text::put_number(self.out, number);
    }

    /// Adds a bool.
    pub(super) fn flag(&mut self, flag: bool) {
        super::super::separate(self.out, &mut self.first);
        self.out.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// How long ago something was.
    pub(super) fn ago(&self, then: Option<i128>) -> String {
        match then {
            None => "<unknown>".to_owned(),
            Some(then) => human(self.now.since(then)),
        }
    }

    /// Adds the name of an object.
    pub(super) fn name(&mut self, object: View<'_>) {
        self.text(object.one("metadata").text("name"));
    }

    /// Adds the name of a class, and whether it is the one to take where none is named.
    pub(super) fn class_name(&mut self, object: View<'_>, annotations: &[&[u8]]) {
        let metadata = object.one("metadata");
        let is_default =
            annotations.iter().any(|key| metadata.entry("annotations", key) == Some(b"true"));
        let default: &[u8] = if is_default { b" (default)" } else { b"" };
        self.text([metadata.text("name"), default].concat());
    }

    /// Adds the age of an object.
    pub(super) fn age(&mut self, object: View<'_>) {
        let age = self.ago(object.one("metadata").time("creationTimestamp"));
        self.text(age);
    }

    /// Adds when an object was made.
    pub(super) fn created(&mut self, object: View<'_>) {
        let nanos = object.one("metadata").time("creationTimestamp").unwrap_or(ZERO);
        let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
        super::super::separate(self.out, &mut self.first);
        if text::put_time(self.out, seconds, None).is_none() {
            self.wrong = Some("a year that has not four digits");
        }
    }

    /// Adds the names of a template's containers, and their images.
    pub(super) fn containers(&mut self, template: View<'_>) {
        let spec = template.one("spec");
        for field in ["name", "image"] {
            self.text(join(spec.list("containers").map(|container| container.text(field))));
        }
    }

    /// Adds a map of labels.
    pub(super) fn labels<'a>(&mut self, labels: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut all: Vec<_> = labels.map(|(key, value)| [key, b"=", value].concat()).collect();
        all.sort_unstable();
        self.text(or(&join(all), NONE));
    }

    /// Adds a label selector, with what stands for one of nothing and for one that is none.
    pub(super) fn selector(&mut self, selector: Option<View<'_>>, nothing: &[u8], none: &[u8]) {
        match selector::text(selector) {
            Ok(text) => self.text(or(&text, nothing)),
            Err(Bad::Invalid) => self.text(none),
            Err(Bad::Unordered) => self.wrong = Some("a selector in no order"),
        }
    }
}

/// The first that is not empty.
pub(super) fn or<'a>(text: &'a [u8], other: &'a [u8]) -> &'a [u8] {
    if text.is_empty() { other } else { text }
}

pub(super) fn join<'a>(texts: impl IntoIterator<Item = impl AsRef<[u8]> + 'a>) -> Vec<u8> {
    join_by(texts, b",")
}

pub(super) fn join_by<'a>(
    texts: impl IntoIterator<Item = impl AsRef<[u8]> + 'a>,
    by: &[u8],
) -> Vec<u8> {
    let mut all = Vec::new();
    for (place, text) in texts.into_iter().enumerate() {
        if place > 0 {
            all.extend_from_slice(by);
        }
        all.extend_from_slice(text.as_ref());
    }
    all
}

/// How many a list or a map has.
pub(super) fn count(object: View<'_>, field: &str) -> i64 {
    i64::try_from(object.texts(field).count()).unwrap_or(i64::MAX)
}

/// The addresses of a load balancer, each once, in order.
pub(super) fn balanced(status: View<'_>) -> BTreeSet<&[u8]> {
    let ingress = status.one("loadBalancer").list("ingress");
    ingress
        .map(|one| or(one.text("ip"), one.text("hostname")))
        .filter(|address| !address.is_empty())
        .collect()
}

/// Small letters, one for each, as Go's `strings.ToLower` makes them.
pub(super) fn lower(text: &[u8]) -> String {
    let mut lower = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        lower.extend(chunk.valid().chars().filter_map(|letter| letter.to_lowercase().next()));
        lower.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_letters_as_gos() {
        assert_eq!(lower("PodÄİΣ".as_bytes()), "podäiσ");
        assert_eq!(lower(b"A\xffB"), "a\u{fffd}b");
    }
}
