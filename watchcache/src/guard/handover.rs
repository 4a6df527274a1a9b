//! What a front door and its guard tell each other, over a stream socket in the abstract namespace.
//!
//! Messages are single bytes, two of them with the listening socket beside (`unix(7)`,
//! `SCM_RIGHTS`). The kernel ends the connection when either process ends, however it does.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    /// The port's listening socket. The guard begins with it, or with `Nothing`; the front door
    /// gives its own to a guard that has none.
    Listener(TcpListener),
    /// The guard has no socket.
    Nothing,
    /// The front door accepts connections from now on.
    Serves,
    /// The front door accepts no more.
    Leaves,
}

impl Message {
    fn byte(&self) -> u8 {
        match self {
            Self::Listener(_) => b'l',
            Self::Nothing => b'n',
            Self::Serves => b's',
            Self::Leaves => b'x',
        }
    }
}

fn address_of(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

/// The guard's end.
pub(super) fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&address_of(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The front door's end.
pub(super) fn connect(name: &str) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect_addr(&address_of(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Sends a message. A peer that reads nothing is an error of kind `WouldBlock` once the kernel
/// holds no more, which a handful of bytes never comes to.
pub(super) fn send(stream: &UnixStream, message: &Message) -> io::Result<()> {
    let byte = [message.byte()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let sockets;
    if let Message::Listener(listener) = message {
        sockets = [listener.as_fd()];
        if !beside.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    let sent = stream.try_io(Interest::WRITABLE, || {
        Ok(sendmsg(stream, &[IoSlice::new(&byte)], &mut beside, SendFlags::NOSIGNAL)?)
    })?;
    if sent == 1 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives the next message; `None` at the end. A byte that means nothing here is an error.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<Option<Message>> {
    let (byte, socket) = stream
        .async_io(Interest::READABLE, || {
            let (mut byte, mut socket) = ([0], None);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let read = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut beside, flags)?;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(sockets) = message {
                    socket = sockets.last();
                }
            }
            Ok(((read.bytes == 1).then_some(byte[0]), socket))
        })
        .await?;
    match (byte, socket) {
        (None, _) => Ok(None),
        (Some(b'l'), Some(socket)) => Ok(Some(Message::Listener(listener(socket)?))),
        (Some(b'n'), None) => Ok(Some(Message::Nothing)),
        (Some(b's'), None) => Ok(Some(Message::Serves)),
        (Some(b'x'), None) => Ok(Some(Message::Leaves)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What came must be a socket that listens: another kind of file would fail at each `accept`.
fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether a socket listens on an address; port 0 stands for any.
pub(super) fn listens_on(listener: &TcpListener, address: SocketAddr) -> bool {
    listener.local_addr().is_ok_and(|at| {
        at.ip() == address.ip() && (address.port() == 0 || at.port() == address.port())
    })
}
