//! Passes a request on, to another backend if one does not take it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::debug;

use super::{Asked, Client, ResponseBody, Router, too_large};
use crate::api::{Failure, Reason};
use crate::authn::Credentials;
use crate::headers::{is_repeatable, strip_hop_by_hop};
use crate::limits::Permit;
use crate::metrics::{LatencyLabels, PoolLabel, ReasonLabels};
use crate::upstream::{Backend, Lane, Lease, RequestBody, RequestSource, SendError};

/// Times a request is sent at most.
const MAX_ATTEMPTS: usize = 5;

/// A request in the form that can be sent again and again.
struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: RequestSource,
}

/// What comes after an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Try again, and count it under this reason.
    Again(&'static str),
    /// Nothing of the request was acted on, and no attempt is left.
    Unavailable,
    /// It may have been acted on: the client must look.
    Lost,
}

/// Decides after a failed attempt. `again` is whether the body can be sent once more.
fn next(error: &SendError, method: &Method, again: bool, attempts_left: bool) -> Next {
    let (reason, effect) = match error {
        SendError::Connect(_) => ("connect", false),
        SendError::NotSent(_) => ("not-sent", false),
        SendError::Refused(_) => ("refused", false),
        SendError::Lost(_) => ("lost", !is_repeatable(method)),
    };
    match (effect, again && attempts_left) {
        (false, true) => Next::Again(reason),
        (false, false) => Next::Unavailable,
        (true, _) => Next::Lost,
    }
}

impl Router {
    pub(super) async fn forward(
        &self,
        asked: &Asked,
        credentials: &Credentials,
        (client, permit): (&Arc<Client>, Permit),
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let token =
            (*credentials == Credentials::Token).then(|| self.known_tokens.hash(request.headers()));
        let lane = match (credentials, token) {
            (Credentials::Identity(_), _) => Lane::Identity,
            (_, Some(token)) if self.known_tokens.is_known(token) => Lane::Token,
            _ => Lane::Unproven,
        };
        let (parts, body) = request.into_parts();
        let outgoing = outgoing(parts, body, lane, asked)?;
        let answered = self.attempts(asked, lane, &outgoing).await?;
        if let Some(token) = token {
            let refused = answered.0.status() == StatusCode::UNAUTHORIZED;
            self.known_tokens.observe(token, !refused);
        }
        Ok(self.passed_back(asked, answered, (client, permit)))
    }

