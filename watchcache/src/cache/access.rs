//! Whether a client may read what it asks for: kube-apiserver's own answer, by a
//! `SubjectAccessReview`, kept for a few seconds. A refusal is not kept, nor told to the client:
//! its request goes on, and kube-apiserver refuses it in its own words. Who a bearer token names
//! is asked in the same way, by a `TokenReview`.

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

use super::subject::Subject;
use crate::authn::Identity;
use crate::upstream::{Lane, Load, Pool, RequestBody};

/// How long a client may go on to read after its right was taken away, or its token. As long as
/// kube-apiserver itself keeps a token that it has accepted
/// (`k8s.io/kubernetes/pkg/kubeapiserver/options/authentication.go`, `TokenSuccessCacheTTL`).
const KEPT: Duration = Duration::from_secs(10);
/// Answers kept; at the bound all are thrown out.
const MOST: usize = 64 * 1024;
/// A review takes no longer; the request goes on then.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 256 * 1024;
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
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
    /// API group.
    pub group: &'a str,
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

/// SHA-256 of a question.
type Digest = [u8; 32];

fn digest(text: &str) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().unwrap_or_default()
}

/// Answers that are kept for a while.
#[derive(Debug)]
struct Kept<T>(Mutex<HashMap<Digest, (Instant, T)>>);

impl<T: Clone> Kept<T> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, question: &Digest, now: Instant) -> Option<T> {
        let kept = self.0.lock();
        kept.get(question).filter(|(until, _)| *until > now).map(|(_, answer)| answer.clone())
    }

    /// Keeps an answer to a question that was asked at `asked`: it is no newer.
    fn put(&self, question: Digest, asked: Instant, answer: T) {
        let mut kept = self.0.lock();
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(question, (asked + KEPT, answer));
    }
}

/// Reviews of late.
#[derive(Debug)]
pub struct Access {
    allowed: Kept<Arc<str>>,
    tokens: Kept<Arc<Subject>>,
    version: Mutex<Option<(Instant, bool)>>,
    own: Identity,
}

impl Access {
    /// Nothing is known; who may what is asked as this user.
    #[must_use]
    pub fn new(own: Identity) -> Self {
        Self { allowed: Kept::new(), tokens: Kept::new(), version: Mutex::default(), own }
    }

    /// Why a client may; none where it may not, or where that can't be found out.
    pub async fn allows(
        &self,
        pool: &Pool,
        who: &Subject,
        what: &Attributes<'_>,
    ) -> Option<Arc<str>> {
        if !who.is_someone() {
            return None;
        }
        let text = review(who, what).to_string();
        let (question, now) = (digest(&text), Instant::now());
        if let Some(reason) = self.allowed.get(&question, now) {
            return Some(reason);
        }
        let answer = self.ask(pool, Method::POST, REVIEWS, Some(&text)).await?;
        let status = &answer["status"];
        // As webhook authorizers read it: a denial wins.
        if status["allowed"] != true || status["denied"] == true {
            return None;
        }
        let reason: Arc<str> = status["reason"].as_str().unwrap_or_default().into();
        self.allowed.put(question, now, reason.clone());
        Some(reason)
    }

    /// Who a bearer token names; none where kube-apiserver does not accept it, or can't be asked.
    pub async fn who(&self, pool: &Pool, token: &str) -> Option<Arc<Subject>> {
        let (question, now) = (digest(token), Instant::now());
        if let Some(subject) = self.tokens.get(&question, now) {
            return Some(subject);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        });
        let review = review.to_string();
        let mut answer = self.ask(pool, Method::POST, TOKEN_REVIEWS, Some(&review)).await?;
        let status = answer["status"].take();
        if status["authenticated"] != true || status.get("error").is_some() {
            return None;
        }
        let subject: Subject = serde_json::from_value(status["user"].clone()).ok()?;
        let subject = Arc::new(subject);
        self.tokens.put(question, now, subject.clone());
        Some(subject)
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

/// The question.
fn review(who: &Subject, what: &Attributes<'_>) -> Value {
    let selector =
        |raw: &str| if raw.is_empty() { Value::Null } else { json!({"rawSelector": raw}) };
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": who.username,
            "uid": who.uid,
            "groups": who.all_groups(),
            "extra": who.extra,
            "resourceAttributes": {
                "verb": what.verb,
                "group": what.group,
                "version": what.version,
                "resource": what.resource,
                "namespace": what.namespace,
                "name": what.name,
                "fieldSelector": selector(what.field_selector),
                "labelSelector": selector(what.label_selector),
            },
        },
    })
}
