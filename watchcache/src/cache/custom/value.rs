//! JSON values as kube-apiserver holds those of a custom resource: whole numbers of 64 bits stay
//! what they are, all others are floating (`sigs.k8s.io/json`), and keys are in the order of their
//! bytes, in which Go writes them.

use std::collections::BTreeMap;

use super::super::json::text;

/// What is nested deeper goes on to a kube-apiserver.
const MAX_DEPTH: usize = 128;

/// An object's fields.
pub(super) type Map = BTreeMap<String, Json>;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Map(Map),
}

impl Json {
    /// Reads a text; none where Go would not, or where it takes more care.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_blanks().is_none().then_some(value)
    }

    /// A field of an object.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(name),
            _ => None,
        }
    }

    /// A field that holds a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Self::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The items of a field that holds a list; nothing where it is missing.
    pub(super) fn list(&self, name: &str) -> &[Self] {
        match self.get(name) {
            Some(Self::List(list)) => list,
            _ => &[],
        }
    }

    /// Whether a field is there and true.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name) == Some(&Self::Bool(true))
    }

    /// Adds it as Go's `encoding/json` writes it.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Int(number) => text::put_number(out, *number),
            Self::Float(number) => put_float(out, *number),
            Self::Text(value) => text::put_text(out, value.as_bytes()),
            Self::List(list) => {
                out.push(b'[');
                for (place, value) in list.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    value.put(out);
                }
                out.push(b']');
            }
            Self::Map(map) => {
                out.push(b'{');
                for (place, (key, value)) in map.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    put_key(out, key);
                    value.put(out);
                }
                out.push(b'}');
            }
        }
    }
}

/// A key and its colon.
pub(super) fn put_key(out: &mut Vec<u8>, key: &str) {
    text::put_text(out, key.as_bytes());
    out.push(b':');
}

