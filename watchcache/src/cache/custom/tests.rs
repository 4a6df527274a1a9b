//! What is stored, and what is shown of it, by schemas of all kinds.

use serde_json::json;

use super::definition::Definition;
use super::*;
use crate::cache::wire::Message;

/// A definition of widgets as it is stored, with these versions and their `spec`.
pub(in super::super) fn stored(versions: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let conditions = ["NamesAccepted", "Established"]
        .map(|name| json!({"type": name, "status": "True", "reason": "x"}));
    let versions = versions.iter().enumerate().map(|(place, (name, spec))| {
        json!({"name": name, "served": true, "storage": place == 0,
               "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}})
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1beta1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com", "uid": "u"},
        "spec": {
            "group": "example.com", "version": "v1", "scope": "Namespaced",
            "preserveUnknownFields": false, "conversion": {"strategy": "None"},
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": versions.collect::<Vec<_>>(),
        },
        "status": {"conditions": conditions,
                   "acceptedNames": {"plural": "widgets", "kind": "Widget", "listKind": "WidgetList"}},
    })
    .to_string()
    .into_bytes()
}

pub(in super::super) fn name() -> Name {
    Name::new("example.com", "widgets").unwrap()
}

fn parse(value: &[u8]) -> Result<Definition, &'static str> {
    Definition::parse(value, "example.com", "widgets")
}

pub(in super::super) fn followed(value: &[u8], changed: &CancellationToken) -> Followed {
    let definition = Arc::new(parse(value).unwrap());
    let kind = definition.kind_of(&definition.versions[0]).unwrap();
    let rules = Rules { definition, kind };
    Followed::new(key_of("/registry", &name()), name(), rules, changed.clone())
}

fn shown(definition: &[u8], version: &str, value: &str) -> Result<(Message, String), &'static str> {
    let definition = Arc::new(parse(definition).unwrap());
    let kind = definition.kind_of(definition.version(version).unwrap()).unwrap();
    let (message, _) =
        Rules { definition, kind }.read(value.as_bytes()).map_err(|error| error.problem)?;
    let mut out = Vec::new();
    put(&mut out, &message, 7);
    Ok((message, String::from_utf8(out).unwrap()))
}

/// What is shown of an object's `spec`.
fn spec(schema: &serde_json::Value, spec: &str) -> String {
    let value = format!(
        r#"{{"apiVersion":"example.com/v1","kind":"Widget","metadata":{{"name":"w"}},"spec":{spec}}}"#
    );
    let definition = stored(&[("v1", schema.clone())]);
    let (_, json) = shown(&definition, "v1", &value).unwrap();
    let begin = r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"generation":1,"name":"w","resourceVersion":"7"},"spec":"#;
    json.strip_prefix(begin).unwrap().strip_suffix('}').unwrap().to_owned()
}

