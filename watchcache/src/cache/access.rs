//! Whether a client may read what it asks for: kube-apiserver's own answer, by a
//! `SubjectAccessReview`, kept for a few seconds. A refusal is not kept, nor told to the client:
//! its request goes on, and kube-apiserver refuses it in its own words.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::authn::Identity;
use crate::upstream::{Lane, Load, Pool, RequestBody};

/// How long a client may go on to read after its right was taken away.
const KEPT: Duration = Duration::from_secs(10);
/// Answers kept; at the bound all are thrown out.
const MOST: usize = 64 * 1024;
/// A review takes no longer; the request goes on then.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 256 * 1024;
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// How often it is looked which version the kube-apiservers are.
const VERSION_KEPT: Duration = Duration::from_mins(1);
/// The minor version whose encoding the cache knows. Another one might add defaults to stored
/// objects as it reads them.
const MINOR: &str = "36";

/// What a client wants to do, in the names of `ResourceAttributes`.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// `get`, `list` or `watch`.
    pub verb: &'a str,
    /// The plural name.
    pub resource: &'a str,
    /// The version in the group.
    pub version: &'a str,
    /// Empty for all.
    pub namespace: &'a str,
    /// Empty for a collection.
    pub name: &'a str,
    /// The selector as it was sent.
    pub field_selector: &'a str,
    /// The selector as it was sent.
    pub label_selector: &'a str,
}

/// Reviews of late.
#[derive(Debug)]
pub struct Access {
    allowed: Mutex<HashMap<Arc<str>, Instant>>,
    version: Mutex<Option<(Instant, bool)>>,
    own: Identity,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            allowed: Mutex::default(),
            version: Mutex::default(),
            own: Identity::of_front_door(),
        }
    }
}

impl Access {
    /// Whether a client may; false too where that can't be found out.
    pub async fn allows(&self, pool: &Pool, who: &Identity, what: &Attributes<'_>) -> bool {
        let Some(review) = review(who, what) else { return false };
        let text: Arc<str> = review.to_string().into();
        let now = Instant::now();
        if self.allowed.lock().get(&text).is_some_and(|until| *until > now) {
            return true;
        }
        let answer = self.ask(pool, Method::POST, REVIEWS, Some(&text)).await;
        let allowed = answer.is_some_and(|answer| {
            // As webhook authorizers read it: a denial wins.
            answer["status"]["allowed"] == true && answer["status"]["denied"] != true
        });
        if allowed {
            let mut kept = self.allowed.lock();
            if kept.len() >= MOST {
                kept.clear();
            }
            // From before the question: the answer is no newer.
            kept.insert(text, now + KEPT);
        }
        allowed
    }

    /// Whether the kube-apiservers are of the version that the cache knows.
    pub async fn knows_version(&self, pool: &Pool) -> bool {
        let now = Instant::now();
        if let Some((until, known)) = *self.version.lock()
            && until > now
        {
            return known;
        }
        let Some(answer) = self.ask(pool, Method::GET, "/version", None).await else {
            return false;
        };
        let known = answer["major"] == "1" && answer["minor"] == MINOR;
        if !known {
            warn!(version = %answer["gitVersion"], "the cache does not know this kube-apiserver");
        }
        *self.version.lock() = Some((now + VERSION_KEPT, known));
        known
    }

    async fn ask(
        &self,
        pool: &Pool,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Option<Value> {
        let backend = pool.choose(Load::Short, &[])?;
        let request = || {
            let mut request = Request::new(body.map_or(RequestBody::Empty, |text| {
                RequestBody::own(Bytes::copy_from_slice(text.as_bytes()))
            }));
            *request.method_mut() = method.clone();
            *request.uri_mut() = Uri::builder()
                .scheme("https")
                .authority(backend.address().to_string())
                .path_and_query(path)
                .build()
                .unwrap_or_default();
            self.own.write(request.headers_mut());
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::ACCEPT, json.clone());
            request.headers_mut().insert(header::CONTENT_TYPE, json);
            request
        };
        let exchange = async {
            let (answer, mut lease) = backend.send(Lane::Identity, false, request).await.ok()?;
            let status = answer.status();
            let body =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?.to_bytes();
            lease.finish();
            if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
                debug!(%status, path, "no answer for the cache");
                return None;
            }
            serde_json::from_slice(&body).ok()
        };
        tokio::time::timeout(DEADLINE, exchange).await.ok()?
    }
}

/// The question; none for an identity that kube-apiserver treats in its own way.
fn review(who: &Identity, what: &Attributes<'_>) -> Option<Value> {
    let (user, uid, groups, credential_id) = who.parts()?;
    if user == "system:anonymous" || groups.contains(&"system:unauthenticated") {
        return None;
    }
    let mut groups = groups;
    if !groups.contains(&"system:authenticated") {
        groups.push("system:authenticated");
    }
    let selector =
        |raw: &str| if raw.is_empty() { Value::Null } else { json!({"rawSelector": raw}) };
    Some(json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "uid": uid,
            "groups": groups,
            "extra": {"authentication.kubernetes.io/credential-id": [credential_id]},
            "resourceAttributes": {
                "verb": what.verb,
                "group": "",
                "version": what.version,
                "resource": what.resource,
                "namespace": what.namespace,
                "name": what.name,
                "fieldSelector": selector(what.field_selector),
                "labelSelector": selector(what.label_selector),
            },
        },
    }))
}
