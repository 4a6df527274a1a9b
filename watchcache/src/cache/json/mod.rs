//! Stored protobuf as the JSON that kube-apiserver would make of it: the fields of Go's types in
//! their order, by [`schema`], each value as Go's `encoding/json` writes it, by [`text`]. What Go
//! would not read, or not write, is refused here, and goes on.

pub mod rows;
mod schema;
pub(super) mod text;

use bytes::Bytes;

use self::schema::{Field, Fields, Omit, Schema, Shape, Type};
use super::kinds::Kind;
use super::wire::{self, ListMeta, Shown, Unsupported, Value};

/// Go's zero time, 0001-01-01 in UTC.
const ZERO_TIME: i64 = -62_135_596_800;

/// An object's JSON; `version` is its resource version.
pub fn object(kind: &Kind, message: Shown<'_>, version: u64) -> Result<Bytes, Unsupported> {
    let mut out = Vec::with_capacity(message.bytes().len() * 2);
    put_object(&mut out, kind, message, version)?;
    out.push(b'\n');
    Ok(out.into())
}

/// Adds an object with its kind.
fn put_object(
    out: &mut Vec<u8>,
    kind: &Kind,
    message: Shown<'_>,
    version: u64,
) -> Result<(), Unsupported> {
    out.extend_from_slice(b"{\"kind\":");
    text::put_text(out, kind.name.as_bytes());
    out.extend_from_slice(b",\"apiVersion\":");
    text::put_text(out, kind.api_version.as_bytes());
    put_fields(out, kind, message, version, false)
}

/// Adds an item of a list, which has no kind unless it is `kinded`.
pub fn put_item(
    out: &mut Vec<u8>,
    kind: &Kind,
    message: Shown<'_>,
    version: u64,
    kinded: bool,
) -> Result<(), Unsupported> {
    if kinded {
        return put_object(out, kind, message, version);
    }
    out.push(b'{');
    put_fields(out, kind, message, version, true)
}

fn put_fields(
    out: &mut Vec<u8>,
    kind: &Kind,
    message: Shown<'_>,
    version: u64,
    mut first: bool,
) -> Result<(), Unsupported> {
    let schema = Schema::get();
    let version = version.to_string();
    let mut writer = Writer { schema, out, fields: Vec::new() };
    let wrong = |Wrong(problem)| Unsupported { kind: kind.name, problem };
    let root = schema.of(kind).ok_or(Wrong("no schema")).map_err(wrong)?;
    let at = At::Root(&version);
    writer.put_fields(schema.message(root), message.bytes(), &mut first, at).map_err(wrong)?;
    out.push(b'}');
    Ok(())
}

/// Begins a list.
pub fn begin_list(out: &mut Vec<u8>, kind: &Kind, meta: &ListMeta) {
    out.extend_from_slice(b"{\"kind\":");
    text::put_text(out, kind.list.as_bytes());
    out.extend_from_slice(b",\"apiVersion\":");
    text::put_text(out, kind.api_version.as_bytes());
    put_list_meta(out, meta);
    out.extend_from_slice(b",\"items\":");
}

fn put_list_meta(out: &mut Vec<u8>, meta: &ListMeta) {
    out.extend_from_slice(b",\"metadata\":{\"resourceVersion\":");
    text::put_text(out, meta.version.to_string().as_bytes());
    if !meta.next.is_empty() {
        out.extend_from_slice(b",\"continue\":");
        text::put_text(out, meta.next.as_bytes());
    }
    if let Some(count) = meta.remaining {
        out.extend_from_slice(b",\"remainingItemCount\":");
        text::put_number(out, i64::try_from(count).unwrap_or(i64::MAX));
    }
    if let Some(ranges) = &meta.ranges {
        out.extend_from_slice(b",\"shardInfo\":{\"selector\":");
        text::put_text(out, ranges.as_bytes());
        out.push(b'}');
    }
    out.push(b'}');
}

/// Ends a list. Where it has no items, `empty` says what stands for them.
pub fn end_list(out: &mut Vec<u8>, empty: Option<&[u8]>) {
    out.extend_from_slice(empty.unwrap_or(b"]"));
    out.extend_from_slice(b"}\n");
}

