//! Plans against stored Secrets and the time, without a cluster.

mod authorities;
mod kubeconfigs;
mod leaves;
mod plans;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::inventory::{LeafSpec, leaves};
use super::*;
use crate::build::fixtures::{LARGE, SMALL, cluster, cluster_with};
use crate::validate::Facts as Found;

const DAY: SignedDuration = SignedDuration::from_hours(24);

type Stored = BTreeMap<String, Secret>;

fn start() -> Timestamp {
    "2026-11-22T02:00:00Z".parse().unwrap()
}

fn plan_at(cluster: &ValidatedCluster, stored: &Stored, now: Timestamp) -> PkiPlan {
    plan(cluster, stored, now, &SystemKeys).unwrap()
}

fn refusal(cluster: &ValidatedCluster, stored: &Stored, now: Timestamp) -> PkiError {
    plan(cluster, stored, now, &SystemKeys).unwrap_err()
}

fn name(planned: &PlannedSecret) -> &str {
    planned.secret.metadata.name.as_deref().unwrap()
}

/// What is stored once a plan is carried out.
fn store(plan: &PkiPlan) -> Stored {
    plan.secrets.iter().map(|planned| (name(planned).to_owned(), planned.secret.clone())).collect()
}

fn fresh(cluster: &ValidatedCluster) -> Stored {
    store(&plan_at(cluster, &Stored::new(), start()))
}

/// The Secrets in which a certificate was issued, and why.
fn issued(plan: &PkiPlan) -> Vec<(&str, Reason)> {
    plan.secrets.iter().filter_map(|planned| Some((name(planned), planned.issued?))).collect()
}

fn text(stored: &Stored, secret: &str, entry: &str) -> String {
    String::from_utf8(stored[secret].data.as_ref().unwrap()[entry].0.clone()).unwrap()
}

fn set(stored: &mut Stored, secret: &str, entry: &str, value: &str) {
    let data = stored.get_mut(secret).unwrap().data.get_or_insert_default();
    data.insert(entry.to_owned(), ByteString(value.as_bytes().to_vec()));
}

fn unset(stored: &mut Stored, secret: &str, entry: &str) {
    stored.get_mut(secret).unwrap().data.as_mut().unwrap().remove(entry).unwrap();
}

fn authorities(stored: &Stored) -> Vec<Secret> {
    ["cluster-ca", "front-proxy-ca", "store-ca", "scheduler-ca", "service-account"]
        .map(|suffix| stored[&format!("prod-{suffix}")].clone())
        .to_vec()
}

/// Whether TLS peers that trust `authority` accept the certificate for its purpose and name.
fn accepted(stored: &Stored, leaf: &LeafSpec, authority: &str, at: Timestamp) -> bool {
    let certificate = |secret: &str| {
        CertificateDer::from_pem_slice(text(stored, secret, "tls.crt").as_bytes()).unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority)).unwrap();
    let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(at.as_second()).unwrap(),
    ));
    let end_entity = certificate(&leaf.secret);
    let client = !leaf.client
        || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap()
            .verify_client_cert(&end_entity, &[], at)
            .is_ok();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
    client
        && leaf.names.iter().all(|name| {
            let host = name.replace('*', "some-pod");
            let host = ServerName::try_from(host).unwrap();
            verifier.verify_server_cert(&end_entity, &[], &host, &[], at).is_ok()
        })
}
