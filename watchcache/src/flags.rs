//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use megacluster_service::flags::LogFlags;

use crate::cache::kinds::{self, Kind};
use crate::cache::{Gates, Name, Parts, Resource};
use crate::config::PoolConfig;

/// The front door of a Kubernetes control plane: takes requests, finds out who asks, and passes
/// them on to pools of kube-apiservers.
#[derive(Clone, Debug, Parser)]
#[command(name = "megacluster-watchcache", version)]
pub struct Flags {
    /// Address to serve the Kubernetes API on.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen_address: SocketAddr,
    /// PEM file with the serving certificate and its intermediates. Read again when it changes.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// PEM file with the serving certificate's key. Read again when it changes.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// PEM file with the CAs of client certificates, kube-apiserver's own `--client-ca-file`.
    /// Without it no client certificate is asked for. Read again when it changes.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// `RouterConfiguration` file. Read again when it changes.
    #[arg(long)]
    pub config: PathBuf,
    /// Address for health, metrics and profiles. Plain HTTP: keep it from the public.
    #[arg(long, default_value = "127.0.0.1:9443")]
    pub admin_listen_address: SocketAddr,
    /// Concurrent HTTP/2 streams of one client connection.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub http2_max_streams_per_connection: u32,
    /// Chance that an HTTP/2 request tells its client to connect anew, so that clients spread
    /// over the front doors again. 0 is never; at most 0.02.
    #[arg(long, default_value_t = 0.001, value_parser = chance)]
    pub goaway_chance: f64,
    /// A connection younger than this is not told so.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub goaway_min_age: Duration,
    /// How long a backend may take to begin its answer, watches and other long-running requests
    /// aside; then 504. More than kube-apiserver's `--request-timeout`.
    #[arg(long, default_value = "75s", value_parser = duration)]
    pub response_timeout: Duration,
    /// How long requests are still accepted after the signal to stop, while /readyz fails: the
    /// time in which load balancers learn of it.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub shutdown_delay_duration: Duration,
    /// How long running requests may take after that. Watches are ended, spread over its first
    /// half.
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub shutdown_timeout: Duration,
    /// Resource whose reads are answered from the front door's own cache, such as `pods` or
    /// `leases.coordination.k8s.io`, or a custom one such as `widgets.example.com`; may be given more
    /// than once, or as a list. Off by default.
    #[arg(long, value_parser = resource, value_delimiter = ',', requires = "etcd_servers")]
    pub cache_resource: Vec<Resource>,
    /// Parts that each cached resource is divided into over processes: pods by the node they are
    /// on, others by their name. The same in all front doors. From 1, which is no division, to 64.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cache_parts: u8,
    /// Part whose objects are held here, from 0 to one less than --cache-parts; may be given more
    /// than once, or as a list. Needed where there is more than one.
    #[arg(long, value_delimiter = ',')]
    pub cache_part: Vec<u8>,
    /// Where the front doors are that hold a part, as PART=HOST:PORT: each address that the host
    /// resolves to is one of them. Once for each part, or as a list; those of parts that are held
    /// here are not used.
    #[arg(long, value_parser = peer, value_delimiter = ',')]
    pub cache_peer: Vec<Peer>,
    /// Name that the peers' serving certificates are verified for; by default the peer's host.
    #[arg(long)]
    pub cache_peer_server_name: Option<String>,
    /// PEM file with the CAs of proxies' client certificates, as kube-apiserver's flag: who shows
    /// one names by X-Remote-User and the like the user whom it asks for. Read again when it
    /// changes.
    #[arg(long, requires = "client_ca_file")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common name that such a certificate may have, as kube-apiserver's flag; may be given more
    /// than once, or as a list. Without it any may.
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// URL of the store that the cache follows, as kube-apiserver's flag; may be given more than
    /// once, or as a list.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// PEM file with the CA of the store's certificates.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// PEM file with the certificate that the store is shown.
    #[arg(long, requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// PEM file with its key.
    #[arg(long, requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Prefix of the kube-apiservers' keys in the store.
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,
    /// Group in which the front door asks the kube-apiservers who may read what and whom a token
    /// names, beside its own name, system:megacluster-watchcache; may be given more than once.
    #[arg(long)]
    pub cache_review_group: Vec<String>,
    /// The kube-apiservers' own `--feature-gates`. Of interest is `ShardedListAndWatch`: where it is
    /// on (also by `AllAlpha`), reads with `shardSelector` are answered from the cache; others are
    /// not looked at.
    #[arg(long, value_delimiter = ',', value_parser = gate)]
    pub feature_gates: Vec<(String, bool)>,
    /// File with an audit policy, the kube-apiservers' own: what it wants to be recorded of requests
    /// that are answered from the cache goes to `--audit-log-path`.
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// File that audit records are written to; `-` is the standard output. Without it nothing is
    /// recorded.
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Megabytes of that file before it is put aside; 0 is never.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxsize: u32,
    /// How many older files are kept; 0 is all of them.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxbackup: usize,
    /// How many days older files are kept; 0 is for ever.
    #[arg(long, default_value_t = 366)]
    pub audit_log_maxage: u32,
    /// Name of the abstract Unix socket of a guard (`megacluster-watchcache guard`), which takes the
    /// port while this process is gone. Both then bind the port so that they may share it.
    #[arg(long)]
    pub guard_socket: Option<String>,
    /// How often the configuration and the client CA are read again.
    #[arg(long, default_value = "5s", value_parser = duration, hide = true)]
    pub reload_interval: Duration,
    /// Logging.
    #[command(flatten)]
    pub log: LogFlags,
}

