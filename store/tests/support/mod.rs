//! A store in this process, on ports of the kernel's choice, with its own CA.

#![allow(dead_code, reason = "each test uses its part")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use megacluster_store::flags::Flags;
use megacluster_store::server::Server;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for localhost and its key, both PEM.
    pub(crate) fn leaf(&self, name: &str) -> (String, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

pub(crate) struct Store {
    pub(crate) server: Server,
    pub(crate) ca: Ca,
    pub(crate) dir: TempDir,
    args: Vec<String>,
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path: PathBuf = dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

impl Store {
    /// A store with mTLS and these further flags.
    pub(crate) async fn start(extra: &[&str]) -> Self {
        megacluster_service::crypto::install();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("store-ca");
        let (cert, key) = ca.leaf("server");
        let mut args = vec!["megacluster-store".to_owned()];
        for (flag, value) in [
            ("name", "test".to_owned()),
            ("data-dir", dir.path().join("data").display().to_string()),
            ("listen-client-urls", "https://127.0.0.1:0".to_owned()),
            ("listen-metrics-urls", "http://127.0.0.1:0".to_owned()),
            ("cert-file", write(dir.path(), "server.crt", &cert)),
            ("key-file", write(dir.path(), "server.key", &key)),
            ("trusted-ca-file", write(dir.path(), "ca.crt", &ca.pem)),
            ("client-cert-auth", "true".to_owned()),
            ("watch-progress-notify-interval", "200ms".to_owned()),
            ("io-threads", "2".to_owned()),
        ] {
            if flag == "data-dir" && extra.iter().any(|flag| flag.starts_with("--data-dir=")) {
                continue;
            }
            args.push(format!("--{flag}={value}"));
        }
        args.extend(extra.iter().map(ToString::to_string));
        let server = serve(&args).await;
        Self { server, ca, dir, args }
    }

    /// Stops in order and starts again on the same directory.
    pub(crate) async fn restart(self) -> Self {
        let Self { server, ca, dir, args } = self;
        server.finish().await;
        let server = serve(&args).await;
        Self { server, ca, dir, args }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.client_addresses()[0]
    }

    pub(crate) fn endpoint(&self, identity: Option<(String, String)>) -> Endpoint {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca.pem))
            .domain_name("localhost");
        if let Some((cert, key)) = identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        let url = format!("https://{}", self.address());
        Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap()
    }

    /// A channel with a good certificate.
    pub(crate) async fn connect(&self) -> Channel {
        self.endpoint(Some(self.ca.leaf("client"))).connect().await.unwrap()
    }
}

async fn serve(args: &[String]) -> Server {
    let flags = Flags::try_parse_from(args).unwrap();
    Server::start(&flags, CancellationToken::new()).await.unwrap()
}
