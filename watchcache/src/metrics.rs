//! Metrics of the front door. Names begin with `megacluster_watchcache_`.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::audit::Counts;
use crate::limits::Bounded;

/// A pool's name, shared so that counting copies no text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolLabel(pub Arc<str>);

impl EncodeLabelValue for PoolLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        (&*self.0).encode(encoder)
    }
}

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The pool it went to, or would have.
    pub pool: PoolLabel,
    /// Kubernetes verb, or `other`.
    pub verb: &'static str,
    /// Code of the answer.
    pub code: u16,
}

/// Labels of an upstream latency.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LatencyLabels {
    /// The pool.
    pub pool: PoolLabel,
    /// Kubernetes verb, or `other`.
    pub verb: &'static str,
}

/// Labels of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BackendLabels {
    /// Its pool.
    pub pool: String,
    /// Its address and port.
    pub address: String,
}

/// Why something was counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The reason.
    pub reason: &'static str,
}

/// Whether something worked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// `success` or `error`.
    pub result: &'static str,
}

/// The front door's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds until a backend's answer began; without long-running requests.
    pub upstream_seconds: Family<LatencyLabels, Histogram>,
    /// Requests sent again to a backend.
    pub retries: Family<ReasonLabels, Counter>,
    /// Requests turned away at a bound.
    pub shed: Family<ReasonLabels, Counter>,
    /// Requests being served, long-running ones aside.
    pub in_flight: Bounded,
    /// Watches and other long-running requests being served.
    pub watches: Bounded,
    /// Client connections.
    pub connections: Bounded,
    /// Client connections closed at the bound.
    pub connections_refused: Counter,
    /// TLS handshakes with clients that failed.
    pub handshake_errors: Counter,
    /// Requests whose client certificate was not accepted.
    pub certificates_rejected: Counter,
    /// HTTP/2 connections that clients were told to leave.
    pub goaways: Family<ReasonLabels, Counter>,
    /// Reads of many objects that the cache is answering.
    pub expensive_reads: Gauge,
    /// Requests that the cache answered, by verb.
    pub cache_answers: Family<ReasonLabels, Counter>,
    /// Requests for cached resources that went on to a kube-apiserver, by reason.
    pub cache_passes: Family<ReasonLabels, Counter>,
    /// Answers of the cache whose objects were read from the store, by verb.
    pub cache_store_reads: Family<ReasonLabels, Counter>,
    /// Requests that a peer answered, by verb.
    pub cache_peer_reads: Family<ReasonLabels, Counter>,
    /// Audit records, by what became of them.
    pub audit_events: Counts,
    /// Whether a backend is ready.
    pub backend_ready: Family<BackendLabels, Gauge>,
    /// Look-ups of a pool's host that failed.
    pub resolve_errors: Counter,
    /// Readings of a changed configuration.
    pub config_reloads: Family<ResultLabels, Counter>,
    /// Readings of a changed client CA.
    pub client_ca_reloads: Family<ResultLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream_seconds: Family::new_with_constructor(|| {
                // 0.25 ms to about 67 s.
                Histogram::new(exponential_buckets(0.000_25, 4.0, 10))
            }),
            retries: Family::default(),
            shed: Family::default(),
            in_flight: Bounded::default(),
            watches: Bounded::default(),
            connections: Bounded::default(),
            connections_refused: Counter::default(),
            handshake_errors: Counter::default(),
            certificates_rejected: Counter::default(),
            goaways: Family::default(),
            expensive_reads: Gauge::default(),
            cache_answers: Family::default(),
            cache_passes: Family::default(),
            cache_store_reads: Family::default(),
            cache_peer_reads: Family::default(),
            audit_events: Counts::default(),
            backend_ready: Family::default(),
            resolve_errors: Counter::default(),
            config_reloads: Family::default(),
            client_ca_reloads: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("megacluster_watchcache");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register(
            "upstream_response_seconds",
            "Seconds until a backend's answer began, long-running requests aside",
            self.upstream_seconds.clone(),
        );
        registry.register("retries", "Requests sent again", self.retries.clone());
        registry.register("shed", "Requests turned away with 429, by bound", self.shed.clone());
        registry.register(
            "in_flight_requests",
            "Requests being served, long-running ones aside",
            self.in_flight.gauge(),
        );
        registry.register(
            "watches",
            "Watches and other long-running requests being served",
            self.watches.gauge(),
        );
        registry.register("connections", "Client connections", self.connections.gauge());
        registry.register(
            "connections_refused",
            "Client connections closed at the bound",
            self.connections_refused.clone(),
        );
        registry.register(
            "handshake_errors",
            "TLS handshakes with clients that failed",
            self.handshake_errors.clone(),
        );
        registry.register(
            "client_certificates_rejected",
            "Requests whose client certificate was not accepted",
            self.certificates_rejected.clone(),
        );
        registry.register(
            "goaways",
            "HTTP/2 connections that clients were told to leave",
            self.goaways.clone(),
        );
        registry.register(
            "expensive_reads",
            "Reads of many objects that the cache is answering",
            self.expensive_reads.clone(),
        );
        registry.register(
            "cache_answers",
            "Requests that the cache answered, by verb",
            self.cache_answers.clone(),
        );
        registry.register(
            "cache_passes",
            "Requests for cached resources that went on to a kube-apiserver",
            self.cache_passes.clone(),
        );
        registry.register(
            "cache_store_reads",
            "Answers of the cache whose objects were read from the store, by verb",
            self.cache_store_reads.clone(),
        );
        registry.register(
            "cache_peer_reads",
            "Requests for another part that its front door answered, by verb",
            self.cache_peer_reads.clone(),
        );
        registry.register(
            "audit_events",
            "Audit records: written, dropped since too many waited, failed to be written",
            self.audit_events.clone(),
        );
        registry.register(
            "backend_ready",
            "Whether a backend is ready",
            self.backend_ready.clone(),
        );
        registry.register(
            "resolve_errors",
            "Look-ups of a pool's host that failed",
            self.resolve_errors.clone(),
        );
        registry.register(
            "config_reloads",
            "Readings of a changed configuration",
            self.config_reloads.clone(),
        );
        registry.register(
            "client_ca_reloads",
            "Readings of a changed client CA",
            self.client_ca_reloads.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Certificates replaced",
            megacluster_service::tls::reloads(),
        );
        registry.register(
            "certificate_reload_errors",
            "Certificates not replaced since the new files can't be used",
            megacluster_service::tls::reload_errors(),
        );
    }
}

/// The verb as a label: what clients can make up is one value.
#[must_use]
pub fn verb_label(verb: &str) -> &'static str {
    const VERBS: [&str; 15] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "proxy",
        "post",
        "put",
        "head",
        "options",
        "connect",
        "trace",
    ];
    VERBS.into_iter().find(|known| *known == verb).unwrap_or("other")
}