/// Where a part is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub part: u8,
    /// A name that resolves to its front doors, or an address.
    pub host: String,
    /// Their port.
    pub port: u16,
}

/// Flags that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {problem}")]
pub struct FlagsError {
    /// The flag that is to be changed.
    pub flag: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Flags {
    /// The parts that are held here.
    pub fn parts(&self) -> Result<Parts, FlagsError> {
        let count = self.cache_parts;
        let wrong = |flag, problem| Err(FlagsError { flag, problem });
        let held: &[u8] = match &self.cache_part[..] {
            [] if count == 1 => &[0],
            [] => return wrong("--cache-part", "needed with --cache-parts".to_owned()),
            held => held,
        };
        let known = |part: &u8| *part < count;
        if let Some(part) = held.iter().find(|part| !known(part)) {
            return wrong("--cache-part", format!("there is no part {part} of {count}"));
        }
        for (place, peer) in self.cache_peer.iter().enumerate() {
            let part = peer.part;
            if !known(&part) {
                return wrong("--cache-peer", format!("there is no part {part} of {count}"));
            }
            if self.cache_peer.iter().skip(place + 1).any(|other| other.part == part) {
                return wrong("--cache-peer", format!("part {part} is given twice"));
            }
        }
        let missing = |part: &u8| {
            !held.contains(part) && !self.cache_peer.iter().any(|peer| peer.part == *part)
        };
        if let Some(part) = (0..count).find(missing) {
            return wrong("--cache-peer", format!("needed for part {part}, not held here"));
        }
        let Some(parts) = Parts::new(count, held) else {
            return wrong("--cache-parts", "must be from 1 to 64".to_owned());
        };
        if !parts.is_whole() && self.requestheader_client_ca_file.is_none() {
            let problem = "needed with --cache-peer: peers name the users whom they ask for";
            return wrong("--requestheader-client-ca-file", problem.to_owned());
        }
        Ok(parts)
    }

    /// The pools of those that hold other parts.
    #[must_use]
    pub fn peers(&self) -> Vec<(u8, PoolConfig)> {
        let others = self.cache_peer.iter().filter(|peer| !self.cache_part.contains(&peer.part));
        let pool = |peer: &Peer| PoolConfig {
            name: format!("part-{}", peer.part),
            host: peer.host.clone(),
            port: peer.port,
            addresses: Vec::new(),
            matches: Vec::new(),
        };
        others.map(|peer| (peer.part, pool(peer))).collect()
    }

    /// What the gates mean to the cache.
    #[must_use]
    pub fn gates(&self) -> Gates {
        let named = |name| self.feature_gates.iter().rfind(|(gate, _)| gate == name);
        let sharded = named("ShardedListAndWatch").or_else(|| named("AllAlpha"));
        Gates { sharded: sharded.is_some_and(|(_, open)| *open) }
    }
}

fn resource(text: &str) -> Result<Resource, String> {
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    let custom = || Name::new(group, resource).map(Resource::Custom);
    kinds::find(group, resource).map(Resource::Kind).or_else(custom).ok_or_else(|| {
        let known: Vec<_> = kinds::all().iter().map(Kind::full_name).collect();
        format!("must be a custom resource or one of {}", known.join(", "))
    })
}

fn peer(text: &str) -> Result<Peer, String> {
    let read = || {
        let (part, address) = text.split_once('=')?;
        let (name, number) = address.rsplit_once(':')?;
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let host = bare.unwrap_or(name).to_owned();
        let named = rustls_pki_types::ServerName::try_from(host.as_str()).is_ok();
        let peer = Peer { part: part.parse().ok()?, host, port: number.parse().ok()? };
        Some(peer).filter(|peer| named && peer.port > 0)
    };
    read().ok_or_else(|| "must be PART=HOST:PORT".to_owned())
}

fn gate(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or("must be Name=true or Name=false")?;
    // As Go's `strconv.ParseBool`.
    let open = match value.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err(format!("{name} must be true or false")),
    };
    // As kube-apiserver, which may be told whose gate it is.
    let name = name.trim();
    Ok((name.strip_prefix("kube:").unwrap_or(name).to_owned(), open))
}

