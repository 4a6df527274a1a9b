//! The cells of an event.

use super::cells::{Cells, lower, or};
use super::view::View;

/// Without blanks before and after.
fn trimmed(text: &[u8]) -> &[u8] {
    let blank = |letter: char| letter.is_whitespace();
    let mut rest = text;
    while let Some(chunk) = rest.utf8_chunks().next() {
        let valid = chunk.valid().trim_start_matches(blank);
        rest = rest.get(chunk.valid().len() - valid.len()..).unwrap_or_default();
        if !valid.is_empty() || !chunk.invalid().is_empty() {
            break;
        }
    }
    while let Some(chunk) = rest.utf8_chunks().last().filter(|chunk| chunk.invalid().is_empty()) {
        let valid = chunk.valid().trim_end_matches(blank);
        let cut = chunk.valid().len() - valid.len();
        rest = rest.get(..rest.len() - cut).unwrap_or_default();
        if cut == 0 || !valid.is_empty() {
            break;
        }
    }
    rest
}

pub(super) fn event(object: View<'_>, cells: &mut Cells<'_>) {
    let first = object.time("firstTimestamp").or(object.time("eventTime"));
    let mut last = object.time("lastTimestamp").or(first);
    let mut count = object.number("count");
    if let Some(series) = object.maybe("series") {
        last = series.time("lastObservedTime");
        count = series.number("count");
    } else if count == 0 {
        count = 1;
    }
    let about = object.one("involvedObject");
    let mut target = lower(about.text("kind")).into_bytes();
    if !about.text("name").is_empty() {
        target.push(b'/');
        target.extend_from_slice(about.text("name"));
    }
    let source = object.one("source");
    let mut from = or(source.text("component"), object.text("reportingComponent")).to_vec();
    let instance = or(source.text("host"), object.text("reportingInstance"));
    if !instance.is_empty() {
        from.extend([b", ", instance].concat());
    }
    let last = cells.ago(last);
    cells.text(last);
    cells.text(object.text("type"));
    cells.text(object.text("reason"));
    cells.text(target);
    cells.text(about.text("fieldPath"));
    cells.text(from);
    cells.text(trimmed(object.text("message")));
    let first = cells.ago(first);
    cells.text(first);
    cells.number(count);
    cells.name(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_as_gos() {
        for (text, expected) in [
            ("", ""),
            (" \n\t ", ""),
            (" a b\u{a0}\u{85}\u{2003}", "a b"),
            ("\u{200b}a", "\u{200b}a"),
        ] {
            assert_eq!(trimmed(text.as_bytes()), expected.as_bytes(), "{text:?}");
        }
        assert_eq!(trimmed(b" \xff "), b"\xff");
        assert_eq!(trimmed(b"\xff \xe2\x82"), b"\xff \xe2\x82");
    }
}
