//! The CRD: the committed file is the generated one, and its CEL rules refuse what they should.
//!
//! The rules are evaluated here by kube's own evaluator; the same samples go to a real API server
//! in the end-to-end tests.

#![expect(clippy::unwrap_used, reason = "a test states its expectation by unwrapping")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use kube::core::cel::{Validator, apply_defaults};
use megacluster_operator::api::crd;
use serde_json::{Value, json};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> Value {
    let text = fs::read_to_string(repository(path)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn schema() -> Value {
    let crd = serde_json::to_value(crd::definition().unwrap()).unwrap();
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

/// The messages of the rules that `object` breaks, as an update of `old` if there is one.
fn broken(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    let object = apply_defaults(schema, object);
    let old = old.map(|old| apply_defaults(schema, old));
    match Validator::new().validate(schema, &object, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn lay_over(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                lay_over(whole.entry(name).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

/// All messages of CEL rules in the schema.
fn messages(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(rules)) = map.get("x-kubernetes-validations") {
                found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
            }
            map.values().for_each(|value| messages(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| messages(value, found)),
        _ => {}
    }
}

#[test]
fn generated_crd_is_current() {
    let path = repository("config/crd/megaclusters.yaml");
    let generated = crd::yaml().unwrap();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated, "config/crd is not current: run `make crds`");
}

#[test]
fn every_rule_has_a_sample_that_breaks_it_alone() {
    let schema = schema();
    let mut left = BTreeSet::new();
    messages(&schema, &mut left);
    assert!(left.len() >= 17, "only {} rules", left.len());
    let running = read("config/samples/small.yaml");
    let mut samples = 0;
    for entry in fs::read_dir(repository("operator/tests/invalid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
        let Some(message) = left.iter().find(|message| message.contains(expected)).cloned() else {
            // Refused by the schema, or by a rule that another sample has broken already.
            continue;
        };
        let mut object: Value = serde_saphyr::from_str(&text).unwrap();
        let old = (object["metadata"]["name"] == "demo").then_some(&running);
        if old.is_some() {
            // Applied by somebody else than the sample's owner: their fields are laid over it.
            let mut whole = running.clone();
            lay_over(&mut whole, object);
            object = whole;
        }
        let broken = broken(&schema, &object, old);
        assert!(
            broken.len() == 1 && broken[0].contains(&message),
            "{}: {broken:?} instead of {message:?}",
            path.display()
        );
        left.remove(&message);
        samples += 1;
    }
    assert_eq!(left, BTreeSet::new(), "rules that no sample breaks ({samples} samples do)");
}

#[test]
fn the_samples_break_no_rule() {
    let schema = schema();
    for sample in ["small", "production"] {
        let object = read(&format!("config/samples/{sample}.yaml"));
        assert_eq!(broken(&schema, &object, None), Vec::<String>::new(), "{sample}");
        assert_eq!(broken(&schema, &object, Some(&object)), Vec::<String>::new(), "{sample}");
    }
}

#[test]
fn versions_go_up_one_minor_at_a_time() {
    let schema = schema();
    let object = |version: &str| {
        json!({
            "apiVersion": "megacluster.io/v1alpha1", "kind": "MegaCluster",
            "metadata": {"name": "prod"}, "spec": {"version": version},
        })
    };
    for (old, new, allowed) in [
        ("v1.36.3", "v1.36.3", true),
        ("v1.36.3", "v1.36.10", true),
        ("v1.36.3", "v1.37.0", true),
        ("v1.36.10", "v1.36.9", false),
        ("v1.36.3", "v1.35.9", false),
        ("v1.36.3", "v1.38.0", false),
        ("v1.9.9", "v1.10.0", true),
    ] {
        let broken = broken(&schema, &object(new), Some(&object(old)));
        assert_eq!(broken.is_empty(), allowed, "{old} to {new}: {broken:?}");
    }
}

#[test]
fn a_storage_class_can_not_be_taken_away_or_added() {
    let schema = schema();
    let object = |wal: Value| {
        json!({
            "apiVersion": "megacluster.io/v1alpha1", "kind": "MegaCluster",
            "metadata": {"name": "prod"}, "spec": {"version": "v1.36.3", "store": {"wal": wal}},
        })
    };
    let with = object(json!({"storageClassName": "fast"}));
    let without = object(json!({}));
    assert_eq!(broken(&schema, &without, Some(&with)).len(), 1);
    assert_eq!(broken(&schema, &with, Some(&without)).len(), 1);
    assert_eq!(broken(&schema, &without, Some(&without)).len(), 0);
}

#[test]
fn every_field_of_the_spec_is_documented_and_every_list_and_string_bounded() {
    fn walk(path: &str, schema: &Value, problems: &mut Vec<String>) {
        if schema.get("type") == Some(&json!("array")) {
            if schema.get("maxItems").is_none() {
                problems.push(format!("{path}: no maxItems"));
            }
            if schema.get("x-kubernetes-list-type").is_none() {
                problems.push(format!("{path}: no list type"));
            }
            walk(&format!("{path}[]"), &schema["items"], problems);
        }
        let text = schema.get("type") == Some(&json!("string"))
            || schema.get("x-kubernetes-int-or-string").is_some();
        if text && schema.get("maxLength").is_none() && schema.get("enum").is_none() {
            problems.push(format!("{path}: no maxLength"));
        }
        for (name, field) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            let path = format!("{path}.{name}");
            if field.get("description").is_none() {
                problems.push(format!("{path}: no description"));
            }
            walk(&path, field, problems);
        }
    }
    let mut problems = Vec::new();
    walk("spec", &schema()["properties"]["spec"], &mut problems);
    assert_eq!(problems, Vec::<String>::new());
}
