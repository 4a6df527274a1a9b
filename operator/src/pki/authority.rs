//! Certificate authorities: made once, kept for good.
//!
//! Everything that trusts a cluster trusts its authorities by content, so a new one in the place
//! of a lost one cuts off every kubelet and client without a word. The rules are therefore:
//! a valid authority is never replaced; a damaged one is an error; a missing one is made only
//! while nothing that it signed exists, and is an error otherwise.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::inventory::LeafSpec;
use super::secrets::{CERTIFICATE, Entries, KEY, entry};
use super::x509::{Facts, Problem, private_key};
use super::{CLOCK_SKEW, KeySource, PkiError};

/// Ten years, as kubeadm gives its authorities.
const VALIDITY: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// The largest common name that X.520 allows (`ub-common-name`).
const COMMON_NAME_LIMIT: usize = 64;

/// One authority with its key, ready to sign.
#[derive(Debug)]
pub(crate) struct SigningAuthority {
    pub(crate) facts: Facts,
    /// The certificate as stored, handed to whoever has to trust it.
    pub(crate) certificate_pem: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl SigningAuthority {
    /// Reads an authority from its Secret's entries.
    pub(crate) fn load(entries: &Entries) -> Result<Self, Problem> {
        let certificate = entry(entries, CERTIFICATE)?;
        let facts = Facts::parse(certificate, CERTIFICATE)?;
        let key = private_key(entry(entries, KEY)?, KEY)?;
        if !facts.authority {
            return Err(Problem::NotAnAuthority);
        }
        if !facts.belongs_to(&key) {
            return Err(Problem::Mismatch);
        }
        let text =
            std::str::from_utf8(certificate).map_err(|_| Problem::Certificate(CERTIFICATE))?;
        let issuer =
            Issuer::from_ca_cert_pem(text, key).map_err(|_| Problem::Certificate(CERTIFICATE))?;
        Ok(Self { facts, certificate_pem: certificate.to_vec(), issuer })
    }

    /// Makes a self-signed authority and the entries of its Secret.
    pub(crate) fn create(
        common_name: &str,
        now: Timestamp,
        keys: &dyn KeySource,
    ) -> Result<Entries, PkiError> {
        let key = keys.generate()?;
        let mut params = CertificateParams::default();
        set_subject(&mut params, common_name, None);
        set_validity(&mut params, now - CLOCK_SKEW, now + VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params.self_signed(&key)?;
        Ok(BTreeMap::from([
            (CERTIFICATE.to_owned(), certificate.pem().into_bytes()),
            (KEY.to_owned(), key.serialize_pem().into_bytes()),
        ]))
    }

    /// Signs a leaf for a fresh key, valid until `not_after` or the authority's own end.
    pub(crate) fn issue(
        &self,
        leaf: &LeafSpec,
        now: Timestamp,
        not_after: Timestamp,
        keys: &dyn KeySource,
    ) -> Result<(String, String), PkiError> {
        let key = keys.generate()?;
        let mut params = CertificateParams::new(leaf.names.iter().cloned().collect::<Vec<_>>())
            .map_err(|source| PkiError::Name { secret: leaf.secret.clone(), source })?;
        set_subject(&mut params, &leaf.common_name, leaf.organization);
        set_validity(&mut params, now - CLOCK_SKEW, not_after.min(self.facts.not_after));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        // An elliptic-curve key signs only; key encipherment would need an RSA key.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if leaf.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// The longest prefix of `name` that fits into a common name.
pub(crate) fn common_name(name: &str) -> String {
    name.chars().take(COMMON_NAME_LIMIT).collect()
}

fn set_subject(params: &mut CertificateParams, common_name: &str, organization: Option<&str>) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
}

fn set_validity(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    // rcgen's time type comes from a crate that nothing else here needs.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |at: Timestamp| {
        std::time::Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default())
    };
    params.not_before = epoch + since(from);
    params.not_after = epoch + since(until);
}
