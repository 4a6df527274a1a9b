//! The plan, Secret by Secret: authorities, the service-account key, leaves.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;

use super::authority::{SigningAuthority, common_name};
use super::inventory::{self, LeafSpec};
use super::leaf::{self, Reason, Verdict};
use super::secrets::{self, AUTHORITY, CERTIFICATE, Entries, KEY};
use super::x509::Facts;
use super::{
    Authority, Change, Digests, KeySource, PkiError, PkiPlan, PlannedSecret, Warning,
    service_account,
};
use crate::build::labels;
use crate::build::names::Names;
use crate::children::Lifetime;
use crate::validate::ValidatedCluster;

/// An authority with less left than this is worth a warning.
const AUTHORITY_NOTICE: SignedDuration = SignedDuration::from_hours(180 * 24);

/// What every step of a plan looks at.
pub(super) struct Planner<'a> {
    cluster: &'a ValidatedCluster,
    names: Names,
    leaves: Vec<LeafSpec>,
    stored: &'a BTreeMap<String, Secret>,
    now: Timestamp,
    keys: &'a dyn KeySource,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        cluster: &'a ValidatedCluster,
        stored: &'a BTreeMap<String, Secret>,
        now: Timestamp,
        keys: &'a dyn KeySource,
    ) -> Self {
        let leaves = inventory::leaves(cluster);
        Self { cluster, names: Names::of(cluster), leaves, stored, now, keys }
    }

    pub(super) fn plan(&self) -> Result<PkiPlan, PkiError> {
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
