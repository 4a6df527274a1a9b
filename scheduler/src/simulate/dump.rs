//! Files: what kubectl prints of a cluster, and manifests of workloads.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplateSpec,
    ReplicationController, Service,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::SimulateError;
use crate::core::directory::{self, Kind, Value as Selecting};
use crate::core::labels::{Labels, Selector};
use crate::core::maps::HashMap;
use crate::core::pod::OwnerKind;
use crate::core::volumes::objects::{Attachment, Capacity, Claim, Class, Driver, Limits, Volume};
use crate::core::volumes::storage::{self, Object};

/// Pods that manifests may ask for all together.
const MAX_PODS: usize = 10_000_000;

/// A pod that waits, and to whose account it is shown.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) pod: Pod,
    pub(super) account: String,
}

/// What files hold.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) nodes: Vec<Node>,
    pub(super) running: Vec<Pod>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) lookups: HashMap<Kind, Vec<(directory::Key, Selecting)>>,
    pub(super) stored: HashMap<storage::Kind, Vec<(directory::Key, Object)>>,
    /// Kinds that were passed over, with how many.
    pub(super) ignored: HashMap<String, usize>,
}

impl Dump {
    /// Reads what kubectl printed.
    pub(super) fn read(&mut self, path: &Path) -> Result<(), SimulateError> {
        each_object(path, |at, object| self.take(at, object))
    }

    /// Reads manifests of what isn't there yet.
    pub(super) fn read_workload(&mut self, path: &Path) -> Result<(), SimulateError> {
        each_object(path, |at, object| self.plan(at, object))
    }

    fn take(&mut self, at: &At<'_>, object: &Value) -> Result<(), SimulateError> {
        let labels = |labels| Selecting::Labels(Labels::of(labels));
        match at.kind(object)? {
            "Node" => {
                let node: Node = at.parse(object)?;
                at.name(&node.metadata)?;
                self.nodes.push(node);
            }
            "Pod" => {
                let pod: Pod = at.parse(object)?;
                at.name(&pod.metadata)?;
                self.add_pod(pod, None);
            }
            "Namespace" => {
                let namespace: Namespace = at.parse(object)?;
                let key = (Arc::from(""), at.name(&namespace.metadata)?);
                self.look(Kind::Namespace, key, labels(namespace.metadata.labels.as_ref()));
            }
            "Service" => {
                let service: Service = at.parse(object)?;
                let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                if selector.is_some() {
                    let key = at.key(&service.metadata)?;
                    self.look(Kind::Service, key, labels(selector));
                }
            }
            "ReplicationController" => {
                let rc: ReplicationController = at.parse(object)?;
                let selector = rc.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                let key = at.key(&rc.metadata)?;
                self.look(Kind::Owner(OwnerKind::ReplicationController), key, labels(selector));
            }
            "ReplicaSet" => {
                let set: ReplicaSet = at.parse(object)?;
                let key = at.key(&set.metadata)?;
                if let Some(spec) = &set.spec {
                    self.own(at, OwnerKind::ReplicaSet, key, &spec.selector)?;
                }
            }
            "StatefulSet" => {
                let set: StatefulSet = at.parse(object)?;
                let key = at.key(&set.metadata)?;
                if let Some(spec) = &set.spec {
                    self.own(at, OwnerKind::StatefulSet, key, &spec.selector)?;
                }
            }
            _ => self.store(at, object)?,
        }
        Ok(())
    }

    /// What volumes hang on.
    fn store(&mut self, at: &At<'_>, object: &Value) -> Result<(), SimulateError> {
        use storage::Kind;
        let (kind, key, object) = match at.kind(object)? {
            "PersistentVolumeClaim" => {
                let claim: PersistentVolumeClaim = at.parse(object)?;
                let kept = Object::Claim(Claim::of(&claim));
                (Kind::Claim, at.key(&claim.metadata)?, Some(kept))
            }
            "PersistentVolume" => {
                let volume: PersistentVolume = at.parse(object)?;
                let kept = Object::Volume(Volume::of(&volume));
                (Kind::Volume, (Arc::from(""), at.name(&volume.metadata)?), Some(kept))
            }
            "StorageClass" => {
                let class: StorageClass = at.parse(object)?;
                let kept = Object::Class(Class::of(&class));
                (Kind::Class, (Arc::from(""), at.name(&class.metadata)?), Some(kept))
            }
            "CSIDriver" => {
                let driver: CSIDriver = at.parse(object)?;
                let kept = Object::Driver(Driver::of(&driver));
                (Kind::Driver, (Arc::from(""), at.name(&driver.metadata)?), Some(kept))
            }
            "CSINode" => {
                let node: CSINode = at.parse(object)?;
                let kept = Limits::of(&node).map(Object::Limits);
                (Kind::Limits, (Arc::from(""), at.name(&node.metadata)?), kept)
            }
            "VolumeAttachment" => {
                let attachment: VolumeAttachment = at.parse(object)?;
                let kept = Attachment::of(&attachment).map(Object::Attachment);
                (Kind::Attachment, (Arc::from(""), at.name(&attachment.metadata)?), kept)
            }
            "CSIStorageCapacity" => {
                let capacity: CSIStorageCapacity = at.parse(object)?;
                let kept = Capacity::of(&capacity).map(Object::Capacity);
                (Kind::Capacity, at.key(&capacity.metadata)?, kept)
            }
            other => {
                *self.ignored.entry(other.to_owned()).or_default() += 1;
                return Ok(());
            }
        };
        self.stored.entry(kind).or_default().extend(object.map(|object| (key, object)));
        Ok(())
    }

