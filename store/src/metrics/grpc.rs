//! What etcd's interceptors count of each gRPC method (go-grpc-middleware,
//! `providers/prometheus/server_metrics.go`) and its codec of bytes (etcd
//! `server/etcdserver/api/v3rpc/codec.go`).
//!
//! The calls that make up nearly all traffic are counted in plain numbers of their connection, and
//! added to what all share once a turn.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tonic::Code;

/// A service, and the methods of one kind that it has.
type Methods = (&'static str, &'static str, &'static [&'static str]);

const UNARY: &str = "unary";
const SERVER: &str = "server_stream";
const BOTH: &str = "bidi_stream";

/// The methods that are served. The first four are those of [`Tally`].
const SERVED: [Methods; 11] = [
    ("etcdserverpb.KV", UNARY, &["Range", "Put", "DeleteRange", "Txn", "Compact"]),
    ("etcdserverpb.KV", SERVER, &["RangeStream"]),
    ("etcdserverpb.Watch", BOTH, &["Watch"]),
    ("etcdserverpb.Lease", UNARY, &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"]),
    ("etcdserverpb.Lease", BOTH, &["LeaseKeepAlive"]),
    (
        "etcdserverpb.Maintenance",
        UNARY,
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade"],
    ),
    ("etcdserverpb.Maintenance", SERVER, &["Snapshot"]),
    (
        "etcdserverpb.Cluster",
        UNARY,
        &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"],
    ),
    (
        "etcdserverpb.Auth",
        UNARY,
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    ("grpc.health.v1.Health", UNARY, &["Check"]),
    ("grpc.health.v1.Health", SERVER, &["Watch"]),
];

/// gRPC's codes by their numbers, as Go writes them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The calls that a connection counts by itself: the first of [`SERVED`].
const TALLIED: usize = 4;

#[derive(Debug)]
struct Method {
    service: &'static str,
    kind: &'static str,
    name: &'static str,
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// Counters of all methods.
#[derive(Debug)]
pub struct Grpc {
    methods: Box<[Method]>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl Default for Grpc {
    fn default() -> Self {
        let methods = SERVED.iter().flat_map(|(service, kind, names)| {
            names.iter().map(|name| Method {
                service,
                kind,
                name,
                started: AtomicU64::new(0),
                received: AtomicU64::new(0),
                sent: AtomicU64::new(0),
                handled: std::array::from_fn(|_| AtomicU64::new(0)),
            })
        });
        Self {
            methods: methods.collect(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }
}

impl Grpc {
    /// A call of the method at `path` begins; `None` for a method that nobody serves.
    pub fn begin(self: &Arc<Self>, path: &str) -> Option<Ticket> {
        let (service, name) = path.strip_prefix('/')?.rsplit_once('/')?;
        let at = self.methods.iter().position(|m| m.name == name && m.service == service)?;
        self.methods[at].started.fetch_add(1, Ordering::Relaxed);
        Some(Ticket { grpc: self.clone(), at, ended: AtomicBool::new(false) })
    }
}

/// A call under way, to be counted when it ends. Dropped before, it was cancelled.
#[derive(Debug)]
pub struct Ticket {
    grpc: Arc<Grpc>,
    at: usize,
    ended: AtomicBool,
}

impl Ticket {
    /// Messages of the client came, of so many bytes in all.
    pub fn received(&self, messages: u64, bytes: u64) {
        add(&self.grpc.methods[self.at].received, messages);
        add(&self.grpc.received_bytes, bytes);
    }

    /// Messages went to the client.
    pub fn sent(&self, messages: u64, bytes: u64) {
        add(&self.grpc.methods[self.at].sent, messages);
        add(&self.grpc.sent_bytes, bytes);
    }

    /// The call ended; only the first time counts.
    pub fn end(&self, code: Code) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(counter) = self.grpc.methods[self.at].handled.get(code as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A method of those that a connection counts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// `KV/Range`.
    Range,
    /// `KV/Put`.
    Put,
    /// `KV/DeleteRange`.
    DeleteRange,
    /// `KV/Txn`.
    Txn,
}

/// What a connection counted since it last told.
#[derive(Debug)]
pub struct Tally {
    grpc: Arc<Grpc>,
    started: [u32; TALLIED],
    went_well: [u32; TALLIED],
    received_bytes: u64,
    sent_bytes: u64,
}

impl Tally {
    /// Nothing so far.
    #[must_use]
    pub fn new(grpc: Arc<Grpc>) -> Self {
        Self {
            grpc,
            started: [0; TALLIED],
            went_well: [0; TALLIED],
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// A request of so many bytes came in.
    pub fn begin(&mut self, method: Direct, bytes: usize) {
        self.started[method as usize] += 1;
        self.received_bytes += bytes as u64;
    }

    /// A call was answered with so many bytes.
    pub fn went_well(&mut self, method: Direct, bytes: usize) {
        self.went_well[method as usize] += 1;
        self.sent_bytes += bytes as u64;
    }

    /// A call was answered with an error.
    pub fn failed(&self, method: Direct, code: Code) {
        self.ticket(method).end(code);
    }

    /// A call that goes on by itself, and counts itself when it ends.
    #[must_use]
    pub fn ticket(&self, method: Direct) -> Ticket {
        Ticket { grpc: self.grpc.clone(), at: method as usize, ended: AtomicBool::new(false) }
    }

    /// Adds what was counted to what all share.
    pub fn tell(&mut self) {
        if self.received_bytes == 0 && self.sent_bytes == 0 && self.started == [0; TALLIED] {
            return;
        }
        for ((method, started), well) in
            self.grpc.methods.iter().zip(&mut self.started).zip(&mut self.went_well)
        {
            // One message each way: these calls are unary.
            let (began, ended) = (std::mem::take(started), std::mem::take(well));
            add(&method.started, began.into());
            add(&method.received, began.into());
            add(&method.sent, ended.into());
            add(&method.handled[Code::Ok as usize], ended.into());
        }
        add(&self.grpc.received_bytes, std::mem::take(&mut self.received_bytes));
        add(&self.grpc.sent_bytes, std::mem::take(&mut self.sent_bytes));
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.tell();
    }
}

/// Tells messages apart in the bytes of a gRPC body, however it is cut.
#[derive(Debug, Default)]
pub struct Meter {
    /// The head of the next message, as far as it came.
    head: [u8; 5],
    filled: usize,
    /// What is still to come of the message.
    left: usize,
}

impl Meter {
    /// Messages that begin in these bytes, and their lengths in all.
    pub fn measure(&mut self, mut bytes: &[u8]) -> (u64, u64) {
        let (mut messages, mut sum) = (0, 0);
        loop {
            let body = self.left.min(bytes.len());
            self.left -= body;
            bytes = &bytes[body..];
            let part = (self.head.len() - self.filled).min(bytes.len());
            if part == 0 {
                return (messages, sum);
            }
            let (head, rest) = bytes.split_at(part);
            self.head[self.filled..self.filled + part].copy_from_slice(head);
            self.filled += part;
            bytes = rest;
            if self.filled == self.head.len() {
                let [_, a, b, c, d] = self.head;
                let length = u32::from_be_bytes([a, b, c, d]);
                (self.filled, self.left) = (0, length as usize);
                messages += 1;
                sum += u64::from(length);
            }
        }
    }
}

/// Shows the counters.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Grpc>);

type Select = fn(&Method) -> &AtomicU64;

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let plain: [(&str, &str, Select); 3] = [
            ("grpc_server_started", "RPCs started on the server", |m| &m.started),
            ("grpc_server_msg_received", "RPC messages received on the server", |m| &m.received),
            ("grpc_server_msg_sent", "RPC messages sent by the server", |m| &m.sent),
        ];
        for (name, help, of) in plain {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for method in &self.0.methods {
                show(&mut family, of(method), &labels(method))?;
            }
        }
        let help = "RPCs completed on the server, regardless of success or failure";
        let mut family =
            encoder.encode_descriptor("grpc_server_handled", help, None, MetricType::Counter)?;
        for method in &self.0.methods {
            let [kind, service, name] = labels(method);
            for (counter, code) in method.handled.iter().zip(CODES) {
                show(&mut family, counter, &[("grpc_code", code), kind, service, name])?;
            }
        }
        for (name, help, counter) in [
            (
                "etcd_network_client_grpc_received_bytes",
                "Bytes received from gRPC clients",
                &self.0.received_bytes,
            ),
            (
                "etcd_network_client_grpc_sent_bytes",
                "Bytes sent to gRPC clients",
                &self.0.sent_bytes,
            ),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(counter.load(Ordering::Relaxed)).encode(family)?;
        }
        Ok(())
    }
}

type Label = (&'static str, &'static str);

fn labels(method: &Method) -> [Label; 3] {
    [("grpc_type", method.kind), ("grpc_service", method.service), ("grpc_method", method.name)]
}

fn show<const N: usize>(
    family: &mut MetricEncoder<'_>,
    counter: &AtomicU64,
    labels: &[Label; N],
) -> fmt::Result {
    let value = ConstCounter::new(counter.load(Ordering::Relaxed));
    value.encode(family.encode_family(labels)?)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    fn text(grpc: &Arc<Grpc>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shown(grpc.clone())));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn calls_are_counted_as_etcd_counts_them() {
        let grpc = Arc::<Grpc>::default();
        let mut tally = Tally::new(grpc.clone());
        for _ in 0..3 {
            tally.begin(Direct::Txn, 10);
        }
        tally.went_well(Direct::Txn, 100);
        tally.went_well(Direct::Txn, 100);
        tally.failed(Direct::Txn, Code::OutOfRange);
        let method = r#"grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Txn""#;
        assert!(text(&grpc).contains(&format!("grpc_server_started_total{{{method}}} 0\n")));
        drop(tally);

        let watch = grpc.begin("/etcdserverpb.Watch/Watch").unwrap();
        watch.received(1, 7);
        watch.sent(2, 50);
        let lost = grpc.begin("/etcdserverpb.Watch/Watch").unwrap();
        drop(lost);
        assert!(grpc.begin("/etcdserverpb.Watch/Txn").is_none());
        assert!(grpc.begin("nothing").is_none());
        let shown = text(&grpc);
        let stream =
            r#"grpc_type="bidi_stream",grpc_service="etcdserverpb.Watch",grpc_method="Watch""#;
        for line in [
            format!("grpc_server_started_total{{{method}}} 3"),
            format!("grpc_server_msg_received_total{{{method}}} 3"),
            format!("grpc_server_msg_sent_total{{{method}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{method}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"OutOfRange\",{method}}} 1"),
            format!("grpc_server_started_total{{{stream}}} 2"),
            format!("grpc_server_msg_sent_total{{{stream}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{stream}}} 1"),
            "etcd_network_client_grpc_received_bytes_total 37".to_owned(),
            "etcd_network_client_grpc_sent_bytes_total 250".to_owned(),
        ] {
            assert!(shown.contains(&format!("{line}\n")), "{line}\n{shown}");
        }
        watch.end(Code::Ok);
    }

    #[test]
    fn the_first_methods_are_those_that_connections_count() {
        let grpc = Grpc::default();
        let names = grpc.methods.iter().take(TALLIED).map(|method| method.name);
        assert_eq!(names.collect::<Vec<_>>(), ["Range", "Put", "DeleteRange", "Txn"]);
        assert_eq!(Direct::Txn as usize, 3);
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let wire = b"\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\x03cde";
        for size in 1..=wire.len() {
            let mut meter = Meter::default();
            let mut all = (0, 0);
            for piece in wire.chunks(size) {
                let (messages, bytes) = meter.measure(piece);
                all = (all.0 + messages, all.1 + bytes);
            }
            assert_eq!(all, (3, 5), "{size}");
        }
    }
}
