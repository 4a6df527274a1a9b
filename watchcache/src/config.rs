//! The configuration file, `RouterConfiguration`: where requests go, and how many.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "watchcache.megacluster.io/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "RouterConfiguration";
/// The pool that takes what no route matches.
pub const DEFAULT_POOL: &str = "default";
/// kube-apiserver's own bound on a request's body.
pub const DEFAULT_MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;

/// The file can't be used; the text names the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not YAML, or a field is unknown, missing or of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A value is not allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
}

fn invalid<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { field: field.into(), problem: problem.into() })
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouterConfiguration {
    /// `watchcache.megacluster.io/v1alpha1`.
    pub api_version: String,
    /// `RouterConfiguration`.
    pub kind: String,
    /// TLS towards the kube-apiservers.
    #[serde(rename = "backendTLS")]
    pub backend_tls: BackendTls,
    /// Bounds; what is left out has its default.
    #[serde(default)]
    pub limits: Limits,
    /// Pools of kube-apiservers.
    pub pools: Vec<PoolConfig>,
}

/// TLS towards the kube-apiservers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTls {
    /// PEM file with the CAs of the kube-apiservers' serving certificates.
    pub ca_file: PathBuf,
    /// PEM file with the front-proxy client certificate (kube-apiserver's
    /// `--requestheader-client-ca-file` must have issued it). Needed with `--client-ca-file`.
    pub proxy_client_cert_file: Option<PathBuf>,
    /// PEM file with that certificate's key.
    pub proxy_client_key_file: Option<PathBuf>,
    /// Name that serving certificates are verified for; by default the pool's host.
    pub server_name: Option<String>,
}

/// Bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Requests being served at a time, watches and other long-running ones aside; above it 429.
    pub max_in_flight: usize,
    /// Watches and other long-running requests (exec, logs, port-forward) at a time; above it 429.
    pub max_watches: usize,
    /// Reads that the cache answers and that look at more than 1,000 objects, at a time for all
    /// users of a kind (the cluster's own parts, and others); above it 429.
    pub max_expensive_reads: usize,
    /// Such reads of one user at a time; above it 429.
    pub max_expensive_reads_per_user: usize,
    /// Bytes of a request's body; above it 413.
    pub max_request_bytes: u64,
    /// Client connections at a time; above it a new connection is closed at once.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: 4_000,
            max_watches: 200_000,
            max_expensive_reads: 64,
            max_expensive_reads_per_user: 16,
            max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
            max_connections: 200_000,
        }
    }
}

/// One pool of kube-apiservers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    /// Its name, unique in the file.
    pub name: String,
    /// A name that is resolved again and again, or an address: each address is a backend.
    pub host: String,
    /// The backends' port.
    pub port: u16,
    /// The backends, where they are not to be found by the host's name: addresses with ports. The
    /// host is then only the name that serving certificates are verified for.
    #[serde(default)]
    pub addresses: Vec<SocketAddr>,
    /// What goes to this pool; a resource takes its subresources along.
    #[serde(default, rename = "match")]
    pub matches: Vec<ResourceMatch>,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceMatch {
    /// API group; empty for the core group.
    pub group: String,
    /// Plural name, or `*` for every resource of the group that no other match names.
    pub resource: String,
}

