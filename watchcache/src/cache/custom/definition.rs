//! A `CustomResourceDefinition` as it is stored: JSON, in `v1beta1` still
//! (`k8s.io/kubernetes/pkg/controlplane/apiserver/apiextensions.go`), where what all versions have
//! in common stands once (`k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1/conversion.go`).

use parking_lot::Mutex;

use super::super::kinds::{Field, Kind};
use super::schema::Structural;
use super::value::Json;

/// Why the cache does not answer for a resource.
pub(super) type Unserved = &'static str;

/// Shapes of one resource that are remembered: each stays for as long as the process lives.
const SHAPES: usize = 64;
/// Selectable fields of a version; kube-apiserver allows eight.
pub(super) const MOST_FIELDS: usize = 8;

/// What is read of a definition. Two that are equal make the same answers.
#[derive(Debug, PartialEq)]
pub(in super::super) struct Definition {
    uid: String,
    pub(super) group: String,
    plural: String,
    pub(super) kind: String,
    list: String,
    namespaced: bool,
    /// Versions are converted by a webhook; else only their names differ.
    pub(super) webhook: bool,
    pub(super) versions: Vec<Version>,
}

/// One version.
#[derive(Debug, PartialEq)]
pub(super) struct Version {
    pub(super) name: String,
    /// Whether the cache answers for it.
    pub(super) served: bool,
    /// Whether new objects are stored in it.
    pub(super) storage: bool,
    pub(super) schema: Structural,
    /// Selectable fields, each as the names on the way to it.
    pub(super) fields: Vec<Vec<String>>,
}

impl Definition {
    /// Reads the stored definition of a resource.
    pub(super) fn parse(value: &[u8], group: &str, plural: &str) -> Result<Self, Unserved> {
        let json = Json::parse(value).ok_or("its definition is no JSON")?;
        let beta = match json.text("apiVersion") {
            Some("apiextensions.k8s.io/v1beta1") => true,
            Some("apiextensions.k8s.io/v1") => false,
            _ => return Err("its definition is of another version"),
        };
        let missing = "its definition lacks something";
        let [metadata, spec, status] =
            ["metadata", "spec", "status"].map(|name| json.get(name).ok_or(missing));
        let (metadata, spec, status) = (metadata?, spec?, status?);
        if metadata.get("deletionTimestamp").is_some() {
            return Err("its definition is being deleted");
        }
        for condition in ["Established", "NamesAccepted"] {
            let holds = |one: &&Json| one.text("type") == Some(condition);
            let holds = status.list("conditions").iter().find(holds);
            if holds.and_then(|one| one.text("status")) != Some("True") {
                return Err("its definition is not established");
            }
        }
        match spec.get("preserveUnknownFields") {
            Some(Json::Bool(false)) => {}
            None if !beta => {}
            _ => return Err("it preserves unknown fields"),
        }
        let names = status.get("acceptedNames").ok_or(missing)?;
        let name = |field| names.text(field).filter(|name| !name.is_empty()).ok_or(missing);
        if spec.text("group") != Some(group) || name("plural")? != plural {
            return Err("its definition is of another resource");
        }
        let webhook = match spec.get("conversion").and_then(|one| one.text("strategy")) {
            Some("None") => false,
            Some("Webhook") => true,
            None if spec.get("conversion").is_none() => false,
            _ => return Err("its versions are converted in an unknown way"),
        };
        let namespaced = match spec.text("scope") {
            Some("Namespaced") => true,
            Some("Cluster") => false,
            _ => return Err("its scope is unknown"),
        };
        let versions = spec.list("versions").iter().map(|one| Version::parse(one, spec));
        let versions = versions.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            uid: metadata.text("uid").ok_or(missing)?.to_owned(),
            group: group.to_owned(),
            plural: plural.to_owned(),
            kind: name("kind")?.to_owned(),
            list: name("listKind")?.to_owned(),
            namespaced,
            webhook,
            versions,
        })
    }

    /// A version by its name.
    pub(super) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// The resource in a version; none where there have been too many that differ.
    pub(super) fn kind_of(&self, version: &Version) -> Option<&'static Kind> {
        static KNOWN: Mutex<Vec<&'static Kind>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock();
        let mut of_resource = 0;
        for kind in
            known.iter().filter(|kind| kind.group == self.group && kind.resource == self.plural)
        {
            if self.is(version, kind) {
                return Some(kind);
            }
            of_resource += 1;
        }
        if of_resource >= SHAPES {
            return None;
        }
        let text = |text: &str| -> &'static str { Box::leak(text.into()) };
        let fields = version.fields.iter().zip(super::object::FIELDS..);
        let fields = fields.map(|(path, number)| (text(&path.join(".")), Field::text(number)));
        let kind: &'static Kind = Box::leak(Box::new(Kind {
            group: text(&self.group),
            version: text(&version.name),
            api_version: format!("{}/{}", self.group, version.name),
            resource: text(&self.plural),
            name: text(&self.kind),
            list: self.list.clone(),
            namespaced: self.namespaced,
            prefix: text(&format!("{}/{}", self.group, self.plural)),
            cached: true,
            empty: Vec::new(),
            index: None,
            fields: fields.collect(),
            custom: true,
        }));
        known.push(kind);
        Some(kind)
    }

    fn is(&self, version: &Version, kind: &Kind) -> bool {
        kind.version == version.name
            && kind.name == self.kind
            && kind.list == self.list
            && kind.namespaced == self.namespaced
            && kind.fields.len() == version.fields.len()
            && kind
                .fields
                .iter()
                .zip(&version.fields)
                .all(|((name, _), path)| *name == path.join("."))
    }
}

impl Version {
    fn parse(json: &Json, spec: &Json) -> Result<Self, Unserved> {
        let schema = spec.get("validation").or_else(|| json.get("schema"));
        let schema = schema.and_then(|schema| schema.get("openAPIV3Schema"));
        let schema = schema.and_then(Structural::root).ok_or("its schema is not handled")?;
        let fields = if spec.get("selectableFields").is_some() { spec } else { json };
        let fields =
            fields.list("selectableFields").iter().map(|field| path_of(field.text("jsonPath")?));
        let fields: Vec<_> = fields.collect::<Option<_>>().ok_or("a selectable field")?;
        if fields.len() > MOST_FIELDS {
            return Err("too many selectable fields");
        }
        Ok(Self {
            name: json.text("name").ok_or("a version without a name")?.to_owned(),
            // Of a deprecated version kube-apiserver warns each time.
            served: json.is_true("served") && !json.is_true("deprecated"),
            storage: json.is_true("storage"),
            schema,
            fields,
        })
    }
}

/// `.spec.color`; none for a way that is not that simple.
fn path_of(path: &str) -> Option<Vec<String>> {
    let names: Vec<_> = path.strip_prefix('.')?.split('.').map(str::to_owned).collect();
    let simple = |name: &String| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let metadata = names.first().is_some_and(|name| name == "metadata");
    (names.iter().all(simple) && !metadata).then_some(names)
}
