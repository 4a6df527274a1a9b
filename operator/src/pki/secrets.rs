//! Entries of the PKI's Secrets and their comparison with what is stored.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::x509::Problem;

/// The authority's certificate in the Secret of a leaf.
pub(crate) const AUTHORITY: &str = "ca.crt";
/// A certificate, the leaf first.
pub(crate) const CERTIFICATE: &str = "tls.crt";
/// A private key in PKCS#8.
pub(crate) const KEY: &str = "tls.key";

/// A Secret's entries by name.
pub(crate) type Entries = BTreeMap<String, Vec<u8>>;

/// One entry that must be there.
pub(crate) fn entry<'a>(entries: &'a Entries, name: &'static str) -> Result<&'a [u8], Problem> {
    match entries.get(name) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(Problem::Missing(name)),
    }
}

/// The entries of a stored Secret; none for one without data.
pub(crate) fn entries(secret: &Secret) -> Entries {
    secret.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone())).collect()
}

/// Entries in the form of a Secret's `data`.
pub(crate) fn data(entries: Entries) -> BTreeMap<String, ByteString> {
    entries.into_iter().map(|(name, value)| (name, ByteString(value))).collect()
}
