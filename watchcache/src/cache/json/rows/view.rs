//! A message read by the names that its fields have in JSON.

use super::super::super::kinds::Kind;
use super::super::super::wire::{self, Value};
use super::super::schema::{Field, Fields, Schema, Type};
use super::super::{ZERO_TIME, narrow, number_in, text_in, time};

/// Go's zero time, 0001-01-01, in nanoseconds.
pub(super) const ZERO: i128 = ZERO_TIME as i128 * 1_000_000_000;

static NOTHING: Fields = Fields(Vec::new());

/// A message. What is missing is empty, as in Go; what is no message has nothing.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    known: &'static Fields,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// An object.
    pub(super) fn of(kind: &Kind, bytes: &'a [u8]) -> Option<Self> {
        let schema = Schema::get();
        Some(Self { known: schema.message(schema.of(kind)?), bytes })
    }

    fn field(self, name: &str) -> Option<&'static Field> {
        let is = |field: &&Field| {
            let label =
                field.label.strip_prefix(b"\"").and_then(|label| label.strip_suffix(b"\":"));
            label == Some(name.as_bytes())
        };
        let field = self.known.0.iter().find(is);
        debug_assert!(field.is_some() || self.known.0.is_empty(), "no field {name}");
        field
    }

    /// All values of a field.
    fn values(self, name: &str) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let number = self.field(name).map(|field| field.number);
        let mut fields = wire::Fields::of(self.bytes);
        let all = std::iter::from_fn(move || fields.next().ok().flatten());
        all.filter(move |field| Some(field.number) == number).map(|field| field.value)
    }

    fn within(self, name: &str) -> &'static Fields {
        match self.field(name).map(|field| field.is) {
            Some(Type::Message(place)) => Schema::get().message(place),
            _ => &NOTHING,
        }
    }

    /// A text.
    pub(super) fn text(self, name: &str) -> &'a [u8] {
        self.texts(name).last().unwrap_or_default()
    }

    /// A text that may be missing.
    pub(super) fn maybe_text(self, name: &str) -> Option<&'a [u8]> {
        self.texts(name).last()
    }

    /// A list of texts.
    pub(super) fn texts(self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.values(name).filter_map(|value| match value {
            Value::Bytes(text) => Some(text),
            _ => None,
        })
    }

    /// A number of 64 bits.
    pub(super) fn long(self, name: &str) -> i64 {
        match self.values(name).last() {
            Some(Value::Number(number)) => number.cast_signed(),
            _ => 0,
        }
    }

    /// A number of 32 bits.
    pub(super) fn number(self, name: &str) -> i64 {
        self.maybe_number(name).unwrap_or(0)
    }

    /// A number of 32 bits that may be missing.
    pub(super) fn maybe_number(self, name: &str) -> Option<i64> {
        match self.values(name).last() {
            Some(Value::Number(number)) => Some(narrow(number.cast_signed())),
            _ => None,
        }
    }

    /// A bool.
    pub(super) fn flag(self, name: &str) -> bool {
        matches!(self.values(name).last(), Some(Value::Number(1..)))
    }

    /// Whether it is there.
    pub(super) fn has(self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// A message.
    pub(super) fn one(self, name: &str) -> Self {
        self.maybe(name).unwrap_or(Self { known: self.within(name), bytes: &[] })
    }

    /// A message that may be missing.
    pub(super) fn maybe(self, name: &str) -> Option<Self> {
        self.list(name).last()
    }

    /// A list of messages.
    pub(super) fn list(self, name: &str) -> impl DoubleEndedIterator<Item = Self> + use<'a> {
        let known = self.within(name);
        let all: Vec<_> = self.texts(name).map(|bytes| Self { known, bytes }).collect();
        all.into_iter()
    }

    /// A map of texts.
    pub(super) fn map(self, name: &str) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.texts(name).map(|entry| {
            let mut fields = wire::Fields::of(entry);
            let (mut key, mut value) = (&b""[..], &b""[..]);
            while let Ok(Some(field)) = fields.next() {
                match (field.number, field.value) {
                    (1, Value::Bytes(bytes)) => key = bytes,
                    (2, Value::Bytes(bytes)) => value = bytes,
                    _ => {}
                }
            }
            (key, value)
        })
    }

    /// The value that a map of texts has for a key. Of a key that is there twice, Go has the last.
    pub(super) fn entry(self, name: &str, key: &[u8]) -> Option<&'a [u8]> {
        self.map(name).filter(|(one, _)| *one == key).last().map(|(_, value)| value)
    }

    /// A quantity that may be missing.
    pub(super) fn quantity(self, name: &str) -> Option<&'a [u8]> {
        self.maybe_text(name).map(quantity)
    }

    /// A map of quantities.
    pub(super) fn quantities(self, name: &str) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.map(name).map(|(key, value)| (key, quantity(value)))
    }

    /// A number or text, as text.
    pub(super) fn number_or_text(self, name: &str) -> Option<Vec<u8>> {
        let message = self.maybe_text(name)?;
        Some(match number_in(message, 1) {
            Ok(1) => text_in(message, 3).unwrap_or_default().to_vec(),
            _ => narrow(number_in(message, 2).unwrap_or(0)).to_string().into_bytes(),
        })
    }

    /// A time that may be missing. Go's zero is one, too.
    pub(super) fn moment(self, name: &str) -> Option<i128> {
        self.has(name).then(|| self.time(name).unwrap_or(ZERO))
    }

    /// A time, in nanoseconds since 1970; none for Go's zero.
    pub(super) fn time(self, name: &str) -> Option<i128> {
        let is = self.field(name)?.is;
        let (seconds, micros) = time(self.text(name), is).ok().flatten()?;
        Some(i128::from(seconds) * 1_000_000_000 + i128::from(micros.unwrap_or(0)) * 1_000)
    }
}

/// A quantity's text; a missing one is none of it.
fn quantity(message: &[u8]) -> &[u8] {
    match text_in(message, 1) {
        Ok(text) if !text.is_empty() => text,
        _ => b"0",
    }
}
