//! Command-line flags: etcd's own where they mean the same, and a few of the store's.
//!
//! An etcd flag that would have to be ignored although it matters is refused with the reason
//! ([`refused`]); flags that only concern what this store does not have (peers, bbolt) are taken and
//! have no effect, so that a command line made for etcd starts. `docs/store.md` lists all three.

mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser};
use megacluster_service::flags::LogFlags;

pub use values::{FlagError, ListenUrl, parse_duration};

use crate::log::{Class, DurabilityRule};

/// The etcd v3 API in memory, with a log and durability by prefix.
#[derive(Parser, Clone, Debug)]
#[command(name = "megacluster-store", version, disable_help_subcommand = true)]
// As in etcd the last one of a flag that is given twice counts; of lists, too.
#[command(args_override_self = true)]
pub struct Flags {
    /// Name of this member.
    #[arg(long, default_value = "default", env = "ETCD_NAME")]
    pub name: String,
    /// Directory of the log and its snapshots; `<name>.etcd` if not given, as in etcd.
    #[arg(long, env = "ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Addresses to serve clients on, as URLs with http or https.
    #[arg(
        long,
        value_delimiter = ',',
        overrides_with = "listen_client_urls",
        default_value = "http://localhost:2379",
        env = "ETCD_LISTEN_CLIENT_URLS"
    )]
    pub listen_client_urls: Vec<ListenUrl>,
    /// URLs at which clients find this member; shown in the member list.
    #[arg(
        long,
        value_delimiter = ',',
        overrides_with = "advertise_client_urls",
        default_value = "http://localhost:2379",
        env = "ETCD_ADVERTISE_CLIENT_URLS"
    )]
    pub advertise_client_urls: Vec<String>,
    /// Addresses of the admin port: /livez, /readyz, /health, /version, /metrics and
    /// /debug/pprof/profile, over http.
    #[arg(
        long,
        value_delimiter = ',',
        overrides_with = "listen_metrics_urls",
        env = "ETCD_LISTEN_METRICS_URLS"
    )]
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// Certificate of the server, PEM. Read again when it changes.
    #[arg(long, env = "ETCD_CERT_FILE")]
    pub cert_file: Option<PathBuf>,
    /// Key of that certificate, PEM.
    #[arg(long, env = "ETCD_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Ask every client for a certificate of the trusted CA.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", action = ArgAction::Set, env = "ETCD_CLIENT_CERT_AUTH")]
    pub client_cert_auth: bool,
    /// CAs of client certificates, PEM.
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    pub trusted_ca_file: Option<PathBuf>,
    /// How often an idle watch that asked for progress is told the revision.
    #[arg(long, default_value = "10m", value_parser = parse_duration,
          alias = "experimental-watch-progress-notify-interval",
          env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL")]
    pub watch_progress_notify_interval: Duration,
    /// Largest write in bytes.
    #[arg(long, default_value_t = 1_572_864, env = "ETCD_MAX_REQUEST_BYTES")]
    pub max_request_bytes: usize,
    /// Largest number of operations in a transaction.
    #[arg(long, default_value_t = 128, env = "ETCD_MAX_TXN_OPS")]
    pub max_txn_ops: usize,
    /// Streams of one connection. More than etcd's default would let one client hold everything.
    #[arg(long, default_value_t = 100_000, env = "ETCD_MAX_CONCURRENT_STREAMS")]
    pub max_concurrent_streams: u32,
    /// An idle connection is asked for a sign of life after this long.
    #[arg(long, default_value = "2h", value_parser = parse_duration,
          env = "ETCD_GRPC_KEEPALIVE_INTERVAL")]
    pub grpc_keepalive_interval: Duration,
    /// And closed if none comes in this time.
    #[arg(long, default_value = "20s", value_parser = parse_duration,
          env = "ETCD_GRPC_KEEPALIVE_TIMEOUT")]
    pub grpc_keepalive_timeout: Duration,
    /// Bytes of keys, values and their versions above which puts are refused with the NOSPACE
    /// alarm. 0 or less: no bound.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, env = "ETCD_QUOTA_BACKEND_BYTES")]
    pub quota_backend_bytes: i64,
    /// Goes into the ids of cluster and member.
    #[arg(long, default_value = "etcd-cluster", env = "ETCD_INITIAL_CLUSTER_TOKEN")]
    pub initial_cluster_token: String,
    /// Shown in the member list.
    #[arg(
        long,
        value_delimiter = ',',
        overrides_with = "initial_advertise_peer_urls",
        default_value = "http://localhost:2380",
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS"
    )]
    pub initial_advertise_peer_urls: Vec<String>,
    /// Members as NAME=URL; more than one is refused.
    #[arg(long, default_value = "", env = "ETCD_INITIAL_CLUSTER")]
    pub initial_cluster: String,

    /// Durability of keys that no rule names: fsync (acknowledged after fdatasync), buffered (after
    /// write(2): survives the death of the process) or none (memory only).
    #[arg(long, env = "MEGACLUSTER_STORE_DURABILITY")]
    pub durability: Option<Class>,
    /// Durability of keys with a prefix, as PREFIX=MODE; the longest prefix wins. May be repeated.
    #[arg(long = "durability-rule", value_name = "PREFIX=MODE")]
    pub durability_rules: Vec<DurabilityRule>,
    /// As in etcd: acknowledge before the disk has it. The same as --durability buffered.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", action = ArgAction::Set, conflicts_with = "durability")]
    pub unsafe_no_fsync: bool,
    /// Bytes of log after which a snapshot is written and the log before it removed: bounds the
    /// disk and the time of a start.
    #[arg(long, default_value_t = 536_870_912)]
    pub snapshot_log_bytes: u64,
    /// Threads that serve connections; 0 is one for each core.
    #[arg(long, default_value_t = 0)]
    pub io_threads: usize,

    /// Logging.
    #[command(flatten)]
    pub log: LogFlags,

    /// Flags of etcd without effect here.
    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// etcd's flags about peers, Raft and bbolt, which have nothing to act on here.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Taken from etcd, without effect")]
