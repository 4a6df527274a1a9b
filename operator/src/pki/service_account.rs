//! The key that signs service-account tokens, and every key that ever did.
//!
//! `sa.key` signs; `sa.pub` is what kube-apiserver verifies with: the public half of `sa.key` and
//! all earlier ones, so that tokens signed before a rotation stay good until they expire. To
//! rotate, put another private key into `sa.key`, or take the entry out to have one made.
//!
//! ECDSA P-256 (ES256) is among the algorithms of kube-apiserver's token signer
//! (`k8s.io/kubernetes/pkg/serviceaccount/jwt.go`).

use super::KeySource;
use super::secrets::{Entries, entry};
use super::x509::{Problem, private_key};

/// The private key that signs.
pub(crate) const SIGNING_KEY: &str = "sa.key";
/// The public keys that verify, the signing one among them.
pub(crate) const VERIFYING_KEYS: &str = "sa.pub";

const PUBLIC_KEY_LABEL: &str = "PUBLIC KEY";

/// Why there are no entries.
#[derive(Debug)]
pub(crate) enum Error {
    Damaged(Problem),
    Generate(rcgen::Error),
}

/// The entries a service-account Secret should have, given those it has.
///
/// A signing key that is there but can't be read is an error: it may be a user's mistake in a
/// rotation, and another key in its place would hide that.
pub(crate) fn entries(stored: Option<&Entries>, keys: &dyn KeySource) -> Result<Entries, Error> {
    let empty = Entries::new();
    let stored = stored.unwrap_or(&empty);
    let known = stored.get(VERIFYING_KEYS).map(Vec::as_slice).unwrap_or_default();
    let (signing, public) = if let Ok(pem) = entry(stored, SIGNING_KEY) {
        let key = private_key(pem, SIGNING_KEY).map_err(Error::Damaged)?;
        (pem.to_vec(), key.public_key_pem())
    } else {
        let key = keys.generate().map_err(Error::Generate)?;
        (key.serialize_pem().into_bytes(), key.public_key_pem())
    };
    let verifying = if contains(known, public.as_bytes()) {
        known.to_vec()
    } else {
        [public.as_bytes(), known].concat()
    };
    let mut entries = stored.clone();
    entries.insert(SIGNING_KEY.to_owned(), signing);
    entries.insert(VERIFYING_KEYS.to_owned(), verifying);
    Ok(entries)
}

fn contains(bundle: &[u8], key: &[u8]) -> bool {
    let wanted = public_keys(key);
    let known = public_keys(bundle);
    !wanted.is_empty() && wanted.iter().all(|key| known.contains(key))
}

/// The contents of all public-key blocks of a PEM bundle; whatever else is in it is passed over,
/// as kube-apiserver does.
fn public_keys(bundle: &[u8]) -> Vec<Vec<u8>> {
    x509_parser::pem::Pem::iter_from_buffer(bundle)
        .filter_map(Result::ok)
        .filter(|block| block.label == PUBLIC_KEY_LABEL)
        .map(|block| block.contents)
        .collect()
}
