//! What a stored certificate and key say, read once and compared many times.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a stored certificate or key can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The Secret has no such entry, or it is empty.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The entry holds no PEM block of a certificate that parses.
    #[error("{0} holds no readable certificate")]
    Certificate(&'static str),
    /// The entry holds no private key that this operator can sign with.
    #[error("{0} holds no readable private key")]
    Key(&'static str),
    /// Certificate and key belong to different pairs.
    #[error("certificate and private key do not belong together")]
    Mismatch,
    /// A certificate that should sign others may not.
    #[error("the certificate is not a certificate authority")]
    NotAnAuthority,
}

/// The parts of a certificate that decide whether it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) common_name: String,
    pub(crate) organization: Option<String>,
    /// DNS names and IP addresses of the subject alternative name extension, as text.
    pub(crate) names: BTreeSet<String>,
    pub(crate) server: bool,
    pub(crate) client: bool,
    pub(crate) authority: bool,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    public_key: Vec<u8>,
    der: Vec<u8>,
}

impl Facts {
    /// Reads the first certificate of a PEM bundle; `entry` names it in errors.
    pub(crate) fn parse(pem: &[u8], entry: &'static str) -> Result<Self, Problem> {
        let damaged = || Problem::Certificate(entry);
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| damaged())?;
        let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(|_| damaged())?;
        let usage = certificate.extended_key_usage().map_err(|_| damaged())?;
        let constraints = certificate.basic_constraints().map_err(|_| damaged())?;
        let alternatives = certificate.subject_alternative_name().map_err(|_| damaged())?;
        let validity = certificate.validity();
        let subject = certificate.subject();
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().map(str::to_owned).map_err(|_| damaged())
        };
        Ok(Self {
            common_name: subject
                .iter_common_name()
                .next()
                .map(text)
                .transpose()?
                .unwrap_or_default(),
            organization: subject.iter_organization().next().map(text).transpose()?,
            names: alternatives
                .map(|extension| extension.value.general_names.iter().map(name_text).collect())
                .unwrap_or_default(),
            server: usage.as_ref().is_some_and(|extension| extension.value.server_auth),
            client: usage.as_ref().is_some_and(|extension| extension.value.client_auth),
            authority: constraints.is_some_and(|extension| extension.value.ca),
            not_before: instant(validity.not_before.timestamp()).ok_or_else(damaged)?,
            not_after: instant(validity.not_after.timestamp()).ok_or_else(damaged)?,
            public_key: certificate.public_key().raw.to_vec(),
            der: block.contents.clone(),
        })
    }

    /// Whether `issuer`'s key made this certificate's signature.
    pub(crate) fn signed_by(&self, issuer: &Self) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(&self.der) else { return false };
        let Ok((_, issuer)) = X509Certificate::from_der(&issuer.der) else { return false };
        certificate.issuer() == issuer.subject()
            && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// Whether `key` is the private half of this certificate's key.
    pub(crate) fn belongs_to(&self, key: &KeyPair) -> bool {
        self.public_key == key.subject_public_key_info()
    }
}

fn instant(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

fn name_text(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(octets) => {
            address(octets).map_or_else(|| format!("{octets:02x?}"), |address| address.to_string())
        }
        // Names of other kinds are never issued here; their text makes the sets differ.
        other => other.to_string(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// Reads a PEM private key; `entry` names it in errors.
pub(crate) fn private_key(pem: &[u8], entry: &'static str) -> Result<KeyPair, Problem> {
    std::str::from_utf8(pem)
        .ok()
        .and_then(|text| KeyPair::from_pem(text).ok())
        .ok_or(Problem::Key(entry))
}
