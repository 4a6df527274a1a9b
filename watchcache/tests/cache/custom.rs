//! Custom resources beside a real kube-apiserver: the same bytes, whatever is stored, in every
//! version, while their definitions change.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use megacluster_store::pb::etcdserverpb::kv_client::KvClient;
use megacluster_store::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::certificates;
use crate::cluster::{Cluster, User};
use crate::forms::{self, FORMS, Pair};
use crate::history::{NAMESPACES, Random};
use crate::mess;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const JSON: &str = "application/json";
const NAMES: &str = "--cache-resource=widgets.example.com,gadgets.example.com,\
                     things.hooked.example.org";
const STEPS: usize = 30;
const WATCH_LIST: &str = "&watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                          &allowWatchBookmarks=true&timeoutSeconds=600";

/// A resource's collection, and whether it is in namespaces.
const COLLECTIONS: [(&str, bool); 3] = [
    ("/apis/example.com/v1/widgets", true),
    ("/apis/example.com/v2/widgets", true),
    ("/apis/example.com/v1beta1/gadgets", false),
];

fn definition(group: &str, plural: &str, kind: &str, scope: &str, versions: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind,
                      "listKind": format!("{kind}List")},
            "versions": versions,
        },
    })
}

fn version(name: &str, storage: bool, spec: &Value) -> Value {
    json!({
        "name": name, "served": true, "storage": storage, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }}},
    })
}

fn free() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn embedded() -> Value {
    json!({"type": "object", "x-kubernetes-embedded-resource": true,
           "x-kubernetes-preserve-unknown-fields": true})
}

/// What widgets have in `v1`, in the course of the test.
fn widget(phase: usize) -> Value {
    let mut spec = json!({"type": "object", "properties": {
        "color": {"type": "string", "default": "blue"},
        "size": {"type": "integer"},
        "ratio": {"type": "number", "default": 0.25},
        "enabled": {"type": "boolean", "default": true},
        "port": {"x-kubernetes-int-or-string": true, "default": 80},
        "nullable": {"type": "string", "nullable": true, "default": "x"},
        "nested": {"type": "object", "default": {"a": {}}, "properties": {
            "a": {"type": "object", "properties": {
                "b": {"type": "integer", "default": 7},
                "name": {"type": "string"},
            }},
            "b": {"type": "string"},
        }},
        "list": {"type": "array", "items": {"type": "object", "properties": {
            "name": {"type": "string", "default": "<none>"},
            "a": {"type": "object", "additionalProperties": {"type": "string"}},
        }}},
        "map": {"type": "object", "additionalProperties": {
            "type": "object", "properties": {"b": {"type": "integer", "default": 1}},
        }},
        "any": {"type": "object", "additionalProperties": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "a": {"type": "object", "properties": {"b": {"type": "integer", "default": 2}}},
        }},
        "template": embedded(),
        "templates": {"type": "array", "items": embedded()},
        "old": {"type": "object", "properties": {"a": {"type": "string"}}},
    }});
    let properties = &mut spec["properties"];
    if phase > 0 {
        properties["fresh"] = json!({"type": "object", "default": {}, "properties": {
            "a": {"type": "string", "default": "fresh & new"},
        }});
        properties.as_object_mut().unwrap().remove("old");
    }
    if phase > 1 {
        properties["nullable"]["nullable"] = false.into();
        properties["template"] = json!({"type": "object", "x-kubernetes-embedded-resource": true,
            "properties": {"spec": {"type": "object", "default": {}, "properties": {
                "a": {"type": "integer", "default": 3}}}}});
    }
    spec
}

pub(crate) fn widgets(phase: usize) -> Value {
    let other = json!({"type": "object", "properties": {
        "color": {"type": "string", "default": "green"},
        "size": {"type": "integer", "default": 5},
        "enabled": {"type": "boolean"},
        "nested": free(),
        "list": {"type": "array", "items": {"type": "object", "nullable": true, "properties": {
            "a": {"type": "object", "additionalProperties": {"type": "string"}},
        }}},
        "template": embedded(),
    }});
    let mut versions = json!([version("v1", true, &widget(phase)), version("v2", false, &other)]);
    versions[0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]);
    versions[1]["selectableFields"] =
        json!([{"jsonPath": ".spec.enabled"}, {"jsonPath": ".spec.size"}]);
    if phase > 1 {
        versions[0]["selectableFields"] =
            json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}]);
    }
    definition("example.com", "widgets", "Widget", "Namespaced", &versions)
}

