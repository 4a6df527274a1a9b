//! Values as Go's `encoding/json` writes them, with what HTML would trip over escaped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Go reads nothing nested deeper (`encoding/json`, `maxNestingDepth`).
const MAX_DEPTH: usize = 10_000;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Whether a byte of a text stands for itself.
const fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte < 0x80 && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&')
}

const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0u8;
    while byte < 0x80 {
        plain[byte as usize] = is_plain(byte);
        byte += 1;
    }
    plain
};

fn put_escape(out: &mut Vec<u8>, byte: u8) {
    let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX.get(usize::from(digit)));
    out.extend_from_slice(b"\\u00");
    out.extend(high.into_iter().chain(low));
}

/// A text of bytes that may be no UTF-8: each byte that is not is the replacement character.
pub(in super::super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let plain = |byte: &u8| PLAIN.get(usize::from(*byte)).copied().unwrap_or(false);
    if text.iter().all(plain) {
        out.extend_from_slice(text);
    } else {
        for chunk in text.utf8_chunks() {
            for letter in chunk.valid().chars() {
                put_char(out, letter);
            }
            for _ in chunk.invalid() {
                out.extend_from_slice(b"\\ufffd");
            }
        }
    }
    out.push(b'"');
}

fn put_char(out: &mut Vec<u8>, letter: char) {
    match letter {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\u{8}' => out.extend_from_slice(b"\\b"),
        '\u{c}' => out.extend_from_slice(b"\\f"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\u{2028}' => out.extend_from_slice(b"\\u2028"),
        '\u{2029}' => out.extend_from_slice(b"\\u2029"),
        _ => match u8::try_from(letter) {
            Ok(byte @ (..0x20 | b'<' | b'>' | b'&')) => put_escape(out, byte),
            _ => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        },
    }
}

pub(in super::super) fn put_number(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(rest % 10)) {
            *digit = b'0' + value;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

pub(super) fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let begin = out.len();
    out.resize(begin + bytes.len().div_ceil(3) * 4, 0);
    if let Some(place) = out.get_mut(begin..) {
        // The place is as long as it must be.
        let _ = STANDARD.encode_slice(bytes, place);
    }
    out.push(b'"');
}

/// A time in UTC as RFC 3339 has it, with microseconds where they are given. None for a year that
/// has not four digits.
pub(super) fn put_time(out: &mut Vec<u8>, seconds: i64, micros: Option<i64>) -> Option<()> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years, as all calendars of computers count them.
    let days = days.checked_add(719_468)?;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    if !(0..10_000).contains(&year) {
        return None;
    }
    out.push(b'"');
    let mut put = |number: i64, width: u32, after: u8| {
        for place in (0..width).rev() {
            let digit = u8::try_from(number / 10i64.pow(place) % 10).unwrap_or(0);
            out.push(b'0' + digit);
        }
        out.push(after);
    };
    put(year, 4, b'-');
    put(month, 2, b'-');
    put(day, 2, b'T');
    put(second / 3_600, 2, b':');
    put(second / 60 % 60, 2, b':');
    match micros {
        Some(micros) => {
            put(second % 60, 2, b'.');
            put(micros, 6, b'Z');
        }
        None => put(second % 60, 2, b'Z'),
    }
    out.push(b'"');
    Some(())
}

/// JSON without blanks, and escaped like all else; none where it is none.
pub(super) fn put_compact(out: &mut Vec<u8>, json: &[u8]) -> Option<()> {
    let mut reader = Reader { json, at: 0, out };
    // What is open: objects are true.
    let mut open: Vec<bool> = Vec::new();
    'value: loop {
        match reader.skip_blanks()? {
            b'{' => {
                reader.take();
                if reader.skip_blanks()? == b'}' {
                    reader.take();
                } else {
                    open.push(true);
                    reader.key()?;
                    continue 'value;
                }
            }
            b'[' => {
                reader.take();
                if reader.skip_blanks()? == b']' {
                    reader.take();
                } else {
                    open.push(false);
                    continue 'value;
                }
            }
            b'"' => reader.text()?,
            b't' => reader.word(b"true")?,
            b'f' => reader.word(b"false")?,
            b'n' => reader.word(b"null")?,
            _ => reader.number()?,
        }
        if open.len() > MAX_DEPTH {
            return None;
        }
        // After a value: what it is in goes on or ends.
        while let Some(object) = open.last() {
            match (reader.skip_blanks()?, object) {
                (b',', true) => {
                    reader.take();
                    reader.key()?;
                    continue 'value;
                }
                (b',', false) => {
                    reader.take();
                    continue 'value;
                }
                (b'}', true) | (b']', false) => {
                    reader.take();
                    open.pop();
                }
                _ => return None,
            }
        }
        return reader.skip_blanks().is_none().then_some(());
    }
}

