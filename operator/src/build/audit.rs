//! The audit policy: a file of the kube-apiservers and, for what it answers from its cache, of the
//! front door. Both record on their standard output.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::fingerprint::fingerprint;
use super::labels;
use super::names::Names;
use super::pods::Mount;
use crate::children::{Children, Lifetime, Stage};
use crate::validate::ValidatedCluster;

const COMPONENT: &str = super::apiserver::COMPONENT;
const FILE: &str = "policy.yaml";
const DIRECTORY: &str = "/etc/megacluster-audit";

/// Where the policy's file is, where there is one.
pub(super) fn policy_file(cluster: &ValidatedCluster) -> Option<String> {
    cluster.api_servers.audit_policy.as_ref().map(|_| format!("{DIRECTORY}/{FILE}"))
}

/// Named by its content: who reads it reads it once, and is replaced where it changes.
fn name(names: &Names, policy: &str) -> String {
    names.child(&format!("audit-policy-{}", fingerprint(&[policy.as_bytes()])))
}

pub(super) fn mount(cluster: &ValidatedCluster, names: &Names) -> Option<Mount> {
    let policy = cluster.api_servers.audit_policy.as_ref()?;
    Some(Mount::Config { volume: "audit", config_map: name(names, policy), path: DIRECTORY })
}

pub(super) fn add(cluster: &ValidatedCluster, children: &mut Children) {
    let Some(policy) = &cluster.api_servers.audit_policy else { return };
    let names = Names::of(cluster);
    let config_map = ConfigMap {
        metadata: labels::metadata(&names, &name(&names, policy), COMPONENT),
        immutable: Some(true),
        data: Some(BTreeMap::from([(FILE.to_owned(), policy.clone())])),
        ..ConfigMap::default()
    };
    children.add(cluster, Stage::Foundation, Lifetime::Owned, config_map);
}
