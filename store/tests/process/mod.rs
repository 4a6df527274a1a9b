//! Starts the real binary and talks to it.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use megacluster_store::pb::etcdserverpb::{
    PutRequest, RangeRequest, StatusRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use tonic::transport::{Channel, Endpoint};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_megacluster-store");
const PATIENCE: Duration = Duration::from_mins(1);
const ATTEMPT: Duration = Duration::from_secs(5);

/// A generator of numbers that only a seed decides (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A new seed each time, printed; `SEED` in the environment repeats one.
    pub(crate) fn new() -> Self {
        let seed =
            std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
                let now = std::time::SystemTime::now();
                let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
                u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 32
            });
        println!("SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// How to start a store.
pub(crate) struct Start {
    pub(crate) data_dir: PathBuf,
    pub(crate) flags: Vec<String>,
    /// The program and its first arguments.
    pub(crate) command: Vec<String>,
    /// User to run as.
    pub(crate) uid: Option<u32>,
}

impl Start {
    pub(crate) fn new(data_dir: &Path, flags: &[&str]) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            flags: flags.iter().map(ToString::to_string).collect(),
            command: vec![BINARY.to_owned()],
            uid: None,
        }
    }

    fn spawn(&self, address: SocketAddr) -> Store {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .arg(format!("--data-dir={}", self.data_dir.display()))
            .arg(format!("--listen-client-urls=http://{address}"))
            .arg(format!("--advertise-client-urls=http://{address}"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(uid) = self.uid {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
        }
        let mut child = command.spawn().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            drain(child.stdout.take().unwrap(), &output),
            drain(child.stderr.take().unwrap(), &output),
        ];
        Store { child, address, output, readers: readers.into() }
    }

    /// Starts the store and waits until it answers. On a port that another process took meanwhile
    /// it tries again.
    pub(crate) async fn run(&self) -> Store {
        for _ in 0..5 {
            match self.try_run().await {
                Ok(store) => return store,
                Err((_, output)) if output.to_lowercase().contains("in use") => {}
                Err((status, output)) => panic!("the store ended with {status}:\n{output}"),
            }
        }
        panic!("no free port");
    }

    /// As [`Start::run`], or the status and output of a store that ends by itself.
    pub(crate) async fn try_run(&self) -> Result<Store, (ExitStatus, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut store = self.spawn(address);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = store.child.try_wait().unwrap() {
                return Err((status, store.output()));
            }
            // The port was free a moment ago: whoever has it now need not be this store, nor answer.
            let answers = tokio::time::timeout(ATTEMPT, async {
                let channel = store.endpoint().connect().await.ok()?;
                MaintenanceClient::new(channel).status(StatusRequest::default()).await.ok()
            });
            if answers.await.is_ok_and(|answer| answer.is_some())
                && store.child.try_wait().unwrap().is_none()
            {
                return Ok(store);
            }
            assert!(Instant::now() < deadline, "the store does not answer:\n{}", store.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Expects that the store refuses to start; returns what it said.
    pub(crate) async fn refused(&self) -> String {
        match self.try_run().await {
            Ok(_) => panic!("the store started"),
            Err((status, output)) => {
                assert!(status.code().is_some_and(|code| code != 0), "{status}\n{output}");
                assert!(!output.contains("panicked"), "{output}");
                output
            }
        }
    }
}

fn drain(
    mut from: impl Read + Send + 'static,
    to: &Arc<Mutex<Vec<u8>>>,
) -> std::thread::JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
    })
}

/// A running store; it dies with this value.
pub(crate) struct Store {
    child: Child,
    pub(crate) address: SocketAddr,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Store {
    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().timeout(PATIENCE)
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
            .max_decoding_message_size(256 << 20)
            .max_encoding_message_size(256 << 20)
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn sigterm(&self) {
        let status = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// SIGTERM, and the wait for the end.
    pub(crate) fn stop(mut self) {
        self.sigterm();
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.output());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the store does not stop:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the store said; all of it, if it has ended.
    pub(crate) fn output(&mut self) -> String {
        if self.has_ended() {
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn put(key: &str, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        ..Default::default()
    }
}

/// All keys there are.
pub(crate) fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    }
}
