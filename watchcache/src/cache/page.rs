//! Continue tokens, which are kube-apiserver's own: a client may send to one what the other gave
//! (`k8s.io/apiserver/pkg/storage/continue.go`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const VERSION: &str = "meta.k8s.io/v1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

/// A place in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The revision that the list is of; none where the latest will do.
    pub at: Option<u64>,
    /// Keys from here on.
    pub from: String,
}

/// The part of keys that a token leaves out: that of the namespace asked for.
fn prefix(namespace: Option<&str>) -> String {
    namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default()
}

/// Reads a token; none for one that kube-apiserver would refuse, or that neither of both gives.
#[must_use]
pub fn decode(text: &str, namespace: Option<&str>) -> Option<Place> {
    let token: Token = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let start = token.start.strip_prefix('/').unwrap_or(&token.start);
    // kube-apiserver refuses paths that are not clean.
    let clean = start.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if token.v != VERSION || token.rv == 0 || !clean {
        return None;
    }
    let at = (token.rv > 0).then(|| token.rv.cast_unsigned());
    Some(Place { at, from: prefix(namespace) + start })
}

/// The token for what comes after a key; empty where it can't be made. Where kube-apiserver reads
/// from its cache, its tokens begin with a slash.
#[must_use]
pub fn encode(cached: bool, revision: u64, last: &str, namespace: Option<&str>) -> String {
    let start = last.strip_prefix(&prefix(namespace)).unwrap_or(last);
    let slash = if cached { "/" } else { "" };
    let rv = i64::try_from(revision).unwrap_or(i64::MAX);
    let token = Token { v: VERSION.to_owned(), rv, start: format!("{slash}{start}\0") };
    serde_json::to_vec(&token).map(|json| URL_SAFE_NO_PAD.encode(json)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back() {
        for (namespace, key) in [(None, "a/p-1"), (Some("a"), "a/p-1"), (None, "node")] {
            for cached in [false, true] {
                let token = encode(cached, 7, key, namespace);
                let place = Place { at: Some(7), from: format!("{key}\0") };
                assert_eq!(decode(&token, namespace), Some(place));
            }
        }
    }

    #[test]
    fn tokens_of_nonsense() {
        let token = |json: &str| decode(&URL_SAFE_NO_PAD.encode(json), None);
        let latest = r#"{"v":"meta.k8s.io/v1","rv":-1,"start":"a/b\u0000"}"#;
        assert_eq!(token(latest), Some(Place { at: None, from: "a/b\0".to_owned() }));
        for bad in [
            r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#,
            r#"{"v":"meta.k8s.io/v1","rv":5,"start":""}"#,
            r#"{"v":"meta.k8s.io/v1","rv":5,"start":"../x"}"#,
            r#"{"v":"meta.k8s.io/v1","rv":5,"start":"a//b"}"#,
            r#"{"v":"other","rv":5,"start":"a"}"#,
            r#"{"v":"meta.k8s.io/v1"}"#,
            "[]",
        ] {
            assert_eq!(token(bad), None, "{bad}");
        }
        assert_eq!(decode("%", None), None);
    }
}