/// Adds an event of a watch.
pub fn put_event(
    out: &mut Vec<u8>,
    kind: &Kind,
    what: &str,
    message: Shown<'_>,
    version: u64,
) -> Result<(), Unsupported> {
    out.extend_from_slice(b"{\"type\":");
    text::put_text(out, what.as_bytes());
    out.extend_from_slice(b",\"object\":");
    put_object(out, kind, message, version)?;
    out.extend_from_slice(b"}\n");
    Ok(())
}

/// What Go would not read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrong(&'static str);

type Done = Result<(), Wrong>;

/// Where a message stands: the version of an object is put into its metadata.
#[derive(Clone, Copy)]
enum At<'a> {
    Root(&'a str),
    Metadata(&'a str),
    Elsewhere,
}

struct Writer<'a> {
    schema: &'static Schema,
    out: &'a mut Vec<u8>,
    /// Fields that were read of the message that is written, after those of what it is in.
    fields: Vec<(u64, Value<'a>)>,
}

/// Commas between what stands in braces.
fn separate(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::replace(first, false) {
        out.push(b',');
    }
}

/// The value of a text field; empty where it is missing.
fn text_in(message: &[u8], number: u64) -> Result<&[u8], Wrong> {
    let mut fields = wire::Fields::of(message);
    let mut text = &b""[..];
    while let Some(field) = fields.next().map_err(|()| Wrong("not a message"))? {
        match (field.number == number, field.value) {
            (true, Value::Bytes(bytes)) => text = bytes,
            (true, _) => return Err(Wrong("a text of another type")),
            _ => {}
        }
    }
    Ok(text)
}

fn number_in(message: &[u8], number: u64) -> Result<i64, Wrong> {
    let mut fields = wire::Fields::of(message);
    let mut found = 0;
    while let Some(field) = fields.next().map_err(|()| Wrong("not a message"))? {
        match (field.number == number, field.value) {
            (true, Value::Number(value)) => found = value.cast_signed(),
            (true, _) => return Err(Wrong("a number of another type")),
            _ => {}
        }
    }
    Ok(found)
}

/// 32 bits of a number, as Go takes them.
fn narrow(number: i64) -> i64 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    i32::from_le_bytes([a, b, c, d]).into()
}

/// A time, as seconds and microseconds; none for Go's zero.
fn time(message: &[u8], is: Type) -> Result<Option<(i64, Option<i64>)>, Wrong> {
    if message.is_empty() {
        return Ok(None);
    }
    let (seconds, nanos) = (number_in(message, 1)?, narrow(number_in(message, 2)?));
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(Wrong("a time of more than a second's nanoseconds"));
    }
    // Go reads whole seconds, or whole microseconds.
    let micros = (is == Type::MicroTime).then_some(nanos / 1_000);
    let zero = seconds == ZERO_TIME && micros.unwrap_or(0) == 0;
    Ok((!zero).then_some((seconds, micros)))
}

impl<'a> Writer<'a> {
    /// Adds the fields of a message without its braces.
    fn put_fields(
        &mut self,
        known: &'static Fields,
        message: &'a [u8],
        first: &mut bool,
        at: At<'_>,
    ) -> Done {
        let begin = self.fields.len();
        let mut read = wire::Fields::of(message);
        let mut last = 0;
        while let Some(field) = read.next().map_err(|()| Wrong("not a message"))? {
            // As Go's encoder writes them. It is what finds them below.
            if field.number < last {
                return Err(Wrong("fields are not in order"));
            }
            last = field.number;
            self.fields.push((field.number, field.value));
        }
        let end = self.fields.len();
        let mut place = begin;
        for field in &known.0 {
            let (from, to) = self.find((begin, end), &mut place, field.number);
            match at {
                At::Metadata(version) if field.number == 6 => {
                    separate(self.out, first);
                    self.out.extend_from_slice(&field.label);
                    text::put_text(self.out, version.as_bytes());
                }
                At::Root(version) if field.number == 1 => {
                    separate(self.out, first);
                    self.out.extend_from_slice(&field.label);
                    let Some(Value::Bytes(metadata)) = self.single(from, to, field.is)? else {
                        return Err(Wrong("no metadata"));
                    };
                    self.put_message(field.is, metadata, At::Metadata(version))?;
                }
                _ => self.put_field(field, (from, to), first)?,
            }
        }
        self.fields.truncate(begin);
        Ok(())
    }

