//! The guard of a front door's port: a process beside the front door, in a container of its own and
//! the same network namespace, that accepts connections in its place while it is gone, and passes
//! them on to the other replicas as they are, TLS and all.
//!
//! A client whose front door dies connects anew at once, and the Service may send it to the same pod
//! for a second or two. Refused, client-go waits 0.8 to 1.6 s before it tries again, and a full
//! second where a connection ends in its first moments (`k8s.io/client-go/tools/cache/reflector.go`,
//! `isWatchErrorRetriable`; `rest/with_retry.go`). With a guard it is never refused: both processes
//! hold the one listening socket, which outlives either of them, and with it the connections that
//! the kernel has queued. The front door tells that it lives by a connection to the guard, which the
//! kernel ends with the process.

mod door;
mod handover;

pub use door::Alive;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use megacluster_service::flags::LogFlags;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use handover::Message;

use crate::serve::prepare;

/// Connections passed on at once; more are closed, and their clients try again.
const CONNECTIONS: usize = 16_384;
/// How often the other replicas are looked up.
const LOOK_UP: Duration = Duration::from_secs(1);
/// A look-up that takes longer is given up; the replicas known before stay.
const LOOK_UP_TIME: Duration = Duration::from_secs(2);
/// A replica that takes no connection within this time is passed over.
const CONNECT: Duration = Duration::from_millis(500);
/// A client waits this long for a replica that takes its connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before the replicas are tried once more, and the front door's before it calls the guard.
const AGAIN: Duration = Duration::from_millis(100);

/// Takes a front door's port while it is gone, and passes connections on to other replicas.
#[derive(Clone, Debug, Parser)]
#[command(name = "megacluster-watchcache guard", version)]
pub struct GuardFlags {
    /// The front door's address.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen_address: SocketAddr,
    /// A name and port behind which are the addresses of all replicas that are ready.
    #[arg(long)]
    pub peers: String,
    /// The address of this pod, which is none of the others.
    #[arg(long, env = "POD_IP")]
    pub own_address: Option<IpAddr>,
    /// The front door's `--guard-socket`.
    #[arg(long)]
    pub guard_socket: String,
    /// Logging.
    #[command(flatten)]
    pub log: LogFlags,
}

/// The guard can't do its work.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The socket for the front door.
    #[error("--guard-socket {name}: {source}")]
    Socket {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// Runs until `token` is cancelled and the front door, if it is there, has ended.
///
/// # Errors
/// The socket for the front door can't be made.
pub async fn run(flags: &GuardFlags, token: &CancellationToken) -> Result<(), GuardError> {
    let control = handover::listen(&flags.guard_socket)
        .map_err(|source| GuardError::Socket { name: flags.guard_socket.clone(), source })?;
    let (found, peers) = watch::channel(Vec::new());
    let look_up = tokio::spawn(follow(flags.clone(), found));
    let own = flags.own_address.unwrap_or_else(|| loopback(flags.listen_address));
    let mut guard = Guard {
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        ways: Arc::new(Ways {
            peers,
            own: SocketAddr::new(own, flags.listen_address.port()),
            standing: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }),
        held: None,
        door: None,
        serves: false,
        standing: None,
        passed: 0,
    };
    info!(address = %flags.listen_address, peers = flags.peers, "guard");
    while !token.is_cancelled() {
        tokio::select! {
            () = token.cancelled() => {}
            () = guard.step(&control) => {}
        }
    }
    // The front door, which is asked to stop too, has the port for itself: clients are to go
    // elsewhere, and what we passed on would end with us.
    guard.held = None;
    guard.stand();
    while guard.door.is_some() {
        guard.step(&control).await;
        guard.held = None;
    }
    look_up.abort();
    Ok(())
}

async fn next(control: &UnixListener) -> UnixStream {
    loop {
        match control.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                warn!(%error, "the front door's connection");
                sleep(AGAIN).await;
            }
        }
    }
}

/// What the front door says; never without one.
async fn word(door: Option<&UnixStream>) -> io::Result<Option<Message>> {
    match door {
        Some(door) => handover::receive(door).await,
        None => std::future::pending().await,
    }
}