    fn plan(&mut self, at: &At<'_>, object: &Value) -> Result<(), SimulateError> {
        let kind = at.kind(object)?;
        match kind {
            "Pod" => {
                let mut pod: Pod = at.parse(object)?;
                at.name(&pod.metadata)?;
                pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
                self.add_pod(pod, None);
            }
            "Deployment" => {
                let deployment: Deployment = at.parse(object)?;
                let spec = deployment.spec.as_ref().ok_or_else(|| at.missing("spec"))?;
                let owner = ("ReplicaSet", "apps/v1");
                let key = at.key(&deployment.metadata)?;
                self.own(at, OwnerKind::ReplicaSet, key.clone(), &spec.selector)?;
                self.replicas(at, kind, &key, owner, &spec.template, spec.replicas)?;
            }
            "ReplicaSet" => {
                let set: ReplicaSet = at.parse(object)?;
                let spec = set.spec.as_ref().ok_or_else(|| at.missing("spec"))?;
                let template = spec.template.as_ref().ok_or_else(|| at.missing("spec.template"))?;
                let owner = ("ReplicaSet", "apps/v1");
                let key = at.key(&set.metadata)?;
                self.own(at, OwnerKind::ReplicaSet, key.clone(), &spec.selector)?;
                self.replicas(at, kind, &key, owner, template, spec.replicas)?;
            }
            "StatefulSet" => {
                let set: StatefulSet = at.parse(object)?;
                let spec = set.spec.as_ref().ok_or_else(|| at.missing("spec"))?;
                let owner = ("StatefulSet", "apps/v1");
                let key = at.key(&set.metadata)?;
                self.own(at, OwnerKind::StatefulSet, key.clone(), &spec.selector)?;
                self.replicas(at, kind, &key, owner, &spec.template, spec.replicas)?;
            }
            "Job" => {
                let job: Job = at.parse(object)?;
                let spec = job.spec.as_ref().ok_or_else(|| at.missing("spec"))?;
                let key = at.key(&job.metadata)?;
                let owner = ("Job", "batch/v1");
                self.replicas(at, kind, &key, owner, &spec.template, spec.parallelism)?;
            }
            // What pods are looked up in may come along.
            "Namespace" | "Service" | "ReplicationController" => self.take(at, object)?,
            other => *self.ignored.entry(other.to_owned()).or_default() += 1,
        }
        Ok(())
    }

    fn replicas(
        &mut self,
        at: &At<'_>,
        kind: &str,
        key: &directory::Key,
        (owner, api_version): (&str, &str),
        template: &PodTemplateSpec,
        replicas: Option<i32>,
    ) -> Result<(), SimulateError> {
        let replicas = usize::try_from(replicas.unwrap_or(1))
            .map_err(|_| at.wrong("spec.replicas", "less than 0"))?;
        if self.waiting.len() + replicas > MAX_PODS {
            return Err(at.wrong("spec.replicas", &format!("more than {MAX_PODS} pods in all")));
        }
        let (namespace, name) = key;
        let metadata = template.metadata.clone().unwrap_or_default();
        for number in 0..replicas {
            let owner = OwnerReference {
                api_version: api_version.to_owned(),
                kind: owner.to_owned(),
                name: name.to_string(),
                controller: Some(true),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(format!("{name}-{number}")),
                namespace: Some(namespace.to_string()),
                uid: Some(format!("{kind}/{namespace}/{name}-{number}")),
                owner_references: Some(vec![owner]),
                ..metadata.clone()
            };
            let pod = Pod { metadata, spec: template.spec.clone(), status: None };
            self.add_pod(pod, Some(format!("{kind} {namespace}/{name}")));
        }
        Ok(())
    }

