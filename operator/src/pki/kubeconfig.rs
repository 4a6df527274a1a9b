//! Kubeconfigs for people, with everything inside, and for components, beside their files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

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
        let Self { server, cluster, user, style, .. } = self;
        let context = format!("{user}@{cluster}");
        let value = |entry: &str| match style {
            Style::Files => entry.to_owned(),
            Style::Embedded => STANDARD.encode(entries.get(entry).map_or(&[][..], Vec::as_slice)),
        };
        let key = |name: &str| match style {
            Style::Files => name.to_owned(),
            Style::Embedded => format!("{name}-data"),
        };
        serde_saphyr::to_string(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": {
                "server": server,
                key("certificate-authority"): value(AUTHORITY),
            }}],
            "users": [{"name": user, "user": {
                key("client-certificate"): value(CERTIFICATE),
                key("client-key"): value(KEY),
            }}],
            "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
            "current-context": context,
        }))
    }
}
