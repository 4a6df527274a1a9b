//! The guard against sockets: who gets a connection while the front door is there, and while it is
//! gone.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states its expectation by unwrapping"
)]

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use megacluster_watchcache::guard::{Alive, GuardFlags, run};
use megacluster_watchcache::serve::{bind, bind_shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Answers each connection with a name.
fn serve(listener: TcpListener, name: &'static str) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(name.as_bytes()).await;
        }
    })
}

/// Who answers.
async fn asked(address: SocketAddr) -> std::io::Result<String> {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address).await?;
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

struct Door {
    alive: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    fn open(socket: &str, address: SocketAddr) -> Self {
        let alive = CancellationToken::new();
        let told = Alive::tell(socket);
        tokio::spawn(told.keep(alive.clone()));
        Self { alive, serving: serve(bind_shared(address).unwrap(), "door") }
    }

    async fn die(self) {
        self.serving.abort();
        let _ = self.serving.await;
        self.alive.cancel();
    }
}

async fn until_answers(address: SocketAddr, name: &str) {
    for _ in 0..300 {
        if asked(address).await.is_ok_and(|answer| answer == name) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} does not answer");
}

fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn guard(socket: &str, address: SocketAddr, peers: SocketAddr) -> CancellationToken {
    let flags = GuardFlags::parse_from([
        "guard".to_owned(),
        format!("--listen-address={address}"),
        format!("--peers={peers}"),
        "--own-address=127.0.0.1".to_owned(),
        format!("--guard-socket={socket}"),
    ]);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move { run(&flags, &stop).await.unwrap() });
    token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stands_in_while_the_front_door_is_gone_and_no_longer() {
    let (socket, address) = (format!("guard-a-{}", std::process::id()), free());
    let peer = bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let token = guard(&socket, address, peer.local_addr().unwrap());
    let _peer = serve(peer, "peer");
    assert!(asked(address).await.is_err(), "the port is the front door's");
    for _ in 0..3 {
        let door = Door::open(&socket, address);
        until_answers(address, "door").await;
        // The guard has left the port to it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..50 {
            assert_eq!(asked(address).await.unwrap(), "door");
        }
        door.die().await;
        until_answers(address, "peer").await;
        for _ in 0..50 {
            assert_eq!(asked(address).await.unwrap(), "peer");
        }
    }
    token.cancel();
    for _ in 0..100 {
        if asked(address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_guard_passes_on_goes_no_further() {
    let (socket, address) = (format!("guard-b-{}", std::process::id()), free());
    let peer = bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let _guard = guard(&socket, address, peer.local_addr().unwrap());
    let _peer = serve(peer, "peer");
    let door = Door::open(&socket, address);
    until_answers(address, "door").await;
    door.die().await;
    until_answers(address, "peer").await;
    let from_peer = tokio::net::TcpSocket::new_v4().unwrap();
    from_peer.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = from_peer.connect(address).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert_eq!(answer, "");
}

/// Where there is no other replica a client waits for the front door itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_another_replica_clients_wait() {
    let (socket, address) = (format!("guard-c-{}", std::process::id()), free());
    let nobody = SocketAddr::new([127, 0, 0, 2].into(), free().port());
    let _guard = guard(&socket, address, nobody);
    let door = Door::open(&socket, address);
    until_answers(address, "door").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    door.die().await;
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waiting = tokio::spawn(asked(address));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _door = Door::open(&socket, address);
    assert_eq!(waiting.await.unwrap().unwrap(), "door");
}
