//! The schema of a custom resource, as far as it changes what is read: kube-apiserver takes away
//! what it does not name and fills in its defaults
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema`: `pruning`, `defaulting`, `objectmeta`).

use std::collections::BTreeMap;

use super::meta::{self, Malformed};
use super::value::{Json, Map};

/// One node of a structural schema.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "as schemas have them")]
pub(super) struct Structural {
    /// `x-kubernetes-preserve-unknown-fields`.
    preserve: bool,
    /// `x-kubernetes-embedded-resource`.
    embedded: bool,
    nullable: bool,
    default: Option<Json>,
    properties: BTreeMap<String, Structural>,
    additional: Option<Additional>,
    items: Option<Box<Structural>>,
    /// Whether it, or what is in it, holds an object with metadata of its own.
    embeds: bool,
    /// Whether it, or what is in it, has a default.
    defaults: bool,
}

/// `additionalProperties`: those of a schema, or of none.
#[derive(Clone, Debug, PartialEq)]
enum Additional {
    Any,
    Of(Box<Structural>),
}

impl Additional {
    fn schema(&self) -> Option<&Structural> {
        match self {
            Self::Any => None,
            Self::Of(schema) => Some(schema),
        }
    }
}

/// What a structural schema may not have.
const FORBIDDEN: [&str; 6] =
    ["$ref", "patternProperties", "dependencies", "additionalItems", "definitions", "id"];

/// Of an object, which need no schema.
fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

fn flag(json: &Map, name: &str) -> Option<bool> {
    match json.get(name) {
        None => Some(false),
        Some(Json::Bool(value)) => Some(*value),
        Some(_) => None,
    }
}

impl Structural {
    /// The schema of a whole resource; none where it has what is not handled here.
    pub(super) fn root(json: &Json) -> Option<Self> {
        let root = Self::parse(json)?;
        // kube-apiserver would fill these in where the object's own are.
        let own = root.properties.iter().any(|(name, schema)| is_meta(name) && schema.defaults);
        let plain = !root.embedded && root.additional.is_none() && root.default.is_none() && !own;
        plain.then_some(root)
    }

    fn parse(json: &Json) -> Option<Self> {
        let Json::Map(json) = json else { return None };
        if FORBIDDEN.iter().any(|name| json.contains_key(*name)) {
            return None;
        }
        let preserve = "x-kubernetes-preserve-unknown-fields";
        let mut schema = Self {
            preserve: flag(json, preserve)?,
            embedded: flag(json, "x-kubernetes-embedded-resource")?,
            nullable: flag(json, "nullable")?,
            default: json.get("default").filter(|value| **value != Json::Null).cloned(),
            ..Self::default()
        };
        if json.contains_key(preserve) && !schema.preserve {
            return None;
        }
        match json.get("properties") {
            None => {}
            Some(Json::Map(properties)) => {
                for (name, json) in properties {
                    schema.properties.insert(name.clone(), Self::parse(json)?);
                }
            }
            Some(_) => return None,
        }
        schema.additional = match json.get("additionalProperties") {
            None => None,
            Some(Json::Bool(_)) => Some(Additional::Any),
            Some(json) => Some(Additional::Of(Box::new(Self::parse(json)?))),
        };
        schema.items = match json.get("items") {
            None => None,
            Some(json) => Some(Box::new(Self::parse(json)?)),
        };
        schema.embeds = schema.embedded || schema.within().any(|schema| schema.embeds);
        schema.defaults = schema.default.is_some() || schema.within().any(|schema| schema.defaults);
        schema.keeps_its_default().then_some(schema)
    }

    fn within(&self) -> impl Iterator<Item = &Self> {
        let additional = self.additional.as_ref().and_then(Additional::schema);
        self.properties.values().chain(additional).chain(self.items.as_deref())
    }

    /// Whether its default is one that kube-apiserver would take as it stands: it takes no other at
    /// all since there are structural schemas.
    fn keeps_its_default(&self) -> bool {
        let Some(default) = &self.default else { return true };
        let mut pruned = default.clone();
        prune(&mut pruned, Some(self));
        coerce(&mut pruned, Some(self)).is_ok() && pruned == *default
    }

    /// The schema of a field.
    fn of(&self, name: &str) -> Option<&Self> {
        match self.properties.get(name) {
            None => self.additional.as_ref()?.schema(),
            known => known,
        }
    }

    /// Takes away from an object, without its metadata, what the schema does not have.
    pub(super) fn prune(&self, object: &mut Map) -> Result<(), Malformed> {
        if self.preserve {
            skip_fields(object, self, true);
        } else {
            prune_fields(object, self, true);
        }
        drop_null_fields(object, Some(self));
        if self.embeds {
            for (name, value) in object.iter_mut() {
                coerce(value, self.of(name))?;
            }
        }
        Ok(())
    }

    /// Fills in what is missing of an object.
    pub(super) fn fill(&self, object: &mut Map) {
        if self.defaults {
            fill_fields(object, self);
        }
    }
}

fn prune(value: &mut Json, schema: Option<&Structural>) {
    match (value, schema) {
        (value, Some(schema)) if schema.preserve => skip(value, Some(schema)),
        (Json::Map(map), None) => map.clear(),
        (Json::Map(map), Some(schema)) => prune_fields(map, schema, schema.embedded),
        (Json::List(list), schema) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            for item in list {
                prune(item, items);
            }
        }
        _ => {}
    }
}

fn prune_fields(map: &mut Map, schema: &Structural, embedded: bool) {
    map.retain(|name, value| {
        if embedded && is_meta(name) {
            return true;
        }
        match (schema.properties.get(name), &schema.additional) {
            (Some(schema), _) => prune(value, Some(schema)),
            (None, Some(additional)) => prune(value, additional.schema()),
            (None, None) => return false,
        }
        true
    });
}

/// What is preserved is pruned only where the schema goes on.
fn skip(value: &mut Json, schema: Option<&Structural>) {
    match (value, schema) {
        (Json::Map(map), Some(schema)) => skip_fields(map, schema, schema.embedded),
        (Json::List(list), Some(schema)) => {
            for item in list {
                skip(item, schema.items.as_deref());
            }
        }
        _ => {}
    }
}

fn skip_fields(map: &mut Map, schema: &Structural, embedded: bool) {
    for (name, value) in map.iter_mut().filter(|(name, _)| !(embedded && is_meta(name))) {
        match (schema.properties.get(name), &schema.additional) {
            (Some(schema), _) => prune(value, Some(schema)),
            (None, Some(additional)) => prune(value, additional.schema()),
            (None, None) => {}
        }
    }
}

/// Takes away what is null and must not be, unless a default takes its place.
fn drop_nulls(value: &mut Json, schema: Option<&Structural>) {
    match value {
        Json::Map(map) => drop_null_fields(map, schema),
        Json::List(list) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            for item in list {
                drop_nulls(item, items);
            }
        }
        _ => {}
    }
}

fn drop_null_fields(map: &mut Map, schema: Option<&Structural>) {
    map.retain(|name, value| {
        let schema = schema.and_then(|schema| schema.of(name));
        let must_not = |schema: &Structural| !schema.nullable && schema.default.is_none();
        if *value == Json::Null && schema.is_some_and(must_not) {
            return false;
        }
        drop_nulls(value, schema);
        true
    });
}

fn fill(value: &mut Json, schema: Option<&Structural>) {
    let Some(schema) = schema.filter(|schema| schema.defaults) else { return };
    match value {
        Json::Map(map) => fill_fields(map, schema),
        Json::List(list) => {
            let Some(items) = schema.items.as_deref() else { return };
            for item in list {
                instead_of_null(item, items);
                fill(item, Some(items));
            }
        }
        _ => {}
    }
}

fn fill_fields(map: &mut Map, schema: &Structural) {
    for (name, schema) in &schema.properties {
        let Some(default) = &schema.default else { continue };
        let value = map.get(name);
        if value.is_none_or(|value| *value == Json::Null && !schema.nullable) {
            map.insert(name.clone(), default.clone());
        }
    }
    for (name, value) in map.iter_mut() {
        if let Some(schema) = schema.properties.get(name) {
            fill(value, Some(schema));
        } else if let Some(schema) = schema.additional.as_ref().and_then(Additional::schema) {
            instead_of_null(value, schema);
            fill(value, Some(schema));
        }
    }
}

fn instead_of_null(value: &mut Json, schema: &Structural) {
    if let (Json::Null, false, Some(default)) = (&*value, schema.nullable, &schema.default) {
        *value = default.clone();
    }
}

/// Metadata of objects within as Go reads and writes it.
fn coerce(value: &mut Json, schema: Option<&Structural>) -> Result<(), Malformed> {
    let Some(schema) = schema.filter(|schema| schema.embeds) else { return Ok(()) };
    match value {
        Json::Map(map) => {
            for (name, value) in map.iter_mut() {
                match (schema.embedded, name.as_str(), &mut *value) {
                    (true, "apiVersion" | "kind", Json::Text(_)) | (false, _, _) => {}
                    (true, "metadata", Json::Map(metadata)) => {
                        meta::normalise(metadata)?;
                        continue;
                    }
                    (true, "apiVersion" | "kind" | "metadata", _) => return Err(Malformed),
                    (true, _, _) => {}
                }
                coerce(value, schema.of(name))?;
            }
        }
        Json::List(list) => {
            for item in list {
                coerce(item, schema.items.as_deref())?;
            }
        }
        _ => {}
    }
    Ok(())
}
