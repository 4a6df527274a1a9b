//! A stored custom resource as kube-apiserver shows it, made once as it comes from the store. It is
//! kept as a message whose first field is its metadata, as those of built-in resources begin; its
//! JSON, in two parts, and its selectable fields follow.

use std::sync::Arc;

use super::super::json::text;
use super::super::kinds::Kind;
use super::super::wire::{self, Labels, ListMeta, Message, Unsupported, Value, put_field};
use super::definition::{Definition, Version};
use super::meta;
use super::value::{Json, Map, put_key};

/// The numbers of the message's fields: JSON before the resource version, JSON after it, and from
/// here on the selectable fields.
pub(super) const FIELDS: u64 = 4;
const BEFORE: u64 = 2;
const AFTER: u64 = 3;

/// How stored objects are shown in one version.
#[derive(Debug)]
pub(in super::super) struct Rules {
    pub(super) definition: Arc<Definition>,
    pub(in super::super) kind: &'static Kind,
}

impl Rules {
    /// Reads a stored value: the message, and its labels.
    pub(in super::super) fn read(&self, value: &[u8]) -> Result<(Message, Labels), Unsupported> {
        let wrong = |problem| Unsupported { kind: self.kind.name, problem };
        wire::message(self.kind, &self.message(value).map_err(wrong)?)
    }

    /// As `crdConversionRESTOptionsGetter` of `k8s.io/apiextensions-apiserver` decodes it: pruned and
    /// filled in by the schema of the version in which it is stored, then pruned by that of the one
    /// in which it is shown.
    fn message(&self, value: &[u8]) -> Result<Vec<u8>, &'static str> {
        let Some(Json::Map(mut object)) = Json::parse(value) else { return Err("not JSON") };
        let Some(Json::Map(mut metadata)) = object.remove("metadata") else {
            return Err("it has no metadata");
        };
        let (stored, shown) = self.versions(&object)?;
        meta::normalise(&mut metadata).map_err(|_| "its metadata is malformed")?;
        metadata.remove("resourceVersion");
        // Old ones lack it.
        metadata.entry("generation".to_owned()).or_insert(Json::Int(1));
        let pruned = stored.schema.prune(&mut object);
        pruned.map_err(|_| "metadata of an object within is malformed")?;
        stored.schema.fill(&mut object);
        object.insert("apiVersion".to_owned(), Json::Text(self.kind.api_version.clone()));
        let pruned = shown.schema.prune(&mut object);
        pruned.map_err(|_| "metadata of an object within is malformed")?;
        let mut message = Vec::new();
        put_field(&mut message, 0x0a, &meta::message(&metadata));
        let fields = shown.fields.iter().map(|path| selectable(&object, path));
        let fields = fields.collect::<Option<Vec<_>>>().ok_or("a selectable field is no scalar")?;
        let [before, after] = parts(&object, &metadata);
        let texts = [before, after].into_iter().chain(fields);
        for (number, text) in (BEFORE..).zip(texts) {
            let tag = u8::try_from(number << 3 | 2).map_err(|_| "too many selectable fields")?;
            put_field(&mut message, tag, &text);
        }
        Ok(message)
    }

    /// The version in which an object is stored, and the one in which it is shown.
    fn versions(&self, object: &Map) -> Result<(&Version, &Version), &'static str> {
        let text = |name: &str| match object.get(name) {
            Some(Json::Text(text)) => Ok(text.as_str()),
            _ => Err("it has no kind"),
        };
        if text("kind")? != self.definition.kind {
            return Err("of another kind");
        }
        // kube-apiserver takes it for a list.
        if object.contains_key("items") {
            return Err("it has items");
        }
        let version = text("apiVersion")?.strip_prefix(self.definition.group.as_str());
        let version = version.and_then(|version| version.strip_prefix('/'));
        let stored = version.and_then(|version| self.definition.version(version));
        let stored = stored.ok_or("of a version that its definition does not have")?;
        let shown = self.definition.version(self.kind.version).ok_or("of another version")?;
        if self.definition.webhook && stored.name != shown.name {
            return Err("it is converted by a webhook");
        }
        Ok((stored, shown))
    }
}

