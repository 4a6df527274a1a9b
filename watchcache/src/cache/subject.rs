//! Who asks, as kube-apiserver's reviews name a user.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use serde::Deserialize;

use crate::authn::Identity;

/// A user (`UserInfo` of `authentication.k8s.io/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// Name.
    pub username: String,
    /// UID; empty where there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Subject {
    /// The user of a client certificate, or whom a proxy names; none where a part of it is not
    /// text.
    #[must_use]
    pub fn of(identity: &Identity) -> Option<Self> {
        let (user, uid, groups) = identity.parts()?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in identity.extra()? {
            extra.entry(key).or_default().push(value.to_owned());
        }
        Some(Self {
            username: user.to_owned(),
            uid: uid.to_owned(),
            groups: groups.into_iter().map(str::to_owned).collect(),
            extra,
        })
    }

    /// Its groups, among them the one of all who have shown who they are.
    #[must_use]
    pub fn all_groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        if !groups.contains(&"system:authenticated") {
            groups.push("system:authenticated");
        }
        groups
    }

    /// Whether it is someone: kube-apiserver treats those who have shown nothing in its own way.
    #[must_use]
    pub fn is_someone(&self) -> bool {
        !self.username.is_empty()
            && self.username != "system:anonymous"
            && !self.groups.iter().any(|group| group == "system:unauthenticated")
    }
}

/// The bearer token of a request, as
/// `k8s.io/apiserver/pkg/authentication/request/bearertoken` reads it.
#[must_use]
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let mut parts = value.trim_ascii().splitn(3, ' ');
    let scheme = parts.next()?;
    let token = parts.next().filter(|token| !token.is_empty())?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn tokens() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("  bEARER abc x").as_deref(), Some("abc"));
        for none in ["", "Bearer", "Bearer  abc", "Basic abc", "Bearerabc"] {
            assert_eq!(with(none), None, "{none}");
        }
    }

    #[test]
    fn nobody_is_not_someone() {
        let named = |name: &str| Subject { username: name.to_owned(), ..Subject::default() };
        assert!(named("alice").is_someone());
        assert!(!named("").is_someone() && !named("system:anonymous").is_someone());
        let groups = vec!["system:unauthenticated".to_owned()];
        assert!(!Subject { groups, ..named("alice") }.is_someone());
    }
}
