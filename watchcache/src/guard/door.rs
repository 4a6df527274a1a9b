//! The front door's side.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::AGAIN;
use super::handover::{Message, connect, listens_on, receive, send};
use crate::serve::bind;

/// A guard that says nothing for this long is passed over.
const GREETING: Duration = Duration::from_secs(1);
/// How long a port that is taken is tried again: its guard may be starting.
const TAKEN: Duration = Duration::from_secs(5);

/// A front door's connection to its guard, made anew when the guard has started anew.
#[derive(Debug)]
pub struct Alive {
    name: String,
    listener: TcpListener,
    guard: Option<UnixStream>,
}

impl Alive {
    /// The port's listening socket: the guard's if it has one, on which clients may be waiting
    /// already, else a new one. The second is what [`Self::keep`] is called on.
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn listener(
        name: &str,
        address: SocketAddr,
    ) -> io::Result<(tokio::net::TcpListener, Self)> {
        let until = Instant::now() + TAKEN;
        let (listener, guard) = loop {
            let guard = match greeted(name).await {
                Ok((guard, Some(listener))) if listens_on(&listener, address) => {
                    break (listener, Some(guard));
                }
                Ok((guard, _)) => Some(guard),
                Err(error) => {
                    debug!(%error, socket = name, "guard");
                    None
                }
            };
            match bind(address).and_then(tokio::net::TcpListener::into_std) {
                // A guard that is gone by now gets it from `keep`.
                Ok(listener) => {
                    let guard = guard.filter(|guard| give(guard, &listener).is_ok());
                    break (listener, guard);
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until =>
                {
                    warn!(%address, %error, "the port is taken");
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        };
        let own = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        Ok((own, Self { name: name.to_owned(), listener, guard }))
    }

    /// Tells the guard that connections are accepted, until `leave` is cancelled, and holds the
    /// connection until `token` is.
    pub async fn keep(mut self, leave: CancellationToken, token: CancellationToken) {
        loop {
            let guard = match self.guard.take() {
                Some(guard) => Ok(guard),
                None => self.introduce().await,
            };
            match guard {
                Ok(guard) => tokio::select! {
                    () = token.cancelled() => return,
                    () = serve(&guard, &leave) => info!("the guard is gone"),
                },
                Err(error) => debug!(%error, socket = self.name, "guard"),
            }
            tokio::select! {
                () = token.cancelled() => return,
                () = sleep(AGAIN) => {}
            }
        }
    }

    /// To a guard that has started after us.
    async fn introduce(&self) -> io::Result<UnixStream> {
        let (guard, _) = greeted(&self.name).await?;
        give(&guard, &self.listener)?;
        Ok(guard)
    }
}

async fn greeted(name: &str) -> io::Result<(UnixStream, Option<TcpListener>)> {
    let guard = connect(name)?;
    match timeout(GREETING, receive(&guard)).await?? {
        Some(Message::Listener(listener)) => Ok((guard, Some(listener))),
        Some(_) => Ok((guard, None)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn give(guard: &UnixStream, listener: &TcpListener) -> io::Result<()> {
    send(guard, &Message::Listener(listener.try_clone()?))
}

/// Ends with the guard.
async fn serve(guard: &UnixStream, leave: &CancellationToken) {
    let said = if leave.is_cancelled() { Ok(()) } else { send(guard, &Message::Serves) };
    let gone = async { while let Ok(Some(_)) = receive(guard).await {} };
    tokio::pin!(gone);
    if said.is_ok() {
        tokio::select! {
            () = &mut gone => return,
            () = leave.cancelled() => {}
        }
        if send(guard, &Message::Leaves).is_err() {
            return;
        }
    }
    gone.await;
}
