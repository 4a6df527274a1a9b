//! Query strings as Go's `net/url.ParseQuery` reads them.

use std::borrow::Cow;

/// The first value of `key`, or none where the key is absent. As in Go, a pair that holds `;` or
/// a broken escape is left out, and `+` is a blank.
#[must_use]
pub fn first_value<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')).find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if unescape(name)? != key {
            return None;
        }
        unescape(value)
    })
}

/// Percent-decodes a query component; none where an escape is broken.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let plain = text.replace('+', " ");
    super::request_info::percent_decode(plain.as_bytes())
        .map(|bytes| Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        assert_eq!(first_value("a=1&watch=true", "watch").as_deref(), Some("true"));
        assert_eq!(first_value("watch", "watch").as_deref(), Some(""));
        assert_eq!(first_value("%77atch=1", "watch").as_deref(), Some("1"));
        assert_eq!(first_value("watch=0&watch=1", "watch").as_deref(), Some("0"));
        assert_eq!(first_value("watch=1;x=2", "watch"), None);
        assert_eq!(first_value("watch=%zz&watch=2", "watch").as_deref(), Some("2"));
        assert_eq!(first_value("l=a+b%2Cc", "l").as_deref(), Some("a b,c"));
        assert_eq!(first_value("", "watch"), None);
    }
}
