//! Kubeconfigs for people, with everything inside, and for components, beside their files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::secrets::{AUTHORITY, CERTIFICATE, Entries, KEY};

/// How a kubeconfig carries its certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Base64 inside: one file that works anywhere.
    Embedded,
    /// Paths relative to the kubeconfig, which lies beside them in the mounted Secret. client-go
    /// reloads certificates that it reads from files and no others
    /// (`k8s.io/client-go/transport/transport.go`, `loadTLSFiles`), so that a rotation needs no
    /// restart.
    Files,
}

/// A kubeconfig to put into a leaf's Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KubeconfigSpec {
    /// The entry of the Secret.
    pub(crate) entry: &'static str,
    /// `https://host:port`
    pub(crate) server: String,
    /// Name of the cluster within the file.
    pub(crate) cluster: String,
    /// Name of the user within the file.
    pub(crate) user: String,
    pub(crate) style: Style,
}

impl KubeconfigSpec {
    /// The file's text for the certificates in `entries`.
    pub(crate) fn render(&self, entries: &Entries) -> Result<String, serde_saphyr::ser::Error> {
        let context = format!("{}@{}", self.user, self.cluster);
        let file = |name: &str| match self.style {
            Style::Files => (Some(name.to_owned()), None),
            Style::Embedded => {
                (None, Some(STANDARD.encode(entries.get(name).map_or(&[][..], Vec::as_slice))))
            }
        };
        let (certificate_authority, certificate_authority_data) = file(AUTHORITY);
        let (client_certificate, client_certificate_data) = file(CERTIFICATE);
        let (client_key, client_key_data) = file(KEY);
        serde_saphyr::to_string(&Kubeconfig {
            api_version: "v1",
            kind: "Config",
            clusters: [NamedCluster {
                name: &self.cluster,
                cluster: Cluster {
                    server: &self.server,
                    certificate_authority,
                    certificate_authority_data,
                },
            }],
            users: [NamedUser {
                name: &self.user,
                user: User {
                    client_certificate,
                    client_certificate_data,
                    client_key,
                    client_key_data,
                },
            }],
            contexts: [NamedContext {
                name: &context,
                context: Context { cluster: &self.cluster, user: &self.user },
            }],
            current_context: &context,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kubeconfig<'a> {
    api_version: &'a str,
    kind: &'a str,
    clusters: [NamedCluster<'a>; 1],
    users: [NamedUser<'a>; 1],
    contexts: [NamedContext<'a>; 1],
    #[serde(rename = "current-context")]
    current_context: &'a str,
}

#[derive(Serialize)]
struct NamedCluster<'a> {
    name: &'a str,
    cluster: Cluster<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster<'a> {
    server: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority_data: Option<String>,
}

#[derive(Serialize)]
struct NamedUser<'a> {
    name: &'a str,
    user: User,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key_data: Option<String>,
}

#[derive(Serialize)]
struct NamedContext<'a> {
    name: &'a str,
    context: Context<'a>,
}

#[derive(Serialize)]
struct Context<'a> {
    cluster: &'a str,
    user: &'a str,
}
