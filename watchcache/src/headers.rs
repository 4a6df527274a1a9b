//! Headers on their way through. A request's headers are treated in one order that must not
//! change: first what belongs to the hop goes (a client may name any header in `Connection`), then
//! every identity the client claims, and only then are ours written.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, EXPECT, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method};

use crate::authn::Credentials;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The part for which another front door asks. It counts only where that has shown that it is one.
pub const PART: HeaderName = HeaderName::from_static("x-megacluster-part");

/// Makes a client's request headers those of the request to a kube-apiserver.
pub fn to_backend(headers: &mut HeaderMap, credentials: &Credentials, client: IpAddr) {
    strip_hop_by_hop(headers);
    // Answered by the front door's own HTTP/1.1 server.
    headers.remove(EXPECT);
    strip_identity(headers);
    headers.remove(PART);
    append_forwarded_for(headers, client);
    if let Credentials::Identity(identity) = credentials {
        // The certificate decided; should the backend refuse the front-proxy identity, it must
        // not go on to try the token.
        headers.remove(AUTHORIZATION);
        identity.write(headers);
    }
}

/// Removes every header whose name claims an identity: `X-Remote-…` in any case, also spelled
/// with underscores, which some servers read as dashes.
pub fn strip_identity(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| claims_identity(name.as_str())) {
        return;
    }
    let claims: Vec<HeaderName> =
        headers.keys().filter(|name| claims_identity(name.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

fn claims_identity(name: &str) -> bool {
    const PREFIX: &[u8] = b"x-remote-";
    let name = name.as_bytes();
    name.len() >= PREFIX.len()
        && name.iter().zip(PREFIX).all(|(byte, expected)| {
            let byte = if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
            byte == *expected
        })
}

/// Removes what concerns one hop only (RFC 9110, 7.6.1; the list of Go's
/// `net/http/httputil.ReverseProxy` without `Trailer`, which goes on since trailers do).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    let trailers = headers.get_all(TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Adds the client's address to the chain, folded into one line
/// (`k8s.io/apimachinery/pkg/util/net.AppendForwardedForHeader`).
fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let client = client.to_canonical().to_string();
    let mut chain = Vec::new();
    for prior in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(prior.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.as_bytes());
    // Parts that were header values make a header value.
    if let Ok(value) = HeaderValue::from_bytes(&chain) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// The protocol that a request wants to change to, as
/// `k8s.io/apimachinery/pkg/util/httpstream.IsUpgradeRequest` sees it. HTTP/1.1 only.
#[must_use]
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    if asked { headers.get(UPGRADE).cloned() } else { None }
}

/// Puts an upgrade back after the hop's headers were removed.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Whether a request may be sent twice without a difference for the cluster.
#[must_use]
pub fn is_repeatable(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::authn::Identity;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn claimed_identities_go() {
        let mut map = headers(&[
            ("X-Remote-User", "admin"),
            ("x-remote-group", "system:masters"),
            ("X-REMOTE-UID", "1"),
            ("X-Remote-Extra-Scopes", "all"),
            ("X_Remote_User", "admin"),
            ("x_remote-group", "system:masters"),
            ("X-Remote_Extra_x", "y"),
            ("Impersonate-User", "bob"),
            ("X-MegaCluster-Part", "1"),
            ("Audit-ID", "7"),
        ]);
        to_backend(&mut map, &Credentials::Anonymous, CLIENT);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["audit-id", "impersonate-user", "x-forwarded-for"]);
    }

    /// A header named in Connection is removed; ours must not be.
    #[test]
    fn connection_can_not_remove_the_identity() {
        let identity = Arc::new(Identity::of_front_door());
        let mut map = headers(&[
            ("connection", "close, X-Remote-User, x-remote-group, X-Forwarded-For, authorization"),
            ("authorization", "Bearer x"),
            ("x-remote-user", "admin"),
        ]);
        to_backend(&mut map, &Credentials::Identity(identity), CLIENT);
        assert_eq!(map["x-remote-user"], "system:megacluster-watchcache");
        assert_eq!(map.get_all("x-remote-user").iter().count(), 1);
        assert_eq!(map["x-forwarded-for"], "192.0.2.1");
        assert!(!map.contains_key(AUTHORIZATION));
        assert!(!map.contains_key(CONNECTION));
    }

    #[test]
    fn hop_by_hop_headers_go_and_others_stay() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "X-Sum"),
            ("accept", "application/json"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "te", "trailer"]);
        assert_eq!(map[TE], "trailers");
    }

    #[test]
    fn forwarded_for_grows() {
        let mut map = headers(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2")]);
        append_forwarded_for(&mut map, "::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(map["x-forwarded-for"], "10.0.0.1, 10.0.0.2, 192.0.2.1");
        assert_eq!(map.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn upgrades_are_seen() {
        let upgrade = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(upgrade_of(&upgrade).unwrap(), "SPDY/3.1");
        assert!(upgrade_of(&headers(&[("upgrade", "SPDY/3.1")])).is_none());
        assert!(upgrade_of(&headers(&[("connection", "Upgrade")])).is_none());
    }

    proptest! {
        /// Whatever a client sends, the backend reads the identity we wrote, and no other.
        #[test]
        fn no_identity_is_smuggled(
            lines in proptest::collection::vec(
                ("([xX][-_][rR][eE][mM][oO][tT][eE][-_](user|Group|UID|Extra-[a-z%]{1,4})|\
                   connection|te|upgrade|[a-zA-Z_-]{1,12})",
                 "(close|upgrade|x-remote-user|X_Remote_Group|[ -~]{0,12})(, [a-z-]{1,14}){0,3}"),
                0..12,
            ),
            certificate in any::<bool>(),
        ) {
            let mut map = HeaderMap::new();
            for (name, value) in &lines {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                    map.append(name, value);
                }
            }
            let identity = Arc::new(Identity::of_front_door());
            let credentials = if certificate {
                Credentials::Identity(identity.clone())
            } else {
                Credentials::Anonymous
            };
            to_backend(&mut map, &credentials, CLIENT);
            let mut ours = HeaderMap::new();
            if certificate {
                identity.write(&mut ours);
            }
            let claims: HeaderMap = map
                .iter()
                .filter(|(name, _)| name.as_str().replace('_', "-").starts_with("x-remote"))
                .filter(|(name, _)| name.as_str().len() > "x-remote".len())
                .filter(|(name, _)| claims_identity(name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            prop_assert_eq!(claims, ours);
            prop_assert!(!map.contains_key(CONNECTION));
            prop_assert_eq!(map.get_all(X_FORWARDED_FOR).iter().count(), 1);
        }
    }
}