    /// Where the values of a field lie among those of its message. Mostly where the last search
    /// ended.
    fn find(&self, (begin, end): (usize, usize), place: &mut usize, number: u64) -> (usize, usize) {
        let at = |place: usize| self.fields.get(place).map_or(0, |(number, _)| *number);
        let mut from = *place;
        if from > begin && at(from - 1) >= number {
            from = begin;
        }
        while from < end && at(from) < number {
            from += 1;
        }
        let mut to = from;
        while to < end && at(to) == number {
            to += 1;
        }
        *place = to;
        (from, to)
    }

    /// The value of a field that is there once at most. Go takes the last of more, but for
    /// messages, which it merges: no encoder writes such.
    fn single(&self, from: usize, to: usize, is: Type) -> Result<Option<Value<'a>>, Wrong> {
        let scalar =
            matches!(is, Type::Text | Type::Bool | Type::Int32 | Type::Int64 | Type::Bytes);
        if to - from > 1 && !scalar {
            return Err(Wrong("a message that is there twice"));
        }
        Ok(if to > from { self.fields.get(to - 1).map(|(_, value)| *value) } else { None })
    }

    fn put_field(
        &mut self,
        field: &'static Field,
        (from, to): (usize, usize),
        first: &mut bool,
    ) -> Done {
        let empty = match field.shape {
            Shape::One => {
                let value = self.single(from, to, field.is)?;
                if let (Type::Message(place), true) = (field.is, field.label.is_empty()) {
                    let message = message_of(value)?;
                    let known = self.schema.message(place);
                    return self.put_fields(known, message, first, At::Elsewhere);
                }
                if field.omit != Omit::Nothing && is_empty(field, value)? {
                    return Ok(());
                }
                separate(self.out, first);
                self.out.extend_from_slice(&field.label);
                return match value {
                    Some(value) => self.put_value(field.is, value),
                    None => self.put_empty(field.is),
                };
            }
            _ => from == to,
        };
        if empty && field.omit != Omit::Nothing {
            return Ok(());
        }
        separate(self.out, first);
        self.out.extend_from_slice(&field.label);
        if empty {
            self.out.extend_from_slice(b"null");
            return Ok(());
        }
        match field.shape {
            Shape::One | Shape::Pointer => match self.single(from, to, field.is)? {
                Some(value) => self.put_value(field.is, value),
                None => Ok(()),
            },
            Shape::List => {
                self.out.push(b'[');
                for place in from..to {
                    if place > from {
                        self.out.push(b',');
                    }
                    let Some((_, value)) = self.fields.get(place).copied() else { continue };
                    self.put_value(field.is, value)?;
                }
                self.out.push(b']');
                Ok(())
            }
            Shape::Map => self.put_map(field.is, from, to),
        }
    }

    fn put_map(&mut self, is: Type, from: usize, to: usize) -> Done {
        let mut entries: Vec<(&'a [u8], Option<Value<'a>>)> = Vec::with_capacity(to - from);
        for (_, entry) in self.fields.get(from..to).unwrap_or_default() {
            let entry = message_of(Some(*entry))?;
            let (mut read, mut key, mut value) = (wire::Fields::of(entry), &b""[..], None);
            while let Some(field) = read.next().map_err(|()| Wrong("not a message"))? {
                match (field.number, field.value) {
                    (1, Value::Bytes(bytes)) => key = bytes,
                    (1, _) => return Err(Wrong("a key that is no text")),
                    (2, found) => value = Some(found),
                    _ => {}
                }
            }
            entries.push((key, value));
        }
        // Go's encoder writes them in order.
        if !entries.is_sorted_by(|(one, _), (other, _)| one < other) {
            return Err(Wrong("a map that is not in order"));
        }
        self.out.push(b'{');
        let mut first = true;
        for (key, value) in entries {
            separate(self.out, &mut first);
            text::put_text(self.out, key);
            self.out.push(b':');
            match (value, is) {
                (Some(value), _) => self.put_value(is, value)?,
                // Go's decoder makes an empty one of what is missing in an entry.
                (None, Type::Bytes) => self.out.extend_from_slice(b"\"\""),
                (None, _) => self.put_empty(is)?,
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn put_message(&mut self, is: Type, message: &'a [u8], at: At<'_>) -> Done {
        let Type::Message(place) = is else { return Err(Wrong("no message")) };
        self.out.push(b'{');
        let known = self.schema.message(place);
        let mut first = true;
        self.put_fields(known, message, &mut first, at)?;
        self.out.push(b'}');
        Ok(())
    }

    /// What is missing in protobuf and always there in JSON.
    fn put_empty(&mut self, is: Type) -> Done {
        let text: &[u8] = match is {
            Type::Text => b"\"\"",
            Type::Bool => b"false",
            Type::Int32 | Type::Int64 | Type::IntOrString => b"0",
            Type::Quantity => b"\"0\"",
            Type::Bytes | Type::Time | Type::MicroTime | Type::Raw | Type::FieldsV1 => b"null",
            Type::Constant(text) => {
                text::put_text(self.out, text.as_bytes());
                return Ok(());
            }
            Type::Message(_) => return self.put_message(is, b"", At::Elsewhere),
        };
        self.out.extend_from_slice(text);
        Ok(())
    }

    fn put_value(&mut self, is: Type, value: Value<'a>) -> Done {
        let out = &mut *self.out;
        match (is, value) {
            (Type::Text, Value::Bytes(bytes)) => text::put_text(out, bytes),
            (Type::Bool, Value::Number(number)) => {
                out.extend_from_slice(if number == 0 { b"false" } else { b"true" });
            }
            (Type::Int32, Value::Number(number)) => {
                text::put_number(out, narrow(number.cast_signed()));
            }
            (Type::Int64, Value::Number(number)) => text::put_number(out, number.cast_signed()),
            (Type::Bytes, Value::Bytes(bytes)) => text::put_base64(out, bytes),
            (Type::Quantity, Value::Bytes(message)) => {
                let quantity = text_in(message, 1)?;
                // An encoder writes the canonical form, and never nothing.
                if quantity.is_empty() {
                    return Err(Wrong("an empty quantity"));
                }
                text::put_text(out, quantity);
            }
            (Type::Time | Type::MicroTime, Value::Bytes(message)) => match time(message, is)? {
                None => out.extend_from_slice(b"null"),
                Some((seconds, micros)) => text::put_time(out, seconds, micros)
                    .ok_or(Wrong("a year that has not four digits"))?,
            },
            (Type::IntOrString, Value::Bytes(message)) => match number_in(message, 1)? {
                0 => text::put_number(out, narrow(number_in(message, 2)?)),
                1 => text::put_text(out, text_in(message, 3)?),
                _ => return Err(Wrong("neither number nor text")),
            },
            (Type::Raw, Value::Bytes(message)) => {
                if has(message, 1)? {
                    let json = text_in(message, 1)?;
                    text::put_compact(out, json).ok_or(Wrong("an extension that is no JSON"))?;
                } else {
                    out.extend_from_slice(b"null");
                }
            }
            (Type::FieldsV1, Value::Bytes(message)) => {
                if has(message, 1)? {
                    let json = text_in(message, 1)?;
                    text::put_compact(out, json).ok_or(Wrong("managed fields that are no JSON"))?;
                } else {
                    out.extend_from_slice(b"null");
                }
            }
            (Type::Message(_), Value::Bytes(message)) => {
                return self.put_message(is, message, At::Elsewhere);
            }
            _ => return Err(Wrong("a value of another type")),
        }
        Ok(())
    }
}

fn has(message: &[u8], number: u64) -> Result<bool, Wrong> {
    let mut fields = wire::Fields::of(message);
    let mut found = false;
    while let Some(field) = fields.next().map_err(|()| Wrong("not a message"))? {
        found |= field.number == number;
    }
    Ok(found)
}

/// The bytes of a message; none are an empty one.
fn message_of(value: Option<Value<'_>>) -> Result<&[u8], Wrong> {
    match value {
        Some(Value::Bytes(message)) => Ok(message),
        None => Ok(b""),
        Some(_) => Err(Wrong("a message of another type")),
    }
}

/// Whether `omitempty`, or `omitzero`, leaves a value out: a struct never is by the first.
fn is_empty(field: &Field, value: Option<Value<'_>>) -> Result<bool, Wrong> {
    Ok(match (field.is, value) {
        (Type::Text | Type::Bytes, Some(Value::Bytes(bytes))) => bytes.is_empty(),
        (Type::Bool | Type::Int64, Some(Value::Number(number))) => number == 0,
        (Type::Int32, Some(Value::Number(number))) => narrow(number.cast_signed()) == 0,
        (Type::Text | Type::Bytes | Type::Bool | Type::Int32 | Type::Int64, None) => true,
        (Type::Time | Type::MicroTime, value) if field.omit == Omit::Zero => {
            time(message_of(value)?, field.is)?.is_none()
        }
        _ => false,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
