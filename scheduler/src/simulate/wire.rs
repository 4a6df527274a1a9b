//! What stands between a relay and its shards where they are processes of their own: gRPC with TLS
//! on both sides, here over loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use megacluster_service::tls::{ClientAuth, ClientTls, ClientTlsFiles, ServerTls, ServerTlsFiles};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::error::SimulateError;
use crate::core::maps::HashMap;
use crate::core::membership::Membership;
use crate::metrics::Metrics;
use crate::protocol::transport::{self, ALPN, Peer, Serve};
use crate::protocol::{Refusal, Request, Response, Target};
use crate::relay::copies::Copies;
use crate::relay::fanout::{Fanout, Shard};
use crate::shard::local::LocalShard;

/// Connections to all shards, each of which has a thread of its own as a process has.
pub(super) struct Wire {
    runtime: Runtime,
    fanout: Arc<Fanout>,
    token: CancellationToken,
}

/// A message whose answer isn't there yet.
pub(super) struct Flying {
    targets: Vec<Target>,
    answer: mpsc::Receiver<Response>,
}

impl Flying {
    /// Waits for the answer.
    pub(super) fn answer(self) -> Response {
        self.answer.recv().unwrap_or_else(|_| {
            let refusal = Refusal::Unreachable("nobody asked".to_owned());
            Response::refused(&self.targets, &refusal)
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl Wire {
    /// Has every shard served, and connects to it.
    pub(super) fn new(
        shards: &[Arc<LocalShard>],
        membership: &Membership,
    ) -> Result<Self, SimulateError> {
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let token = CancellationToken::new();
        let files = Files::new()?;
        let (accept, connect) = (files.server()?, files.client()?);
        let metrics = Metrics::unregistered();
        let mut children = HashMap::default();
        for shard in shards {
            let address = serve(shard.clone(), accept.clone(), token.clone())?;
            let _runtime = runtime.enter();
            let peer = Peer::new(&format!("https://localhost:{}", address.port()), &connect)
                .map_err(std::io::Error::other)?;
            let copies = Arc::new(Copies::new(vec![peer]));
            children.insert(shard.name().clone(), Shard::Remote(copies));
        }
        let width = shards.len();
        let fanout = Fanout::new(membership.clone(), children, HashMap::default(), width, metrics);
        Ok(Self { runtime, fanout: Arc::new(fanout), token })
    }

    /// Asks the shards, by a task of its own as in earnest.
    pub(super) fn exchange(&self, request: Request) -> Flying {
        let targets = request.targets.clone();
        let (sender, answer) = mpsc::sync_channel(1);
        let fanout = Arc::clone(&self.fanout);
        self.runtime.spawn(async move {
            let response = fanout.exchange(request).await;
            // Nobody waits for it when the simulation has ended.
            drop(sender.send(response));
        });
        Flying { targets, answer }
    }
}

/// Has a shard served by a thread until `token` is cancelled.
fn serve(
    shard: Arc<LocalShard>,
    tls: ServerTls,
    token: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let (address, served) = runtime.block_on(transport::serve(shard, loopback, tls, token))?;
    std::thread::spawn(move || runtime.block_on(served));
    Ok(address)
}

/// Certificates in a directory of this process, gone once they are read.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        // Nobody can use them once this process has ended.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Files {
    fn new() -> std::io::Result<Self> {
        let name = format!("megacluster-simulate-{:016x}", rand::random::<u64>());
        let files = Self(std::env::temp_dir().join(name));
        create_private(&files.0)?;
        let failed = std::io::Error::other;
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        let ca = params.self_signed(&key).map_err(failed)?;
        let issuer = Issuer::new(params, key);
        let params = CertificateParams::new(vec!["localhost".to_owned()]).map_err(failed)?;
        let key = KeyPair::generate().map_err(failed)?;
        let leaf = params.signed_by(&key, &issuer).map_err(failed)?;
        std::fs::write(files.path("ca"), ca.pem())?;
        std::fs::write(files.path("cert"), leaf.pem())?;
        std::fs::write(files.path("key"), key.serialize_pem())?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn server(&self) -> std::io::Result<ServerTls> {
        let files = ServerTlsFiles {
            cert: self.path("cert"),
            key: self.path("key"),
            client_ca: Some(self.path("ca")),
            client_auth: ClientAuth::Required,
        };
        ServerTls::new(files, ALPN).map_err(std::io::Error::other)
    }

    fn client(&self) -> std::io::Result<ClientTls> {
        let files = ClientTlsFiles {
            ca: Some(self.path("ca")),
            cert: Some(self.path("cert")),
            key: Some(self.path("key")),
        };
        ClientTls::new(files, ALPN).map_err(std::io::Error::other)
    }
}

fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}
