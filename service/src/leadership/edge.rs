//! Feeds an [`Election`]: the apiserver, the connections and the clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::election::{Effect, Election, Write};
use super::record::Peer;
use super::wire::{FromLeader, FromStandby, LONGEST};
use super::{End, Leadership, LeaseElection, Target};

/// Lines on their way in from all connections.
const EVENTS: usize = 256;
/// Lines on their way out by one connection; more are dropped, as the network may.
const LINES: usize = 32;
/// Connections of standbys at once, those that have not said hello too.
const CONNECTIONS: usize = 64;
/// A standby has this long to say hello, and a leader to take a connection.
const HELLO: Duration = Duration::from_secs(2);
/// A line that can't be sent for this long ends the sending by its connection.
const SEND: Duration = Duration::from_secs(2);
/// How long giving back may take.
const RELEASE: Duration = Duration::from_secs(2);
/// A standby to which the Lease was left has this long to take it.
const YIELD: Duration = Duration::from_secs(1);

enum Event {
    Told(u64, FromStandby),
    Gone(u64),
    Heard(u64, FromLeader),
    Ended(u64, End),
}

enum Done {
    Read(kube::Result<Option<Lease>>),
    Wrote { started: Instant, result: kube::Result<Lease> },
    Late,
}

/// Whoever acts by our leadership stops before connections are closed, also in a panic: standbys
/// take an end without a word for our death.
struct StepDown<'a>(&'a watch::Sender<Leadership>);

impl Drop for StepDown<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|leadership| {
            leadership.leader = false;
            leadership.holds = false;
            leadership.fence = None;
        });
    }
}

struct Connections {
    events: mpsc::Sender<Event>,
    standbys: HashMap<u64, mpsc::Sender<FromLeader>>,
    leaders: HashMap<u64, (mpsc::Sender<FromStandby>, DropGuard)>,
    next: u64,
    identity: String,
}

pub(super) async fn campaign(
    election: LeaseElection,
    sender: &watch::Sender<Leadership>,
    token: &CancellationToken,
) {
    let listener = listen(&election).await;
    let peer = match &listener {
        Some(listener) => advertised(&election, listener).await,
        None => None,
    };
    let (events, mut inbox) = mpsc::channel(EVENTS);
    let identity = election.config.identity.clone();
    let mut connections = Connections {
        events,
        standbys: HashMap::new(),
        leaders: HashMap::new(),
        next: 0,
        identity,
    };
    let seed = rand::random::<u64>() << 16;
    let mut state = Election::new(election.config.clone(), peer, seed, Instant::now());
    let step_down = StepDown(sender);
    let mut call: Option<BoxFuture<'static, Done>> = None;
    loop {
        let now = Instant::now();
        state.set_synced((election.synced)());
        state.tick(now);
        if call.is_none() && now >= state.next_look() {
            call = Some(begin(&election, &mut state, now));
        }
        connections.apply(state.effects());
        publish(&election, &mut state, sender);
        let wake = if call.is_none() { state.next_look() } else { now + HELLO };
        let wake = wake.min(state.wake(now));
        tokio::select! {
            () = token.cancelled() => break,
            done = async { match call.as_mut() {
                Some(call) => call.await,
                None => std::future::pending().await,
            } } => {
                call = finish(&election, &mut state, done);
            }
            Some(event) = inbox.recv() => take(&mut state, &mut connections, event),
            stream = accept(listener.as_ref()), if connections.standbys.len() < CONNECTIONS => {
                connections.accepted(stream);
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
    drop(call);
    let left_to = state.stop();
    // Whoever acts on our leadership stops before others can know that the Lease is free.
    publish(&election, &mut state, sender);
    connections.apply(state.effects());
    if let Some(id) = left_to {
        drop(timeout(YIELD, taken(id, &mut inbox)).await);
    }
    release(&election, &state).await;
    state.released();
    connections.apply(state.effects());
    // The last lines go out before the connections do.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(step_down);
}

/// Until the standby of this connection leaves it, as it does once it has taken the Lease.
async fn taken(id: u64, inbox: &mut mpsc::Receiver<Event>) {
    while let Some(event) = inbox.recv().await {
        if matches!(event, Event::Gone(gone) if gone == id) {
            return;
        }
    }
}

fn take(state: &mut Election, connections: &mut Connections, event: Event) {
    let now = Instant::now();
    match event {
        Event::Told(id, line) => state.told(id, line),
        Event::Gone(id) => {
            state.gone(id);
            connections.standbys.remove(&id);
        }
        Event::Heard(session, line) => state.heard(session, &line, now),
        Event::Ended(session, how) => {
            debug!(?how, "connection to the leader ended");
            state.disconnected(session, how, now);
            connections.leaders.remove(&session);
        }
    }
}

fn publish(election: &LeaseElection, state: &mut Election, sender: &watch::Sender<Leadership>) {
    let lease = &election.config.name;
    if let Some(takeover) = state.takeover() {
        let took = takeover.took.map(|took| took.as_millis());
        info!(
            lease,
            epoch = takeover.epoch,
            cause = takeover.cause.as_str(),
            took,
            "took the Lease"
        );
        if let Some(metrics) = &election.metrics {
            metrics.took_over(&takeover);
        }
    }
    let new = state.leadership(Instant::now());
    if let Some(metrics) = &election.metrics {
        metrics.show(&new);
    }
    sender.send_if_modified(|old| {
        if old.leader != new.leader {
            let (leader, holds) = (new.leader, new.holds);
            info!(lease, leader, holds, epoch = new.epoch, "leadership");
        } else if old.holder != new.holder {
            info!(lease, holder = new.holder, epoch = new.epoch, "leader");
        } else if old.standby_synced != new.standby_synced {
            info!(lease, synced = new.standby_synced, "standby");
        }
        let modified = *old != new;
        *old = new;
        modified
    });
}

/// The next call of the apiserver: a renewal without a look where the record is known, else a look.
fn begin(election: &LeaseElection, state: &mut Election, now: Instant) -> BoxFuture<'static, Done> {
    if let Some(write) = state.renewal(now, Timestamp::now()) {
        return send(election, write);
    }
    let (api, name) = (election.api.clone(), election.config.name.clone());
    bounded(election, async move { Done::Read(api.get_opt(&name).await) })
}

fn send(election: &LeaseElection, write: Write) -> BoxFuture<'static, Done> {
    let (api, name) = (election.api.clone(), election.config.name.clone());
    let started = Instant::now();
    bounded(election, async move {
        let result = match write {
            Write::Create(lease) => api.create(&PostParams::default(), &lease).await,
            Write::Update(lease) => api.replace(&name, &PostParams::default(), &lease).await,
        };
        Done::Wrote { started, result }
    })
}

fn bounded(
    election: &LeaseElection,
    call: impl Future<Output = Done> + Send + 'static,
) -> BoxFuture<'static, Done> {
    let limit = election.config.renew_deadline * 2 / 3;
    async move { timeout(limit, call).await.unwrap_or(Done::Late) }.boxed()
}