pub struct WithoutEffect {
    #[arg(long, hide = true)]
    initial_cluster_state: Option<String>,
    #[arg(long, hide = true)]
    listen_peer_urls: Option<String>,
    #[arg(long, hide = true)]
    snapshot_count: Option<u64>,
    #[arg(long, hide = true, alias = "experimental-snapshot-catchup-entries")]
    snapshot_catchup_entries: Option<u64>,
    #[arg(long, hide = true)]
    heartbeat_interval: Option<u64>,
    #[arg(long, hide = true)]
    election_timeout: Option<u64>,
    #[arg(long, hide = true)]
    max_snapshots: Option<u64>,
    #[arg(long, hide = true)]
    max_wals: Option<u64>,
    #[arg(long, hide = true)]
    backend_batch_interval: Option<String>,
    #[arg(long, hide = true)]
    backend_batch_limit: Option<i64>,
    #[arg(long, hide = true)]
    backend_bbolt_freelist_type: Option<String>,
    #[arg(long, hide = true, alias = "experimental-compaction-batch-limit")]
    compaction_batch_limit: Option<i64>,
    #[arg(long, hide = true, alias = "experimental-compaction-sleep-interval")]
    compaction_sleep_interval: Option<String>,
    #[arg(long, hide = true)]
    grpc_keepalive_min_time: Option<String>,
    #[arg(long, hide = true)]
    logger: Option<String>,
    #[arg(long, hide = true)]
    log_outputs: Option<String>,
    #[arg(long, hide = true)]
    metrics: Option<String>,
    #[arg(long, hide = true)]
    peer_cert_file: Option<String>,
    #[arg(long, hide = true)]
    peer_key_file: Option<String>,
    #[arg(long, hide = true)]
    peer_trusted_ca_file: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    peer_client_cert_auth: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    strict_reconfig_check: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pre_vote: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    initial_election_tick_advance: Option<bool>,
    #[arg(long, hide = true, alias = "experimental-initial-corrupt-check", num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    initial_corrupt_check: Option<bool>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
}

