//! Which requests are recorded, and how much of them: a `Policy` of `audit.k8s.io/v1`, read as
//! kube-apiserver reads it (`k8s.io/apiserver/pkg/audit/policy`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use tracing::warn;

use crate::cache::{Attributes, Subject};

const API_VERSION: &str = "audit.k8s.io/v1";

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is not YAML, or a field is missing or of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A value is not allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// How much is recorded of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked for what, and how it went.
    Metadata,
    /// The object that was sent, too: a read has none.
    Request,
    /// The answer, too.
    RequestResponse,
}

impl Level {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// The request has come.
    RequestReceived,
    /// The answer of a watch has begun.
    ResponseStarted,
    /// All of the answer is sent.
    ResponseComplete,
    /// Of kube-apiserver; no request of the front door gets here.
    Panic,
}

impl Stage {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// The stages that are not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted(u8);

impl Omitted {
    fn of<'a>(stages: impl IntoIterator<Item = &'a Stage>) -> Self {
        Self(stages.into_iter().fold(0, |omitted, stage| omitted | 1 << (*stage as u8)))
    }

    /// Whether a stage is recorded.
    #[must_use]
    pub fn records(self, stage: Stage) -> bool {
        self.0 & 1 << (stage as u8) == 0
    }
}

/// A policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    /// Of objects, which reads have none of.
    #[serde(default, rename = "omitManagedFields")]
    _omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    /// Of objects, which reads have none of.
    #[serde(default, rename = "omitManagedFields")]
    _omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl Policy {
    /// Reads a policy. As kube-apiserver does, it takes one with unknown fields, and says so.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let syntax = |problem: String| PolicyError::Syntax(problem);
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
        let mut text = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| syntax(error.to_string()))?;
        without_nulls(&mut text);
        let policy: Self =
            serde_json::from_value(text).map_err(|error| syntax(error.to_string()))?;
        let invalid = |field: String, problem| Err(PolicyError::Invalid { field, problem });
        if policy.api_version != API_VERSION || policy.kind != "Policy" {
            return invalid("apiVersion".to_owned(), "must be a Policy of audit.k8s.io/v1");
        }
        if policy.rules.is_empty() {
            return invalid("rules".to_owned(), "must hold a rule");
        }
        for (place, rule) in policy.rules.iter().enumerate() {
            let field = |name: &str| format!("rules[{place}].{name}");
            let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if of_resources && !rule.non_resource_urls.is_empty() {
                return invalid(
                    field("nonResourceURLs"),
                    "a rule can't apply to both resources and other URLs",
                );
            }
            for (place, url) in rule.non_resource_urls.iter().enumerate() {
                let field = field(&format!("nonResourceURLs[{place}]"));
                if url != "*" && !url.starts_with('/') {
                    return invalid(field, "must be * or begin with /");
                }
                if url.find('*').is_some_and(|place| place + 1 < url.len()) {
                    return invalid(field, "* must be the last character");
                }
            }
            for one in &rule.resources {
                if !matches!(&*one.group, "" | "*") && !is_dns_subdomain(&one.group) {
                    return invalid(field("resources.group"), "must be the name of a group");
                }
                if !one.resource_names.is_empty() && one.resources.is_empty() {
                    return invalid(field("resources.resourceNames"), "needs resources");
                }
            }
        }
        policy.warn_of_others();
        Ok(policy)
    }

    fn warn_of_others(&self) {
        let of_rules = self.rules.iter().flat_map(|rule| {
            let of_resources = rule.resources.iter().flat_map(|one| one.others.keys());
            rule.others.keys().chain(of_resources)
        });
        for name in self.others.keys().chain(of_rules) {
            if name != "metadata" {
                warn!(field = name, "the audit policy has a field that is not known");
            }
        }
    }

    /// What is recorded of a read.
    #[must_use]
    pub fn of(&self, who: &Subject, groups: &[&str], what: &Attributes<'_>) -> (Level, Omitted) {
        let rule = self.rules.iter().find(|rule| rule.matches(who, groups, what));
        let of_rule = rule.map(|rule| rule.omit_stages.as_slice()).unwrap_or_default();
        let omitted = Omitted::of(self.omit_stages.iter().chain(of_rule));
        (rule.map_or(Level::None, |rule| rule.level), omitted)
    }
}