/// A field as a selector sees it; none where that takes more care.
fn selectable(object: &Map, path: &[String]) -> Option<Vec<u8>> {
    let (first, deeper) = path.split_first()?;
    let mut value = object.get(first);
    for name in deeper {
        value = value.and_then(|value| value.get(name));
    }
    Some(match value {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Text(text)) => text.as_bytes().to_vec(),
        Some(value @ (Json::Bool(_) | Json::Int(_))) => {
            let mut out = Vec::new();
            value.put(&mut out);
            out
        }
        Some(Json::Float(_) | Json::List(_) | Json::Map(_)) => return None,
    })
}

/// An object's JSON before its resource version and after it. The version's own quotes are there.
fn parts(object: &Map, metadata: &Map) -> [Vec<u8>; 2] {
    const METADATA: &str = "metadata";
    const VERSION: &str = "resourceVersion";
    fn put(out: &mut Vec<u8>, (key, value): (&String, &Json)) {
        put_key(out, key);
        value.put(out);
    }
    let (mut before, mut after) = (b"{".to_vec(), b"\"".to_vec());
    for field in object.iter().filter(|(key, _)| key.as_str() < METADATA) {
        put(&mut before, field);
        before.push(b',');
    }
    put_key(&mut before, METADATA);
    before.push(b'{');
    for field in metadata.iter().filter(|(key, _)| key.as_str() < VERSION) {
        put(&mut before, field);
        before.push(b',');
    }
    put_key(&mut before, VERSION);
    before.push(b'"');
    for field in metadata.iter().filter(|(key, _)| key.as_str() > VERSION) {
        after.push(b',');
        put(&mut after, field);
    }
    after.push(b'}');
    for field in object.iter().filter(|(key, _)| key.as_str() > METADATA) {
        after.push(b',');
        put(&mut after, field);
    }
    after.push(b'}');
    [before, after]
}

/// Adds an object's JSON.
pub(in super::super) fn put(out: &mut Vec<u8>, message: &Message, version: u64) {
    let part = |number: u64| match wire::find(message.bytes(), &[number]) {
        Some(Value::Bytes(bytes)) => bytes,
        _ => &[],
    };
    out.extend_from_slice(part(BEFORE));
    out.extend_from_slice(version.to_string().as_bytes());
    out.extend_from_slice(part(AFTER));
}

/// Begins a list.
pub(in super::super) fn begin_list(out: &mut Vec<u8>, kind: &Kind) {
    out.push(b'{');
    put_key(out, "apiVersion");
    text::put_text(out, kind.api_version.as_bytes());
    out.extend_from_slice(b",\"items\":");
}

/// What comes after the items of a list.
pub(in super::super) fn list_end(kind: &Kind, meta: &ListMeta) -> Vec<u8> {
    let mut out = b",\"kind\":".to_vec();
    text::put_text(&mut out, kind.list.as_bytes());
    out.extend_from_slice(b",\"metadata\":{\"continue\":");
    text::put_text(&mut out, meta.next.as_bytes());
    if let Some(count) = meta.remaining {
        out.extend_from_slice(b",\"remainingItemCount\":");
        text::put_number(&mut out, i64::try_from(count).unwrap_or(i64::MAX));
    }
    out.extend_from_slice(b",\"resourceVersion\":");
    text::put_text(&mut out, meta.version.to_string().as_bytes());
    out.extend_from_slice(b"}}\n");
    out
}

/// Adds an event of a watch.
pub(in super::super) fn put_event(out: &mut Vec<u8>, what: &str, message: &Message, version: u64) {
    begin_event(out, what);
    put(out, message, version);
    out.extend_from_slice(b"}\n");
}

/// Adds a bookmark: an object that has nothing but a version, and the annotation that says where the
/// initial events end.
pub(in super::super) fn put_bookmark(out: &mut Vec<u8>, kind: &Kind, version: u64, ends: bool) {
    begin_event(out, "BOOKMARK");
    out.extend_from_slice(b"{\"apiVersion\":");
    text::put_text(out, kind.api_version.as_bytes());
    out.extend_from_slice(b",\"kind\":");
    text::put_text(out, kind.name.as_bytes());
    out.extend_from_slice(b",\"metadata\":{");
    if ends {
        out.extend_from_slice(b"\"annotations\":{\"k8s.io/initial-events-end\":\"true\"},");
    }
    out.extend_from_slice(b"\"resourceVersion\":");
    text::put_text(out, version.to_string().as_bytes());
    out.extend_from_slice(b"}}}\n");
}

fn begin_event(out: &mut Vec<u8>, what: &str) {
    out.extend_from_slice(b"{\"type\":");
    text::put_text(out, what.as_bytes());
    out.extend_from_slice(b",\"object\":");
}
