//! The keys and certificates of a cluster: what is stored and the time in, what should be stored
//! out.
//!
//! Leaves come and go; see [`leaf`]. Authorities and the service-account key stay; see
//! [`authority`] and [`service_account`]. One that is lost while certificates that it signed are
//! still there is an error, not a reason to make another: the cluster goes on with the
//! certificates that it has, and the user brings the Secret back from a backup, or deletes the
//! signed Secrets as well to begin anew.
//!
//! What reloads by itself, so that a renewal restarts nothing (Kubernetes 1.36): kube-apiserver's
//! serving certificate, client CA and front-proxy CA (`k8s.io/apiserver/pkg/server/options`), its
//! front-proxy, kubelet and store client certificates (read at each handshake), the controller
//! manager's signing certificate and the certificate files of a kubeconfig (client-go), and every
//! program of our own. What doesn't: the service-account keys and the controller manager's
//! `--root-ca-file`; pod templates carry a hash of those.

mod authority;
mod digest;
mod inventory;
mod kubeconfig;
mod leaf;
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

use crate::build::labels;
use crate::build::names::Names;
use crate::children::Lifetime;
use crate::validate::ValidatedCluster;
use authority::{SigningAuthority, common_name};
use inventory::LeafSpec;
use leaf::Verdict;
use secrets::{AUTHORITY, CERTIFICATE, Entries, KEY};
use x509::Facts;

/// How far clocks may be apart: a certificate is valid from this long before it is made.
pub(crate) const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// An authority with less left than this is worth a warning.
const AUTHORITY_NOTICE: SignedDuration = SignedDuration::from_hours(180 * 24);

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
    let planner = Planner {
        cluster,
        names: Names::of(cluster),
        leaves: inventory::leaves(cluster),
        stored,
        now,
        keys,
    };
    planner.plan()
}

/// What every step of a plan looks at.
struct Planner<'a> {
    cluster: &'a ValidatedCluster,
    names: Names,
    leaves: Vec<LeafSpec>,
    stored: &'a BTreeMap<String, Secret>,
    now: Timestamp,
    keys: &'a dyn KeySource,
}

