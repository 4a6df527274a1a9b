//! What is worth an operator's time, as Kubernetes Events. Pure: two states in, notes out.

use super::{
    apply::{Applied, ChangeKind},
    conditions::{self, READY, STALLED},
    observed::ObjectKey,
};
use crate::{
    api::v1alpha1::{MegaCluster, MegaClusterStatus},
    pki::{Change, PkiPlan, Reason},
};

/// An event about a MegaCluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether something is wrong.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// What was being done: `Reconcile`, `Apply`, …
    pub action: &'static str,
    /// For a person.
    pub message: String,
    /// The child that it is about, if it is about one.
    pub child: Option<ObjectKey>,
}

/// More children than these get one event together.
const MAX_SINGLE: usize = 8;

impl Note {
    fn normal(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, action, message: message.into(), child: None }
    }

    fn warning(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, action, message: message.into(), child: None }
    }
}

/// What the step from the stored status to `new` is worth telling.
#[must_use]
pub fn of_status(object: &MegaCluster, new: &MegaClusterStatus) -> Vec<Note> {
    let old = object.status.clone().unwrap_or_default();
    let mut notes = Vec::new();
    let message = |type_: &str| {
        conditions::find(&new.conditions, type_).map(|c| c.message.clone()).unwrap_or_default()
    };
    let stalled_before = conditions::find(&old.conditions, STALLED).map(|c| c.message.clone());
    let stalled_now = conditions::find(&new.conditions, STALLED).map(|c| c.message.clone());
    match (stalled_before, stalled_now) {
        (before, Some(now)) if before.as_ref() != Some(&now) => {
            notes.push(Note::warning("InvalidSpec", "Validate", now));
        }
        (Some(_), None) => {
            notes.push(Note::normal("ValidSpec", "Validate", "the spec is valid again"));
        }
        _ => {}
    }
    let was_ready = conditions::is_true(&old.conditions, READY);
    let is_ready = conditions::is_true(&new.conditions, READY);
    match (was_ready, is_ready) {
        (false, true) => notes.push(Note::normal(
            "Ready",
            "Reconcile",
            format!("{} answers", new.endpoint.as_deref().unwrap_or("the endpoint")),
        )),
        (true, false) => notes.push(Note::warning("NotReady", "Reconcile", message(READY))),
        _ => {}
    }
    match (&old.version, &new.version) {
        (Some(before), Some(now)) if before != now => {
            notes.push(Note::normal("Upgraded", "Upgrade", format!("from {before} to {now}")));
        }
        (Some(before), _)
            if *before != object.spec.version
                && old.observed_generation != object.metadata.generation =>
        {
            let wanted = &object.spec.version;
            notes.push(Note::normal("Upgrading", "Upgrade", format!("from {before} to {wanted}")));
        }
        _ => {}
    }
    notes.extend(takeovers(&old, new));
    notes
}

/// Takeovers since the stored status. Leaders without an epoch, which are stock ones, go by name.
fn takeovers(old: &MegaClusterStatus, new: &MegaClusterStatus) -> Vec<Note> {
    let manager = |status: &MegaClusterStatus| {
        status.controller_manager.as_ref().map(|manager| manager.leadership.clone())
    };
    let relay = |status: &MegaClusterStatus| {
        status.scheduler.as_ref().map(|scheduler| scheduler.leadership.clone())
    };
    [
        ("the controller manager", manager(old), manager(new)),
        ("the scheduler", relay(old), relay(new)),
    ]
    .into_iter()
    .filter_map(|(what, old, new)| {
        let (old, new) = (old?, new?);
        let now = new.leader?;
        let (changed, epoch) = match (old.epoch, new.epoch) {
            (Some(before), Some(now)) => (before != now, format!(", epoch {now}")),
            _ => (old.leader.as_ref().is_some_and(|before| *before != now), String::new()),
        };
        let before = old.leader.as_deref().unwrap_or("nobody");
        changed.then(|| {
            let message = format!("{what}: {now} leads after {before}{epoch}");
            Note::normal("LeaderChanged", "TakeOver", message)
        })
    })
    .collect()
}

