//! Fingerprints for pod templates of keys that a process reads only when it starts.

use super::inventory::COMPONENT_KUBECONFIG;
use super::secrets::{AUTHORITY, CERTIFICATE};
use super::service_account::{SIGNING_KEY, VERIFYING_KEYS};
use super::x509::private_key;
use super::{Authority, PlannedSecret};
use crate::build::fingerprint::fingerprint;
use crate::build::names::Names;

/// Values that change exactly when pods have to be restarted. Made from public halves only:
/// annotations are read by more people than Secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests {
    /// kube-apiserver: the service-account keys, the authority that the store is verified with.
    pub apiserver: String,
    /// kube-controller-manager: the signing service-account key and the root CA that it hands to
    /// every namespace.
    pub controller_manager: String,
    /// The scheduler: its client certificate, which kube's client reads once.
    pub scheduler: String,
}

impl Digests {
    pub(crate) fn of(names: &Names, secrets: &[PlannedSecret]) -> Self {
        let entry = |secret: &str, name: &str| {
            secrets
                .iter()
                .find(|planned| planned.secret.metadata.name.as_deref() == Some(secret))
                .and_then(|planned| planned.secret.data.as_ref()?.get(name))
                .map(|value| value.0.as_slice())
                .unwrap_or_default()
        };
        let service_account = names.service_account();
        let signing = private_key(entry(&service_account, SIGNING_KEY), SIGNING_KEY)
            .map(|key| key.public_key_pem())
            .unwrap_or_default();
        let authority = |authority: Authority| entry(&names.child(authority.suffix()), CERTIFICATE);
        let scheduler = names.child(&format!("scheduler-{COMPONENT_KUBECONFIG}"));
        Self {
            apiserver: fingerprint(&[
                signing.as_bytes(),
                entry(&service_account, VERIFYING_KEYS),
                authority(Authority::Store),
            ]),
            controller_manager: fingerprint(&[signing.as_bytes(), authority(Authority::Cluster)]),
            scheduler: fingerprint(&[entry(&scheduler, CERTIFICATE), entry(&scheduler, AUTHORITY)]),
        }
    }
}