pub(crate) async fn define(user: &mut User, wanted: &Value) {
    let name = wanted["metadata"]["name"].as_str().unwrap();
    let path = format!("{DEFINITIONS}/{name}");
    let (status, bytes) = user.read(&path, JSON).await;
    if status == StatusCode::NOT_FOUND {
        user.write(Method::POST, DEFINITIONS, wanted).await;
    } else {
        let mut now: Value = serde_json::from_slice(&bytes).unwrap();
        now["spec"] = wanted["spec"].clone();
        user.write(Method::PUT, &path, &now).await;
    }
}

/// Waits until both answer a list, and the front door by the cache.
async fn answered(cluster: &Cluster, direct: &mut User, door: &mut User, path: &str) {
    for _ in 0..600 {
        let before = cluster.answers("list");
        let [expected, seen] = [direct.read(path, JSON).await.0, door.read(path, JSON).await.0];
        if expected == StatusCode::OK && seen == expected && cluster.answers("list") > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the cache does not answer {path}");
}

/// A list or an object without what two moments differ in.
fn masked(bytes: &[u8], accept: &str, list: bool) -> String {
    if !list {
        return bytes.iter().map(|byte| char::from(*byte)).collect();
    }
    if accept != JSON {
        return forms::masked(bytes, accept);
    }
    let text = std::str::from_utf8(bytes).unwrap();
    let Some(end) = text.rfind("],\"kind\":\"") else { return text.to_owned() };
    let (items, end) = text.split_at(end);
    let mut value: Value = serde_json::from_str(&format!("{{\"items\":[{end}")).unwrap();
    let mut kept = end.to_owned();
    for name in ["resourceVersion", "continue"] {
        let found = value["metadata"][name].take();
        let found = found.as_str().unwrap();
        kept = kept.replacen(found, if found.is_empty() { "" } else { "?" }, 1);
    }
    format!("{items}{kept}")
}

/// Both give the same, whatever happens meanwhile: what kube-apiserver says before and after, the
/// front door says between. Gives the token for the next page.
pub(crate) async fn same(
    direct: &mut User,
    door: &mut User,
    path: &str,
    accept: &str,
) -> [Option<String>; 2] {
    let list = accept.contains("List") || path.contains('?');
    for _ in 0..50 {
        let before = direct.read(path, accept).await;
        let seen = door.read(path, accept).await;
        let after = direct.read(path, accept).await;
        // A storage that kube-apiserver has just made is not ready yet.
        if [&before, &seen, &after].iter().any(|one| one.0 == StatusCode::TOO_MANY_REQUESTS) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let [one, two, three] = [&before, &seen, &after]
            .map(|(status, bytes)| (*status, masked(bytes, accept, list && status.is_success())));
        if one != three {
            continue;
        }
        assert_eq!(two.1, one.1, "{path} as {accept}");
        assert_eq!(two, one, "{path} as {accept}");
        let token = |bytes: &[u8]| {
            let value: Value = serde_json::from_slice(bytes).ok()?;
            let token = value["metadata"]["continue"].as_str()?;
            (!token.is_empty()).then(|| token.to_owned())
        };
        return [token(&before.1), token(&seen.1)];
    }
    panic!("kube-apiserver does not say the same twice: {path}");
}

/// A selector, as a part of a query.
fn selector(random: &mut Random, collection: &str) -> String {
    let fields: &[&str] = match collection {
        "/apis/example.com/v1/widgets" => {
            &["spec.color%3Dred", "spec.color!%3Dred", "spec.color%3D", "spec.color%3Dgreen"]
        }
        "/apis/example.com/v2/widgets" => &[
            "spec.size%3D5",
            "spec.size%3D",
            "spec.enabled%3Dtrue",
            "spec.enabled%3D,spec.size%3D5",
        ],
        _ => &["metadata.name%3Do1", "metadata.name!%3Do1"],
    };
    let fields = match random.below(3) {
        0 => format!("&fieldSelector={}", random.choose(fields)),
        1 => format!("&fieldSelector=metadata.name%3Do{}", random.below(6)),
        _ => String::new(),
    };
    let labels =
        random.choose(&["", "", "&labelSelector=app%3Dweb", "&labelSelector=app!%3Dweb,!tier"]);
    format!("{fields}{labels}")
}

fn collection(random: &mut Random) -> (&'static str, String) {
    let (collection, namespaced) = random.choose(&COLLECTIONS);
    if !namespaced || random.below(2) == 0 {
        return (collection, collection.to_owned());
    }
    let (root, plural) = collection.rsplit_once('/').unwrap();
    (collection, format!("{root}/namespaces/{}/{plural}", random.choose(&NAMESPACES)))
}

/// Objects that are there: where, and whether they were made through the API.
struct History {
    objects: Vec<(String, String, bool)>,
    made: usize,
    store: KvClient<Channel>,
}

impl History {
    /// One change, through the API or past it.
    async fn step(&mut self, random: &mut Random, user: &mut User) {
        if self.objects.len() < 8 || random.below(2) == 0 && self.objects.len() < 40 {
            return self.create(random, user).await;
        }
        let place = random.below(self.objects.len());
        let (path, key, api) = self.objects[place].clone();
        match random.below(4) {
            0 => {
                self.objects.swap_remove(place);
                if api {
                    user.write(Method::DELETE, &path, &json!({})).await;
                } else {
                    let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
                    self.store.delete_range(request).await.unwrap();
                }
            }
            _ if !api => self.put(random, &path, &key).await,
            1 => {
                let labels = json!({"metadata": {"labels": {
                    "app": random.choose(&["web", "db"]),
                    "tier": random.choose(&[Some("x"), None]),
                }}});
                user.write(Method::PATCH, &path, &labels).await;
            }
            2 => {
                let status = json!({"status": {"phase": random.choose(&["A", "<B>"]), "n": 1.5}});
                user.write(Method::PATCH, &format!("{path}/status"), &status).await;
            }
            _ => {
                let spec = json!({"spec": {"color": random.choose(&["red", "blue"]),
                                           "size": random.below(7)}});
                user.write(Method::PATCH, &path, &spec).await;
            }
        }
    }

    async fn create(&mut self, random: &mut Random, user: &mut User) {
        self.made += 1;
        let name = format!("o{}", self.made);
        let (collection, namespaced) = random.choose(&COLLECTIONS);
        let (root, plural) = collection.rsplit_once('/').unwrap();
        let namespace = random.choose(&NAMESPACES);
        let (at, key) = if namespaced {
            (format!("{root}/namespaces/{namespace}/{plural}"), format!("{namespace}/{name}"))
        } else {
            (collection.to_owned(), name.clone())
        };
        let key = format!("/registry/example.com/{plural}/{key}");
        let (path, api) = (format!("{at}/{name}"), random.below(2) == 0);
        if api {
            let object = mess::valid(random, root.trim_start_matches("/apis/"), plural, &name);
            user.write(Method::POST, &at, &object).await;
        } else {
            self.put(random, &path, &key).await;
        }
        self.objects.push((path, key, api));
    }

    /// Past the API, as nothing that is pruned or filled in.
    async fn put(&mut self, random: &mut Random, path: &str, key: &str) {
        let version = path.split('/').nth(3).unwrap();
        let kind = if path.contains("/widgets/") { "Widget" } else { "Gadget" };
        let parts: Vec<_> = key.split('/').skip(4).collect();
        let namespace = (parts.len() > 1).then(|| parts[0]);
        let name = *parts.last().unwrap();
        let value = mess::stored(random, &format!("example.com/{version}"), kind, namespace, name);
        let request =
            PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
        self.store.put(request).await.unwrap();
    }

    fn one(&self, random: &mut Random) -> String {
        let (path, ..) = &self.objects[random.below(self.objects.len())];
        match random.below(2) {
            0 => path.clone(),
            _ => path.replace("/v1/", "/v2/"),
        }
    }
}

/// Reads of both while one thing after the other changes. How many were compared.
async fn phase(
    history: &mut History,
    random: &mut Random,
    direct: &mut User,
    door: &mut User,
) -> usize {
    let mut watches = Vec::new();
    let mut compared = 0;
    for step in 0..STEPS {
        let writer = if random.below(2) == 0 { &mut *direct } else { &mut *door };
        history.step(random, writer).await;
        if step % 5 == 0 {
            let (of, path) = collection(random);
            let [_, accept] = random.choose(&FORMS);
            let path = format!("{path}?{}{WATCH_LIST}", selector(random, of));
            watches.push(Pair::open(direct, door, path, accept).await);
        }
        let one = history.one(random);
        for [_, accept] in FORMS {
            same(direct, door, &one, accept).await;
        }
        let (of, path) = collection(random);
        let selector = selector(random, of);
        for [accept, _] in FORMS {
            same(direct, door, &format!("{path}?{selector}"), accept).await;
            compared += 2;
        }
        if !selector.contains("metadata.name%3D") {
            let (mut next, mut turn) = (String::new(), 0);
            loop {
                let page = format!("{path}?{selector}&limit=3{next}");
                let tokens = same(direct, door, &page, JSON).await;
                let Some(token) = &tokens[turn % 2] else { break };
                (next, turn, compared) = (format!("&continue={token}"), turn + 1, compared + 1);
            }
        }
    }
    for watch in watches {
        compared += watch.compare(Duration::from_millis(200)).await;
    }
    compared
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn custom_resources_are_read_as_from_kube_apiserver() {
    let cluster = Cluster::start_with(&[], &[NAMES]).await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    define(&mut direct, &widgets(0)).await;
    let spec = json!([version("v1beta1", true, &free())]);
    define(&mut direct, &definition("example.com", "gadgets", "Gadget", "Cluster", &spec)).await;
    for (path, _) in COLLECTIONS {
        answered(&cluster, &mut direct, &mut door, path).await;
    }
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    let mut random = Random::new(seed);
    let channel = Channel::from_shared(format!("http://{}", cluster.store.address)).unwrap();
    let store = KvClient::new(channel.connect().await.unwrap());
    let mut history = History { objects: Vec::new(), made: 0, store };
    let answers = ["list", "watch", "get"].map(|verb| cluster.answers(verb));
    let mut compared = 0;
    for number in 0..3 {
        compared += phase(&mut history, &mut random, &mut direct, &mut door).await;
        // The definition changes: watches end, and nobody is told what was, once kube-apiserver
        // tells what is.
        let watch = format!("{}?watch=1&timeoutSeconds=600", COLLECTIONS[0].0);
        let watch = door.open_as(&watch, JSON).await;
        define(&mut direct, &widgets(number + 1)).await;
        let changed = Instant::now();
        while changed.elapsed() < Duration::from_secs(3) {
            for (path, _) in &COLLECTIONS[..2] {
                let old = random.choose(&["", "resourceVersion=0"]);
                same(&mut direct, &mut door, &format!("{path}?{old}"), JSON).await;
            }
        }
        // The last one changes nothing that is read.
        if number < 2 {
            let ended = tokio::time::timeout(Duration::from_secs(5), watch.into_body().collect());
            ended.await.expect("the watch ends").unwrap();
        }
        for (path, _) in COLLECTIONS {
            answered(&cluster, &mut direct, &mut door, path).await;
        }
    }
    println!("{compared} lists, objects and events of custom resources are equal");
    for ((verb, before), least) in
        ["list", "watch", "get"].into_iter().zip(answers).zip([300, 8, 150])
    {
        let answered = cluster.answers(verb) - before;
        println!("{verb}: {answered} answered by the cache");
        assert!(answered > least, "{verb}: {answered}");
    }
    gone(&cluster, &mut history, &mut direct, &mut door).await;
}

/// A definition that is deleted takes its objects along, and comes again.
async fn gone(cluster: &Cluster, history: &mut History, direct: &mut User, door: &mut User) {
    let path = COLLECTIONS[2].0;
    // kube-apiserver can't delete all that was put past it: some of it has finalizers.
    for (_, key, _) in
        history.objects.iter().filter(|(_, key, api)| !api && key.contains("/gadgets/"))
    {
        let request = DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
        history.store.delete_range(request).await.unwrap();
    }
    direct.write(Method::DELETE, &format!("{DEFINITIONS}/gadgets.example.com"), &json!({})).await;
    for second in 0.. {
        let (expected, seen) = (direct.read(path, JSON).await, door.read(path, JSON).await);
        if expected.0 == StatusCode::NOT_FOUND {
            assert_eq!(door.read(path, JSON).await, direct.read(path, JSON).await);
            break;
        }
        assert!(seen.0 == StatusCode::OK || seen.0 == StatusCode::NOT_FOUND);
        assert!(second < 30, "still there");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let spec = json!([version("v1beta1", true, &json!({"type": "object"}))]);
    define(direct, &definition("example.com", "gadgets", "Gadget", "Cluster", &spec)).await;
    answered(cluster, direct, door, path).await;
    direct
        .write(
            Method::POST,
            path,
            &json!({"apiVersion": "example.com/v1beta1", "kind": "Gadget",
        "metadata": {"name": "g"}, "spec": {"x": 1}}),
        )
        .await;
    same(direct, door, &format!("{path}/g"), JSON).await;
}

/// What can't be answered exactly goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver"]
async fn what_takes_kube_apiserver_goes_on() {
    let cluster = Cluster::start_with(&[], &[NAMES]).await;
    let admin = cluster.admin();
    let (mut direct, mut door) = (cluster.direct(&admin).await, cluster.door(&admin).await);
    // Nobody listens there: what is stored in another version can't be shown.
    let mut versions = json!([
        version("v1", true, &free()),
        version("v2", false, &free()),
        version("v3", false, &free())
    ]);
    versions[2]["deprecated"] = true.into();
    let mut hooked = definition("hooked.example.org", "things", "Thing", "Namespaced", &versions);
    hooked["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/convert"}}});
    define(&mut direct, &hooked).await;
    let root = "/apis/hooked.example.org";
    answered(&cluster, &mut direct, &mut door, &format!("{root}/v1/things")).await;
    let things = format!("{root}/v1/namespaces/a/things");
    let thing = json!({"apiVersion": "hooked.example.org/v1", "kind": "Thing",
                       "metadata": {"name": "t"}, "spec": {"x": 1}});
    direct.write(Method::POST, &things, &thing).await;
    let lists = cluster.answers("list");
    same(&mut direct, &mut door, &format!("{things}?"), JSON).await;
    same(&mut direct, &mut door, &format!("{things}/t"), JSON).await;
    assert!(cluster.answers("list") > lists);
    let all = ["list", "get", "watch"].map(|verb| cluster.answers(verb));
    for path in [
        "v2/things",
        "v2/namespaces/a/things/t",
        "v3/things?",
        "v4/things",
        "v1/namespaces/a/things/none",
        "v1/things?fieldSelector=spec.x%3D1",
    ] {
        let path = format!("{root}/{path}");
        for accept in [JSON, FORMS[1][0], FORMS[2][0]] {
            let (expected, seen) =
                (direct.read(&path, accept).await, door.read(&path, accept).await);
            // Where it can't convert, kube-apiserver says so in more than one way.
            assert_eq!(seen.0.is_success(), expected.0.is_success(), "{path}");
        }
    }
    for accept in [forms::TABLE, "application/vnd.kubernetes.protobuf"] {
        let path = format!("{things}?");
        let (expected, seen) =
            (direct.open_as(&path, accept).await, door.open_as(&path, accept).await);
        assert_eq!(seen.status(), expected.status(), "{accept}");
        assert_eq!(seen.headers()["content-type"], expected.headers()["content-type"]);
    }
    assert_eq!(["list", "get", "watch"].map(|verb| cluster.answers(verb)), all);
    rights(&cluster, &mut direct, &things).await;
}

