//! A front door before backends.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use megacluster_watchcache::app::App;
use megacluster_watchcache::flags::Flags;

use crate::backend::Backend;
use crate::certificates::{Certificates, Pair};
use crate::client::Client;

pub(crate) struct Cluster {
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) app: App,
}

/// A pool for the configuration: name, backends, matches as YAML.
pub(crate) struct Pool<'a>(pub(crate) &'a str, pub(crate) &'a [&'a Backend], pub(crate) &'a str);

pub(crate) fn config(certificates: &Certificates, limits: &str, pools: &[Pool<'_>]) -> String {
    let mut text = format!(
        "apiVersion: watchcache.megacluster.io/v1alpha1\nkind: RouterConfiguration\n\
         backendTLS: {{caFile: {}, proxyClientCertFile: {}, proxyClientKeyFile: {}}}\n\
         limits: {{{limits}}}\npools:\n",
        certificates.path("ca.pem").display(),
        certificates.path("proxy.crt").display(),
        certificates.path("proxy.key").display(),
    );
    for Pool(name, backends, matches) in pools {
        let addresses: Vec<_> =
            backends.iter().map(|backend| format!("\"{}\"", backend.address)).collect();
        let addresses = addresses.join(", ");
        writeln!(
            text,
            "- {{name: {name}, host: localhost, port: 1, addresses: [{addresses}], match: [{matches}]}}"
        )
        .unwrap();
    }
    text
}

impl Cluster {
    /// A front door before the backends of one pool.
    pub(crate) async fn start(
        certificates: &Arc<Certificates>,
        limits: &str,
        backends: &[&Backend],
    ) -> Self {
        let config = config(certificates, limits, &[Pool("default", backends, "")]);
        Self::start_with(certificates, &config, &[]).await
    }

    pub(crate) async fn start_with(
        certificates: &Arc<Certificates>,
        config: &str,
        flags: &[&str],
    ) -> Self {
        megacluster_service::crypto::install();
        certificates.write("config.yaml", config);
        let path = |name: &str| certificates.path(name).to_str().unwrap().to_owned();
        let mut arguments: Vec<String> = [
            "megacluster-watchcache",
            "--listen-address",
            "127.0.0.1:0",
            "--admin-listen-address",
            "127.0.0.1:0",
            "--goaway-chance",
            "0",
            "--reload-interval",
            "100ms",
            "--shutdown-timeout",
            "5s",
        ]
        .map(str::to_owned)
        .to_vec();
        for (flag, file) in [
            ("--tls-cert-file", "server.crt"),
            ("--tls-private-key-file", "server.key"),
            ("--client-ca-file", "client-ca.pem"),
            ("--config", "config.yaml"),
        ] {
            arguments.extend([flag.to_owned(), path(file)]);
        }
        // A flag may be given again: the last counts.
        for pair in flags.chunks(2) {
            if let Some(place) = arguments.iter().position(|argument| argument == pair[0]) {
                arguments.drain(place..place + 2);
            }
            arguments.extend(pair.iter().map(|argument| (*argument).to_owned()));
        }
        let app = App::start(&Flags::parse_from(arguments)).await.unwrap();
        let cluster = Self { certificates: certificates.clone(), app };
        let pools = cluster.app.router.current();
        until("every pool is ready", || pools.pools.iter().all(|pool| pool.has_been_ready())).await;
        cluster
    }

    pub(crate) async fn client(&self, pair: Option<&Pair>, http2: bool) -> Client {
        Client::connect(&self.certificates, self.app.address, pair, http2).await
    }

    pub(crate) fn pair(&self, user: &str, groups: &[&str]) -> Pair {
        self.certificates.client_ca.client(user, groups)
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}
