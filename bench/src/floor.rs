//! What the machine itself adds to a request: the latency that no server on it can be below.
//!
//! Two loads without a server of ours or a peer's. `spin`: a thread that does nothing but look at the
//! clock on the server's core, and requests that are answered when they are seen; what they wait is what
//! the hypervisor and the kernel take the core for. `echo`: a message there and back over loopback
//! between the two cores, the thread on the server's side asleep while it waits, as every server that
//! leaves its core to others.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Error, io};
use crate::histogram::Histogram;
use crate::line::Line;
use crate::load::nanos;

/// What the messages of `echo` hold: a compare-and-put of a value of 1 KiB, about.
const MESSAGE: usize = 1200;

/// At which rate, and for how long.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FloorArgs {
    /// Requests per second.
    #[arg(long, default_value_t = 10_000.0)]
    pub(crate) rate: f64,
    /// Seconds measured.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
}

/// Moments at which requests are due.
struct Due {
    epoch: Instant,
    next: u64,
    interval: u64,
    end: u64,
}

impl Due {
    fn new(args: FloorArgs) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a second's part"
        )]
        let interval = ((1e9 / args.rate) as u64).max(1);
        let end = nanos(Duration::from_secs_f64(args.seconds));
        Self { epoch: Instant::now(), next: 0, interval, end }
    }

    fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }

    /// The moment of the next request, if it is due.
    fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.next;
        (due <= now && due < self.end).then(|| {
            self.next += self.interval;
            due
        })
    }

    fn over(&self) -> bool {
        self.next >= self.end
    }
}

/// Runs both and gives a line for each.
pub(crate) fn run(args: FloorArgs) -> Result<Vec<Line>, Error> {
    let line = |load: &str, latency: &Histogram| {
        let mut line = Line::default();
        line.add("system", "none").add("load", load).add("rate", args.rate);
        line.latency("", latency);
        line
    };
    let spin = on_thread(0, move || Ok(spin(args)))?;
    let echo = echo(args)?;
    Ok(vec![line("spin", &spin), line("echo", &echo)])
}

fn spin(args: FloorArgs) -> Histogram {
    let mut latency = Histogram::default();
    let mut due = Due::new(args);
    while !due.over() {
        let now = due.now();
        while let Some(at) = due.take(now) {
            latency.record(now - at);
        }
    }
    latency
}

fn echo(args: FloorArgs) -> Result<Histogram, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io("listen"))?;
    let address = listener.local_addr().map_err(io("listen"))?;
    let client = TcpStream::connect(address).map_err(io("connect"))?;
    let (server, _) = listener.accept().map_err(io("accept"))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true).map_err(io("connect"))?;
    }
    let answering = thread::spawn(move || {
        pin(0)?;
        answer(server)
    });
    let latency = on_thread(1, move || ask(client, args))?;
    answering.join().map_err(|_| Error::Child("the echo's thread panicked".into()))??;
    Ok(latency)
}

/// Sends back what comes until the client is gone.
fn answer(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; 64 * MESSAGE];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => stream.write_all(&buffer[..read]).map_err(io("answer"))?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(io("read")(error)),
        }
    }
}

/// Sends messages when they are due and notes when they are back.
fn ask(mut stream: TcpStream, args: FloorArgs) -> Result<Histogram, Error> {
    stream.set_nonblocking(true).map_err(io("socket"))?;
    let mut latency = Histogram::default();
    let mut due = Due::new(args);
    let (message, mut buffer) = (vec![7; MESSAGE], vec![0; 64 * MESSAGE]);
    let mut sent = std::collections::VecDeque::new();
    let (mut unsent, mut read) = (0, 0);
    while !due.over() || !sent.is_empty() {
        let now = due.now();
        while let Some(at) = due.take(now) {
            sent.push_back(at);
            unsent += MESSAGE;
        }
        while unsent > 0 {
            match stream.write(&message[..unsent.min(MESSAGE)]) {
                Ok(wrote) => unsent -= wrote,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(io("send")(error)),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(Error::Peer("the echo ended".into())),
            Ok(more) => read += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(io("read")(error)),
        }
        let now = due.now();
        while read >= MESSAGE {
            read -= MESSAGE;
            if let Some(at) = sent.pop_front() {
                latency.record(now - at);
            }
        }
    }
    Ok(latency)
}

/// Runs something on a thread of its own on one core.
fn on_thread<T: Send + 'static>(
    core: usize,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let thread = thread::spawn(move || {
        pin(core)?;
        work()
    });
    thread.join().map_err(|_| Error::Child("a thread of the floor panicked".into()))?
}

fn pin(core: usize) -> Result<(), Error> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|error| io("choose a core")(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_answered_once() {
        let args = FloorArgs { rate: 2000.0, seconds: 0.1 };
        assert_eq!(spin(args).total, 200);
        let lines = run(args).unwrap();
        assert_eq!(lines.len(), 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let answering = thread::spawn(move || answer(server));
        assert_eq!(ask(client, args).unwrap().total, 200);
        answering.join().unwrap().unwrap();
    }
}