/// Who may not read is refused, and who may is answered by the cache.
async fn rights(cluster: &Cluster, admin: &mut User, things: &str) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    let rules = json!([{"apiGroups": ["hooked.example.org"], "resources": ["things"],
                        "verbs": ["list", "watch"]}]);
    let role = json!({"metadata": {"name": "lister"}, "rules": rules});
    admin.write(Method::POST, &format!("{rbac}/roles"), &role).await;
    let binding = json!({
        "metadata": {"name": "lister"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lister"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "lister"}],
    });
    admin.write(Method::POST, &format!("{rbac}/rolebindings"), &binding).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let user = |name: &str, groups: &[&str]| -> certificates::Pair {
        cluster.certificates.client_ca.client(name, groups)
    };
    let elsewhere = things.replace("/a/", "/b/");
    for (who, may) in [(user("one", &["lister"]), true), (user("nobody", &[]), false)] {
        let (mut direct, mut door) = (cluster.direct(&who).await, cluster.door(&who).await);
        let lists = cluster.answers("list");
        for (path, allowed) in [
            (format!("{things}?"), may),
            (format!("{things}/t"), false),
            (format!("{elsewhere}?"), false),
            ("/apis/hooked.example.org/v1/things?".to_owned(), false),
        ] {
            same(&mut direct, &mut door, &path, JSON).await;
            let expected = if allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
            assert_eq!(door.read(&path, JSON).await.0, expected, "{path}");
        }
        assert_eq!(cluster.answers("list") > lists, may);
    }
}
