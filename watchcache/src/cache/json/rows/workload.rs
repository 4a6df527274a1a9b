//! The cells of what runs pods, and of what keeps them running.

use super::age::{Now, human};
use super::cells::{Cells, NONE, count, lower};
use super::view::View;

/// How a wrong label selector is shown.
const ERROR: &[u8] = b"<error>";

pub(super) fn stateful_set(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    let ready = object.one("status").number("readyReplicas");
    cells.text(format!("{ready}/{}", spec.number("replicas")));
    cells.age(object);
    cells.containers(spec.one("template"));
}

pub(super) fn deployment(object: View<'_>, cells: &mut Cells<'_>) {
    let (spec, status) = (object.one("spec"), object.one("status"));
    cells.name(object);
    cells.text(format!("{}/{}", status.number("readyReplicas"), spec.number("replicas")));
    cells.number(status.number("updatedReplicas"));
    cells.number(status.number("availableReplicas"));
    cells.age(object);
    cells.containers(spec.one("template"));
    cells.selector(spec.maybe("selector"), b"", b"<invalid>");
}

/// What replica sets and replication controllers have in common.
fn replicas(object: View<'_>, cells: &mut Cells<'_>) {
    let status = object.one("status");
    cells.name(object);
    cells.number(object.one("spec").number("replicas"));
    cells.number(status.number("replicas"));
    cells.number(status.number("readyReplicas"));
    cells.age(object);
    cells.containers(object.one("spec").one("template"));
}

pub(super) fn replica_set(object: View<'_>, cells: &mut Cells<'_>) {
    replicas(object, cells);
    cells.selector(object.one("spec").maybe("selector"), NONE, ERROR);
}

pub(super) fn replication_controller(object: View<'_>, cells: &mut Cells<'_>) {
    replicas(object, cells);
    cells.labels(object.one("spec").map("selector"));
}

pub(super) fn daemon_set(object: View<'_>, cells: &mut Cells<'_>) {
    let (spec, status) = (object.one("spec"), object.one("status"));
    cells.name(object);
    for field in [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ] {
        cells.number(status.number(field));
    }
    let template = spec.one("template");
    cells.labels(template.one("spec").map("nodeSelector"));
    cells.age(object);
    cells.containers(template);
    cells.selector(spec.maybe("selector"), NONE, ERROR);
}

pub(super) fn pod_template(object: View<'_>, cells: &mut Cells<'_>) {
    let template = object.one("template");
    cells.name(object);
    cells.containers(template);
    cells.labels(template.one("metadata").map("labels"));
}

/// `kind.group/name` of an owner; none where its version is none.
fn owner_name(owner: View<'_>) -> Option<Vec<u8>> {
    let version = owner.text("apiVersion");
    let mut parts = version.rsplitn(2, |byte| *byte == b'/').skip(1);
    let group = parts.next().unwrap_or_default();
    if group.contains(&b'/') {
        return None;
    }
    let dot: &[u8] = if group.is_empty() { b"" } else { b"." };
    let kind = [owner.text("kind"), dot, group].concat();
    let slash: &[u8] = if kind.is_empty() { b"" } else { b"/" };
    Some([lower(&kind).as_bytes(), slash, owner.text("name")].concat())
}

pub(super) fn controller_revision(object: View<'_>, cells: &mut Cells<'_>) {
    let mut owners = object.one("metadata").list("ownerReferences");
    cells.name(object);
    match owners.find(|owner| owner.flag("controller")).map(owner_name) {
        None => cells.text(NONE),
        Some(Some(name)) => cells.text(name),
        Some(None) => cells.wrong = Some("an owner of no version"),
    }
    cells.number(object.long("revision"));
    cells.age(object);
}

/// The states that a job tells by a condition, the first that holds. One that is deleted is told
/// after the first two.
const STATES: [&str; 5] =
    ["Complete", "Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"];

pub(super) fn job(object: View<'_>, cells: &mut Cells<'_>) {
    let (spec, status) = (object.one("spec"), object.one("status"));
    let holds = |state: &&str| {
        let found = status.list("conditions").find(|one| one.text("type") == state.as_bytes());
        found.is_some_and(|one| one.text("status") == b"True")
    };
    let (ended, others) = STATES.split_at(2);
    let state = match ended.iter().copied().find(holds) {
        Some(state) => state,
        None if object.one("metadata").has("deletionTimestamp") => "Terminating",
        None => others.iter().copied().find(holds).unwrap_or("Running"),
    };
    let succeeded = status.number("succeeded");
    let wanted = match (spec.maybe_number("completions"), spec.number("parallelism")) {
        (Some(completions), _) => completions.to_string(),
        (None, parallelism @ 2..) => format!("1 of {parallelism}"),
        (None, _) => "1".to_owned(),
    };
    let lasted = match (status.moment("startTime"), status.moment("completionTime")) {
        (None, _) => String::new(),
        (started, None) => cells.ago(started),
        (Some(started), Some(ended)) => human(Now(ended).since(started)),
    };
    cells.name(object);
    cells.text(state);
    cells.text(format!("{succeeded}/{wanted}"));
    cells.text(lasted);
    cells.age(object);
    cells.containers(spec.one("template"));
    cells.selector(spec.maybe("selector"), NONE, ERROR);
}

pub(super) fn cron_job(object: View<'_>, cells: &mut Cells<'_>) {
    let (spec, status) = (object.one("spec"), object.one("status"));
    cells.name(object);
    cells.text(spec.text("schedule"));
    cells.text(spec.maybe_text("timeZone").unwrap_or(NONE));
    cells.text(match (spec.has("suspend"), spec.flag("suspend")) {
        (false, _) => "<unset>",
        (true, true) => "True",
        (true, false) => "False",
    });
    cells.number(count(status, "active"));
    let last = status.has("lastScheduleTime").then(|| cells.ago(status.time("lastScheduleTime")));
    cells.text(last.unwrap_or_else(|| "<none>".to_owned()));
    cells.age(object);
    let job = spec.one("jobTemplate").one("spec");
    cells.containers(job.one("template"));
    cells.selector(job.maybe("selector"), NONE, ERROR);
}

pub(super) fn disruption_budget(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    for field in ["minAvailable", "maxUnavailable"] {
        cells.text(spec.number_or_text(field).unwrap_or_else(|| b"N/A".to_vec()));
    }
    cells.number(object.one("status").number("disruptionsAllowed"));
    cells.age(object);
}