    fn add_pod(&mut self, mut pod: Pod, account: Option<String>) {
        let meta = &mut pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let whole = format!("{}/{}", namespace.unwrap_or("default"), name.unwrap_or_default());
        // Identity must differ, and a manifest has none.
        meta.uid.get_or_insert_with(|| whole.clone());
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let owner = owner.map(|owner| {
            format!("{} {}/{}", owner.kind, namespace.unwrap_or("default"), owner.name)
        });
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if bound.is_some_and(|node| !node.is_empty()) {
            self.running.push(pod);
            return;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if !matches!(phase, Some("Succeeded" | "Failed")) {
            let account = account.or(owner).unwrap_or_else(|| format!("Pod {whole}"));
            self.waiting.push(Waiting { pod, account });
        }
    }

    fn look(&mut self, kind: Kind, key: directory::Key, value: Selecting) {
        self.lookups.entry(kind).or_default().push((key, value));
    }

    fn own(
        &mut self,
        at: &At<'_>,
        kind: OwnerKind,
        key: directory::Key,
        selector: &LabelSelector,
    ) -> Result<(), SimulateError> {
        let selector = Selector::of(Some(selector))
            .map_err(|_| at.wrong("spec.selector", "not a selector"))?;
        self.look(Kind::Owner(kind), key, Selecting::Selector(selector));
        Ok(())
    }
}

/// Where an object is in which file.
struct At<'a> {
    path: &'a Path,
    /// In front of the object's own fields; empty where it is a document by itself.
    field: String,
}

impl At<'_> {
    fn wrong(&self, field: &str, problem: &str) -> SimulateError {
        let field = match (self.field.as_str(), field) {
            ("", "") => "the document".to_owned(),
            ("", field) => field.to_owned(),
            (at, "") => at.to_owned(),
            (at, field) => format!("{at}.{field}"),
        };
        SimulateError::Field { path: self.path.to_owned(), field, problem: problem.to_owned() }
    }

    fn missing(&self, field: &str) -> SimulateError {
        self.wrong(field, "missing")
    }

    fn kind<'v>(&self, object: &'v Value) -> Result<&'v str, SimulateError> {
        match object.get("kind") {
            Some(Value::String(kind)) => Ok(kind),
            Some(_) => Err(self.wrong("kind", "not a text")),
            None => Err(self.missing("kind")),
        }
    }

    fn name(&self, meta: &ObjectMeta) -> Result<Arc<str>, SimulateError> {
        match meta.name.as_deref() {
            Some(name) if !name.is_empty() => Ok(name.into()),
            _ => Err(self.missing("metadata.name")),
        }
    }

    fn key(&self, meta: &ObjectMeta) -> Result<directory::Key, SimulateError> {
        Ok((meta.namespace.as_deref().unwrap_or("default").into(), self.name(meta)?))
    }

    fn parse<K: DeserializeOwned>(&self, object: &Value) -> Result<K, SimulateError> {
        K::deserialize(object).map_err(|error| {
            let field = culprit(object, &|value| K::deserialize(value).is_ok());
            self.wrong(&field, &error.to_string())
        })
    }
}

/// The path of the field without which an object would be read, as deep as can be told.
fn culprit(object: &Value, reads: &dyn Fn(&Value) -> bool) -> String {
    let mut path = String::new();
    let mut at: Vec<Step> = Vec::new();
    loop {
        let steps: Vec<Step> = match look(object, &at) {
            Some(Value::Object(fields)) => fields.keys().cloned().map(Step::Key).collect(),
            Some(Value::Array(items)) => (0..items.len()).map(Step::Index).collect(),
            _ => Vec::new(),
        };
        let guilty = steps.into_iter().find(|step| {
            let mut without = object.clone();
            remove(&mut without, &at, step) && reads(&without)
        });
        let Some(step) = guilty else { return path };
        match &step {
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Step::Index(index) => {
                path.push('[');
                path.push_str(&index.to_string());
                path.push(']');
            }
        }
        at.push(step);
    }
}

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

