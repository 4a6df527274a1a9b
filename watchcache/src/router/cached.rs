//! Requests that the cache may answer.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;

use super::{Asked, Client, ResponseBody, Router};
use crate::api::{Failure, RequestInfo, first_value};
use crate::audit::{self, Received};
use crate::authn::Credentials;
use crate::cache::{Attributes, Bounds, Pass, Shard, Source, Unanswered, Wanted, gzip, selector};
use crate::headers::{PART, to_backend, upgrade_of};
use crate::limits::Permit;
use crate::metrics::ReasonLabels;

/// A request in the cache's terms.
pub(super) struct Question {
    shard: Arc<Shard>,
    wanted: Wanted,
    verb: &'static str,
    namespace: String,
    name: String,
    field_selector: String,
    label_selector: String,
    /// What its audit record begins with, where there are such records.
    received: Option<Received>,
}

impl Question {
    /// The part that it is about, where that is not held here.
    pub(super) fn part(&self) -> Option<u8> {
        match self.shard.source(&self.wanted.plan) {
            Source::Part(part) => Some(part),
            Source::Table | Source::Key | Source::Store => None,
        }
    }
}

/// The name that kube-apiserver asks its authorizers about: that of the path, or the one that a
/// field selector asks for (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`).
fn name_of(info: &RequestInfo<'_>, fields: &str) -> String {
    if !info.name.is_empty() {
        return info.name.to_owned();
    }
    let terms = selector::fields(fields).unwrap_or_default();
    let name = terms.into_iter().find(|term| term.equal && term.name == "metadata.name");
    name.map(|term| term.value).unwrap_or_default()
}

impl Router {
    /// What the cache is asked by a request; none where the request goes on.
    pub(super) fn plan(
        &self,
        request: &Request<Incoming>,
        info: &RequestInfo<'_>,
        query: &str,
        client: IpAddr,
    ) -> Option<Question> {
        let cache = self.cache.as_ref()?;
        let shard = cache.shard(info)?;
        let headers = request.headers();
        let verb = match info.verb.as_ref() {
            "get" => "get",
            "list" => "list",
            "watch" => "watch",
            _ => return None,
        };
        let shard = shard.map_err(|reason| self.passed(reason)).ok()?;
        let planned = if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            Err("impersonation")
        } else if upgrade_of(headers).is_some() {
            Err("upgrade")
        } else {
            crate::cache::plan(shard.kind, request.method(), info, query, headers, cache.gates())
        };
        let (plan, form) = planned.map_err(|reason| self.passed(reason)).ok()?;
        let text = |name| first_value(query, name).unwrap_or_default().into_owned();
        Some(Question {
            shard,
            wanted: Wanted { plan, form, gzip: gzip::is_accepted(headers) },
            verb,
            namespace: info.namespace.to_owned(),
            name: name_of(info, &text("fieldSelector")),
            field_selector: text("fieldSelector"),
            label_selector: text("labelSelector"),
            received: self.audit.as_ref().map(|_| Received::of(request, client)),
        })
    }

    fn passed(&self, reason: Pass) {
        self.metrics.cache_passes.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Has a peer answer that holds the part. Where none does, the permit comes back: the request
    /// goes on to a kube-apiserver.
    pub(super) async fn at_peer(
        &self,
        question: &Question,
        asked: &Asked,
        (part, uri): (u8, &Uri),
        (credentials, headers): (&Credentials, &HeaderMap),
        (client, permit): (&Arc<Client>, Permit),
    ) -> Result<Result<Response<ResponseBody>, Failure>, Permit> {
        if !matches!(credentials, Credentials::Identity(_) | Credentials::Token) {
            self.passed("identity");
            return Err(permit);
        }
        let Some(peer) = self.current.load().peers.get(&part).cloned() else {
            self.passed("part");
            return Err(permit);
        };
        let mut headers = headers.clone();
        to_backend(&mut headers, credentials, client.address);
        headers.insert(PART, HeaderValue::from(u16::from(part)));
        let asked = Asked { pool: peer, cached: None, ..*asked };
        let answer = self.forward_to_peer(&asked, headers, uri, (client, permit)).await;
        match &answer {
            Ok(_) => {
                let labels = ReasonLabels { reason: question.verb };
                self.metrics.cache_peer_reads.get_or_create(&labels).inc();
            }
            Err(_) => self.passed("part"),
        }
        answer
    }

    /// Answers from the cache, turns away, or gives the permit back: the request goes on then.
    pub(super) async fn cached(
        &self,
        question: &Question,
        asked: &Asked,
        (credentials, headers): (&Credentials, &HeaderMap),
        client: &Arc<Client>,
        permit: Permit,
    ) -> Result<Result<Response<ResponseBody>, Failure>, Permit> {
        let Some(cache) = &self.cache else { return Err(permit) };
        let Some(who) = cache.subject(&asked.pool, credentials, headers).await else {
            self.passed("identity");
            return Err(permit);
        };
        let what = Attributes {
            verb: question.verb,
            group: question.shard.kind.group,
            resource: question.shard.kind.resource,
            version: question.shard.kind.version,
            namespace: &question.namespace,
            name: &question.name,
            field_selector: &question.field_selector,
            label_selector: &question.label_selector,
        };
        let record = match (&self.audit, &question.received) {
            (Some(audit), Some(received)) => match audit.of(received, &who, &what) {
                audit::Wanted::Nothing => None,
                audit::Wanted::Record(record) => Some(record),
                audit::Wanted::Elsewhere => {
                    self.passed("audit");
                    return Err(permit);
                }
            },
            _ => None,
        };
        let bounds = Bounds {
            user: asked.limits.max_expensive_reads_per_user,
            kind: asked.limits.max_expensive_reads,
        };
        let wanted = (&question.wanted, bounds, client.number);
        let answer = cache.answer(&question.shard, &asked.pool, &who, &what, wanted);
        let (answer, reason) = match answer.await {
            Ok(answer) => answer,
            Err(Unanswered::Pass(reason)) => {
                self.passed(reason);
                return Err(permit);
            }
            Err(Unanswered::Busy(busy)) => {
                let failure = self.turned_away(busy.bound());
                if let Some(record) = record {
                    drop(record.begin(failure.reason.code().as_u16(), None));
                }
                return Ok(Err(failure));
            }
        };
        let verb = ReasonLabels { reason: question.verb };
        self.metrics.cache_answers.get_or_create(&verb).inc();
        if answer.from_store {
            self.metrics.cache_store_reads.get_or_create(&verb).inc();
        }
        let watch = asked.watch.then(|| self.watches.register(answer.content_type.as_bytes()));
        let held = (client.clone(), permit);
        let id = record.as_ref().and_then(|record| HeaderValue::from_str(record.id()).ok());
        let ending = record.map(|record| record.begin(StatusCode::OK.as_u16(), Some(reason)));
        let body = ResponseBody::cached(answer.pieces, held, watch, ending);
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        if let Some(id) = id {
            headers.insert(audit::AUDIT_ID, id);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if answer.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        if let Some(length) = answer.length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        Ok(Ok(response))
    }
}
