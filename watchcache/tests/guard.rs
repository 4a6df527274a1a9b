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
use megacluster_watchcache::serve::bind;
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
    leave: CancellationToken,
    alive: CancellationToken,
    serving: JoinHandle<()>,
    keeping: JoinHandle<()>,
}

impl Door {
    async fn open(socket: &str, address: SocketAddr) -> Self {
        let (listener, told) = Alive::listener(socket, address).await.unwrap();
        let (leave, alive) = (CancellationToken::new(), CancellationToken::new());
        let serving = serve(listener, "door");
        let keeping = tokio::spawn(told.keep(leave.clone(), alive.clone()));
        Self { leave, alive, serving, keeping }
    }

    async fn die(self) {
        self.serving.abort();
        let _ = self.serving.await;
        self.alive.cancel();
        self.keeping.await.unwrap();
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
        let door = Door::open(&socket, address).await;
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
    let door = Door::open(&socket, address).await;
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

/// The front door dies and comes back again and again, and each client gets an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_is_refused() {
    let (socket, address) = (format!("guard-d-{}", std::process::id()), free());
    let peer = bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let _guard = guard(&socket, address, peer.local_addr().unwrap());
    let _peer = serve(peer, "peer");
    let mut door = Door::open(&socket, address).await;
    until_answers(address, "door").await;
    let done = CancellationToken::new();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let done = done.clone();
            tokio::spawn(async move {
                let (mut doors, mut peers) = (0_u32, 0_u32);
                while !done.is_cancelled() {
                    match asked(address).await.unwrap().as_str() {
                        "door" => doors += 1,
                        "peer" => peers += 1,
                        other => panic!("{other:?}"),
                    }
                }
                (doors, peers)
            })
        })
        .collect();
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        door.die().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        door = Door::open(&socket, address).await;
    }
    done.cancel();
    let (mut doors, mut peers) = (0, 0);
    for client in clients {
        let (by_door, by_peer) = client.await.unwrap();
        (doors, peers) = (doors + by_door, peers + by_peer);
    }
    assert!(doors > 0 && peers > 0, "{doors} and {peers}");
}

/// A front door that takes no more connections lives on for its last requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stands_in_for_a_front_door_that_leaves() {
    let (socket, address) = (format!("guard-e-{}", std::process::id()), free());
    let peer = bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let _guard = guard(&socket, address, peer.local_addr().unwrap());
    let _peer = serve(peer, "peer");
    let door = Door::open(&socket, address).await;
    until_answers(address, "door").await;
    door.serving.abort();
    door.leave.cancel();
    until_answers(address, "peer").await;
    for _ in 0..50 {
        assert_eq!(asked(address).await.unwrap(), "peer");
    }
    assert!(!door.keeping.is_finished());
}

/// A guard that has died has lost the socket, and gets it from the front door.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_guard_gets_the_socket() {
    let (socket, address) = (format!("guard-f-{}", std::process::id()), free());
    let peer = bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let peer_address = peer.local_addr().unwrap();
    let _peer = serve(peer, "peer");
    // There is none yet: the port is bound all the same.
    let door = Door::open(&socket, address).await;
    until_answers(address, "door").await;
    let _guard = guard(&socket, address, peer_address);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..50 {
        assert_eq!(asked(address).await.unwrap(), "door");
    }
    door.die().await;
    until_answers(address, "peer").await;
}

/// Where there is no other replica a client waits for the front door itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_another_replica_clients_wait() {
    let (socket, address) = (format!("guard-c-{}", std::process::id()), free());
    let nobody = SocketAddr::new([127, 0, 0, 2].into(), free().port());
    let _guard = guard(&socket, address, nobody);
    let door = Door::open(&socket, address).await;
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
    let _door = Door::open(&socket, address).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "door");
}
