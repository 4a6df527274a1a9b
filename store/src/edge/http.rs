//! `/health` and `/version` in etcd's JSON form (etcd `server/etcdserver/api/etcdhttp`), for the
//! admin port and for plain HTTP requests on the client port.

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
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
            Some(json(status, &EtcdHealth { health, reason }))
        }
        "/version" => Some(json(
            StatusCode::OK,
            &Version { etcdserver: ETCD_VERSION, etcdcluster: "3.6.0", storage: "3.6.0" },
        )),
        _ => None,
    }
}

/// A page of the client port: [`health_pages`], and 404 in etcd's words for everything else.
pub(super) fn page(api: &Api, method: &Method, path: &str) -> Response<Full<Bytes>> {
    health_pages(Some(api), method, path).unwrap_or_else(|| {
        let mut response = Response::new(Full::from("404 page not found\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    })
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