/// In Go's JSON, `null` is as if the field were not there.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// `IsDNS1123Subdomain` of `k8s.io/apimachinery/pkg/util/validation`.
fn is_dns_subdomain(name: &str) -> bool {
    let alone = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        let label = label.as_bytes();
        let ends = label.first().zip(label.last());
        ends.is_some_and(|(first, last)| alone(*first) && alone(*last))
            && label.iter().all(|c| alone(*c) || *c == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

impl Rule {
    /// `ruleMatches` of `checker.go`, for requests of resources.
    fn matches(&self, who: &Subject, groups: &[&str], what: &Attributes<'_>) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|one| one == value);
        let any = |list: &[String], value: &str| list.is_empty() || has(list, value);
        if !any(&self.users, &who.username) || !any(&self.verbs, what.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !groups.iter().any(|one| has(&self.user_groups, one)) {
            return false;
        }
        if self.namespaces.is_empty() && self.resources.is_empty() {
            return self.non_resource_urls.is_empty();
        }
        if !any(&self.namespaces, what.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|one| one.matches(what))
    }
}

impl GroupResources {
    fn matches(&self, what: &Attributes<'_>) -> bool {
        if self.group != what.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty()
            || self.resource_names.iter().any(|name| name == what.name);
        named
            && self.resources.iter().any(|one| {
                one == what.resource || one == "*" || one.strip_suffix("/*") == Some(what.resource)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &str) -> Result<Policy, PolicyError> {
        Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}"))
    }

    fn level(rules: &str, what: &Attributes<'_>) -> Level {
        let who = Subject { username: "alice".to_owned(), ..Subject::default() };
        policy(rules).unwrap().of(&who, &["dev", "system:authenticated"], what).0
    }

    const PODS: Attributes<'_> = Attributes {
        verb: "list",
        group: "",
        resource: "pods",
        version: "v1",
        namespace: "a",
        name: "p",
        field_selector: "",
        label_selector: "",
    };

    #[test]
    fn rules_match_as_kube_apiservers() {
        for matching in [
            "{level: Request}",
            "{level: Request, users: [bob, alice]}",
            "{level: Request, userGroups: [dev]}",
            "{level: Request, verbs: [get, list]}",
            "{level: Request, namespaces: [a]}",
            "{level: Request, resources: [{group: \"\"}]}",
            "{level: Request, resources: [{group: '*', resources: [pods]}]}",
            "{level: Request, resources: [{resources: ['*']}]}",
            "{level: Request, resources: [{resources: ['pods/*']}]}",
            "{level: Request, resources: [{resources: [pods], resourceNames: [p]}]}",
            "{level: Request, resources: [{group: apps}, {resources: [pods]}]}",
            "{level: Request, resources: [{resources: ['*'], resourceNames: [q, p]}]}",
            "{level: Request, namespaces: [b, a], resources: [{group: '*'}], verbs: [list]}",
            "{level: Request, users: [alice], userGroups: [ops, dev]}",
        ] {
            let rules = format!("rules: [{matching}, {{level: Metadata}}]");
            assert_eq!(level(&rules, &PODS), Level::Request, "{matching}");
        }
        for other in [
            "{level: Request, users: [bob]}",
            "{level: Request, userGroups: [ops]}",
            "{level: Request, verbs: [watch]}",
            "{level: Request, namespaces: ['']}",
            "{level: Request, nonResourceURLs: ['*']}",
            "{level: Request, resources: [{group: apps}]}",
            "{level: Request, resources: [{resources: [pods/log, '*/status']}]}",
            "{level: Request, resources: [{resources: [pods], resourceNames: [q]}]}",
            "{level: Request, resources: [{resources: ['*'], resourceNames: ['']}]}",
            "{level: Request, resources: [{resources: [pod, 'pods/', 'nodes/*', '*/*', 'p*']}]}",
            "{level: Request, resources: [{group: core, resources: [pods]}]}",
            "{level: Request, users: ['*']}",
            "{level: Request, userGroups: ['*']}",
            "{level: Request, verbs: ['*']}",
            "{level: Request, namespaces: ['*']}",
            "{level: Request, users: [alice], userGroups: [ops]}",
        ] {
            let rules = format!("rules: [{other}, {{level: Metadata}}]");
            assert_eq!(level(&rules, &PODS), Level::Metadata, "{other}");
            assert_eq!(level(&format!("rules: [{other}]"), &PODS), Level::None, "{other}");
        }
        let cluster = Attributes { namespace: "", resource: "nodes", ..PODS };
        assert_eq!(
            level("rules: [{level: Metadata, namespaces: ['']}]", &cluster),
            Level::Metadata
        );
    }

    #[test]
    fn stages_are_left_out_by_both() {
        let rules =
            "omitStages: [RequestReceived]\nrules: [{level: Metadata, omitStages: [Panic]}]";
        let (_, omitted) = policy(rules).unwrap().of(&Subject::default(), &[], &PODS);
        assert!(!omitted.records(Stage::RequestReceived) && !omitted.records(Stage::Panic));
        assert!(omitted.records(Stage::ResponseStarted));
        assert!(omitted.records(Stage::ResponseComplete));
    }

    #[test]
    fn a_bad_file_is_refused() {
        for bad in [
            "",
            "rules: []",
            "rules: [{}]",
            "rules: [{level: All}]",
            "rules: [{level: Metadata, omitStages: [Never]}]",
            "rules: [{level: Metadata, resources: [{resourceNames: [p]}]}]",
            "rules: [{level: Metadata, namespaces: [a], nonResourceURLs: [/x]}]",
            "rules: [{level: Metadata, resources: [{}], nonResourceURLs: [/x]}]",
            "rules: [{level: Metadata, nonResourceURLs: [x]}]",
            "rules: [{level: Metadata, nonResourceURLs: ['']}]",
            "rules: [{level: Metadata, nonResourceURLs: ['/a*b*']}]",
            "rules: [{level: Metadata, nonResourceURLs: ['**']}]",
            "rules: [{level: Metadata, resources: [{group: apps/v1}]}]",
            "rules: [{level: Metadata, resources: [{group: Apps}]}]",
            "rules: [{level: Metadata, resources: [{group: .apps}]}]",
            "rules: [{level: Metadata, resources: [pods]}]",
            "rules: [{level: Metadata, users: alice}]",
            "rules: [{level: Metadata, users: [1]}]",
            "rules: [{level: Metadata, omitManagedFields: maybe}]",
            "rules: [{level: metadata}]",
            "rules: [{Level: Metadata}]",
            "rules: [{level: ''}]",
            "rules: [{level: null}]",
            "rules: [null]",
            "rules: null",
            "rules: {}",
            "rules: [{level: None}]\nomitStages: [RequestReceived, All]",
            "rules: [{level: None}",
        ] {
            assert!(policy(bad).is_err(), "{bad}");
        }
        let rules = "rules: [{level: None}]";
        for head in [
            "apiVersion: v1\nkind: Policy",
            "apiVersion: audit.k8s.io/v1beta1\nkind: Policy",
            "apiVersion: audit.k8s.io/v1\nkind: Event",
            "apiVersion: audit.k8s.io/v1\nkind: PolicyList",
            "apiVersion: audit.k8s.io/v1\nkind: ''",
            "apiVersion: audit.k8s.io/v1",
            "kind: Policy",
        ] {
            assert!(Policy::parse(&format!("{head}\n{rules}")).is_err(), "{head}");
        }
    }

    #[test]
    fn what_kube_apiserver_takes_is_taken() {
        for good in [
            "metadata: {name: x}\nmore: 1\nrules: [{level: None, verb: [get]}]",
            "metadata: {creationTimestamp: null}\nrules: [{level: None}]",
            "omitManagedFields: true\nrules: [{level: None, omitManagedFields: false}]",
            "omitStages: null\nrules: [{level: None, users: null, resources: null}]",
            "rules: [{level: None, nonResourceURLs: ['*', /x, '/y*', /]}]",
            "rules: [{level: None, resources: [{group: rbac.authorization.k8s.io}]}]",
            "rules: [{level: None, resources: [{group: '*', resources: ['*/status']}]}]",
            "rules: [{level: None, userGroups: ['system:nodes', '']}] # all",
            "rules: []\nrules: [{level: None}]",
            "rules: [{level: Metadata, level: None}]",
            "rules: &rules\n- level: None\nmore: *rules",
        ] {
            let policy = policy(good).map_err(|problem| problem.to_string());
            assert!(policy.is_ok(), "{good}: {policy:?}");
            let policy = policy.unwrap();
            assert_eq!(policy.of(&Subject::default(), &[], &PODS).0, Level::None, "{good}");
        }
        let json = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [
            {"level": "Metadata", "verbs": ["list"]}]}"#;
        let read = [json.to_owned(), format!("---\n{json}"), format!("\u{feff}{json}")];
        for text in read {
            let policy = Policy::parse(&text).unwrap();
            assert_eq!(policy.of(&Subject::default(), &[], &PODS).0, Level::Metadata);
        }
    }
}