    /// Passes a read on to a peer that holds its part, as the same client; none where no peer
    /// takes it.
    pub(super) async fn forward_to_peer(
        &self,
        asked: &Asked,
        headers: HeaderMap,
        uri: &Uri,
        (client, permit): (&Arc<Client>, Permit),
    ) -> Result<Result<Response<ResponseBody>, Failure>, Permit> {
        let mut request = Request::new(());
        (*request.uri_mut(), *request.headers_mut()) = (uri.clone(), headers);
        let (mut parts, ()) = request.into_parts();
        let uri = match target(&mut parts, false, asked) {
            Ok(uri) => uri,
            Err(failure) => return Ok(Err(failure)),
        };
        let (method, body) = (Method::GET, RequestSource::empty());
        let outgoing = Outgoing { method, uri, headers: parts.headers, body };
        // Tokens go this way, too: the certificate shows that a front door asks.
        match self.attempts(asked, Lane::Identity, &outgoing).await {
            Ok(answered) => Ok(Ok(self.passed_back(asked, answered, (client, permit)))),
            Err(failure) if failure.reason == Reason::ServiceUnavailable => Err(permit),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// A backend's answer on its way to the client.
    fn passed_back(
        &self,
        asked: &Asked,
        (response, lease): (Response<Incoming>, Lease),
        (client, permit): (&Arc<Client>, Permit),
    ) -> Response<ResponseBody> {
        let (mut parts, body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::default();
        let watch = asked.watch && parts.status.is_success();
        let watch = watch.then(|| {
            let kind = parts.headers.get(header::CONTENT_TYPE);
            self.watches.register(kind.map_or(&[], |kind| kind.as_bytes()))
        });
        Response::from_parts(
            parts,
            ResponseBody::passing(body, lease, (client.clone(), permit), watch),
        )
    }

    async fn attempts(
        &self,
        asked: &Asked,
        lane: Lane,
        outgoing: &Outgoing,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        // Backends that failed; most requests meet none.
        let mut avoided: Vec<SocketAddr> = Vec::new();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let unavailable = || {
                let pool = asked.pool.name();
                Failure::new(
                    Reason::ServiceUnavailable,
                    format!("no kube-apiserver of pool {pool:?} takes the request"),
                )
            };
            let Some(backend) = asked.pool.choose(asked.load(), &avoided) else {
                return Err(unavailable());
            };
            let Some(body) = outgoing.body.attempt() else { return Err(unavailable()) };
            let error = match self.attempt(asked, &backend, lane, outgoing, body).await {
                Ok(answered) => return Ok(answered),
                Err(Attempt::Deadline) => {
                    return Err(Failure::new(
                        Reason::Timeout,
                        "the kube-apiserver did not answer in time",
                    ));
                }
                Err(Attempt::Send(error)) => error,
            };
            debug!(pool = %asked.pool.name(), backend = %backend.address(), %error, attempt, "attempt failed");
            if outgoing.body.is_too_large() {
                return Err(too_large(asked.limits.max_request_bytes));
            }
            if let SendError::Connect(error) = &error
                && let Some(observation) = error.observation()
            {
                backend.observe(observation);
            }
            if matches!(error, SendError::Connect(_) | SendError::NotSent(_) | SendError::Lost(_)) {
                avoided.push(backend.address());
            }
            let again = outgoing.body.attempt().is_some();
            match next(&error, &outgoing.method, again, attempt < MAX_ATTEMPTS) {
                Next::Again(reason) => {
                    self.metrics.retries.get_or_create(&ReasonLabels { reason }).inc();
                }
                Next::Unavailable => return Err(unavailable()),
                Next::Lost => {
                    return Err(Failure::new(
                        Reason::BadGateway,
                        "the kube-apiserver broke off; the request may have been carried out",
                    ));
                }
            }
        }
    }

    async fn attempt(
        &self,
        asked: &Asked,
        backend: &Arc<Backend>,
        lane: Lane,
        outgoing: &Outgoing,
        body: RequestBody,
    ) -> Result<(Response<Incoming>, Lease), Attempt> {
        let request = || {
            let mut request = Request::new(body);
            *request.method_mut() = outgoing.method.clone();
            *request.uri_mut() = outgoing.uri.clone();
            *request.headers_mut() = outgoing.headers.clone();
            request
        };
        let send = backend.send(lane, asked.long_running, request);
        if asked.long_running {
            return send.await.map_err(Attempt::Send);
        }
        let start = Instant::now();
        let answered = tokio::time::timeout_at(start + self.options.response_deadline, send)
            .await
            .map_err(|_| Attempt::Deadline)?
            .map_err(Attempt::Send)?;
        let labels = LatencyLabels { pool: PoolLabel(asked.pool.name().clone()), verb: asked.verb };
        self.metrics.upstream_seconds.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
        Ok(answered)
    }
}

/// Why an attempt failed.
enum Attempt {
    Deadline,
    Send(SendError),
}

fn outgoing(
    mut parts: Parts,
    body: Incoming,
    lane: Lane,
    asked: &Asked,
) -> Result<Outgoing, Failure> {
    let uri = target(&mut parts, lane == Lane::Unproven, asked)?;
    Ok(Outgoing {
        method: parts.method,
        uri,
        headers: parts.headers,
        body: RequestSource::new(body, asked.limits.max_request_bytes),
    })
}

/// The target of the request to a backend: the client's own path and query, untouched, and the
/// host that the client asked for.
pub(super) fn target(parts: &mut Parts, http1: bool, asked: &Asked) -> Result<Uri, Failure> {
    let bad = |_| Failure::new(Reason::BadRequest, "the request's target can't be passed on");
    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = match parts.uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => parts
            .headers
            .get(header::HOST)
            .and_then(|host| Authority::try_from(host.as_bytes()).ok()),
    };
    let pool_authority = || {
        let (host, port) = (asked.pool.host(), asked.pool.port());
        let text =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Authority::try_from(text).map_err(bad)
    };
    let authority = authority.map_or_else(pool_authority, Ok)?;
    if http1 {
        let host = header::HeaderValue::from_str(authority.as_str());
        parts.headers.insert(
            header::HOST,
            host.map_err(|_| Failure::new(Reason::BadRequest, "the host can't be passed on"))?,
        );
        return Ok(Uri::from(path));
    }
    parts.headers.remove(header::HOST);
    let mut target = http::uri::Parts::default();
    target.scheme = Some(Scheme::HTTPS);
    target.authority = Some(authority);
    target.path_and_query = Some(path);
    Uri::from_parts(target)
        .map_err(|_| Failure::new(Reason::BadRequest, "the request's target can't be passed on"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::ConnectError;

    #[test]
    fn a_request_without_effect_goes_on_to_another_backend() {
        let error = SendError::Connect(ConnectError::Deadline);
        for method in [Method::GET, Method::POST, Method::DELETE] {
            assert_eq!(next(&error, &method, true, true), Next::Again("connect"));
            assert_eq!(next(&error, &method, false, true), Next::Unavailable);
            assert_eq!(next(&error, &method, true, false), Next::Unavailable);
        }
    }
}
