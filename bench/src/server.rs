//! Starts a server with etcd's API and ends it.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, io as failed};
use crate::h2::{Connection, Event, Method};
use crate::pb;
use crate::proc::{self, Usage};

/// A start, recovery included, takes no longer; nor does a stop.
const PATIENCE: Duration = Duration::from_mins(3);

/// Whose program it is: they differ in their flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Etcd,
    Store,
    MemEtcd,
}

/// A program in one of its modes.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) program: Program,
    pub(crate) path: PathBuf,
    /// Acknowledges a write after `fdatasync`, else after `write`.
    pub(crate) fsync: bool,
}

impl System {
    /// How it is called in results.
    pub(crate) fn name(&self) -> &'static str {
        match (self.program, self.fsync) {
            (Program::Etcd, false) => "etcd",
            (Program::Etcd, true) => "etcd-fsync",
            (Program::Store, false) => "ours",
            (Program::Store, true) => "ours-fsync",
            (Program::MemEtcd, false) => "mem_etcd",
            (Program::MemEtcd, true) => "mem_etcd-fsync",
        }
    }

    fn arguments(&self, dir: &Path, port: u16, peer_port: u16) -> Vec<String> {
        let dir = dir.display();
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut arguments = match self.program {
            Program::Etcd | Program::Store => vec![
                format!("--data-dir={dir}"),
                format!("--listen-client-urls={}", url(port)),
                format!("--advertise-client-urls={}", url(port)),
                "--log-level=error".to_owned(),
            ],
            Program::MemEtcd => vec![
                format!("--port={port}"),
                format!("--metrics-port={peer_port}"),
                format!("--wal-dir={dir}"),
                format!("--wal-default={}", if self.fsync { "fsync" } else { "buffered" }),
            ],
        };
        if self.program == Program::Etcd {
            arguments.extend([
                format!("--listen-peer-urls={}", url(peer_port)),
                format!("--initial-advertise-peer-urls={}", url(peer_port)),
                format!("--initial-cluster=default={}", url(peer_port)),
                // As large as etcd advises at most; the default of 2 GiB is soon full.
                format!("--quota-backend-bytes={}", 8_u64 << 30),
            ]);
        }
        if self.program != Program::MemEtcd && !self.fsync {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments
    }
}

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// From its start until it answered.
    pub(crate) took: Duration,
}

impl Server {
    /// Starts it on a data directory, on some cores if they are named, and waits until it answers.
    pub(crate) fn start(
        system: &System,
        dir: &Path,
        cores: Option<&str>,
        flags: &[String],
    ) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(failed(dir.display().to_string()))?;
        let log = dir.with_extension("log");
        let output = File::create(&log).map_err(failed(log.display().to_string()))?;
        let errors = output.try_clone().map_err(failed("log"))?;
        let (port, peer_port) = (free_port()?, free_port()?);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let began = Instant::now();
        let child = on_cores(&system.path, cores)
            .args(system.arguments(&dir.join("data"), port, peer_port))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(failed(format!("start {}", system.path.display())))?;
        let mut server = Self { child, name: system.name(), address, took: Duration::ZERO };
        while !answers(address) {
            let ended = server.child.try_wait().map_err(failed("wait"))?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let end: Vec<&str> = said.lines().rev().take(5).collect();
                return Err(Error::Child(format!("{} does not run: {end:?}", system.name())));
            }
            thread::sleep(Duration::from_millis(2));
        }
        server.took = began.elapsed();
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        proc::usage(self.pid())
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> Result<(), Error> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|e| failed("kill")(io::Error::from(e)))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.try_wait().map_err(failed("wait"))?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(Error::Child(format!("{} does not stop", self.name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs on these cores alone.
pub(crate) fn on_cores(program: &Path, cores: Option<&str>) -> Command {
    let Some(cores) = cores else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(cores).arg(program);
    command
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed("find a free port"))?;
    Ok(listener.local_addr().map_err(failed("find a free port"))?.port())
}

/// Whether a get is answered within a second.
fn answers(address: SocketAddr) -> bool {
    let mut message = Vec::new();
    pb::range(&mut message, b"/", b"");
    ask(address, Method::Range, &message)
}

/// One call on a connection of its own; whether its answer came within a second.
pub(crate) fn ask(address: SocketAddr, method: Method, message: &[u8]) -> bool {
    let Ok(mut connection) = Connection::open(address) else { return false };
    connection.call(method, 0, message);
    let (mut answered, mut ended) = (false, false);
    let deadline = Instant::now() + Duration::from_secs(1);
    while !ended && Instant::now() < deadline {
        let told = connection.flush().and_then(|()| {
            connection.receive(|event| match event {
                Event::Message(..) => answered = true,
                Event::End(_) => ended = true,
            })
        });
        if told.is_err() {
            return false;
        }
        thread::sleep(Duration::from_micros(200));
    }
    answered
}