/// As `encoding/json` does: the shortest digits that are read back as the same number, with an
/// exponent only where it is small or large.
fn put_float(out: &mut Vec<u8>, number: f64) {
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let digits = format!("{number:e}").replace('e', "e+").replace("e+-", "e-");
        out.extend_from_slice(digits.as_bytes());
    } else {
        out.extend_from_slice(number.to_string().as_bytes());
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no blank; none at the end.
    fn skip_blanks(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    /// Takes a byte that has to come now.
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.skip_blanks()? == byte).then_some(())?;
        self.at += 1;
        Some(())
    }

    fn word(&mut self, word: &str, value: Json) -> Option<Json> {
        self.text.get(self.at..)?.starts_with(word).then_some(())?;
        self.at += word.len();
        Some(value)
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        (depth < MAX_DEPTH).then_some(())?;
        match self.skip_blanks()? {
            b'{' => self.map(depth),
            b'[' => self.list(depth),
            b'"' => self.string().map(Json::Text),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'n' => self.word("null", Json::Null),
            _ => self.number(),
        }
    }

    fn map(&mut self, depth: usize) -> Option<Json> {
        self.take(b'{')?;
        let mut map = Map::new();
        if self.skip_blanks()? == b'}' {
            self.at += 1;
            return Some(Json::Map(map));
        }
        loop {
            (self.skip_blanks()? == b'"').then_some(())?;
            let key = self.string()?;
            self.take(b':')?;
            let value = self.value(depth + 1)?;
            // Of two values of one key Go keeps the later one.
            map.insert(key, value);
            if self.skip_blanks()? == b'}' {
                self.at += 1;
                return Some(Json::Map(map));
            }
            self.take(b',')?;
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json> {
        self.take(b'[')?;
        let mut list = Vec::new();
        if self.skip_blanks()? == b']' {
            self.at += 1;
            return Some(Json::List(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            if self.skip_blanks()? == b']' {
                self.at += 1;
                return Some(Json::List(list));
            }
            self.take(b',')?;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.at += 1;
        let mut read = String::new();
        loop {
            let rest = self.text.get(self.at..)?;
            let plain = rest.find(|one: char| one == '"' || one == '\\' || one < ' ')?;
            read.push_str(rest.get(..plain)?);
            self.at += plain + 1;
            match rest.as_bytes().get(plain)? {
                b'"' => return Some(read),
                b'\\' => read.push(self.escape()?),
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        Some(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                if let Some(letter) = char::from_u32(first) {
                    return Some(letter);
                }
                // Half of a letter is Go's replacement, unless the other half follows.
                let here = self.at;
                let second = (self.text.get(here..)?.starts_with("\\u")).then(|| {
                    self.at += 2;
                    self.hex()
                });
                let whole = second.flatten().and_then(|second| {
                    let pair =
                        (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(&second);
                    pair.then(|| 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
                });
                whole.and_then(char::from_u32).unwrap_or_else(|| {
                    self.at = here;
                    char::REPLACEMENT_CHARACTER
                })
            }
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self) -> Option<Json> {
        let rest: &'a str = self.text.get(self.at..)?;
        let end = rest
            .find(|one: char| !(one.is_ascii_digit() || "+-.eE".contains(one)))
            .unwrap_or(rest.len());
        let number = rest.get(..end)?;
        is_number(number).then_some(())?;
        self.at += end;
        if let (false, Ok(whole)) = (number.contains('.'), number.parse()) {
            return Some(Json::Int(whole));
        }
        let floating: f64 = number.parse().ok()?;
        floating.is_finite().then_some(Json::Float(floating))
    }
}

/// Whether a text is a number as JSON has it.
fn is_number(text: &str) -> bool {
    fn digits(text: &str) -> Option<&str> {
        let rest = text.trim_start_matches(|one: char| one.is_ascii_digit());
        (rest.len() < text.len()).then_some(rest)
    }
    let text = text.strip_prefix('-').unwrap_or(text);
    let Some(mut rest) = text.strip_prefix('0').or_else(|| digits(text)) else { return false };
    if let Some(fraction) = rest.strip_prefix('.') {
        let Some(after) = digits(fraction) else { return false };
        rest = after;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let Some(after) = digits(exponent) else { return false };
        rest = after;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> Option<String> {
        let mut out = Vec::new();
        Json::parse(text.as_bytes())?.put(&mut out);
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn as_go_reads_and_writes() {
        for (text, expected) in [
            (
                r#" {"b" : 1, "a":[true,false,null , {}], "b":2} "#,
                r#"{"a":[true,false,null,{}],"b":2}"#,
            ),
            (r#""<a>&\u003c\/\u00e4\ud83d\ude00""#, "\"\\u003ca\\u003e\\u0026\\u003c/ä\u{1f600}\""),
            (r#""\ud83dx\ud83d\ud83d\ude00\udc00""#, "\"\u{fffd}x\u{fffd}\u{1f600}\u{fffd}\""),
            (r#""\b\f\n\r\t\u0000\u2028\u007f""#, "\"\\b\\f\\n\\r\\t\\u0000\\u2028\u{7f}\""),
            (
                "[9223372036854775807,-9223372036854775808]",
                "[9223372036854775807,-9223372036854775808]",
            ),
            ("[9223372036854775808,-0,-0.0,1.0]", "[9223372036854776000,0,-0,1]"),
            (
                "[1e3,1E+21,1.5e-7,0.000001,123456789012345678901234]",
                "[1000,1e+21,1.5e-7,0.000001,1.2345678901234569e+23]",
            ),
            ("[1e20,0.1,100.25,1e-10,2.5E30]", "[100000000000000000000,0.1,100.25,1e-10,2.5e+30]"),
        ] {
            assert_eq!(written(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense() {
        for bad in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{1:2}",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "nul",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "1 2",
            "1e999",
            "NaN",
            "\"\\ud83d",
        ] {
            assert_eq!(written(bad), None, "{bad}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), None);
        let deep = |count: usize| format!("{}{}", "[".repeat(count), "]".repeat(count));
        assert!(written(&deep(MAX_DEPTH)).is_some() && written(&deep(MAX_DEPTH + 1)).is_none());
        assert_eq!(written(&"[".repeat(1 << 20)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([\\[\\]{}:,\"\\\\ue+-.0-9]|true|null|\\PC){0,20}") {
            if let Some(once) = written(&text) {
                prop_assert_eq!(written(&once), Some(once));
            }
        }

        #[test]
        fn numbers_are_read_back(number in any::<f64>().prop_filter("JSON", |one| one.is_finite())) {
            let mut out = Vec::new();
            put_float(&mut out, number);
            let text = String::from_utf8(out).unwrap();
            prop_assert!(is_number(&text));
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }
}
