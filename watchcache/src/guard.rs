//! The guard of a front door's port: a process beside the front door, in a container of its own and
//! the same network namespace, that listens in its place while it is gone, and passes connections on
//! to the other replicas as they are, TLS and all.
//!
//! A client whose front door dies connects anew at once, and the Service may send it to the same pod
//! for a second or two. Refused, client-go waits 0.8 to 1.6 s before it tries again, and a full
//! second where a connection ends in its first moments (`k8s.io/client-go/tools/cache/reflector.go`,
//! `isWatchErrorRetriable`; `rest/with_retry.go`). With a guard it is never refused.
//!
//! The front door tells that it lives by a connection to a socket in the abstract namespace, which
//! belongs to the network namespace: the kernel ends it when the process ends, however it does. It
//! connects before it listens, and a process's files are closed in the order of their numbers: the
//! guard hears of the end before the port is free, and both bind the port so that they may share it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use megacluster_service::flags::LogFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::serve::{bind_shared, prepare};

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
pub async fn run(flags: &GuardFlags, token: &CancellationToken) -> Result<(), GuardError> {
    let control = listen(&flags.guard_socket)
        .map_err(|source| GuardError::Socket { name: flags.guard_socket.clone(), source })?;
    let (found, peers) = watch::channel(Vec::new());
    let look_up = tokio::spawn(follow(flags.clone(), found));
    let own = flags.own_address.unwrap_or_else(|| loopback(flags.listen_address));
    let guard = Guard {
        address: flags.listen_address,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        ways: Arc::new(Ways {
            peers,
            own: SocketAddr::new(own, flags.listen_address.port()),
            standing: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }),
    };
    info!(address = %flags.listen_address, peers = flags.peers, "guard");
    // Until the front door has come for the first time the port is its own.
    let mut alive = tokio::select! {
        () = token.cancelled() => None,
        alive = next(&control) => Some(alive),
    };
    while let Some(door) = alive.take() {
        gone(door).await;
        if token.is_cancelled() {
            break;
        }
        alive = tokio::select! {
            () = token.cancelled() => None,
            alive = guard.stand_in(&control) => Some(alive),
        };
    }
    look_up.abort();
    Ok(())
}

fn address_of(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&address_of(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn connect(name: &str) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect_addr(&address_of(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
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

/// Waits for the end of the front door.
async fn gone(mut door: UnixStream) {
    let mut nothing = [0; 8];
    // It says nothing: anything but an end is passed over.
    while door.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
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
    address: SocketAddr,
    places: Arc<Semaphore>,
    ways: Arc<Ways>,
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
    /// Passes connections on until the front door is there again.
    async fn stand_in(&self, control: &UnixListener) -> UnixStream {
        let listener = loop {
            match bind_shared(self.address) {
                Ok(listener) => break listener,
                Err(error) => {
                    warn!(address = %self.address, %error, "the port can't be taken");
                    tokio::select! {
                        () = sleep(AGAIN) => {}
                        door = next(control) => return door,
                    }
                }
            }
        };
        self.ways.standing.store(true, Ordering::Release);
        info!(peers = self.ways.peers.borrow().len(), "the front door is gone: passing on");
        let mut passed = 0_u64;
        let door = loop {
            tokio::select! {
                door = next(control) => break door,
                accepted = listener.accept() => passed += u64::from(self.take(accepted)),
            }
        };
        // The front door listens too by now. What waits in our queue would be reset.
        sleep(AGAIN).await;
        while let Some(accepted) = futures::FutureExt::now_or_never(listener.accept()) {
            passed += u64::from(self.take(accepted));
        }
        drop(listener);
        self.ways.standing.store(false, Ordering::Release);
        info!(connections = passed, "the front door is there again");
        door
    }

    /// Takes a connection, unless it comes from another replica: that one's guard passed it on, and
    /// two guards without a front door would pass it to and fro.
    fn take(&self, accepted: io::Result<(TcpStream, SocketAddr)>) -> bool {
        let (client, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accept");
                return false;
            }
        };
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

/// The front door's side: a connection to the guard for as long as this process lives, made anew
/// when the guard has started anew.
#[derive(Debug)]
pub struct Alive {
    name: String,
    first: Option<UnixStream>,
}

impl Alive {
    /// Calls the guard for the first time, before the port is bound. One that isn't there yet is
    /// called again by [`Self::keep`].
    #[must_use]
    pub fn tell(name: &str) -> Self {
        Self { name: name.to_owned(), first: connect(name).ok() }
    }

    /// Holds the connection until `token` is cancelled.
    pub async fn keep(mut self, token: CancellationToken) {
        loop {
            match self.first.take().map_or_else(|| connect(&self.name), Ok) {
                Ok(guard) => tokio::select! {
                    () = token.cancelled() => return,
                    () = gone(guard) => info!("the guard is gone"),
                },
                Err(error) => debug!(%error, socket = self.name, "guard"),
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = sleep(AGAIN) => {}
            }
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
