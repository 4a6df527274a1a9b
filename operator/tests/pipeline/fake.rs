//! An API server in memory: just enough of one for the pipeline, and faults on demand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::{
    Client,
    client::Body,
    runtime::events::{Recorder, Reporter},
};
use megacluster_operator::{
    reconcile::{Memory, Reconciler},
    validate::ImageDefaults,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Objects by path, such as `/apis/apps/v1/namespaces/mc/deployments/prod-watchcache`.
#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    writes: Vec<String>,
    events: Vec<String>,
    fail_after: Option<usize>,
    forbidden: Option<String>,
}

/// A fake API server; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

pub(crate) const CLUSTER: &str = "/apis/megacluster.io/v1alpha1/namespaces/mc/megaclusters/prod";

impl Fake {
    /// A server that holds the MegaCluster `mc/prod` with this spec.
    pub(crate) fn with_cluster(spec: &str) -> Self {
        let fake = Self::default();
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        fake.put(
            CLUSTER,
            json!({
                "apiVersion": "megacluster.io/v1alpha1",
                "kind": "MegaCluster",
                "metadata": {"name": "prod", "namespace": "mc", "uid": "u-prod", "generation": 1},
                "spec": spec,
                "status": {"observedGeneration": -1},
            }),
        );
        fake
    }

    /// A reconciler that talks to it.
    pub(crate) fn reconciler(&self) -> Reconciler {
        self.reconciler_that(true)
    }

    /// A reconciler that may write or not.
    pub(crate) fn reconciler_that(&self, leads: bool) -> Reconciler {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let client = Client::new(service, "mc");
        Reconciler {
            recorder: Recorder::new(client.clone(), Reporter::from("test".to_owned())),
            client,
            images: ImageDefaults {
                registry: Some("registry.example".to_owned()),
                tag: "1".to_owned(),
                kubernetes_registry: "registry.k8s.io".to_owned(),
            },
            memory: Memory::default(),
            may_act: Box::new(move || leads),
            stopping: CancellationToken::new(),
        }
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.state.lock().unwrap();
        state.store(path, object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path).unwrap();
    }

    /// Changes an object as somebody else would.
    pub(crate) fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.get(path).unwrap();
        edit(&mut object);
        self.put(path, object);
    }

    /// Changes the spec of the MegaCluster.
    pub(crate) fn edit_spec(&self, edit: impl FnOnce(&mut Value)) {
        self.edit(CLUSTER, |object| {
            edit(&mut object["spec"]);
            let generation = object["metadata"]["generation"].as_i64().unwrap();
            object["metadata"]["generation"] = json!(generation + 1);
        });
    }

    /// Lets the controllers of the management cluster finish every rollout.
    pub(crate) fn roll_out(&self) {
        let mut state = self.state.lock().unwrap();
        for (path, object) in &mut state.objects {
            if !path.contains("/deployments/") && !path.contains("/statefulsets/") {
                continue;
            }
            let replicas = object["spec"]["replicas"].clone();
            object["status"] = json!({
                "observedGeneration": object["metadata"]["generation"],
                "replicas": replicas, "readyReplicas": replicas,
                "updatedReplicas": replicas, "availableReplicas": replicas,
                "currentRevision": "r", "updateRevision": "r",
            });
        }
    }

    /// From now on everything fails after this many writes: the process is dead.
    pub(crate) fn fail_after(&self, writes: Option<usize>) {
        let mut state = self.state.lock().unwrap();
        state.writes.clear();
        state.fail_after = writes;
    }

    /// Refuses writes to paths that contain this.
    pub(crate) fn forbid(&self, path: Option<&str>) {
        self.state.lock().unwrap().forbidden = path.map(ToOwned::to_owned);
    }

    /// The writes since the last call: method and path.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    /// The reasons of the events since the last call.
    pub(crate) fn take_events(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().events)
    }

    /// Names of the objects of a plural kind.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let infix = format!("/{plural}/");
        let of_kind = state.objects.keys().filter(|path| path.contains(&infix));
        of_kind.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    }

    /// The value of a field of the MegaCluster's status condition.
    pub(crate) fn condition(&self, type_: &str, field: &str) -> String {
        let cluster = self.get(CLUSTER).unwrap();
        let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == type_);
        found.map(|c| c[field].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = head.uri.path();
        let mut state = self.state.lock().unwrap();
        if state.fail_after.is_some_and(|limit| state.writes.len() >= limit) {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "dead");
        }
        if head.method == Method::GET {
            return match state.objects.get(path) {
                Some(object) => ok(object),
                None if is_collection(path) => {
                    let query = head.uri.query().unwrap_or_default();
                    ok(&state.list(path, query))
                }
                None => failure(StatusCode::NOT_FOUND, "no such object"),
            };
        }
        if path.contains("/events") {
            let event: Value = serde_json::from_slice(&body).unwrap();
            state.events.extend(event["reason"].as_str().map(ToOwned::to_owned));
            return ok(&event);
        }
        if state.forbidden.as_ref().is_some_and(|part| path.contains(part.as_str())) {
            return failure(StatusCode::FORBIDDEN, "not yours");
        }
        state.writes.push(format!("{} {path}", head.method));
        match head.method {
            Method::PATCH => {
                let wanted: Value = serde_json::from_slice(&body).unwrap();
                state.apply(path, wanted)
            }
            Method::POST => {
                let object: Value = serde_json::from_slice(&body).unwrap();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if state.objects.contains_key(&path) {
                    return failure(StatusCode::CONFLICT, "it exists");
                }
                ok(state.store(&path, object))
            }
            Method::DELETE => match state.objects.remove(path) {
                Some(object) => ok(&object),
                None => failure(StatusCode::NOT_FOUND, "no such object"),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "what?"),
        }
    }
}

