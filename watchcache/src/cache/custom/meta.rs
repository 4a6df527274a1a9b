//! The metadata of an object: what is left of it once Go has read it into its `ObjectMeta` and
//! written it again (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta`), and its
//! message in protobuf. What Go would drop as malformed is for kube-apiserver to say.

use bytes::BufMut;

use super::super::wire::{put_field, put_varint};
use super::value::{Json, Map};

/// It is not as kube-apiserver writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

type Done = Result<(), Malformed>;

#[derive(Clone, Copy)]
enum Shape {
    Text,
    Number,
    /// Of which 0 is nothing.
    Count,
    Time,
    Flag,
    Texts,
    List(&'static [(&'static str, Shape)], bool),
    Names,
    Object,
}

const OWNER: &[(&str, Shape)] = &[
    ("apiVersion", Shape::Text),
    ("blockOwnerDeletion", Shape::Flag),
    ("controller", Shape::Flag),
    ("kind", Shape::Text),
    ("name", Shape::Text),
    ("uid", Shape::Text),
];

const MANAGED: &[(&str, Shape)] = &[
    ("apiVersion", Shape::Text),
    ("fieldsType", Shape::Text),
    ("fieldsV1", Shape::Object),
    ("manager", Shape::Text),
    ("operation", Shape::Text),
    ("subresource", Shape::Text),
    ("time", Shape::Time),
];

const METADATA: &[(&str, Shape)] = &[
    ("annotations", Shape::Texts),
    ("creationTimestamp", Shape::Time),
    ("deletionGracePeriodSeconds", Shape::Number),
    ("deletionTimestamp", Shape::Time),
    ("finalizers", Shape::Names),
    ("generateName", Shape::Text),
    ("generation", Shape::Count),
    ("labels", Shape::Texts),
    ("managedFields", Shape::List(MANAGED, false)),
    ("name", Shape::Text),
    ("namespace", Shape::Text),
    ("ownerReferences", Shape::List(OWNER, true)),
    ("resourceVersion", Shape::Text),
    ("selfLink", Shape::Text),
    ("uid", Shape::Text),
];

/// Leaves of metadata what Go's `ObjectMeta` holds and writes.
pub(super) fn normalise(metadata: &mut Map) -> Done {
    fields(metadata, METADATA)
}

fn fields(map: &mut Map, known: &[(&str, Shape)]) -> Done {
    let mut done = Ok(());
    map.retain(|name, value| {
        let Some((_, shape)) = known.iter().find(|(known, _)| known == name) else { return false };
        keep(value, *shape).unwrap_or_else(|malformed| {
            done = Err(malformed);
            true
        })
    });
    done
}

/// Whether a value is written at all.
fn keep(value: &mut Json, shape: Shape) -> Result<bool, Malformed> {
    Ok(match (shape, value) {
        (_, Json::Null) => false,
        (Shape::Text, Json::Text(text)) => !text.is_empty(),
        (Shape::Number, Json::Int(_))
        | (Shape::Flag, Json::Bool(_))
        | (Shape::Object, Json::Map(_)) => true,
        (Shape::Count, Json::Int(number)) => *number != 0,
        (Shape::Time, Json::Text(text)) => {
            seconds(text).is_some().then_some(true).ok_or(Malformed)?
        }
        (Shape::Texts, Json::Map(map)) => {
            let texts = map.values().all(|value| matches!(value, Json::Text(_)));
            texts.then_some(!map.is_empty()).ok_or(Malformed)?
        }
        (Shape::Names, Json::List(list)) => {
            let texts = list.iter().all(|value| matches!(value, Json::Text(_)));
            texts.then_some(!list.is_empty()).ok_or(Malformed)?
        }
        (Shape::List(known, whole), Json::List(list)) => {
            for one in list.iter_mut() {
                let Json::Map(map) = one else { return Err(Malformed) };
                fields(map, known)?;
                // Texts that are written also when they are empty.
                for (name, _) in known.iter().filter(|(_, is)| whole && matches!(is, Shape::Text)) {
                    map.entry((*name).to_owned()).or_insert_with(|| Json::Text(String::new()));
                }
            }
            !list.is_empty()
        }
        _ => return Err(Malformed),
    })
}

/// Seconds since 1970 of a time in UTC and whole seconds, as kube-apiserver writes it; none for
/// any other, and for Go's zero time.
fn seconds(text: &str) -> Option<i64> {
    let bytes: &[u8; 20] = text.as_bytes().try_into().ok()?;
    let form = b"0000-00-00T00:00:00Z";
    let fits =
        |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
    bytes.iter().zip(form).all(fits).then_some(())?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 || year == 0 {
        return None;
    }
    // Days since 1970 of the proleptic Gregorian calendar, by years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    let date = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = date * 86_400 + hour * 3_600 + minute * 60 + second;
    (text != "0001-01-01T00:00:00Z").then_some(seconds)
}

