//! `/health` and `/version` in etcd's JSON form (etcd `server/etcdserver/api/etcdhttp`), for the
//! admin port and for plain HTTP requests on the client port, which has `/metrics`, `/livez` and
//! `/readyz` too.

use bytes::Bytes;
use http::{Method, Response, StatusCode, Uri, header};
use http_body_util::Full;
use megacluster_service::admin::Admin;
use serde::Serialize;

use crate::api::{Api, ETCD_VERSION};
use crate::pb::etcdserverpb::AlarmType;

/// Health as etcd shows it.
#[derive(Debug, Serialize)]
pub struct EtcdHealth {
    /// "true" or "false".
    pub health: &'static str,
    /// Why it is false.
    pub reason: &'static str,
}

#[derive(Serialize)]
struct Version {
    etcdserver: &'static str,
    etcdcluster: &'static str,
    storage: &'static str,
}

/// Answers `/health` and `/version`; `None` for other paths. There is no `api` before the state is
/// recovered.
#[must_use]
pub fn health_pages(
    api: Option<&Api>,
    method: &Method,
    path: &str,
) -> Option<Response<Full<Bytes>>> {
    if method != Method::GET {
        return None;
    }
    match path {
        "/health" => {
            let reason = match api.map(|api| api.alarms().first().copied()) {
                None => "RECOVERING",
                Some(None) => "",
                Some(Some(AlarmType::Nospace)) => "ALARM NOSPACE",
                Some(Some(AlarmType::Corrupt)) => "ALARM CORRUPT",
                Some(Some(AlarmType::None)) => "ALARM UNKNOWN",
            };
            let (status, health) = if reason.is_empty() {
                (StatusCode::OK, "true")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "false")
            };
            if let Some(api) = api {
                api.metrics().count_health(reason.is_empty());
            }
            Some(json(status, &EtcdHealth { health, reason }))
        }
        "/version" => Some(json(
            StatusCode::OK,
            &Version { etcdserver: ETCD_VERSION, etcdcluster: "3.6.0", storage: "3.6.0" },
        )),
        _ => None,
    }
}

/// The pages of the client port.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    api: Api,
    admin: Admin,
}

impl Pages {
    pub(super) fn new(api: Api, admin: Admin) -> Self {
        Self { api, admin }
    }

    /// Answers a path that is there, and 404 in etcd's words for everything else.
    pub(super) async fn answer(&self, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return Self::refuse(method, uri.path());
        }
        if let Some(page) = health_pages(Some(&self.api), method, uri.path()) {
            return page;
        }
        match uri.path() {
            "/metrics" => {
                // Off the thread that serves connections: the text is long, and some of it is read
                // from files.
                let admin = self.admin.clone();
                let made = tokio::task::spawn_blocking(move || admin.metrics()).await;
                made.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "metrics\n"))
            }
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.admin.readyz(uri.query().is_some_and(|q| q.contains("verbose"))),
            _ => not_found(),
        }
    }

    fn refuse(method: &Method, path: &str) -> Response<Full<Bytes>> {
        let known = matches!(path, "/metrics" | "/livez" | "/readyz")
            || health_pages(None, &Method::GET, path).is_some();
        if !known {
            return not_found();
        }
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        if method == Method::HEAD {
            *response.body_mut() = Full::default();
        }
        response
    }
}

fn not_found() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    // These structures always serialise.
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
