//! What is worth an operator's time, as Kubernetes Events. Pure: two states in, notes out.

use super::{
    apply::{Applied, ChangeKind},
    conditions::{self, READY, STALLED},
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
}

impl Note {
    fn normal(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, action, message: message.into() }
    }

    fn warning(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, action, message: message.into() }
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
    notes
}

/// What the writes of a reconcile are worth telling. A child that comes back although nothing was
/// asked anew was deleted or edited by somebody else.
#[must_use]
pub fn of_writes(object: &MegaCluster, applied: &Applied, plan: &PkiPlan) -> Vec<Note> {
    let mut notes = Vec::new();
    let settled = object.status.as_ref().is_some_and(|status| {
        status.observed_generation == object.metadata.generation
            && status.version.as_deref() == Some(object.spec.version.as_str())
    });
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
    let list = |what: ChangeKind| -> Vec<String> {
        applied
            .changes
            .iter()
            .filter(|change| change.what == what)
            .filter(|change| renewed.iter().all(|(name, _)| *name != change.key.1))
            .map(|change| format!("{}/{}", change.key.0, change.key.1))
            .collect()
    };
    if !renewed.is_empty() {
        let why = |(name, reason): &(&str, &Reason)| format!("{name} ({reason})");
        let list: Vec<String> = renewed.iter().map(why).collect();
        let message = format!("issued certificates anew: {}", list.join(", "));
        notes.push(Note::normal("CertificatesRenewed", "Rotate", message));
    }
    let created = list(ChangeKind::Created);
    let updated = list(ChangeKind::Updated);
    if settled && !created.is_empty() {
        let message = format!("brought back {}", created.join(", "));
        notes.push(Note::warning("ChildRestored", "Apply", message));
    } else if object.status.as_ref().is_none_or(|status| status.conditions.is_empty()) && !created.is_empty() {
        let message = format!("created {}", created.join(", "));
        notes.push(Note::normal("Created", "Apply", message));
    }
    if settled && !updated.is_empty() {
        let message = format!("reset {}", updated.join(", "));
        notes.push(Note::normal("ChildReset", "Apply", message));
    }
    let removed = list(ChangeKind::Removed);
    if !removed.is_empty() {
        let message = format!("removed {}, no longer asked for", removed.join(", "));
        notes.push(Note::normal("ChildRemoved", "Prune", message));
    }
    if let Some(failure) = &applied.failure {
        notes.push(Note::warning("ApplyFailed", "Apply", failure.to_string()));
    }
    notes
}
