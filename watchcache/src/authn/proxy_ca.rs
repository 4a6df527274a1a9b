//! Who may name the users whom it asks for: another front door, or any proxy that shows a client
//! certificate of kube-apiserver's `--requestheader-client-ca-file`.

use std::sync::Arc;

use http::HeaderMap;
use rustls_pki_types::UnixTime;

use super::{ClientCa, Identity, PeerCertificates, Verdict};

/// The CAs of proxies' client certificates, and the names that these may have.
#[derive(Debug)]
pub struct ProxyCa {
    ca: ClientCa,
    /// Common names; any where there is none, as in kube-apiserver.
    names: Vec<String>,
}

impl ProxyCa {
    /// Proxies with certificates of this CA, under these names.
    #[must_use]
    pub fn new(ca: ClientCa, names: &[String]) -> Self {
        Self { ca, names: names.to_vec() }
    }

    /// The CAs.
    #[must_use]
    pub fn ca(&self) -> &ClientCa {
        &self.ca
    }

    /// Whether a connection is a proxy's. What it says of a user is believed then.
    #[must_use]
    pub fn trusts(&self, certificates: &PeerCertificates, now: UnixTime) -> bool {
        let Verdict::Accepted(proxy) = certificates.verdict_as_proxy(&self.ca, now) else {
            return false;
        };
        self.names.is_empty()
            || self.names.iter().any(|name| proxy.user().as_bytes() == name.as_bytes())
    }
}

/// The user whom a proxy names, if it names one.
#[must_use]
pub fn named(headers: &HeaderMap) -> Option<Arc<Identity>> {
    Identity::from_headers(headers).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Pki;

    #[test]
    fn a_proxy_is_known_by_its_certificate() {
        let (proxies, clients) = (Pki::new("front-proxy-ca"), Pki::new("client-ca"));
        let ca = || ClientCa::from_pem(proxies.ca_pem().as_bytes()).unwrap();
        let only = ProxyCa::new(ca(), &["front-proxy-client".to_owned()]);
        let any = ProxyCa::new(ca(), &[]);
        let now = UnixTime::now();
        let trusted = |certificates: Vec<_>| {
            let certificates = PeerCertificates::new(certificates);
            (only.trusts(&certificates, now), any.trusts(&certificates, now))
        };
        assert_eq!(trusted(vec![proxies.client("front-proxy-client", &[]).0]), (true, true));
        assert_eq!(trusted(vec![proxies.client("other", &[]).0]), (false, true));
        assert_eq!(trusted(vec![clients.client("front-proxy-client", &[]).0]), (false, false));
        assert_eq!(trusted(vec![proxies.server(&["front-proxy-client"]).0]), (false, false));
        assert_eq!(trusted(Vec::new()), (false, false));
    }

    #[test]
    fn a_proxy_names_users() {
        let pairs = [
            ("x-remote-user", ""),
            ("x-remote-user", "alice"),
            ("x-remote-user", "bob"),
            ("x-remote-group", "dev"),
            ("x-remote-group", ""),
            ("x-remote-group", "system:masters"),
            ("x-remote-uid", "7"),
            ("x-remote-extra-a%2fb", "1"),
            ("x-remote-extra-a%2fb", "2"),
            ("x_remote_user", "admin"),
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, http::HeaderValue::from_static(value));
        }
        let alice = named(&headers).unwrap();
        let (user, uid, groups) = alice.parts().unwrap();
        assert_eq!((user, uid, &groups[..]), ("alice", "7", &["dev", "system:masters"][..]));
        assert_eq!(alice.extra().unwrap(), [("a/b".to_owned(), "1"), ("a/b".to_owned(), "2")]);
        assert!(alice.is_privileged());
        // What is written is what was read.
        let mut written = HeaderMap::new();
        alice.write(&mut written);
        assert_eq!(named(&written).unwrap(), alice);
        headers.remove("x-remote-user");
        assert_eq!(named(&headers), None);
    }
}