/// Takes over the answer; the write that follows from it, if one does.
fn finish(
    election: &LeaseElection,
    state: &mut Election,
    done: Done,
) -> Option<BoxFuture<'static, Done>> {
    let now = Instant::now();
    let lease = &election.config.name;
    match done {
        Done::Read(Ok(found)) => {
            return state.read(found, now, Timestamp::now()).map(|write| send(election, write));
        }
        Done::Wrote { started, result: Ok(written) } => state.wrote(written, started, now),
        Done::Wrote { result: Err(kube::Error::Api(status)), .. }
            if status.code == 409 || status.code == 404 =>
        {
            state.failed(true, now);
        }
        Done::Read(Err(error)) | Done::Wrote { result: Err(error), .. } => {
            warn!(lease, %error, "leader election");
            state.failed(false, now);
        }
        Done::Late => {
            warn!(lease, "leader election: timed out");
            state.failed(false, now);
        }
    }
    None
}

/// Gives the Lease back, unless it has been taken. A renewal that was cut short may have landed all
/// the same: so where the record has moved on we look once more before we write.
async fn release(election: &LeaseElection, state: &Election) {
    let lease = &election.config.name;
    let Some(record) = state.release(Timestamp::now()) else { return };
    match timeout(RELEASE, write_release(&election.api, lease, state, record)).await {
        Ok(Ok(())) => info!(lease, "leadership released"),
        Ok(Err(error)) => warn!(lease, %error, "leadership not released"),
        Err(_) => warn!(lease, "leadership not released: timed out"),
    }
}

async fn write_release(
    api: &Api<Lease>,
    name: &str,
    state: &Election,
    record: Lease,
) -> kube::Result<()> {
    let params = PostParams::default();
    let Err(error) = api.replace(name, &params, &record).await else { return Ok(()) };
    let conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
    let found = if conflict { api.get_opt(name).await? } else { None };
    let Some(found) = found else { return Err(error) };
    match state.release_again(&found, Timestamp::now()) {
        Some(record) => api.replace(name, &params, &record).await.map(drop),
        None => Ok(()),
    }
}

async fn listen(election: &LeaseElection) -> Option<TcpListener> {
    let address = election.config.listen;
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            warn!(%address, %error, "standbys can't connect: a takeover waits for the Lease");
            None
        }
    }
}

/// The address that standbys connect to.
async fn advertised(election: &LeaseElection, listener: &TcpListener) -> Option<Peer> {
    let bound = listener.local_addr().ok()?;
    let host = match election.config.advertise {
        Some(host) => host,
        None if !bound.ip().is_unspecified() => bound.ip(),
        None => seen_by(election.server.as_ref()?).await?,
    };
    let key = format!("{:032x}", rand::random::<u128>());
    Some(Peer { address: SocketAddr::new(host, bound.port()), key })
}

