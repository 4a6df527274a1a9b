//! The identity in a client certificate, and the front-proxy headers that hand it on.

use http::{HeaderMap, HeaderName, HeaderValue};
use x509_parser::der_parser::{Oid, oid};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::decode_path;

/// `X-Remote-User`.
pub(super) const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
/// `X-Remote-Uid`.
pub(super) const REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
/// `X-Remote-Group`, once for each group.
pub(super) const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
/// `X-Remote-Extra-` and the key `authentication.kubernetes.io/credential-id`, escaped as
/// client-go does (`k8s.io/client-go/transport/round_trippers.go`, `headerKeyEscape`).
pub(super) const REMOTE_CREDENTIAL_ID: HeaderName =
    HeaderName::from_static("x-remote-extra-authentication.kubernetes.io%2fcredential-id");

/// What begins the name of a header that says more of a user.
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// Group whose members may do everything.
const SYSTEM_MASTERS: &str = "system:masters";

/// The subject attribute that holds a user's UID (`k8s.io/apimachinery/pkg/apis/asn1`).
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// A certificate names no user that can be handed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate can't be parsed.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A part of the subject can't be handed on unchanged in a header. A blank at the end would
    /// be cut there, and so make one group into another.
    #[error("{part} can't be carried by a header unchanged")]
    NotAHeader {
        /// Which part.
        part: &'static str,
    },
    /// More than one UID, or an empty one.
    #[error("the subject must hold one UID that is not empty, or none")]
    Uid,
}

/// A user, as the headers to kube-apiserver name them. Its header values are shared, so that
/// adding them to a request copies no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    user: HeaderValue,
    uid: Option<HeaderValue>,
    groups: Vec<HeaderValue>,
    /// What else is known, by the headers' names.
    extra: Vec<(HeaderName, HeaderValue)>,
    privileged: bool,
}

impl Identity {
    /// Reads a verified certificate as `x509.CommonNameUserConversion` does: the last CN is the
    /// user, each O a group. None where there is no CN: the certificate then says nothing.
    pub fn from_certificate(der: &[u8]) -> Result<Option<Self>, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let mut user = None;
        let mut groups = Vec::new();
        let mut uids = Vec::new();
        let mut privileged = false;
        for attribute in certificate.subject().iter_attributes() {
            let oid = attribute.attr_type();
            let known = [OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, UID];
            if !known.contains(oid) {
                continue;
            }
            let text = attribute
                .as_str()
                .map_err(|error| IdentityError::Certificate(format!("subject: {error}")))?;
            if *oid == OID_X509_COMMON_NAME {
                user = Some(text);
            } else if *oid == UID {
                uids.push(text);
            } else {
                privileged |= text == SYSTEM_MASTERS;
                groups.push(carried("an organization", text)?);
            }
        }
        let Some(user) = user.filter(|name| !name.is_empty()) else { return Ok(None) };
        let uid = match uids[..] {
            [] => None,
            [uid] if !uid.is_empty() => Some(carried("the UID", uid)?),
            _ => return Err(IdentityError::Uid),
        };
        Ok(Some(Self {
            user: carried("the common name", user)?,
            uid,
            groups,
            extra: vec![(REMOTE_CREDENTIAL_ID, credential_id(der))],
            privileged,
        }))
    }

    /// An identity of the front door's own, for its health checks.
    #[must_use]
    pub fn of_front_door() -> Self {
        Self {
            user: HeaderValue::from_static("system:megacluster-watchcache"),
            uid: None,
            groups: Vec::new(),
            extra: vec![(REMOTE_CREDENTIAL_ID, HeaderValue::from_static("health-check"))],
            privileged: false,
        }
    }

    /// The user whom a proxy names, as kube-apiserver reads these headers
    /// (`k8s.io/apiserver/pkg/authentication/request/headerrequest/requestheader.go`); none where
    /// it names no one. Who has sent them must be known to be one.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let all = |name| headers.get_all(name).iter().filter(|value| !value.is_empty()).cloned();
        let groups: Vec<_> = all(REMOTE_GROUP).collect();
        let extra = headers.iter().filter(|(name, _)| name.as_str().starts_with(REMOTE_EXTRA));
        Some(Self {
            user: all(REMOTE_USER).next()?,
            uid: all(REMOTE_UID).next(),
            privileged: groups.iter().any(|group| group == SYSTEM_MASTERS),
            groups,
            extra: extra.map(|(name, value)| (name.clone(), value.clone())).collect(),
        })
    }

    /// The same in these groups; those that no header can carry are left out.
    #[must_use]
    pub fn in_groups(mut self, groups: &[String]) -> Self {
        self.groups.extend(groups.iter().filter_map(|group| carried("a group", group).ok()));
        self
    }

    /// Whether the user is in `system:masters`, whom no limit turns away.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// The user's name, for logs.
    #[must_use]
    pub fn user(&self) -> &HeaderValue {
        &self.user
    }

    /// User, UID and groups; none where one is not UTF-8.
    pub(crate) fn parts(&self) -> Option<(&str, &str, Vec<&str>)> {
        let uid = self.uid.as_ref().map_or(Some(""), text)?;
        let groups = self.groups.iter().map(text).collect::<Option<_>>()?;
        Some((text(&self.user)?, uid, groups))
    }

    /// What else is known, by its key; none where it is not UTF-8.
    pub(crate) fn extra(&self) -> Option<Vec<(String, &str)>> {
        let extra = self.extra.iter().map(|(name, value)| {
            let key = name.as_str().strip_prefix(REMOTE_EXTRA)?;
            Some((decode_path(key).into_owned(), text(value)?))
        });
        extra.collect()
    }

    /// Writes the identity's headers. What the client sent under these names is gone already.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(REMOTE_USER, self.user.clone());
        if let Some(uid) = &self.uid {
            headers.insert(REMOTE_UID, uid.clone());
        }
        for group in &self.groups {
            headers.append(REMOTE_GROUP, group.clone());
        }
        for (name, value) in &self.extra {
            headers.append(name.clone(), value.clone());
        }
    }
}

fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// A header value that arrives as it is: receivers cut blanks at both ends.
fn carried(part: &'static str, text: &str) -> Result<HeaderValue, IdentityError> {
    let trimmed = text.trim_matches([' ', '\t']);
    if trimmed.is_empty() || trimmed.len() != text.len() {
        return Err(IdentityError::NotAHeader { part });
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| IdentityError::NotAHeader { part })
}

/// `X509SHA256=` and the certificate's SHA-256 in hex.
fn credential_id(der: &[u8]) -> HeaderValue {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let mut text = String::from("X509SHA256=");
    for byte in digest.as_ref() {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("X509SHA256="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn identity(names: &[(DnType, &str)]) -> Result<Option<Identity>, IdentityError> {
        Identity::from_certificate(&certificate(names))
    }

    #[test]
    fn a_subject_becomes_headers() {
        let uid = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]);
        let der = certificate(&[
            (DnType::CommonName, "alice"),
            (DnType::OrganizationName, "system:masters"),
            (uid, "42"),
        ]);
        let identity = Identity::from_certificate(&der).unwrap().unwrap();
        assert!(identity.is_privileged());
        let mut headers = HeaderMap::new();
        identity.write(&mut headers);
        assert_eq!(headers["X-Remote-User"], "alice");
        assert_eq!(headers["X-Remote-Group"], "system:masters");
        assert_eq!(headers["X-Remote-Uid"], "42");
        let id = headers[REMOTE_CREDENTIAL_ID].to_str().unwrap();
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64);
    }

    /// Of a certificate with CN=first, CN=second, O=dev, O=ops, made by openssl.
    const TWO_OF_EACH: &str = "\
        MIIBszCCAVqgAwIBAgIUNaro8Dmbgh7Rw3yf32nx+dsLDoQwCgYIKoZIzj0EAwIwPTEOMAwGA1UEAwwFZmlyc3Qx\
        DzANBgNVBAMMBnNlY29uZDEMMAoGA1UECgwDZGV2MQwwCgYDVQQKDANvcHMwIBcNMjYxMTIyMDIzODUyWhgPMjEy\
        NjEwMjkwMjM4NTJaMD0xDjAMBgNVBAMMBWZpcnN0MQ8wDQYDVQQDDAZzZWNvbmQxDDAKBgNVBAoMA2RldjEMMAoG\
        A1UECgwDb3BzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjUcIenBx9m/yCq4iszBXL7plSu2KoKcx7ymhQbNc\
        Gzh/nMg1W3reaRjSo5vwN6t0yCORe6nu0I4Pgebg3wvNDKM2MDQwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0O\
        BBYEFP8+MDxdDcfQ7bPZGrJCTbav24K0MAoGCCqGSM49BAMCA0cAMEQCIFOdlgXX7rlR2YLFD6C0xMMOHIhTFxqT\
        pfCKH5Rkim1rAiASF92WyGDQQQUgiBAuVk5/4os6f7v8K3S7LZCy5/tgbg==";

    #[test]
    fn the_last_name_counts_and_every_group() {
        use base64::Engine as _;
        let text = TWO_OF_EACH.replace(' ', "");
        let der = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let identity = Identity::from_certificate(&der).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        identity.write(&mut headers);
        assert_eq!(headers["X-Remote-User"], "second");
        let groups: Vec<_> = headers.get_all("X-Remote-Group").iter().collect();
        assert_eq!(groups, ["dev", "ops"]);
    }

    #[test]
    fn a_subject_without_a_name_says_nothing() {
        assert_eq!(identity(&[(DnType::OrganizationName, "g")]), Ok(None));
        assert_eq!(identity(&[]), Ok(None));
    }

    /// "system:masters " is not "system:masters", but a header would make it so.
    #[test]
    fn names_that_a_header_would_change_are_refused() {
        for group in
            ["system:masters ", " system:masters", "\tsystem:masters", "a\nb", "a\r\nb", ""]
        {
            let names = [(DnType::CommonName, "mallory"), (DnType::OrganizationName, group)];
            assert!(matches!(identity(&names), Err(IdentityError::NotAHeader { .. })), "{group:?}");
        }
        for user in [" admin", "admin ", "a\u{0}b", " "] {
            assert!(identity(&[(DnType::CommonName, user)]).is_err(), "{user:?}");
        }
    }

    #[test]
    fn names_beyond_ascii_are_carried() {
        let identity = identity(&[(DnType::CommonName, "Zoë")]).unwrap().unwrap();
        assert_eq!(identity.user().as_bytes(), "Zoë".as_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(der in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Identity::from_certificate(&der);
        }

        /// What is carried arrives as it was.
        #[test]
        fn carried_text_is_unchanged(text in "\\PC{0,12}|[\\x00-\\x7f]{0,6}") {
            if let Ok(value) = carried("text", &text) {
                prop_assert_eq!(value.as_bytes(), text.as_bytes());
                prop_assert_eq!(text.trim_matches([' ', '\t']), text.as_str());
                prop_assert!(!text.bytes().any(|byte| byte == b'\n' || byte == b'\r' || byte == 0));
            }
        }
    }
}