async fn accepted(standing: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match standing {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Looks the replicas up again and again, so that they are known when they are needed.
async fn follow(flags: GuardFlags, found: watch::Sender<Vec<SocketAddr>>) {
    loop {
        match timeout(LOOK_UP_TIME, lookup_host(&flags.peers)).await {
            Ok(Ok(addresses)) => {
                let others = addresses.filter(|at| Some(at.ip()) != flags.own_address).collect();
                found.send_if_modified(|known: &mut Vec<SocketAddr>| {
                    let changed = *known != others;
                    *known = others;
                    changed
                });
            }
            // No name: no other replica is ready. Those known before are tried all the same.
            Ok(Err(error)) => debug!(%error, peers = flags.peers, "look-up"),
            Err(_) => debug!(peers = flags.peers, "look-up: no answer in time"),
        }
        sleep(LOOK_UP).await;
    }
}

fn loopback(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

#[derive(Debug)]
struct Guard {
    places: Arc<Semaphore>,
    ways: Arc<Ways>,
    /// The port's socket. None until a front door has come for the first time.
    held: Option<std::net::TcpListener>,
    door: Option<UnixStream>,
    /// Whether the front door accepts connections.
    serves: bool,
    /// The socket again, while we accept from it: in between the kernel must not wake us for each
    /// connection.
    standing: Option<TcpListener>,
    passed: u64,
}

/// Where connections can be passed on to.
#[derive(Debug)]
struct Ways {
    peers: watch::Receiver<Vec<SocketAddr>>,
    /// The front door itself, which may be back before a replica was found.
    own: SocketAddr,
    /// Whether it is the guard that listens there.
    standing: AtomicBool,
    turn: AtomicUsize,
}

impl Guard {
    /// One event: a front door that comes, says something or ends, or a connection.
    async fn step(&mut self, control: &UnixListener) {
        tokio::select! {
            door = next(control) => self.greet(door),
            word = word(self.door.as_ref()) => self.hear(word),
            accepted = accepted(self.standing.as_ref()) => match accepted {
                Ok((client, from)) => self.passed += u64::from(self.take(client, from)),
                Err(error) => {
                    // Out of file descriptors, or a connection that ended in the queue.
                    warn!(%error, "accept");
                    sleep(AGAIN).await;
                }
            },
        }
        self.stand();
    }

    fn greet(&mut self, door: UnixStream) {
        let held = self.held.as_ref().map(std::net::TcpListener::try_clone);
        let greeting = match held.transpose() {
            Ok(held) => held.map_or(Message::Nothing, Message::Listener),
            Err(error) => {
                warn!(%error, "the port's socket");
                Message::Nothing
            }
        };
        if let Err(error) = handover::send(&door, &greeting) {
            warn!(%error, "the front door's connection");
            return;
        }
        self.door = Some(door);
        self.serves = false;
    }

    fn hear(&mut self, word: io::Result<Option<Message>>) {
        match word {
            Ok(Some(Message::Listener(listener))) => {
                self.held = Some(listener);
                // It accepts already, or in a moment.
                self.serves = true;
            }
            Ok(Some(Message::Serves)) => self.serves = true,
            Ok(Some(Message::Leaves)) => self.serves = false,
            Ok(Some(Message::Nothing)) => {}
            Ok(None) => {
                self.door = None;
                self.serves = false;
            }
            Err(error) => {
                warn!(%error, "the front door's connection");
                self.door = None;
                self.serves = false;
            }
        }
    }

    /// Begins or ends to stand in.
    fn stand(&mut self) {
        match (&self.held, &self.standing) {
            (Some(held), None) if !self.serves => {
                match held.try_clone().and_then(TcpListener::from_std) {
                    Ok(listener) => {
                        self.standing = Some(listener);
                        self.passed = 0;
                        info!(
                            peers = self.ways.peers.borrow().len(),
                            "the front door is gone: passing on"
                        );
                    }
                    Err(error) => warn!(%error, "the port's socket"),
                }
            }
            (None, Some(_)) => self.rest(),
            (Some(_), Some(_)) if self.serves => self.rest(),
            _ => {}
        }
        self.ways.standing.store(self.standing.is_some(), Ordering::Release);
    }

    fn rest(&mut self) {
        self.standing = None;
        info!(connections = self.passed, "passing on no more");
    }

    /// Takes a connection, unless it comes from another replica: that one's guard passed it on, and
    /// two guards without a front door would pass it to and fro.
    fn take(&self, client: TcpStream, from: SocketAddr) -> bool {
        if self.ways.peers.borrow().iter().any(|peer| peer.ip() == from.ip()) {
            return false;
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else { return false };
        let ways = self.ways.clone();
        tokio::spawn(async move {
            if let Err(error) = pass_on(client, &ways).await {
                debug!(%error, "a connection passed on");
            }
            drop(place);
        });
        true
    }
}

async fn pass_on(mut client: TcpStream, ways: &Ways) -> io::Result<()> {
    prepare(&client)?;
    let mut peer = timeout(PATIENCE, ways.reach()).await?;
    prepare(&peer)?;
    // Ends with either end: keep-alives find one that is gone without a word.
    tokio::io::copy_bidirectional(&mut client, &mut peer).await.map(drop)
}

impl Ways {
    /// A connection to one of the replicas, in turn; to the front door where it is back before.
    async fn reach(&self) -> TcpStream {
        loop {
            let mut known = self.peers.borrow().clone();
            let first = self.turn.fetch_add(1, Ordering::Relaxed) % known.len().max(1);
            known.rotate_left(first);
            if !self.standing.load(Ordering::Acquire) {
                known.push(self.own);
            }
            for peer in known {
                if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(peer)).await {
                    return stream;
                }
            }
            sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_own_address_is_none_of_the_others() {
        let flags = GuardFlags::parse_from([
            "guard",
            "--peers=127.0.0.1:1",
            "--own-address=127.0.0.1",
            "--guard-socket=x",
        ]);
        let (found, peers) = watch::channel(vec![([127, 0, 0, 2], 1).into()]);
        let task = tokio::spawn(follow(flags, found));
        let mut changed = peers.clone();
        changed.changed().await.unwrap();
        assert!(peers.borrow().is_empty());
        task.abort();
    }
}