/// The address from which this host would reach the server. Nothing is sent.
async fn seen_by((host, port): &(String, u16)) -> Option<IpAddr> {
    let lookup = timeout(HELLO, tokio::net::lookup_host((host.as_str(), *port))).await;
    let target = lookup.ok()?.ok()?.next()?;
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        match listener {
            Some(listener) => match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            None => std::future::pending().await,
        }
    }
}

impl Connections {
    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Connect(target) => self.connect(&target),
                Effect::Leave(session) => {
                    self.leaders.remove(&session);
                }
                Effect::Answer(session, line) => {
                    if let Some((lines, _)) = self.leaders.get(&session) {
                        drop(lines.try_send(line));
                    }
                }
                Effect::Say(id, line) => {
                    if let Some(lines) = self.standbys.get(&id) {
                        drop(lines.try_send(line));
                    }
                }
                Effect::Close(id) => {
                    self.standbys.remove(&id);
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream) {
        self.next += 1;
        let id = self.next;
        let (sender, mut lines) = mpsc::channel::<FromLeader>(LINES);
        self.standbys.insert(id, sender);
        drop(stream.set_nodelay(true));
        let (read, mut write) = stream.into_split();
        let events = self.events.clone();
        tokio::spawn(async move {
            let mut reader = Lines::new(read);
            let mut limit = HELLO;
            while let Ok(Ok(Some(text))) = timeout(limit, reader.next()).await {
                let Some(line) = FromStandby::parse(&text) else { break };
                limit = Duration::from_hours(24);
                if events.send(Event::Told(id, line)).await.is_err() {
                    break;
                }
            }
            // Only fails when the election has ended.
            drop(events.send(Event::Gone(id)).await);
        });
        tokio::spawn(async move {
            let mut broken = false;
            // Kept open, also when nothing can be sent: only the election ends it.
            while let Some(line) = lines.recv().await {
                let line = line.line();
                broken = broken
                    || !matches!(timeout(SEND, write.write_all(line.as_bytes())).await, Ok(Ok(())));
            }
        });
    }

    fn connect(&mut self, target: &Target) {
        let (sender, lines) = mpsc::channel(LINES);
        let left = CancellationToken::new();
        let session = target.session;
        self.leaders.insert(session, (sender, left.clone().drop_guard()));
        let (events, address) = (self.events.clone(), target.peer.address);
        let hello = FromStandby::Hello {
            key: target.peer.key.clone(),
            identity: self.identity.clone(),
            session,
        };
        tokio::spawn(async move {
            let how = tokio::select! {
                () = left.cancelled() => return,
                how = converse(address, hello, session, lines, &events) => how,
            };
            drop(events.send(Event::Ended(session, how)).await);
        });
    }
}

/// Talks with the leader until the connection ends.
async fn converse(
    address: SocketAddr,
    hello: FromStandby,
    session: u64,
    mut lines: mpsc::Receiver<FromStandby>,
    events: &mpsc::Sender<Event>,
) -> End {
    let Ok(Ok(stream)) = timeout(HELLO, TcpStream::connect(address)).await else {
        return End::Broken;
    };
    drop(stream.set_nodelay(true));
    let (read, mut write) = stream.into_split();
    if write.write_all(hello.line().as_bytes()).await.is_err() {
        return End::Broken;
    }
    let mut reader = Lines::new(read);
    loop {
        tokio::select! {
            text = reader.next() => match text {
                Ok(Some(text)) => {
                    let Some(line) = FromLeader::parse(&text) else { return End::Broken };
                    if events.send(Event::Heard(session, line)).await.is_err() {
                        return End::Broken;
                    }
                }
                Ok(None) => return End::Closed,
                Err(_) => return End::Broken,
            },
            line = lines.recv() => {
                let Some(line) = line else { return End::Told };
                if write.write_all(line.line().as_bytes()).await.is_err() {
                    // What the leader said before is still to be read: the end tells more.
                    return drained(&mut reader, session, events).await;
                }
            }
        }
    }
}

/// Reads what is left of a connection that can't be written to any more.
async fn drained<R: AsyncRead + Unpin>(
    reader: &mut Lines<R>,
    session: u64,
    events: &mpsc::Sender<Event>,
) -> End {
    while let Ok(Ok(Some(text))) = timeout(HELLO, reader.next()).await {
        match FromLeader::parse(&text) {
            Some(line @ (FromLeader::Yours { .. } | FromLeader::Bye | FromLeader::No)) => {
                drop(events.send(Event::Heard(session, line)).await);
            }
            Some(FromLeader::Ask { .. } | FromLeader::Wrote { .. }) => {}
            None => return End::Broken,
        }
    }
    End::Broken
}

/// Lines of a bounded length.
struct Lines<R> {
    from: R,
    read: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(from: R) -> Self {
        Self { from, read: Vec::with_capacity(LONGEST) }
    }

    /// The next line; `None` at the end. Nothing is lost where the future is dropped.
    async fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if self.read.len() > LONGEST {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            if self.from.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        }
    }
}