fn chance(text: &str) -> Result<f64, String> {
    // The bounds of kube-apiserver's --goaway-chance.
    match text.parse::<f64>() {
        Ok(chance) if (0.0..=0.02).contains(&chance) => Ok(chance),
        _ => Err("must be a number from 0 to 0.02".to_owned()),
    }
}

/// Reads a duration as Go writes it: numbers with `ms`, `s`, `m` or `h`, for example `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is not a duration such as 500ms, 5s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|digit: char| !digit.is_ascii_digit()).ok_or_else(problem)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| problem())?;
        let unit = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(problem()),
        };
        sum += Duration::from_millis(number.checked_mul(millis).ok_or_else(problem)?);
        rest = tail;
    }
    if text.is_empty() { Err(problem()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "s", "5x", "-5s", "5 s", "1.5s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resources() {
        assert!(matches!(resource("pods"), Ok(Resource::Kind(kind)) if kind.name == "Pod"));
        let leases = "leases.coordination.k8s.io";
        assert!(matches!(resource(leases), Ok(Resource::Kind(kind)) if kind.name == "Lease"));
        let Ok(Resource::Custom(name)) = resource("gateways.gateway.networking.k8s.io") else {
            panic!("not custom");
        };
        assert_eq!((&*name.resource, &*name.group), ("gateways", "gateway.networking.k8s.io"));
        for bad in [
            "",
            "widgets",
            "widgets.",
            "widgets.local",
            "persistentvolumeclaims",
            "lease.coordination.k8s.io",
            "Widgets.example.com",
            "widgets.example..com",
            "-w.example.com",
            "w.example.com/x",
            ".example.com",
        ] {
            assert!(resource(bad).is_err(), "{bad}");
        }
    }

    fn parts(flags: &[&str]) -> Result<Parts, FlagsError> {
        let needed = ["x", "--tls-cert-file=c", "--tls-private-key-file=k", "--config=f"];
        Flags::try_parse_from(needed.iter().chain(flags)).unwrap().parts()
    }

    #[test]
    fn parts_have_peers() {
        let ca = ["--requestheader-client-ca-file=p", "--client-ca-file=c", "--cache-parts=3"];
        let with = |more: &[&str]| parts(&[&ca[..], more].concat());
        assert_eq!(parts(&[]), Ok(Parts::default()));
        assert_eq!(
            with(&["--cache-part=2,0", "--cache-part=1"]),
            Ok(Parts::new(3, &[0, 1, 2]).unwrap())
        );
        let peers = "--cache-peer=0=a.b:1,2=[::1]:2";
        assert_eq!(with(&["--cache-part=1", peers]), Ok(Parts::new(3, &[1]).unwrap()));
        assert_eq!(with(&["--cache-part=1,2", peers]), Ok(Parts::new(3, &[1, 2]).unwrap()));
        for (flags, flag) in [
            (&[][..], "--cache-part"),
            (&["--cache-part=3"], "--cache-part"),
            (&["--cache-part=1", "--cache-peer=0=a:1"], "--cache-peer"),
            (&["--cache-part=1", peers, "--cache-peer=0=b:1"], "--cache-peer"),
            (&["--cache-part=1", peers, "--cache-peer=3=b:1"], "--cache-peer"),
        ] {
            assert_eq!(with(flags).unwrap_err().flag, flag, "{flags:?}");
        }
        let untrusted = parts(&["--cache-parts=2", "--cache-part=0", "--cache-peer=1=a:1"]);
        assert_eq!(untrusted.unwrap_err().flag, "--requestheader-client-ca-file");
        assert_eq!(parts(&["--cache-part=1"]).unwrap_err().flag, "--cache-part");
        for bad in ["", "0", "0=", "0=a", "0=a:", "0=a:0", "0=a:70000", "x=a:1", "0=a b:1", "0=:1"]
        {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gates() {
        assert_eq!(gate("A=true"), Ok(("A".to_owned(), true)));
        assert_eq!(gate("kube:A=false"), Ok(("A".to_owned(), false)));
        for bad in ["", "A", "A=", "A=yes"] {
            assert!(gate(bad).is_err(), "{bad}");
        }
        let sharded = |gates: &str| {
            let arguments = ["x", "--tls-cert-file=c", "--tls-private-key-file=k", "--config=f"];
            let arguments = arguments.map(str::to_owned).into_iter();
            Flags::parse_from(arguments.chain([format!("--feature-gates={gates}")])).gates().sharded
        };
        assert!(sharded("X=false,ShardedListAndWatch=true") && sharded("AllAlpha=true"));
        assert!(!sharded("X=true") && !sharded("AllAlpha=true,ShardedListAndWatch=false"));
    }

    #[test]
    fn chances() {
        assert_eq!(chance("0.01"), Ok(0.01));
        for bad in ["-1", "0.03", "NaN", "x", "inf"] {
            assert!(chance(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([0-9]{1,22}|ms|s|m|h|\\PC){0,6}") {
            let _ = duration(&text);
        }
    }
}