/// Flags of etcd that matter and can't be honoured, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("auto-tls", "give certificates with --cert-file and --key-file"),
    ("self-signed-cert-validity", "give certificates with --cert-file and --key-file"),
    ("client-crl-file", "revocation lists are not checked"),
    ("client-cert-allowed-hostname", "client certificates are checked against the CA alone"),
    ("cipher-suites", "the cipher suites of rustls are fixed"),
    ("tls-min-version", "TLS 1.2 and 1.3 are offered"),
    ("tls-max-version", "TLS 1.2 and 1.3 are offered"),
    ("cors", "there is no HTTP gateway"),
    ("host-whitelist", "there is no HTTP gateway"),
    ("auto-compaction-retention", "history is compacted by its clients; kube-apiserver does so"),
    ("auto-compaction-mode", "history is compacted by its clients; kube-apiserver does so"),
    ("auth-token", "there are no users; clients are known by certificate"),
    ("auth-token-ttl", "there are no users; clients are known by certificate"),
    ("bcrypt-cost", "there are no users; clients are known by certificate"),
    ("wal-dir", "the log is in --data-dir"),
    ("discovery", "the cluster has one member"),
    ("discovery-endpoints", "the cluster has one member"),
    ("discovery-srv", "the cluster has one member"),
    ("force-new-cluster", "the cluster has one member"),
    ("listen-client-http-urls", "health pages are on the client and the admin port"),
    ("config-file", "give flags or ETCD_ environment variables"),
    ("enable-distributed-tracing", "traces are not written"),
    ("experimental-enable-distributed-tracing", "traces are not written"),
    ("experimental-enable-lease-checkpoint", "a lease's time starts anew at each start"),
    ("experimental-enable-lease-checkpoint-persist", "a lease's time starts anew at each start"),
    ("enable-log-rotation", "the log goes to standard error"),
];

/// Why a flag of etcd among `args` is refused, if one is.
#[must_use]
pub fn refused<'a>(args: impl IntoIterator<Item = &'a str>) -> Option<String> {
    args.into_iter().find_map(|arg| {
        let name = arg.strip_prefix("--")?.split('=').next()?;
        let (name, reason) = REFUSED.iter().find(|(refused, _)| *refused == name)?;
        Some(format!("megacluster-store can't honour etcd's flag --{name}: {reason}"))
    })
}

impl Flags {
    /// The default durability.
    #[must_use]
    pub fn default_class(&self) -> Class {
        match self.durability {
            Some(class) => class,
            None if self.unsafe_no_fsync => Class::Buffered,
            None => Class::Fsync,
        }
    }

    /// Where the log lives.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name)))
    }

    /// Checks what no single flag can check.
    ///
    /// # Errors
    /// [`FlagError`] names the flags that don't fit.
    pub fn check(&self) -> Result<(), FlagError> {
        if self.initial_cluster.split(',').filter(|member| !member.is_empty()).count() > 1 {
            return Err(FlagError::Members(self.initial_cluster.clone()));
        }
        if self.client_cert_auth && self.trusted_ca_file.is_none() {
            return Err(FlagError::NoClientCa);
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(FlagError::HalfPair);
        }
        let secure = |url: &&ListenUrl| url.tls;
        if self.listen_client_urls.iter().any(|url| url.tls) && self.cert_file.is_none() {
            return Err(FlagError::NoCertificate);
        }
        if let Some(url) = self.listen_metrics_urls.iter().find(secure) {
            return Err(FlagError::MetricsTls(url.to_string()));
        }
        if self.max_request_bytes == 0 || self.max_txn_ops == 0 || self.max_concurrent_streams == 0
        {
            return Err(FlagError::Zero);
        }
        Ok(())
    }

    /// The progress interval, at least etcd's minimum of 100 ms.
    #[must_use]
    pub fn progress_interval(&self) -> Duration {
        self.watch_progress_notify_interval.max(Duration::from_millis(100))
    }
}

