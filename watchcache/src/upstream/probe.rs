//! Health checks: `GET /readyz`, again and again.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::BodyExt;

use super::RequestBody;
use super::{Backend, Lane, Observation, SendError};
use crate::authn::Identity;
use crate::headers::PART;

const INTERVAL_MILLIS: u64 = 1_000;
/// Until the answer's end.
const DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of the answer that are read; the text is not looked at.
const MAX_ANSWER: usize = 64 * 1024;

/// Probes a backend until it is gone. The first probe comes at once.
pub(super) async fn run(backend: Arc<Backend>, identity: Arc<Identity>, of_peer: bool) {
    loop {
        let probe = tokio::time::timeout(DEADLINE, probe(&backend, &identity, of_peer));
        let observation = tokio::select! {
            () = backend.gone().cancelled() => return,
            observation = probe => observation.unwrap_or(Observation::Silent),
        };
        backend.observe(observation);
        // Jitter keeps the front doors from probing in step.
        let pause = Duration::from_millis(
            INTERVAL_MILLIS * 4 / 5 + rand::random_range(0..=INTERVAL_MILLIS * 2 / 5),
        );
        tokio::select! {
            () = backend.gone().cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// With the front-proxy certificate the probe also shows that the backend trusts it.
async fn probe(backend: &Backend, identity: &Identity, of_peer: bool) -> Observation {
    let lane = if backend.has_proxy_certificate() { Lane::Identity } else { Lane::Unproven };
    let request = || {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = Method::GET;
        let authority = backend.address().to_string();
        if lane == Lane::Identity {
            identity.write(request.headers_mut());
            if of_peer {
                // Of the front door itself, not of the kube-apiservers behind it.
                request.headers_mut().insert(PART, HeaderValue::from_static("any"));
            }
            *request.uri_mut() = Uri::builder()
                .scheme("https")
                .authority(authority)
                .path_and_query("/readyz")
                .build()
                .unwrap_or_default();
        } else {
            *request.uri_mut() = Uri::from_static("/readyz");
            if let Ok(host) = authority.parse() {
                request.headers_mut().insert(http::header::HOST, host);
            }
        }
        request
    };
    match backend.send(lane, false, request).await {
        Err(SendError::Connect(error)) => error.observation().unwrap_or(Observation::Silent),
        Err(_) => Observation::Silent,
        Ok((answer, mut lease)) => {
            let ready = answer.status() == StatusCode::OK;
            let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
            if body.collect().await.is_err() {
                return Observation::Silent;
            }
            lease.finish();
            if ready { Observation::Ready } else { Observation::NotReady }
        }
    }
}
