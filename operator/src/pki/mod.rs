//! The keys and certificates of a cluster: what is stored and the time in, what should be stored
//! out.
//!
//! Leaves come and go. Authorities and the service-account key stay: one that is lost while
//! certificates that it signed are still there is an error, not a reason to make another. The
//! cluster goes on with the certificates that it has, and the user brings the Secret back from a
//! backup, or deletes the signed Secrets as well to begin anew.
//!
//! What reloads by itself, so that a renewal restarts nothing (Kubernetes 1.36): kube-apiserver's
//! serving certificate, client CA and front-proxy CA (`k8s.io/apiserver/pkg/server/options`), its
//! front-proxy, kubelet and store client certificates (read at each handshake), the controller
//! manager's signing certificate and the certificate files of a kubeconfig (client-go), and the
//! TLS ports of every program of our own. What doesn't: the service-account keys, the authority
//! of the store, the controller manager's `--root-ca-file`, and the scheduler's client of the API.
//! Pod templates carry a fingerprint of those ([`Digests`]).

mod authority;
mod digest;
mod inventory;
mod kubeconfig;
mod leaf;
mod planner;
mod secrets;
mod service_account;
#[cfg(test)]
mod tests;
mod x509;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use rcgen::KeyPair;

pub use digest::Digests;
pub use inventory::{ADMIN_KUBECONFIG, Authority, COMPONENT_KUBECONFIG, FRONT_PROXY_CLIENT};
pub use leaf::Reason;
pub use x509::Problem;

use crate::children::Lifetime;
use crate::validate::ValidatedCluster;
use planner::Planner;

/// How far clocks may be apart: a certificate is valid from this long before it is made.
pub(crate) const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Makes keys: the only randomness of the plan, handed in.
pub trait KeySource {
    /// A fresh ECDSA P-256 key.
    fn generate(&self) -> Result<KeyPair, rcgen::Error>;
}

/// Keys from the operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemKeys;

impl KeySource for SystemKeys {
    fn generate(&self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
    }
}

/// What has to be done with a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing as to its data, which is stored like this.
    Keep,
    /// It must be created, and creating must fail if it exists by now: an authority must not be
    /// overwritten on the word of a stale cache.
    Create,
    /// Its data must be updated, at the `resourceVersion` that it carries.
    Update,
}

/// A Secret as it should be.
#[derive(Debug, Clone)]
pub struct PlannedSecret {
    /// Name, labels, type and data; if it is stored, the `resourceVersion` that the plan is based
    /// on, so that a write on the word of a stale cache is refused as a conflict.
    pub secret: Secret,
    /// What becomes of it when the MegaCluster is deleted.
    pub lifetime: Lifetime,
    /// What has to be done with it.
    pub change: Change,
    /// Why a certificate in it was issued, if one was.
    pub issued: Option<Reason>,
}

/// Something that goes on working for now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// An authority's end is near. Its renewal takes a new one and is not done by the operator.
    #[error("the certificate authority in Secret {secret} expires at {at}")]
    AuthorityExpiry { secret: String, at: Timestamp },
}

/// All Secrets of a cluster's PKI.
#[derive(Debug, Clone)]
pub struct PkiPlan {
    /// In the order in which they must be written: authorities and keys first, so that a leaf
    /// never exists without what signed it.
    pub secrets: Vec<PlannedSecret>,
    /// When the plan must be made again at the latest.
    pub next_rotation: Timestamp,
    /// What pod templates say of keys that a process reads only when it starts.
    pub digests: Digests,
    pub warnings: Vec<Warning>,
}

/// Why there is no plan. Nothing is written then, and what runs goes on running.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// An authority or the service-account key is gone, but not what depends on it.
    #[error(
        "Secret {secret} is missing, but {dependent}, which depends on it, exists: restore it \
         from a backup, or delete the dependent Secrets too to begin with new keys"
    )]
    Lost { secret: String, dependent: String },
    /// An authority or the service-account key can't be read.
    #[error("Secret {secret} is damaged ({problem}): restore it from a backup")]
    Damaged { secret: String, problem: Problem },
    /// An authority's life is over.
    #[error("the certificate authority in Secret {secret} expired at {at}")]
    Expired { secret: String, at: Timestamp },
    /// A name that can't stand in a certificate.
    #[error("the names of the certificate in Secret {secret} are not valid: {source}")]
    Name { secret: String, source: rcgen::Error },
    /// A key or certificate couldn't be made.
    #[error("making a key or certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A kubeconfig couldn't be written.
    #[error("writing the kubeconfig of Secret {secret}: {message}")]
    Kubeconfig { secret: String, message: String },
}

impl PkiError {
    /// The reason of a condition, and the label of a metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "AuthorityLost",
            Self::Damaged { .. } => "AuthorityDamaged",
            Self::Expired { .. } => "AuthorityExpired",
            Self::Name { .. } => "InvalidCertificateName",
            Self::Generate(_) => "CertificateGenerationFailed",
            Self::Kubeconfig { .. } => "KubeconfigFailed",
        }
    }
}

/// Plans all Secrets of the PKI from those that are stored, by name.
pub fn plan(
    cluster: &ValidatedCluster,
    stored: &BTreeMap<String, Secret>,
    now: Timestamp,
    keys: &dyn KeySource,
) -> Result<PkiPlan, PkiError> {
    Planner::new(cluster, stored, now, keys).plan()
}
