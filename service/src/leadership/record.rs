//! The Lease as this protocol reads and writes it: client-go's fields, and annotations beside them.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// Where standbys connect to the leader, and the key they show: `10.0.0.7:7446 KEY`.
pub const PEER: &str = "megacluster.io/leader-peer";
/// Who may take over when the leader falls silent, by which session, and whether it is synced:
/// `NAME SESSION synced` or `NAME SESSION cold`.
pub const STANDBY: &str = "megacluster.io/standby";
/// The epoch: the resourceVersion of the write that took the Lease. While there is no such
/// annotation that write is the last one.
pub const EPOCH: &str = "megacluster.io/epoch";
/// The epoch that was given back, and the one it is meant for if there is one: `12 NAME`.
pub const RELEASED: &str = "megacluster.io/released";
/// There while a leader may not act yet, since one may act that nobody here has heard of.
pub const SETTLING: &str = "megacluster.io/settling";

/// A Lease that says more than this is taken to say this: a user's slip must not stop a cluster.
const LONGEST: Duration = Duration::from_mins(1);

/// Where a leader listens for standbys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address.
    pub address: SocketAddr,
    /// Told to whoever may read the Lease; a new one for each process.
    pub key: String,
}

/// The standby that may take over when the leader is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Its identity.
    pub identity: String,
    /// Its connection to the leader.
    pub session: u64,
    /// Whether it holds all that it needs to lead.
    pub synced: bool,
}

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The object's version; any write changes it.
    pub version: Option<String>,
    /// Who leads; `None` where nobody does.
    pub holder: Option<String>,
    /// The holder's epoch: no other one of this Lease is ever the same, also when it was deleted,
    /// since the store gives out no resourceVersion twice.
    pub epoch: u64,
    /// `leaseTransitions`: how often the leader has changed, for people.
    pub transitions: i32,
    /// How long others wait since the last change.
    pub duration: Duration,
    /// Where the leader listens.
    pub peer: Option<Peer>,
    /// Who may take over.
    pub standby: Option<Standby>,
    /// Given back by its leader.
    pub released: bool,
    /// For whom it was given back.
    pub successor: Option<String>,
    /// The leader may not act yet.
    pub settling: bool,
}

impl Record {
    /// Reads a Lease. What can't be read is as if it were not there.
    #[must_use]
    pub fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let note = |key: &str| lease.metadata.annotations.as_ref()?.get(key).map(String::as_str);
        let version = lease.metadata.resource_version.as_deref();
        let epoch = note(EPOCH).or(version).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut released = note(RELEASED).unwrap_or_default().split(' ');
        let given_back = released.next().and_then(|text| text.parse::<u64>().ok());
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        Self {
            version: lease.metadata.resource_version.clone(),
            released: holder.is_none() && given_back == Some(epoch),
            successor: released.next().filter(|name| !name.is_empty()).map(str::to_owned),
            holder,
            epoch,
            transitions: spec.lease_transitions.unwrap_or(0),
            duration: Duration::from_secs(seconds).min(LONGEST),
            peer: note(PEER).and_then(read_peer),
            standby: note(STANDBY).and_then(read_standby),
            settling: note(SETTLING).is_some(),
        }
    }
}

fn read_peer(text: &str) -> Option<Peer> {
    let (address, key) = text.split_once(' ')?;
    Some(Peer { address: address.parse().ok()?, key: key.to_owned() })
}

fn read_standby(text: &str) -> Option<Standby> {
    let mut words = text.split(' ');
    let identity = words.next()?.to_owned();
    let session = u64::from_str_radix(words.next()?, 16).ok()?;
    Some(Standby { identity, session, synced: words.next()? == "synced" })
}

/// What our own write says.
#[derive(Clone, Debug)]
pub(super) struct Claim<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) identity: &'a str,
    pub(super) duration: Duration,
    /// Ours, once it is known.
    pub(super) epoch: Option<u64>,
    pub(super) peer: Option<&'a Peer>,
    pub(super) standby: Option<&'a Standby>,
    pub(super) settling: bool,
}

/// The Lease that follows from `found`. What is not ours in it stays.
pub(super) fn claim(found: Option<&Lease>, claim: &Claim<'_>, wall: Timestamp) -> Lease {
    let kept = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let transitions = match (kept.lease_transitions, claim.epoch) {
        (Some(transitions), Some(_)) => transitions,
        (transitions, None) if found.is_some() => transitions.unwrap_or(0).saturating_add(1),
        _ => 0,
    };
    let acquired = kept.acquire_time.clone().filter(|_| claim.epoch.is_some());
    let seconds = i32::try_from(claim.duration.as_secs()).unwrap_or(i32::MAX);
    let mut metadata = found.map_or_else(
        || ObjectMeta {
            namespace: Some(claim.namespace.to_owned()),
            name: Some(claim.name.to_owned()),
            ..ObjectMeta::default()
        },
        |lease| lease.metadata.clone(),
    );
    note(&mut metadata, EPOCH, claim.epoch.map(|epoch| epoch.to_string()));
    note(&mut metadata, PEER, claim.peer.map(|peer| format!("{} {}", peer.address, peer.key)));
    let standby = claim.standby.map(|standby| {
        let state = if standby.synced { "synced" } else { "cold" };
        format!("{} {:016x} {state}", standby.identity, standby.session)
    });
    note(&mut metadata, STANDBY, standby);
    note(&mut metadata, RELEASED, None);
    note(&mut metadata, SETTLING, claim.settling.then(|| "true".to_owned()));
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(claim.identity.to_owned()),
            lease_duration_seconds: Some(seconds.max(1)),
            acquire_time: Some(acquired.unwrap_or(MicroTime(wall))),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(transitions),
            ..kept
        }),
    }
}

/// The Lease that gives `found` back, as client-go does on release, for `successor`.
pub(super) fn release(found: &Lease, successor: Option<&str>, wall: Timestamp) -> Lease {
    let mut lease = found.clone();
    let epoch = Record::read(found).epoch;
    let words = [Some(epoch.to_string()), successor.map(str::to_owned)];
    let text = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    note(&mut lease.metadata, EPOCH, Some(epoch.to_string()));
    note(&mut lease.metadata, RELEASED, Some(text));
    note(&mut lease.metadata, PEER, None);
    note(&mut lease.metadata, STANDBY, None);
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    spec.renew_time = Some(MicroTime(wall));
    lease
}

fn note(metadata: &mut ObjectMeta, key: &str, value: Option<String>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match value {
        Some(value) => annotations.insert(key.to_owned(), value),
        None => annotations.remove(key),
    };
}