#[test]
fn unknown_fields_go_and_defaults_come() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string", "default": "x"},
        "n": {"type": "string", "nullable": true, "default": "y"},
        "l": {"type": "array", "items": {"type": "object", "properties": {
            "b": {"type": "integer", "default": 1}}}},
        "m": {"type": "object", "additionalProperties": {"type": "integer", "default": 2}},
        "t": {"type": "object", "additionalProperties": true},
        "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "q": {"type": "object", "properties": {"r": {"type": "integer"}}}}},
        "d": {"type": "object", "default": {"e": {}}, "properties": {
            "e": {"type": "object", "properties": {"f": {"type": "integer", "default": 3}}}}},
    }});
    for (stored, expected) in [
        ("{}", r#"{"a":"x","d":{"e":{"f":3}},"n":"y"}"#),
        (r#"{"z":1,"a":null,"n":null,"d":{}}"#, r#"{"a":"x","d":{},"n":null}"#),
        (
            r#"{"l":[{"c":1},null,{"b":2}],"d":{}}"#,
            r#"{"a":"x","d":{},"l":[{"b":1},null,{"b":2}],"n":"y"}"#,
        ),
        (r#"{"m":{"k":null,"j":4},"d":{}}"#, r#"{"a":"x","d":{},"m":{"j":4,"k":2},"n":"y"}"#),
        (
            r#"{"t":{"k":{"gone":1},"j":[{"gone":2}]},"d":{}}"#,
            r#"{"a":"x","d":{},"n":"y","t":{"j":[{}],"k":{}}}"#,
        ),
        (
            r#"{"p":{"s":{"t":1},"q":{"r":1,"u":2}},"d":{"e":null}}"#,
            r#"{"a":"x","d":{},"n":"y","p":{"q":{"r":1},"s":{"t":1}}}"#,
        ),
        (r#"{"l":null,"d":5}"#, r#"{"a":"x","d":5,"n":"y"}"#),
    ] {
        assert_eq!(spec(&schema, stored), expected, "{stored}");
    }
}

#[test]
fn objects_within_have_metadata() {
    let schema = json!({"type": "object", "properties": {"o": {
        "type": "object", "x-kubernetes-embedded-resource": true,
        "properties": {"spec": {"type": "object", "default": {}}},
    }}});
    let stored = r#"{"o":{"kind":"K","x":1,"metadata":{"name":"n","x":1,"labels":{}}}}"#;
    let expected = r#"{"o":{"kind":"K","metadata":{"name":"n"},"spec":{}}}"#;
    assert_eq!(spec(&schema, stored), expected);
}

#[test]
fn each_version_has_its_schema() {
    let field = |name: &str| {
        json!({"type": "object", "properties": {
        name: {"type": "string", "default": name}, "c": {"type": "string"}}})
    };
    let definition = stored(&[("v1", field("a")), ("v2", field("b"))]);
    let value = |version: &str| {
        format!(
            r#"{{"kind":"Widget","apiVersion":"example.com/{version}","spec":{{"c":"<"}},"zz":1,
                "metadata":{{"uid":"u","name":"w","namespace":"n","generation":2,"labels":{{"l":"1"}}}}}}"#
        )
    };
    let metadata = r#""metadata":{"generation":2,"labels":{"l":"1"},"name":"w","namespace":"n","resourceVersion":"7","uid":"u"}"#;
    for (stored, version, spec) in [
        ("v1", "v1", r#"{"a":"a","c":"\u003c"}"#),
        ("v1", "v2", r#"{"c":"\u003c"}"#),
        ("v2", "v2", r#"{"b":"b","c":"\u003c"}"#),
        ("v2", "v1", r#"{"c":"\u003c"}"#),
    ] {
        let (_, json) = shown(&definition, version, &value(stored)).unwrap();
        let expected = format!(
            r#"{{"apiVersion":"example.com/{version}","kind":"Widget",{metadata},"spec":{spec}}}"#
        );
        assert_eq!(json, expected);
    }
    for bad in [
        "",
        "k8s\0\u{a}",
        "[]",
        r#"{"kind":"Widget"}"#,
        &value("v3"),
        &value("v1").replace("example.com", "example.org"),
        &value("v1").replace("Widget", "Gadget"),
        &value("v1").replace("\"zz\"", "\"items\""),
        &value("v1").replace("\"w\"", "1"),
    ] {
        assert!(shown(&definition, "v1", bad).is_err(), "{bad}");
    }
}

#[test]
fn webhooks_convert_what_is_stored_in_another_version() {
    let text = String::from_utf8(stored(&[("v1", json!({})), ("v2", json!({}))])).unwrap();
    let hooked = text.replace(r#""strategy":"None""#, r#""strategy":"Webhook""#);
    let value = r#"{"kind":"Widget","apiVersion":"example.com/v1","metadata":{"name":"w"}}"#;
    assert!(shown(hooked.as_bytes(), "v1", value).is_ok());
    assert_eq!(shown(hooked.as_bytes(), "v2", value).unwrap_err(), "it is converted by a webhook");
}

#[test]
fn selectable_fields_are_texts() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string"}, "b": {"type": "boolean"}, "c": {"type": "integer"}}});
    let text = String::from_utf8(stored(&[("v1", schema)])).unwrap();
    let fields = r#""scope":"Namespaced","selectableFields":[{"jsonPath":".spec.a"},{"jsonPath":".spec.b"},{"jsonPath":".spec.c"}]"#;
    let text = text.replace(r#""scope":"Namespaced""#, fields);
    for (spec, expected) in [
        (r#"{"a":"<x>","b":true,"c":-3}"#, ["<x>", "true", "-3"]),
        (r#"{"a":null}"#, ["", "", ""]),
        ("[]", ["", "", ""]),
    ] {
        let value = format!(
            r#"{{"kind":"Widget","apiVersion":"example.com/v1","metadata":{{"name":"w"}},"spec":{spec}}}"#
        );
        let (message, _) = shown(text.as_bytes(), "v1", &value).unwrap();
        let definition = parse(text.as_bytes()).unwrap();
        let kind = definition.kind_of(&definition.versions[0]).unwrap();
        let values = ["spec.a", "spec.b", "spec.c"]
            .map(|name| kind.field(name).unwrap().value(message.bytes()).into_owned());
        assert_eq!(values, expected);
    }
    let value = r#"{"kind":"Widget","apiVersion":"example.com/v1","metadata":{"name":"w"},"spec":{"c":1.5}}"#;
    assert!(shown(text.as_bytes(), "v1", value).is_err());
}

#[test]
fn definitions_that_are_not_handled() {
    let text = String::from_utf8(stored(&[("v1", json!({"type": "object"}))])).unwrap();
    let known = parse(text.as_bytes()).unwrap();
    // What does not matter may change.
    let same = text.replace(r#""reason":"x""#, r#""reason":"y""#);
    assert_ne!(same, text);
    assert_eq!(parse(same.as_bytes()).unwrap(), known);
    for (from, to) in [
        ("v1beta1", "v2"),
        (r#""status":"True""#, r#""status":"False""#),
        (r#""preserveUnknownFields":false"#, r#""preserveUnknownFields":true"#),
        (r#","preserveUnknownFields":false"#, ""),
        (r#""uid":"u""#, r#""uid":"u","deletionTimestamp":"2026-11-28T22:00:00Z""#),
        (r#""strategy":"None""#, r#""strategy":"Other""#),
        (r#""scope":"Namespaced""#, r#""scope":"Other""#),
        (r#""listKind":"WidgetList""#, r#""listKind":"""#),
        (r#""group":"example.com""#, r#""group":"example.org""#),
        (r#"{"type":"object"}"#, r#"{"$ref":"x"}"#),
        (r#"{"type":"object"}"#, r#"{"items":[{}]}"#),
        (r#"{"type":"object"}"#, r#"{"default":{"a":1}}"#),
        (r#"{"type":"object"}"#, r#"{"x-kubernetes-preserve-unknown-fields":false}"#),
        (r#""properties":{"spec""#, r#""properties":{"metadata":{"default":{}},"spec""#),
        (r#""properties":{"spec""#, r#""additionalProperties":{},"properties":{"spec""#),
        (r#""openAPIV3Schema""#, r#""other""#),
        (
            r#""scope":"Namespaced""#,
            r#""scope":"Namespaced","selectableFields":[{"jsonPath":".spec['a']"}]"#,
        ),
        (
            r#""scope":"Namespaced""#,
            r#""scope":"Namespaced","selectableFields":[{"jsonPath":".metadata.name"}]"#,
        ),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        assert!(parse(changed.as_bytes()).is_err(), "{from} to {to}");
    }
    let uid = text.replace(r#""uid":"u""#, r#""uid":"v""#);
    assert_ne!(parse(uid.as_bytes()).unwrap(), known);
}

/// However often a definition changes, no more is kept of it than a bound.
#[test]
fn shapes_are_bounded() {
    let text = String::from_utf8(stored(&[("v1", json!({"type": "object"}))])).unwrap();
    let text = text.replace("widgets", "bounded").replace("Widget", "Bounded");
    let kind = |number: usize| {
        let text = text.replace("\"v1\"", &format!("\"v{number}\""));
        let definition = Definition::parse(text.as_bytes(), "example.com", "bounded").unwrap();
        definition.kind_of(&definition.versions[0])
    };
    let first = kind(0).unwrap();
    assert!(std::ptr::eq(first, kind(0).unwrap()));
    let known = (0..1_000).filter(|number| kind(*number).is_some()).count();
    assert_eq!(known, 64);
    assert!(std::ptr::eq(first, kind(0).unwrap()));
}