impl State {
    /// Stores an object as it is, with a new resourceVersion if it differs.
    fn store(&mut self, path: &str, mut object: Value) -> &Value {
        let old = self.objects.get(path);
        let same = old.is_some_and(|old| {
            let mut old = old.clone();
            old["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
            old == object
        });
        if let (true, Some(old)) = (same, old) {
            object = old.clone();
        } else {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            if object["metadata"]["uid"].is_null() {
                object["metadata"]["uid"] = json!(format!("u-{}", self.version));
            }
        }
        self.objects.insert(path.to_owned(), object);
        &self.objects[path]
    }

    /// Server-side apply by the only manager: what it doesn't ask for goes, but status and
    /// bookkeeping stay.
    fn apply(&mut self, path: &str, mut wanted: Value) -> Response<Body> {
        if let Some(path) = path.strip_suffix("/status") {
            let Some(mut object) = self.objects.get(path).cloned() else {
                return failure(StatusCode::NOT_FOUND, "no such object");
            };
            object["status"] = wanted["status"].take();
            return ok(self.store(path, object));
        }
        let asked = wanted["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
        if let Some(old) = self.objects.get(path) {
            let current = old["metadata"]["resourceVersion"].as_str();
            if asked.is_some() && asked.as_deref() != current {
                return failure(StatusCode::CONFLICT, "it was changed meanwhile");
            }
            wanted["status"] = old["status"].clone();
            for field in ["uid", "resourceVersion", "generation", "deletionTimestamp"] {
                if !old["metadata"][field].is_null() {
                    wanted["metadata"][field] = old["metadata"][field].clone();
                }
            }
            // Chosen by the API server, not asked for by anybody.
            if let Some(address) = old["spec"].get("clusterIP")
                && wanted["spec"].get("clusterIP").is_none()
            {
                wanted["spec"]["clusterIP"] = address.clone();
            }
            if old["spec"] != wanted["spec"] {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
                wanted["metadata"]["generation"] = json!(generation + 1);
            }
        } else {
            wanted["metadata"]["generation"] = json!(1);
            wanted["status"] = Value::Null;
        }
        ok(self.store(path, wanted))
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
        let wanted = selector.and_then(|text| text.split_once("%3D"));
        let prefix = format!("{path}/");
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(_, object)| object)
            .filter(|object| {
                wanted.is_none_or(|(key, value)| {
                    object["metadata"]["labels"][key.replace("%2F", "/")] == value
                })
            })
            .collect();
        json!({"metadata": {}, "items": items})
    }
}

fn is_collection(path: &str) -> bool {
    path.contains("/namespaces/mc/") && path.rsplit('/').nth(1) == Some("mc")
}

fn ok(value: &Value) -> Response<Body> {
    respond(StatusCode::OK, value)
}

fn failure(code: StatusCode, message: &str) -> Response<Body> {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::FORBIDDEN => "Forbidden",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    respond(code, &status)
}

fn respond(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap()));
    *response.status_mut() = code;
    response
}