/// Resolves URLs to addresses, each to its first.
///
/// # Errors
/// [`FlagError::Resolve`].
pub fn addresses(urls: &[ListenUrl]) -> Result<Vec<(SocketAddr, bool)>, FlagError> {
    urls.iter().map(|url| url.resolve().map(|address| (address, url.tls))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, String> {
        let args = std::iter::once("megacluster-store").chain(args.iter().copied());
        let flags = Flags::try_parse_from(args).map_err(|error| error.to_string())?;
        flags.check().map_err(|error| error.to_string())?;
        Ok(flags)
    }

    #[test]
    fn a_kubeadm_command_line_for_etcd_is_taken() {
        let flags = parse(&[
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--cert-file=/pki/server.crt",
            "--client-cert-auth=true",
            "--data-dir=/var/lib/etcd",
            "--feature-gates=InitialCorruptCheck=true",
            "--initial-advertise-peer-urls=https://10.0.0.1:2380",
            "--initial-cluster=node=https://10.0.0.1:2380",
            "--key-file=/pki/server.key",
            "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--listen-peer-urls=https://10.0.0.1:2380",
            "--name=node",
            "--peer-cert-file=/pki/peer.crt",
            "--peer-client-cert-auth=true",
            "--peer-key-file=/pki/peer.key",
            "--peer-trusted-ca-file=/pki/ca.crt",
            "--snapshot-count=10000",
            "--trusted-ca-file=/pki/ca.crt",
            "--watch-progress-notify-interval=5s",
        ])
        .unwrap();
        assert!(flags.client_cert_auth);
        assert_eq!(flags.default_class(), Class::Fsync);
        assert_eq!(flags.listen_client_urls.len(), 2);
        assert_eq!(flags.progress_interval(), Duration::from_secs(5));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (args, part) in [
            (vec!["--initial-cluster=a=http://a:2380,b=http://b:2380"], "one member"),
            (vec!["--client-cert-auth"], "--trusted-ca-file"),
            (vec!["--cert-file=a"], "--key-file"),
            (vec!["--listen-client-urls=https://127.0.0.1:0"], "--cert-file"),
            (vec!["--listen-metrics-urls=https://127.0.0.1:0"], "http"),
            (vec!["--listen-client-urls=unix://x"], "http"),
            (vec!["--durability=sometimes"], "one of fsync, buffered, none"),
            (vec!["--durability-rule=/a"], "PREFIX=MODE"),
            (vec!["--max-txn-ops=0"], "must not be 0"),
            (vec!["--no-such-flag"], "unexpected argument"),
            (vec!["--unsafe-no-fsync", "--durability=none"], "cannot be used with"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
        let reason = refused(["--name=a", "--auto-tls=true"]).unwrap();
        assert!(reason.contains("--auto-tls") && reason.contains("--cert-file"));
        assert_eq!(refused(["--name=auto-tls"]), None);
    }

    #[test]
    fn the_last_of_a_flag_counts_as_in_etcd() {
        let flags = parse(&[
            "--name=a",
            "--name=b",
            "--listen-client-urls=http://127.0.0.1:1,http://127.0.0.1:2",
            "--listen-client-urls=http://127.0.0.1:3",
            "--listen-metrics-urls=http://127.0.0.1:4",
            "--listen-metrics-urls=http://127.0.0.1:5,http://127.0.0.1:6",
            "--client-cert-auth",
            "--client-cert-auth=false",
            "--snapshot-count=1",
            "--snapshot-count=2",
            "--log-level=debug",
            "--log-level=info",
            "--durability-rule=/a/=none",
            "--durability-rule=/b/=none",
        ])
        .unwrap();
        let urls = |urls: &[ListenUrl]| urls.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(flags.name, "b");
        assert_eq!(urls(&flags.listen_client_urls), ["http://127.0.0.1:3"]);
        assert_eq!(urls(&flags.listen_metrics_urls), ["http://127.0.0.1:5", "http://127.0.0.1:6"]);
        assert!(!flags.client_cert_auth);
        // Ours, and made to be repeated.
        assert_eq!(flags.durability_rules.len(), 2);
    }

    #[test]
    fn durability_is_read() {
        let flags =
            parse(&["--durability=buffered", "--durability-rule", "/registry/leases/=none"])
                .unwrap();
        assert_eq!(flags.default_class(), Class::Buffered);
        assert_eq!(flags.durability_rules[0].prefix, "/registry/leases/");
        assert_eq!(parse(&["--unsafe-no-fsync"]).unwrap().default_class(), Class::Buffered);
    }
}
