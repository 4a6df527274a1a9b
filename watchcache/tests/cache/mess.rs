//! Custom resources at random: as a client may write them, and as nothing but a hand could have
//! stored them.

use serde_json::{Value, json};

use crate::history::Random;

/// What the schema of widgets names, and what it does not.
const NAMES: [&str; 9] = ["a", "b", "name", "kind", "apiVersion", "items", "zz", "ä<", "list"];
const SCALARS: [&str; 20] = [
    "null",
    "null",
    "null",
    "true",
    "0",
    "-0",
    "1.0",
    "-17",
    "1e3",
    "1.5e-9",
    "2E+30",
    "9223372036854775807",
    "9223372036854775808",
    "123456789012345678901234567890",
    "0.1",
    r#""""#,
    r#""<&>\u2028""#,
    r#""\u00e4\ud83d\/\b""#,
    "\"ä\u{1f600}\u{7f}\"",
    r#""\ud83d\ude00\t""#,
];

/// Any value.
fn any(random: &mut Random, depth: usize) -> String {
    match random.below(if depth == 0 { 2 } else { 5 }) {
        0 | 1 => random.choose(&SCALARS).to_owned(),
        2 => {
            let items: Vec<_> = (0..random.below(4)).map(|_| any(random, depth - 1)).collect();
            format!("[{}]", items.join(" , "))
        }
        _ => map(random, depth - 1),
    }
}

fn map(random: &mut Random, depth: usize) -> String {
    let mut fields = Vec::new();
    for name in NAMES {
        if random.below(3) == 0 {
            fields.push((format!("\"{name}\""), any(random, depth)));
        }
    }
    object(random, fields)
}

/// In an order of its own.
fn object(random: &mut Random, mut fields: Vec<(String, String)>) -> String {
    for place in (1..fields.len()).rev() {
        fields.swap(place, random.below(place + 1));
    }
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// An object within: its metadata is metadata.
fn embedded(random: &mut Random) -> String {
    let metadata = random.choose(&[
        r#"{"name":"n","labels":{"b":"1","a":"<2>"},"unknown":1,"creationTimestamp":null}"#,
        r#"{"namespace":"","finalizers":[],"annotations":{}}"#,
        r#"{"ownerReferences":[{"kind":"K","uid":"u","controller":true}],"generation":0}"#,
        r#"{"creationTimestamp":"2026-01-02T03:04:05Z","managedFields":[{"fieldsV1":{"f:b":{},"f:a":{".":{}}},"operation":"Apply"}]}"#,
        "{}",
    ]);
    let mut fields = vec![("\"spec\"".to_owned(), any(random, 2))];
    for (name, value) in [("metadata", metadata), ("apiVersion", "\"v1\""), ("kind", "\"Pod\"")] {
        if random.below(4) > 0 {
            fields.push((format!("\"{name}\""), value.to_owned()));
        }
    }
    object(random, fields)
}

/// A value as it may stand in the store, though no kube-apiserver would have stored it so.
pub(crate) fn stored(
    random: &mut Random,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> String {
    let mut spec = Vec::new();
    let field = |name: &str, value: String| (format!("\"{name}\""), value);
    // What selectors see is a scalar.
    for (name, values) in [
        ("color", &["\"red\"", "\"\"", "null", "\"gr\\u0065en\""][..]),
        ("size", &["5", "\"5\"", "null", "true"]),
        ("enabled", &["true", "false", "null", "\"x\""]),
    ] {
        if random.below(3) > 0 {
            spec.push(field(name, random.choose(values).to_owned()));
        }
    }
    for name in [
        "ratio", "port", "nullable", "nested", "list", "map", "any", "free", "old", "unknown",
        "fresh",
    ] {
        if random.below(2) == 0 {
            spec.push(field(name, any(random, 4)));
        }
    }
    if random.below(2) == 0 {
        spec.push(field("template", embedded(random)));
    }
    if random.below(2) == 0 {
        let items: Vec<_> = (0..random.below(3)).map(|_| embedded(random)).collect();
        spec.push(field("templates", format!("[{}]", items.join(","))));
    }
    let mut metadata = vec![
        field("name", format!("\"{name}\"")),
        field("uid", format!("\"00000000-0000-0000-0000-{:012}\"", random.below(1 << 30))),
        field("creationTimestamp", "\"2026-11-28T22:00:00Z\"".to_owned()),
    ];
    metadata.extend(namespace.map(|name| field("namespace", format!("\"{name}\""))));
    for (name, values) in [
        ("generation", &["4", "0", "null"][..]),
        ("labels", &[r#"{"app":"web","a.b/c":""}"#, r#"{"tier":"x"}"#, "{}"]),
        ("annotations", &[r#"{"z":"<\u0041>","a":"ä\n"}"#, "null"]),
        ("finalizers", &["[]", "[\"x.io/f\"]"]),
        ("deletionGracePeriodSeconds", &["0", "30"]),
        ("deletionTimestamp", &["\"2026-11-28T23:59:59Z\""]),
        (
            "ownerReferences",
            &[r#"[{"apiVersion":"v1","kind":"K","name":"n","uid":"u","blockOwnerDeletion":true}]"#],
        ),
        (
            "managedFields",
            &[
                r#"[{"manager":"m","operation":"Update","time":"2026-11-28T22:00:01Z","fieldsType":"FieldsV1",
                   "fieldsV1":{"f:spec":{"f:z":{},"f:a":{"k:{\"x\":\"<\"}":{}}}},"subresource":"status"}]"#,
            ],
        ),
        ("clusterName", &["\"c\"", "5"]),
    ] {
        if random.below(3) == 0 {
            metadata.push(field(name, random.choose(values).to_owned()));
        }
    }
    let mut fields = vec![
        field("apiVersion", format!("\"{api_version}\"")),
        field("kind", format!("\"{kind}\"")),
        field("metadata", object(random, metadata)),
        field("spec", object(random, spec)),
    ];
    for name in ["status", "unknown", "zz"] {
        if random.below(3) == 0 {
            fields.push(field(name, any(random, 3)));
        }
    }
    object(random, fields)
}

/// An object as a client writes it.
pub(crate) fn valid(random: &mut Random, api_version: &str, plural: &str, name: &str) -> Value {
    let kind = if plural == "widgets" { "Widget" } else { "Gadget" };
    let mut spec = json!({});
    if random.below(2) == 0 {
        spec["color"] = random.choose(&["red", "green", "<b>"]).into();
    }
    if random.below(2) == 0 {
        spec["size"] = random.below(9).into();
        spec["nested"] = json!({"a": {"name": "n"}, "b": "&"});
        spec["list"] = json!([{"a": {"k": "v"}}, {}]);
    }
    if random.below(2) == 0 {
        spec["template"] = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"x": "y"}}, "spec": {"a": 4, "b": [1.5, 2]}});
        spec["free"] = json!({"x": [null, {"y": 1e-7}], "a": {}});
        spec["port"] = "http".into();
        spec["nullable"] = Value::Null;
        spec["old"] = json!({"a": "old"});
    }
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "labels": {"app": random.choose(&["web", "api"])},
                     "annotations": {"k": "<x>".repeat(random.below(40))}},
        "spec": spec,
    })
}
