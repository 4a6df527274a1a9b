//! Leaf certificates: kept while they fit, issued anew when they don't.

use jiff::{SignedDuration, Timestamp};

use super::CLOCK_SKEW;
use super::inventory::LeafSpec;
use super::secrets::{CERTIFICATE, Entries, KEY, entry};
use super::x509::{Facts, Problem, private_key};
use crate::validate::Rotation;

/// Why a leaf is issued anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is no Secret of this leaf yet.
    #[error("it does not exist")]
    Absent,
    /// Certificate or key can't be used.
    #[error("it is damaged: {0}")]
    Damaged(Problem),
    /// The authority that signed it is not the one that is trusted.
    #[error("it was signed by another authority")]
    Issuer,
    /// It names another user or group, or is for the other side of a connection.
    #[error("its subject or usage changed")]
    Subject,
    /// The server's names or addresses changed.
    #[error("its names changed")]
    Names,
    /// Less than `renewBefore` is left of its life.
    #[error("it is about to expire")]
    Expiry,
    /// It lives longer than `leafValidity` allows from now on.
    #[error("it is valid for longer than leafValidity")]
    Validity,
    /// Its life starts in the future.
    #[error("it is not valid yet")]
    NotYetValid,
}

/// What becomes of a stored leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stays until then.
    Keep {
        renew_at: Timestamp,
    },
    Issue(Reason),
}

/// Judges the stored `entries` of a leaf against what it should be.
pub(crate) fn assess(
    leaf: &LeafSpec,
    entries: Option<&Entries>,
    authority: &Facts,
    rotation: Rotation,
    now: Timestamp,
) -> Verdict {
    let Some(entries) = entries else { return Verdict::Issue(Reason::Absent) };
    let facts = match read(entries) {
        Ok(facts) => facts,
        Err(problem) => return Verdict::Issue(Reason::Damaged(problem)),
    };
    let renew_at = renew_at(&facts, authority, rotation);
    let reason = if !facts.signed_by(authority) {
        Reason::Issuer
    } else if facts.common_name != leaf.common_name
        || facts.organization.as_deref() != leaf.organization
        || (facts.server, facts.client) != (leaf.server, leaf.client)
    {
        Reason::Subject
    } else if facts.names != leaf.names {
        Reason::Names
    } else if facts.not_before > now {
        Reason::NotYetValid
    } else if facts.not_after > now + rotation.leaf_validity + CLOCK_SKEW {
        Reason::Validity
    } else if renew_at <= now {
        Reason::Expiry
    } else {
        return Verdict::Keep { renew_at };
    };
    Verdict::Issue(reason)
}

/// When a leaf that is valid from `now` on will be due again.
pub(crate) fn next_renewal(authority: &Facts, rotation: Rotation, now: Timestamp) -> Timestamp {
    due(now - CLOCK_SKEW, now + rotation.leaf_validity, authority, rotation)
}

fn renew_at(facts: &Facts, authority: &Facts, rotation: Rotation) -> Timestamp {
    due(facts.not_before, facts.not_after, authority, rotation)
}

fn due(
    not_before: Timestamp,
    not_after: Timestamp,
    authority: &Facts,
    rotation: Rotation,
) -> Timestamp {
    if not_after >= authority.not_after {
        // A new one could not live longer, so that renewing it early would never end.
        return authority.not_after;
    }
    let life: SignedDuration = not_before.duration_until(not_after);
    // A renewBefore of the whole life or more would renew on every look.
    not_after - rotation.renew_before.min(life / 2)
}

fn read(entries: &Entries) -> Result<Facts, Problem> {
    let facts = Facts::parse(entry(entries, CERTIFICATE)?, CERTIFICATE)?;
    let key = private_key(entry(entries, KEY)?, KEY)?;
    if facts.belongs_to(&key) { Ok(facts) } else { Err(Problem::Mismatch) }
}
