//! Whether a silent client is still there.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::io::Io;

/// Asks a silent client for a sign of life.
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    sleep: Pin<Box<Sleep>>,
    /// What had come in when the sleep began.
    received: u64,
    asked: bool,
}

impl Keepalive {
    pub(super) fn new(interval: Duration, timeout: Duration) -> Self {
        let sleep = Box::pin(sleep_until(Instant::now() + interval));
        Self { interval, timeout, sleep, received: 0, asked: false }
    }

    /// Ready if the client is dead.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &Io<S>,
        ping: Option<&mut PingPong>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(ping) = ping else { return Poll::Pending };
        if self.asked {
            // Only so that the codec is done with it; any byte is as good a sign.
            let _ = ping.poll_pong(cx);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let received = io.received();
            // Of a client that waits for answers nothing more is read.
            let silent = received == self.received && !io.stopped();
            self.received = received;
            let next = match (silent, self.asked) {
                (true, true) => return Poll::Ready(()),
                (true, false) => {
                    self.asked = ping.send_ping(Ping::opaque()).is_ok();
                    self.timeout
                }
                (false, _) => {
                    self.asked = false;
                    self.interval
                }
            };
            self.sleep.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    }
}
