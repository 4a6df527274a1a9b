//! Requests that change the protocol: exec, attach and port-forward by SPDY/3.1 or WebSocket.
//! HTTP/1.1 only; a WebSocket over HTTP/2 (extended CONNECT) is not offered, as by
//! kube-apiserver.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::{Asked, Client, ResponseBody, Router};
use crate::api::{Failure, Reason};
use crate::authn::Credentials;
use crate::headers::{set_upgrade, strip_hop_by_hop, upgrade_of};
use crate::limits::Permit;
use crate::metrics::ReasonLabels;
use crate::upstream::{Lease, RequestBody, SendError};

const MAX_ATTEMPTS: usize = 3;

impl Router {
    pub(super) async fn upgrade(
        &self,
        asked: &Asked,
        credentials: &Credentials,
        (connection, permit): (&Arc<Client>, Permit),
        protocol: HeaderValue,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let with_certificate = matches!(credentials, Credentials::Identity(_));
        let client = hyper::upgrade::on(&mut request);
        let (mut parts, _) = request.into_parts();
        let uri = super::forward::target(&mut parts, true, asked)?;
        set_upgrade(&mut parts.headers, protocol);
        let make = || {
            let mut request = Request::new(RequestBody::Empty);
            *request.method_mut() = parts.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = parts.headers.clone();
            request
        };
        let (mut response, lease) = self.send_upgrade(asked, with_certificate, make).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, body) = response.into_parts();
            strip_hop_by_hop(&mut parts.headers);
            parts.version = Version::default();
            return Ok(Response::from_parts(
                parts,
                ResponseBody::passing(body, lease, (connection.clone(), permit), None),
            ));
        }
        let backend = hyper::upgrade::on(&mut response);
        let protocol = upgrade_of(response.headers());
        let (mut parts, _) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = protocol {
            set_upgrade(&mut parts.headers, protocol);
        }
        parts.version = Version::default();
        let cut = self.cut.clone();
        self.upgrades.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = tunnel(client, backend, lease, permit) => {}
            }
        });
        Ok(Response::from_parts(parts, ResponseBody::Own(None)))
    }

    async fn send_upgrade(
        &self,
        asked: &Asked,
        with_certificate: bool,
        make: impl Fn() -> Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let mut avoided: Vec<SocketAddr> = Vec::new();
        for _ in 0..MAX_ATTEMPTS {
            let Some(backend) = asked.pool.choose(asked.load(), &avoided) else { break };
            match backend.send_upgrade(with_certificate, make()).await {
                Ok(answered) => return Ok(answered),
                Err(SendError::Connect(error)) => {
                    debug!(backend = %backend.address(), %error, "upgrade");
                    if let Some(observation) = error.observation() {
                        backend.observe(observation);
                    }
                    avoided.push(backend.address());
                    self.metrics.retries.get_or_create(&ReasonLabels { reason: "connect" }).inc();
                }
                Err(error) => {
                    debug!(backend = %backend.address(), %error, "upgrade");
                    return Err(Failure::new(
                        Reason::BadGateway,
                        "the kube-apiserver broke off; the request may have been carried out",
                    ));
                }
            }
        }
        let pool = asked.pool.name();
        Err(Failure::new(
            Reason::ServiceUnavailable,
            format!("no kube-apiserver of pool {pool:?} takes the request"),
        ))
    }
}

/// Copies both ways until either side ends, as
/// `k8s.io/apimachinery/pkg/util/proxy/upgradeaware.go` does: neither protocol goes on when one
/// side has closed.
async fn tunnel(client: OnUpgrade, backend: OnUpgrade, _lease: Lease, _permit: Permit) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            debug!(%error, "upgrade");
            return;
        }
    };
    let (mut from_client, mut to_client) = split(client);
    let (mut from_backend, mut to_backend) = split(backend);
    let ended = tokio::select! {
        ended = tokio::io::copy(&mut from_client, &mut to_backend) => ended,
        ended = tokio::io::copy(&mut from_backend, &mut to_client) => ended,
    };
    if let Err(error) = ended {
        debug!(%error, "upgraded connection");
    }
    // Both may be gone already.
    let _ = tokio::join!(to_client.shutdown(), to_backend.shutdown());
}

type Half = TokioIo<Upgraded>;

fn split(upgraded: Upgraded) -> (tokio::io::ReadHalf<Half>, tokio::io::WriteHalf<Half>) {
    tokio::io::split(TokioIo::new(upgraded))
}
