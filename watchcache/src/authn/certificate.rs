//! The certificates of one client connection and what they are worth.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ClientCa, Identity};

/// What a connection's client certificate is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is none, or it names no one.
    Silent,
    /// It names this user.
    Accepted(Arc<Identity>),
    /// It is not accepted, for this reason.
    Rejected(Arc<str>),
}

/// The certificates that a client has shown. kube-apiserver verifies them for every request; here
/// the verdict is kept until the client CA changes or a certificate of the chain runs out.
#[derive(Debug, Default)]
pub struct PeerCertificates {
    chain: Vec<CertificateDer<'static>>,
    as_client: Mutex<Option<Kept>>,
    as_proxy: Mutex<Option<Kept>>,
}

#[derive(Clone, Debug)]
struct Kept {
    verdict: Verdict,
    generation: u64,
    until: u64,
}

impl PeerCertificates {
    /// The chain, the client's own certificate first; empty where none was shown.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, ..Self::default() }
    }

    /// What the chain is worth at `now` as a client's own.
    #[must_use]
    pub fn verdict(&self, ca: &ClientCa, now: UnixTime) -> Verdict {
        self.judge(&self.as_client, ca, now)
    }

    /// The same as that of a proxy, which may name others.
    pub(super) fn verdict_as_proxy(&self, ca: &ClientCa, now: UnixTime) -> Verdict {
        self.judge(&self.as_proxy, ca, now)
    }

    fn judge(&self, last: &Mutex<Option<Kept>>, ca: &ClientCa, now: UnixTime) -> Verdict {
        let Some((own, intermediates)) = self.chain.split_first() else { return Verdict::Silent };
        if !ca.is_configured() {
            return Verdict::Silent;
        }
        let mut last = last.lock();
        if let Some(kept) = last.as_ref()
            && kept.generation == ca.generation()
            && now.as_secs() <= kept.until
        {
            return kept.verdict.clone();
        }
        let generation = ca.generation();
        let (verdict, until) = match ca.verify(own, intermediates, now) {
            Err(problem) => (Verdict::Rejected(problem), now.as_secs()),
            Ok(()) => match Identity::from_certificate(own) {
                Ok(Some(identity)) => (Verdict::Accepted(Arc::new(identity)), expiry(&self.chain)),
                Ok(None) => (Verdict::Silent, expiry(&self.chain)),
                Err(error) => (Verdict::Rejected(error.to_string().into()), expiry(&self.chain)),
            },
        };
        *last = Some(Kept { verdict: verdict.clone(), generation, until });
        verdict
    }
}

/// The first second of Unix time at which a certificate of the chain is no longer valid, less one.
fn expiry(chain: &[CertificateDer<'_>]) -> u64 {
    chain
        .iter()
        .map(|der| {
            X509Certificate::from_der(der).map_or(0, |(_, certificate)| {
                u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
            })
        })
        .min()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Pki;

    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_verdict_ends_with_the_certificate_and_with_the_ca() {
        let pki = Pki::new("client-ca");
        let other = Pki::new("other-ca");
        let start = 1_700_000_000;
        let (der, _) = pki.client_valid("alice", &["g"], start, start + DAY);
        let peer = PeerCertificates::new(vec![der]);
        let ca = ClientCa::from_pem(pki.ca_pem().as_bytes()).unwrap();
        assert!(matches!(peer.verdict(&ca, at(start - 10)), Verdict::Rejected(_)));
        assert!(matches!(peer.verdict(&ca, at(start + 10)), Verdict::Accepted(_)));
        assert!(matches!(peer.verdict(&ca, at(start + DAY - 1)), Verdict::Accepted(_)));
        ca.replace(other.ca_pem().as_bytes()).unwrap();
        assert!(matches!(peer.verdict(&ca, at(start + DAY - 1)), Verdict::Rejected(_)));
        ca.replace(pki.ca_pem().as_bytes()).unwrap();
        assert!(matches!(peer.verdict(&ca, at(start + DAY - 1)), Verdict::Accepted(_)));
        assert!(matches!(peer.verdict(&ca, at(start + DAY + 2)), Verdict::Rejected(_)));
        assert!(ca.replace(b"no certificate").is_err());
    }

    #[test]
    fn without_a_certificate_there_is_no_opinion() {
        let ca = ClientCa::from_pem(Pki::new("client-ca").ca_pem().as_bytes()).unwrap();
        assert_eq!(PeerCertificates::default().verdict(&ca, at(0)), Verdict::Silent);
    }

    #[test]
    fn a_server_certificate_is_not_a_client_certificate() {
        let pki = Pki::new("client-ca");
        let (der, _) = pki.server(&["localhost"]);
        let ca = ClientCa::from_pem(pki.ca_pem().as_bytes()).unwrap();
        let verdict = PeerCertificates::new(vec![der]).verdict(&ca, UnixTime::now());
        assert!(matches!(verdict, Verdict::Rejected(_)));
    }

    #[test]
    fn without_a_client_ca_certificates_say_nothing() {
        let (der, _) = Pki::new("client-ca").client("alice", &[]);
        let verdict = PeerCertificates::new(vec![der]).verdict(&ClientCa::none(), UnixTime::now());
        assert_eq!(verdict, Verdict::Silent);
    }
}