/// What the writes of a reconcile are worth telling. A child that comes back although nothing was
/// asked anew was deleted or edited by somebody else.
#[must_use]
pub fn of_writes(object: &MegaCluster, applied: &Applied, plan: &PkiPlan) -> Vec<Note> {
    let mut notes = Vec::new();
    let is_new = object.status.as_ref().is_none_or(|status| status.conditions.is_empty());
    let written = |name: &str| applied.changes.iter().any(|change| change.key.1 == name);
    let renewed: Vec<(&str, &Reason)> = plan
        .secrets
        .iter()
        .filter(|planned| planned.change == Change::Update)
        .filter_map(|planned| {
            Some((planned.secret.metadata.name.as_deref()?, planned.issued.as_ref()?))
        })
        .filter(|(name, _)| written(name))
        .collect();
    if !renewed.is_empty() {
        let why = |(name, reason): &(&str, &Reason)| format!("{name} ({reason})");
        let list: Vec<String> = renewed.iter().map(why).collect();
        let message = format!("issued certificates anew: {}", list.join(", "));
        notes.push(Note::normal("CertificatesRenewed", "Rotate", message));
    }
    let list = |what: ChangeKind, undone: bool| -> Vec<&ObjectKey> {
        applied
            .changes
            .iter()
            .filter(|change| change.what == what && change.undone == undone)
            .map(|change| &change.key)
            .filter(|key| renewed.iter().all(|(name, _)| *name != key.1))
            .collect()
    };
    let warning = |message| Note::warning("ChildRestored", "Restore", message);
    notes.extend(about("brought back", &list(ChangeKind::Created, true), warning));
    let normal = |message| Note::normal("ChildReset", "Reset", message);
    notes.extend(about("undid a change of", &list(ChangeKind::Updated, true), normal));
    let created = list(ChangeKind::Created, false);
    let updated = list(ChangeKind::Updated, false);
    if is_new && !created.is_empty() {
        notes.push(Note::normal("Creating", "Apply", format!("created {} objects", created.len())));
    } else if !is_new && created.len() + updated.len() > 0 {
        let names: Vec<String> =
            created.iter().chain(&updated).map(|key| format!("{}/{}", key.0, key.1)).collect();
        notes.push(Note::normal("Applied", "Apply", format!("applied {}", names.join(", "))));
    }
    let normal = |message| Note::normal("ChildRemoved", "Prune", message);
    notes.extend(about("no longer asked for, removed", &list(ChangeKind::Removed, false), normal));
    if let Some(failure) = &applied.failure {
        notes.push(Note::warning("ApplyFailed", "Apply", failure.to_string()));
    }
    notes
}

/// A note about each child, or about all where they are many.
fn about(done: &str, keys: &[&ObjectKey], note: impl Fn(String) -> Note) -> Vec<Note> {
    let name = |key: &ObjectKey| format!("{}/{}", key.0, key.1);
    if keys.len() > MAX_SINGLE {
        let names: Vec<String> = keys.iter().map(|key| name(key)).collect();
        return vec![note(format!("{done} {} objects: {}", keys.len(), names.join(", ")))];
    }
    keys.iter()
        .map(|key| Note { child: Some((*key).clone()), ..note(format!("{done} {}", name(key))) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1alpha1::{LeaderStatus, SchedulerStatus};

    fn status(leader: Option<&str>, epoch: Option<i64>) -> MegaClusterStatus {
        let leader = leader.map(ToOwned::to_owned);
        let leadership = LeaderStatus { leader, epoch, standby_synced: None };
        let scheduler = Some(SchedulerStatus { leadership, ..SchedulerStatus::default() });
        MegaClusterStatus { scheduler, ..MegaClusterStatus::default() }
    }

    #[test]
    fn each_takeover_is_told_once() {
        let told = |old: &MegaClusterStatus, new: &MegaClusterStatus| {
            takeovers(old, new).into_iter().map(|note| note.message).collect::<Vec<_>>()
        };
        let none = MegaClusterStatus::default();
        let (first, second) = (status(Some("a"), Some(3)), status(Some("b"), Some(9)));
        assert_eq!(told(&none, &first), [""; 0], "the first leader takes over from nobody");
        assert_eq!(told(&first, &first), [""; 0]);
        assert_eq!(told(&first, &second), ["the scheduler: b leads after a, epoch 9"]);
        let again = status(Some("b"), Some(12));
        assert_eq!(told(&second, &again), ["the scheduler: b leads after b, epoch 12"]);
        let nobody = status(None, Some(9));
        assert_eq!(told(&second, &nobody), [""; 0]);
        assert_eq!(told(&nobody, &again), ["the scheduler: b leads after nobody, epoch 12"]);
        let stock = (status(Some("a"), None), status(Some("b"), None));
        assert_eq!(told(&stock.0, &stock.1), ["the scheduler: b leads after a"]);
    }
}
