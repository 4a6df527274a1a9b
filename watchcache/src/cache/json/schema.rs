//! The fields of every message that a cached resource holds, in the order of their JSON:
//! `schema.tsv`, which `tests/oracle/kinds` writes from Kubernetes' own types.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::super::kinds::Kind;

/// A message's fields.
#[derive(Debug)]
pub(super) struct Fields(pub(super) Vec<Field>);

#[derive(Debug)]
pub(super) struct Field {
    /// `"name":`, or nothing where the fields of the message stand here themselves.
    pub(super) label: Box<[u8]>,
    /// In protobuf; 0 for a constant.
    pub(super) number: u64,
    pub(super) shape: Shape,
    pub(super) is: Type,
    pub(super) omit: Omit,
}

/// How often a value may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Always, in Go: what is missing in protobuf is empty.
    One,
    /// Once or not at all.
    Pointer,
    List,
    /// By text.
    Map,
}

/// What a value is, one of a list or of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Bool,
    Int32,
    Int64,
    Bytes,
    Quantity,
    Time,
    MicroTime,
    IntOrString,
    /// `RawExtension`: JSON as it is.
    Raw,
    /// `FieldsV1`: JSON as it is.
    FieldsV1,
    Constant(&'static str),
    /// By its place in the schema.
    Message(usize),
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Omit {
    Nothing,
    /// `omitempty`.
    Empty,
    /// `omitzero`, too.
    Zero,
}

/// All messages.
#[derive(Debug)]
pub(super) struct Schema {
    messages: Vec<Fields>,
    names: HashMap<&'static str, usize>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("schema.tsv")));

impl Schema {
    pub(super) fn get() -> &'static Self {
        &SCHEMA
    }

    fn parse(text: &'static str) -> Self {
        let lines = || {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once('\t'))
        };
        let names: HashMap<_, _> = lines().enumerate().map(|(at, (name, _))| (name, at)).collect();
        let fields = |text: &'static str| {
            let fields = text.split(' ').filter(|field| !field.is_empty());
            Fields(fields.filter_map(|field| Field::parse(field, &names)).collect())
        };
        let messages = lines().map(|(_, text)| fields(text)).collect();
        Self { messages, names }
    }

    /// A message by its place.
    pub(super) fn message(&self, place: usize) -> &Fields {
        static NONE: Fields = Fields(Vec::new());
        self.messages.get(place).unwrap_or(&NONE)
    }

    /// A message by its name.
    pub(super) fn named(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The message of a resource: Go's package of the group and the version.
    pub(super) fn of(&self, kind: &Kind) -> Option<usize> {
        let package = kind.group.split('.').next().filter(|name| !name.is_empty());
        self.named(&format!("{}/{}.{}", package.unwrap_or("core"), kind.version, kind.name))
    }
}

impl Field {
    /// `name=number:type`; none for another form, which the test finds.
    fn parse(text: &'static str, names: &HashMap<&str, usize>) -> Option<Self> {
        let (name, rest) = text.split_once('=')?;
        let (number, rest) = rest.split_once(':')?;
        let (rest, omit) = if let Some(rest) = rest.strip_suffix("?!") {
            (rest, Omit::Zero)
        } else if let Some(rest) = rest.strip_suffix('?') {
            (rest, Omit::Empty)
        } else {
            (rest, Omit::Nothing)
        };
        let (rest, shape) = if let Some(rest) = rest.strip_prefix("[]") {
            (rest, Shape::List)
        } else if let Some(rest) = rest.strip_prefix("{}") {
            (rest, Shape::Map)
        } else if let Some(rest) = rest.strip_prefix('*') {
            (rest, Shape::Pointer)
        } else {
            (rest, Shape::One)
        };
        let is = match rest {
            "s" => Type::Text,
            "b" => Type::Bool,
            "i" => Type::Int32,
            "I" => Type::Int64,
            "y" => Type::Bytes,
            "q" => Type::Quantity,
            "t" => Type::Time,
            "u" => Type::MicroTime,
            "o" => Type::IntOrString,
            "r" => Type::Raw,
            "f" => Type::FieldsV1,
            rest => match rest.strip_prefix('c') {
                Some(constant) if number == "0" => Type::Constant(constant),
                _ => Type::Message(*names.get(rest.strip_prefix('@')?)?),
            },
        };
        let label = if name.is_empty() { String::new() } else { format!("\"{name}\":") };
        let label = label.into_bytes().into();
        Some(Self { label, number: number.parse().ok()?, shape, is, omit })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds;
    use super::*;

    #[test]
    fn every_field_is_read_and_every_kind_is_there() {
        let text = include_str!("schema.tsv");
        let fields = text.lines().filter(|line| !line.starts_with('#'));
        let fields: usize = fields.map(|line| line.matches('=').count()).sum();
        let schema = Schema::get();
        assert_eq!(schema.messages.iter().map(|message| message.0.len()).sum::<usize>(), fields);
        for kind in kinds::all() {
            let message = schema.message(schema.of(kind).unwrap());
            assert_eq!((&*message.0[0].label, message.0[0].number), (&b"\"metadata\":"[..], 1));
        }
    }
}
