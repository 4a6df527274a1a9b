//! Which credentials a request goes on with, in kube-apiserver's order
//! (`k8s.io/kubernetes/pkg/kubeapiserver/authenticator/config.go`): the client certificate; if it
//! says nothing or is not accepted, a bearer token; if none of them is there, anonymous. A
//! certificate that is not accepted never becomes anonymous.

use std::sync::Arc;

use http::{HeaderMap, header};

use super::{Identity, Verdict};

/// Subprotocol in which a browser's WebSocket carries a token
/// (`k8s.io/apiserver/pkg/authentication/request/websocket/protocol.go`).
const TOKEN_PROTOCOL: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// What the kube-apiserver authenticates the request by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// The front-proxy headers, over a connection with the front-proxy client certificate.
    Identity(Arc<Identity>),
    /// The client's own token, over a connection without a client certificate.
    Token,
    /// Nothing.
    Anonymous,
    /// The request is answered with 401.
    Refused,
}

/// Decides for one request of a connection whose client certificate has this verdict.
#[must_use]
pub fn decide(verdict: &Verdict, headers: &HeaderMap) -> Credentials {
    match verdict {
        Verdict::Accepted(identity) => Credentials::Identity(identity.clone()),
        Verdict::Silent | Verdict::Rejected(_) if has_token(headers) => Credentials::Token,
        Verdict::Silent => Credentials::Anonymous,
        Verdict::Rejected(_) => Credentials::Refused,
    }
}

fn has_token(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| is_bearer(value.as_bytes()))
        || is_websocket(headers)
            && headers
                .get_all(header::SEC_WEBSOCKET_PROTOCOL)
                .iter()
                .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
                .any(|protocol| {
                    protocol
                        .trim_ascii()
                        .strip_prefix(TOKEN_PROTOCOL)
                        .is_some_and(|token| !token.is_empty())
                })
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether the value is `Bearer` and a token, as
/// `k8s.io/apiserver/pkg/authentication/request/bearertoken` reads it.
fn is_bearer(value: &[u8]) -> bool {
    let mut parts = value.trim_ascii().splitn(3, |byte| *byte == b' ');
    let scheme = parts.next().unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"bearer") && parts.next().is_some_and(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn the_certificate_comes_first() {
        let identity = Arc::new(Identity::of_front_door());
        let accepted = Verdict::Accepted(identity.clone());
        let token = with("authorization", "Bearer x");
        assert_eq!(decide(&accepted, &token), Credentials::Identity(identity));
    }

    #[test]
    fn a_rejected_certificate_is_never_anonymous() {
        let rejected = Verdict::Rejected("expired".into());
        assert_eq!(decide(&rejected, &HeaderMap::new()), Credentials::Refused);
        for none in ["Basic x", "Bearer", "Bearer ", "Bearer  x", "", "Bearerx"] {
            assert_eq!(decide(&rejected, &with("authorization", none)), Credentials::Refused);
        }
        for token in ["Bearer x", "bearer x", " BEARER x y z"] {
            assert_eq!(decide(&rejected, &with("authorization", token)), Credentials::Token);
        }
    }

    #[test]
    fn tokens_and_anonymous() {
        assert_eq!(decide(&Verdict::Silent, &HeaderMap::new()), Credentials::Anonymous);
        let basic = with("authorization", "Basic x");
        assert_eq!(decide(&Verdict::Silent, &basic), Credentials::Anonymous);
        let mut browser = with(
            "sec-websocket-protocol",
            "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA",
        );
        assert_eq!(decide(&Verdict::Silent, &browser), Credentials::Anonymous);
        browser.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        assert_eq!(decide(&Verdict::Silent, &browser), Credentials::Token);
        let mut empty = with("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.");
        empty.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        assert_eq!(decide(&Verdict::Silent, &empty), Credentials::Anonymous);
    }
}