impl Planner<'_> {
    fn plan(&self) -> Result<PkiPlan, PkiError> {
        let mut secrets = Vec::new();
        let mut warnings = Vec::new();
        let mut authorities = BTreeMap::new();
        for authority in Authority::ALL {
            let (signing, planned) = self.authority(authority)?;
            let at = signing.facts.not_after;
            if at <= self.now + AUTHORITY_NOTICE {
                let secret = self.names.child(authority.suffix());
                warnings.push(Warning::AuthorityExpiry { secret, at });
            }
            authorities.insert(authority, signing);
            secrets.push(planned);
        }
        secrets.push(self.service_account()?);
        // Looked at once a day even if nothing is due: a plan is cheap and clocks are set.
        let mut next_rotation = self.now + SignedDuration::from_hours(24);
        for leaf in &self.leaves {
            let Some(authority) = authorities.get(&leaf.authority) else { continue };
            let (planned, renew_at) = self.leaf(leaf, authority)?;
            next_rotation = next_rotation.min(renew_at);
            secrets.push(planned);
        }
        let digests = Digests::of(&self.names, &secrets);
        Ok(PkiPlan { secrets, next_rotation, digests, warnings })
    }

    fn authority(
        &self,
        authority: Authority,
    ) -> Result<(SigningAuthority, PlannedSecret), PkiError> {
        let name = self.names.child(authority.suffix());
        let entries = if let Some(secret) = self.stored.get(&name) {
            secrets::entries(secret)
        } else {
            self.refuse_if_lost(&name, |leaf| leaf.authority == authority)?;
            SigningAuthority::create(&common_name(&name), self.now, self.keys)?
        };
        let signing = SigningAuthority::load(&entries)
            .map_err(|problem| PkiError::Damaged { secret: name.clone(), problem })?;
        let Facts { not_after, .. } = signing.facts;
        if not_after <= self.now {
            return Err(PkiError::Expired { secret: name, at: not_after });
        }
        let planned =
            self.planned(&name, "pki", SecretKind::Tls, Lifetime::ByDeletionPolicy, entries, None);
        Ok((signing, planned))
    }

    fn service_account(&self) -> Result<PlannedSecret, PkiError> {
        let name = self.names.service_account();
        let existing = self.stored.get(&name).map(secrets::entries);
        if existing.is_none() {
            // Any leaf says that the cluster has run, and so that tokens may be about.
            self.refuse_if_lost(&name, |_| true)?;
        }
        let entries =
            service_account::entries(existing.as_ref(), self.keys).map_err(
                |error| match error {
                    service_account::Error::Damaged(problem) => {
                        PkiError::Damaged { secret: name.clone(), problem }
                    }
                    service_account::Error::Generate(source) => PkiError::Generate(source),
                },
            )?;
        Ok(self.planned(
            &name,
            "pki",
            SecretKind::Opaque,
            Lifetime::ByDeletionPolicy,
            entries,
            None,
        ))
    }

    /// An error if a leaf of those meant is stored while `secret`, which it depends on, is not.
    fn refuse_if_lost(
        &self,
        secret: &str,
        depends: impl Fn(&LeafSpec) -> bool,
    ) -> Result<(), PkiError> {
        self.leaves
            .iter()
            .find(|leaf| depends(leaf) && self.stored.contains_key(&leaf.secret))
            .map_or(Ok(()), |leaf| {
                Err(PkiError::Lost { secret: secret.to_owned(), dependent: leaf.secret.clone() })
            })
    }

    fn leaf(
        &self,
        leaf: &LeafSpec,
        authority: &SigningAuthority,
    ) -> Result<(PlannedSecret, Timestamp), PkiError> {
        let rotation = self.cluster.rotation;
        let known = self.stored.get(&leaf.secret).map(secrets::entries);
        let verdict = leaf::assess(leaf, known.as_ref(), &authority.facts, rotation, self.now);
        let (mut entries, issued, renew_at) = match verdict {
            Verdict::Keep { renew_at } => {
                let mut known = known.unwrap_or_default();
                known.retain(|name, _| name == CERTIFICATE || name == KEY);
                (known, None, renew_at)
            }
            Verdict::Issue(reason) => {
                let not_after = self.now + rotation.leaf_validity;
                let (certificate, key) = authority.issue(leaf, self.now, not_after, self.keys)?;
                let entries = Entries::from([
                    (CERTIFICATE.to_owned(), certificate.into_bytes()),
                    (KEY.to_owned(), key.into_bytes()),
                ]);
                let renew_at = leaf::next_renewal(&authority.facts, rotation, self.now);
                (entries, Some(reason), renew_at)
            }
        };
        entries.insert(AUTHORITY.to_owned(), authority.certificate_pem.clone());
        let mut kind = SecretKind::Tls;
        if let Some(kubeconfig) = &leaf.kubeconfig {
            let text = kubeconfig.render(&entries).map_err(|error| PkiError::Kubeconfig {
                secret: leaf.secret.clone(),
                message: error.to_string(),
            })?;
            entries.insert(kubeconfig.entry.to_owned(), text.into_bytes());
            kind = SecretKind::Opaque;
        }
        let planned =
            self.planned(&leaf.secret, leaf.component, kind, leaf.lifetime, entries, issued);
        Ok((planned, renew_at))
    }

    fn planned(
        &self,
        name: &str,
        component: &str,
        kind: SecretKind,
        lifetime: Lifetime,
        entries: Entries,
        issued: Option<Reason>,
    ) -> PlannedSecret {
        let existing = self.stored.get(name);
        let data = secrets::data(entries);
        let change = match existing {
            None => Change::Create,
            Some(secret) if secret.data.as_ref() == Some(&data) => Change::Keep,
            Some(_) => Change::Update,
        };
        // A Secret's type can't be changed; one restored with another type serves as well.
        let type_ = existing
            .and_then(|secret| secret.type_.clone())
            .unwrap_or_else(|| kind.as_str().to_owned());
        let mut metadata = labels::metadata(&self.names, name, component);
        metadata.resource_version =
            existing.and_then(|secret| secret.metadata.resource_version.clone());
        let secret = Secret { metadata, data: Some(data), type_: Some(type_), ..Secret::default() };
        PlannedSecret { secret, lifetime, change, issued }
    }
}

#[derive(Debug, Clone, Copy)]
enum SecretKind {
    Tls,
    Opaque,
}

impl SecretKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "kubernetes.io/tls",
            Self::Opaque => "Opaque",
        }
    }
}