struct Reader<'a> {
    json: &'a [u8],
    at: usize,
    out: &'a mut Vec<u8>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    /// The next byte that is no blank; none at the end.
    fn skip_blanks(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn take(&mut self) {
        self.out.extend(self.peek());
        self.at += 1;
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let found = self.json.get(self.at..)?.starts_with(word);
        self.at += word.len();
        self.out.extend_from_slice(word);
        found.then_some(())
    }

    fn key(&mut self) -> Option<()> {
        if self.skip_blanks()? != b'"' {
            return None;
        }
        self.text()?;
        if self.skip_blanks()? != b':' {
            return None;
        }
        self.take();
        Some(())
    }

    fn text(&mut self) -> Option<()> {
        self.take();
        loop {
            match self.peek()? {
                b'"' => {
                    self.take();
                    return Some(());
                }
                b'\\' => {
                    self.take();
                    match self.peek()? {
                        b'u' => {
                            self.take();
                            for _ in 0..4 {
                                self.peek().filter(u8::is_ascii_hexdigit)?;
                                self.take();
                            }
                        }
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.take(),
                        _ => return None,
                    }
                }
                ..0x20 => return None,
                byte @ (b'<' | b'>' | b'&') => {
                    put_escape(self.out, byte);
                    self.at += 1;
                }
                0xe2 => match self.json.get(self.at..self.at + 3) {
                    Some([_, 0x80, last @ (0xa8 | 0xa9)]) => {
                        let escape: &[u8] = if *last == 0xa8 { b"\\u2028" } else { b"\\u2029" };
                        self.out.extend_from_slice(escape);
                        self.at += 3;
                    }
                    _ => self.take(),
                },
                _ => self.take(),
            }
        }
    }

    fn digits(&mut self) -> Option<()> {
        self.peek().filter(u8::is_ascii_digit)?;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.take();
        }
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek()? == b'-' {
            self.take();
        }
        if self.peek()? == b'0' {
            self.take();
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.take();
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.take();
            if let Some(b'+' | b'-') = self.peek() {
                self.take();
            }
            self.digits()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn texts() {
        for (bytes, expected) in [
            (&b""[..], r#""""#),
            (b"a/b", r#""a/b""#),
            (b"<a>&\"\\", r#""\u003ca\u003e\u0026\"\\""#),
            (b"\x00\x08\x0b\x0c\n\r\t\x1f\x7f", "\"\\u0000\\b\\u000b\\f\\n\\r\\t\\u001f\x7f\""),
            ("ä\u{2028}\u{2029}😀".as_bytes(), r#""ä\u2028\u2029😀""#),
            (b"\xe2\x82 \xff", r#""\ufffd\ufffd \ufffd""#),
        ] {
            assert_eq!(text(|out| put_text(out, bytes)), expected);
        }
        for number in [0, 7, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(text(|out| put_number(out, number)), number.to_string());
        }
        assert_eq!(text(|out| put_base64(out, b"ab")), r#""YWI=""#);
        assert_eq!(text(|out| put_base64(out, b"")), r#""""#);
    }

    #[test]
    fn times() {
        let time = |seconds, micros| {
            let mut out = Vec::new();
            let put = put_time(&mut out, seconds, micros);
            put.map(|()| String::from_utf8(out).unwrap())
        };
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (-62_135_596_800, "0001-01-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(time(seconds, None), Some(format!("\"{expected}\"")));
        }
        assert_eq!(time(1, Some(20)).unwrap(), "\"1970-01-01T00:00:01.000020Z\"");
        for out_of_range in [253_402_300_800, i64::MAX, i64::MIN, -630_000_000_000] {
            assert_eq!(time(out_of_range, None), None);
        }
    }

    #[test]
    fn json_within_json() {
        let compact = |json: &[u8]| {
            let mut out = Vec::new();
            put_compact(&mut out, json).map(|()| String::from_utf8_lossy(&out).into_owned())
        };
        for (json, expected) in [
            (" { } ", "{}"),
            ("[ 1 , -0.5e+3 ,\"a b\" , null]\n", r#"[1,-0.5e+3,"a b",null]"#),
            (r#"{"a": {"b" :[ ]}, "c":true}"#, r#"{"a":{"b":[]},"c":true}"#),
            ("\"<\u{2028}\\u12aF\\/\"", r#""\u003c\u2028\u12aF\/""#),
        ] {
            assert_eq!(compact(json.as_bytes()).as_deref(), Some(expected), "{json}");
        }
        for bad in [
            "",
            " ",
            "{",
            "}",
            "[1,]",
            "{\"a\":1,}",
            "{1:2}",
            "01",
            "1.",
            "-",
            "1e",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "tru",
            "nul",
            "[1 2]",
            "{\"a\" 1}",
            "1 1",
            "[",
            "[}",
            "{\"a\":]",
        ] {
            assert_eq!(compact(bad.as_bytes()), None, "{bad}");
        }
        let deep = |depth| [b"[".repeat(depth), b"]".repeat(depth)].concat();
        assert!(compact(&deep(10_000)).is_some());
        assert!(compact(&deep(10_002)).is_none());
    }
}