impl RouterConfiguration {
    /// Reads and checks the file's text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Reads and checks a file.
    pub fn read(path: &std::path::Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.api_version != API_VERSION {
            return invalid("apiVersion", format!("must be {API_VERSION}"));
        }
        if self.kind != KIND {
            return invalid("kind", format!("must be {KIND}"));
        }
        if self.backend_tls.proxy_client_cert_file.is_some()
            != self.backend_tls.proxy_client_key_file.is_some()
        {
            return invalid(
                "backendTLS",
                "proxyClientCertFile and proxyClientKeyFile must be given together",
            );
        }
        self.limits.check()?;
        let mut names = BTreeSet::new();
        let mut matched = BTreeSet::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let field = |name: &str| format!("pools[{index}].{name}");
            if pool.name.is_empty() || !names.insert(&pool.name) {
                return invalid(field("name"), "must be unique and not empty");
            }
            if pool.host.is_empty() {
                return invalid(field("host"), "must not be empty");
            }
            if rustls_pki_types::ServerName::try_from(pool.host.as_str()).is_err() {
                return invalid(field("host"), "must be a DNS name or an address");
            }
            if pool.port == 0 {
                return invalid(field("port"), "must not be 0");
            }
            for (place, resource) in pool.matches.iter().enumerate() {
                if resource.resource.is_empty() {
                    return invalid(
                        field(&format!("match[{place}].resource")),
                        "must not be empty",
                    );
                }
                if !matched.insert(resource) {
                    return invalid(
                        field(&format!("match[{place}]")),
                        format!(
                            "resource {:?} of group {:?} is matched twice",
                            resource.resource, resource.group
                        ),
                    );
                }
            }
        }
        if !names.contains(&DEFAULT_POOL.to_owned()) {
            return invalid("pools", format!("one pool must be named {DEFAULT_POOL:?}"));
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("maxInFlight", self.max_in_flight),
            ("maxWatches", self.max_watches),
            ("maxExpensiveReads", self.max_expensive_reads),
            ("maxExpensiveReadsPerUser", self.max_expensive_reads_per_user),
            ("maxConnections", self.max_connections),
        ] {
            if value == 0 {
                return invalid(format!("limits.{name}"), "must not be 0");
            }
        }
        if self.max_request_bytes == 0 {
            return invalid("limits.maxRequestBytes", "must not be 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
apiVersion: watchcache.megacluster.io/v1alpha1
kind: RouterConfiguration
backendTLS: {caFile: /ca, proxyClientCertFile: /cert, proxyClientKeyFile: /key}
limits: {maxInFlight: 10}
pools:
- name: default
  host: prod-apiserver-default.ns.svc
  port: 6443
  match: []
- name: pods
  host: 10.0.0.1
  port: 6443
  match: [{group: "", resource: pods}, {group: coordination.k8s.io, resource: leases}]
"#;

    #[test]
    fn a_good_file_is_read() {
        let config = RouterConfiguration::parse(GOOD).unwrap();
        assert_eq!(config.pools.len(), 2);
        assert_eq!(config.limits.max_in_flight, 10);
        assert_eq!(config.limits.max_request_bytes, DEFAULT_MAX_REQUEST_BYTES);
        assert_eq!(config.pools[1].matches[0].resource, "pods");
    }

    /// Each fault, and what the message must name.
    #[test]
    fn a_bad_file_is_refused_by_name() {
        let faults = [
            ("limits:", "limitz:", "limitz"),
            ("maxInFlight: 10", "maxInFlights: 10", "maxInFlights"),
            ("maxInFlight: 10", "maxInFlight: 0", "limits.maxInFlight"),
            ("maxInFlight: 10", "maxInFlight: -1", "maxInFlight"),
            ("v1alpha1", "v1", "apiVersion"),
            ("RouterConfiguration", "Router", "kind"),
            ("proxyClientKeyFile: /key", "serverName: x", "proxyClientKeyFile"),
            ("- name: pods", "- name: default", "pools[1].name"),
            ("- name: default", "- name: other", "pools"),
            ("host: 10.0.0.1", "host: \"\"", "pools[1].host"),
            ("host: 10.0.0.1", "host: \"a b\"", "pools[1].host"),
            ("match: []", "match: [{group: \"\", resource: pods}]", "pools[1].match[0]"),
            ("match: []", "match: [{group: \"\", resource: \"\"}]", "pools[0].match[0].resource"),
            ("match: []", "match: [{resource: pods}]", "group"),
            ("port: 6443", "port: 0", "pools[0].port"),
            ("port: 6443", "port: 70000", "port"),
            ("kind: RouterConfiguration", "kind: RouterConfiguration\nkind: x", "kind"),
        ];
        for (old, new, named) in faults {
            let error =
                RouterConfiguration::parse(&GOOD.replacen(old, new, 1)).expect_err(new).to_string();
            assert!(error.contains(named), "{new}: {error}");
        }
        assert!(RouterConfiguration::parse("").is_err());
        assert!(RouterConfiguration::parse("[").is_err());
    }
}
