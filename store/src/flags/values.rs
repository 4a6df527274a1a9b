//! Values of flags: URLs to listen on, and durations as Go writes them.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// Why flags were refused.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// More than one member.
    #[error("--initial-cluster={0}: megacluster-store has one member")]
    Members(String),
    /// Client certificates without a CA.
    #[error("--client-cert-auth needs --trusted-ca-file")]
    NoClientCa,
    /// One of a pair.
    #[error("--cert-file and --key-file are given together or not at all")]
    HalfPair,
    /// https without a certificate.
    #[error("--listen-client-urls has an https URL: --cert-file and --key-file are needed")]
    NoCertificate,
    /// https for metrics.
    #[error("--listen-metrics-urls={0}: the admin port speaks http only")]
    MetricsTls(String),
    /// A bound of zero.
    #[error("--max-request-bytes, --max-txn-ops and --max-concurrent-streams must not be 0")]
    Zero,
    /// Not a URL to listen on.
    #[error("{0:?} is not of the form http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// A host without an address.
    #[error("{url}: {source}")]
    Resolve {
        /// The URL.
        url: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Not a duration.
    #[error("{0:?} is not a duration such as 5s, 100ms or 1h30m")]
    Duration(String),
}

/// Where to listen: `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// True for https.
    pub tls: bool,
    /// Host and port.
    pub host_port: String,
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host_port)
    }
}

impl FromStr for ListenUrl {
    type Err = FlagError;

    fn from_str(url: &str) -> Result<Self, FlagError> {
        let bad = || FlagError::Url(url.to_owned());
        let (scheme, host_port) = url.split_once("://").ok_or_else(bad)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        let host_port = host_port.trim_end_matches('/');
        let (host, port) = host_port.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self { tls, host_port: host_port.to_owned() })
    }
}

impl ListenUrl {
    /// One address of the host, of IPv4 if there is one: etcd's `localhost` is 127.0.0.1.
    pub(super) fn resolve(&self) -> Result<SocketAddr, FlagError> {
        let resolve = |source| FlagError::Resolve { url: self.to_string(), source };
        let found: Vec<SocketAddr> = self.host_port.to_socket_addrs().map_err(resolve)?.collect();
        let chosen = found.iter().find(|address| address.is_ipv4()).or(found.first());
        chosen.copied().ok_or_else(|| resolve(std::io::Error::other("the host has no address")))
    }
}

/// Parses a duration as Go's `time.ParseDuration` writes it, without a sign.
///
/// # Errors
/// [`FlagError::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, FlagError> {
    let bad = || FlagError::Duration(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        rest = &rest[unit_end..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, ms) in [("5s", 5000), ("100ms", 100), ("1h30m", 5_400_000), ("1.5s", 1500)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "5", "s", "5x", "-1s", "1e400s", "5 s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_name_a_port() {
        let url: ListenUrl = "https://0.0.0.0:2379".parse().unwrap();
        assert_eq!((url.tls, url.to_string().as_str()), (true, "https://0.0.0.0:2379"));
        assert_eq!("http://[::1]:0/".parse::<ListenUrl>().unwrap().host_port, "[::1]:0");
        for bad in ["127.0.0.1:1", "http://", "http://a", "http://a:b", "http://:1", "ftp://a:1"] {
            assert!(bad.parse::<ListenUrl>().is_err(), "{bad}");
        }
    }
}
