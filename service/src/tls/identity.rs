//! Who a certificate names.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;

/// A certificate's subject as Kubernetes reads it
/// (`k8s.io/apiserver/pkg/authentication/request/x509`): the common name is the user, each
/// organization a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// CN; empty where the subject has none.
    pub common_name: String,
    /// Every O, in the certificate's order.
    pub organizations: Vec<String>,
}

/// Reads the subject of a certificate that was verified before.
pub fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, TlsError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| TlsError::Certificate(error.to_string()))?;
    let subject = parsed.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|error| TlsError::Certificate(format!("subject: {error}")))
    };
    Ok(PeerIdentity {
        common_name: subject.iter_common_name().next().map(text).transpose()?.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
    })
}