/// `ObjectMeta` of normalised metadata, with an empty resource version, as kube-apiserver's encoder
/// writes it.
pub(super) fn message(metadata: &Map) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |name: &str| match metadata.get(name) {
        Some(Json::Text(text)) => text.as_str(),
        _ => "",
    };
    for (tag, name) in [
        (0x0a, "name"),
        (0x12, "generateName"),
        (0x1a, "namespace"),
        (0x22, "selfLink"),
        (0x2a, "uid"),
    ] {
        put_field(&mut out, tag, text(name).as_bytes());
    }
    out.put_slice(&[0x32, 0]);
    out.put_u8(0x38);
    put_number(&mut out, number(metadata, "generation").unwrap_or(0));
    put_field(&mut out, 0x42, &time(text("creationTimestamp")));
    if metadata.contains_key("deletionTimestamp") {
        put_field(&mut out, 0x4a, &time(text("deletionTimestamp")));
    }
    if let Some(grace) = number(metadata, "deletionGracePeriodSeconds") {
        out.put_u8(0x50);
        put_number(&mut out, grace);
    }
    for (tag, name) in [(0x5a, "labels"), (0x62, "annotations")] {
        let Some(Json::Map(map)) = metadata.get(name) else { continue };
        for (key, value) in map {
            let mut entry = Vec::new();
            put_field(&mut entry, 0x0a, key.as_bytes());
            put_field(&mut entry, 0x12, as_text(value).as_bytes());
            put_field(&mut out, tag, &entry);
        }
    }
    let list = |name: &str| match metadata.get(name) {
        Some(Json::List(list)) => list.as_slice(),
        _ => &[],
    };
    for owner in list("ownerReferences") {
        put_field(&mut out, 0x6a, &owner_of(owner));
    }
    for name in list("finalizers") {
        put_field(&mut out, 0x72, as_text(name).as_bytes());
    }
    for entry in list("managedFields") {
        out.put_u8(0x8a);
        put_field(&mut out, 0x01, &managed(entry));
    }
    out
}

fn as_text(value: &Json) -> &str {
    match value {
        Json::Text(text) => text,
        _ => "",
    }
}

fn number(map: &Map, name: &str) -> Option<i64> {
    match map.get(name) {
        Some(Json::Int(number)) => Some(*number),
        _ => None,
    }
}

fn put_number(out: &mut Vec<u8>, number: i64) {
    put_varint(out, usize::try_from(number.cast_unsigned()).unwrap_or(usize::MAX));
}

/// A `Time`; nothing where there is none.
fn time(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(seconds) = seconds(text) {
        out.put_u8(0x08);
        put_number(&mut out, seconds);
        out.put_slice(&[0x10, 0]);
    }
    out
}

fn owner_of(owner: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, name) in [(0x0a, "kind"), (0x1a, "name"), (0x22, "uid"), (0x2a, "apiVersion")] {
        put_field(&mut out, tag, owner.text(name).unwrap_or_default().as_bytes());
    }
    for (tag, name) in [(0x30, "controller"), (0x38, "blockOwnerDeletion")] {
        if let Some(Json::Bool(holds)) = owner.get(name) {
            out.put_slice(&[tag, u8::from(*holds)]);
        }
    }
    out
}

fn managed(entry: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |name: &str| entry.text(name).unwrap_or_default();
    for (tag, name) in [(0x0a, "manager"), (0x12, "operation"), (0x1a, "apiVersion")] {
        put_field(&mut out, tag, text(name).as_bytes());
    }
    if entry.get("time").is_some() {
        put_field(&mut out, 0x22, &time(text("time")));
    }
    put_field(&mut out, 0x32, text("fieldsType").as_bytes());
    if let Some(fields) = entry.get("fieldsV1") {
        let (mut raw, mut message) = (Vec::new(), Vec::new());
        fields.put(&mut raw);
        put_field(&mut message, 0x0a, &raw);
        put_field(&mut out, 0x3a, &message);
    }
    put_field(&mut out, 0x42, text("subresource").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(text: &str) -> Option<String> {
        let Some(Json::Map(mut map)) = Json::parse(text.as_bytes()) else { panic!("{text}") };
        normalise(&mut map).ok()?;
        let mut out = Vec::new();
        Json::Map(map).put(&mut out);
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_go_keeps() {
        for (text, expected) in [
            (r#"{"name":"a","uid":"","x":1,"clusterName":"c","generation":0}"#, r#"{"name":"a"}"#),
            (r#"{"labels":{},"annotations":null,"finalizers":[]}"#, "{}"),
            (
                r#"{"labels":{"b":"","a":"1"},"finalizers":["f",""]}"#,
                r#"{"finalizers":["f",""],"labels":{"a":"1","b":""}}"#,
            ),
            (
                r#"{"ownerReferences":[{"name":"n","y":1,"controller":null,"blockOwnerDeletion":false}]}"#,
                r#"{"ownerReferences":[{"apiVersion":"","blockOwnerDeletion":false,"kind":"","name":"n","uid":""}]}"#,
            ),
            (
                r#"{"managedFields":[{"manager":"m","fieldsV1":{"f:b":{},"f:a":{}},"time":"2026-11-28T22:00:00Z","subresource":""}]}"#,
                r#"{"managedFields":[{"fieldsV1":{"f:a":{},"f:b":{}},"manager":"m","time":"2026-11-28T22:00:00Z"}]}"#,
            ),
            (
                r#"{"deletionGracePeriodSeconds":0,"generation":3}"#,
                r#"{"deletionGracePeriodSeconds":0,"generation":3}"#,
            ),
        ] {
            assert_eq!(normalised(text).as_deref(), Some(expected), "{text}");
        }
        for bad in [
            r#"{"name":1}"#,
            r#"{"labels":{"a":1}}"#,
            r#"{"labels":{"a":null}}"#,
            r#"{"finalizers":"f"}"#,
            r#"{"generation":1.5}"#,
            r#"{"ownerReferences":[null]}"#,
            r#"{"managedFields":[{"fieldsV1":"x"}]}"#,
            r#"{"creationTimestamp":"0001-01-01T00:00:00Z"}"#,
            r#"{"creationTimestamp":"2026-11-28T22:00:00+01:00"}"#,
            r#"{"creationTimestamp":"2026-02-29T22:00:00Z"}"#,
        ] {
            assert_eq!(normalised(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T23:59:59Z"), Some(951_868_799));
        assert_eq!(seconds("1969-12-31T23:59:59Z"), Some(-1));
        assert_eq!(seconds("2026-11-28T22:00:00Z"), Some(1_795_903_200));
    }
}