fn look<'v>(object: &'v Value, at: &[Step]) -> Option<&'v Value> {
    at.iter().try_fold(object, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn remove(object: &mut Value, at: &[Step], step: &Step) -> bool {
    let parent = at.iter().try_fold(object, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    });
    match (parent, step) {
        (Some(Value::Object(fields)), Step::Key(key)) => fields.remove(key).is_some(),
        (Some(Value::Array(items)), Step::Index(index)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

/// Hands over all objects of a file, those of lists one by one.
fn each_object(
    path: &Path,
    mut take: impl FnMut(&At<'_>, &Value) -> Result<(), SimulateError>,
) -> Result<(), SimulateError> {
    let read = |source| SimulateError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    for (number, document) in documents(path, &text)?.into_iter().enumerate() {
        let one = if number == 0 { String::new() } else { format!("document {}", number + 1) };
        let at = At { path, field: one.clone() };
        let is_list = at.kind(&document)?.ends_with("List") && document.get("items").is_some();
        if !is_list {
            take(&at, &document)?;
            continue;
        }
        let Some(Value::Array(items)) = document.get("items") else {
            return Err(at.wrong("items", "not a list"));
        };
        // Items of a typed list say nothing of their kind.
        let of = at.kind(&document)?.trim_end_matches("List").to_owned();
        for (index, item) in items.iter().enumerate() {
            let whole = if one.is_empty() { String::new() } else { format!("{one}.") };
            let at = At { path, field: format!("{whole}items[{index}]") };
            if item.get("kind").is_none() && !of.is_empty() && item.is_object() {
                let mut item = item.clone();
                item["kind"] = of.clone().into();
                take(&at, &item)?;
            } else {
                take(&at, item)?;
            }
        }
    }
    Ok(())
}

fn documents(path: &Path, text: &str) -> Result<Vec<Value>, SimulateError> {
    let syntax = |document: usize, problem: String| SimulateError::Syntax {
        path: path.to_owned(),
        document,
        problem,
    };
    let mut found = Vec::new();
    if text.trim_start().starts_with('{') {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        for (number, value) in values.enumerate() {
            found.push(value.map_err(|error| syntax(number + 1, error.to_string()))?);
        }
    } else {
        for (number, document) in split(text).into_iter().enumerate() {
            // A dump is as large as the cluster, and a node may be called `n`.
            let options = serde_saphyr::options! { budget: None, strict_booleans: true };
            let value: Value = serde_saphyr::from_str_with_options(&document, options)
                .map_err(|error| syntax(number + 1, error.to_string()))?;
            if !value.is_null() {
                found.push(value);
            }
        }
    }
    if found.is_empty() {
        return Err(syntax(1, "nothing in it".to_owned()));
    }
    Ok(found)
}

/// The documents of a YAML file.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let says = |document: &String| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    documents.retain(says);
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Dump, String> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("written");
        let mut dump = Dump::default();
        let outcome = dump.read(file.path());
        let name = file.path().display().to_string();
        outcome.map(|()| dump).map_err(|error| error.to_string().replace(&name, "FILE"))
    }

    #[test]
    fn lists_and_documents() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- kind: Node\n  metadata: {name: n}\n\
                    - kind: Pod\n  metadata: {name: p}\n  spec: {containers: []}\n\
                    - kind: Pod\n  metadata: {name: q}\n  spec: {nodeName: n, containers: []}\n\
                    ---\nkind: NodeList\nitems: [{metadata: {name: m}}]\n---\nkind: ConfigMap\n";
        let dump = read(list).expect("read");
        assert_eq!((dump.nodes.len(), dump.running.len(), dump.waiting.len()), (2, 1, 1));
        assert_eq!(dump.waiting[0].account, "Pod default/p");
        assert_eq!(dump.ignored["ConfigMap"], 1);
        let json =
            read(r#"{"kind": "List", "items": [{"kind": "Node", "metadata": {"name": "n"}}]}"#);
        assert_eq!(json.expect("read").nodes.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, problem) in [
            ("kind: List\nitems: [{kind: Node}]", "FILE: items[0].metadata.name: missing"),
            (
                "kind: List\nitems: [{kind: Node, metadata: {}}]",
                "FILE: items[0].metadata.name: missing",
            ),
            (
                "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}, {name: 3}]}",
                "FILE: spec.containers[1].name: ",
            ),
            (
                "kind: Node\nmetadata: {name: n}\n---\nkind: Node\nmetadata: {name: n, labels: [1]}",
                "FILE: document 2.metadata.labels: ",
            ),
            ("kind: List\nitems: 3", "FILE: items: not a list"),
            ("{", "FILE: document 1: "),
            ("", "FILE: document 1: nothing in it"),
            ("metadata: {name: n}", "FILE: kind: missing"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(problem), "{text}: {error}");
        }
    }
}
