//! The cells of nodes, of namespaces and what is in them, and of what needs few.

use std::collections::{BTreeMap, BTreeSet};

use super::cells::{Cells, NONE, UNKNOWN, count, join, join_by, or};
use super::view::View;

/// A name, and when it was made: of what has no printer of its own
/// (`k8s.io/apiserver/pkg/registry/rest/table.go`).
pub(super) fn plain(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.created(object);
}

/// A name and an age.
pub(super) fn aged(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.age(object);
}

pub(super) fn node(object: View<'_>, cells: &mut Cells<'_>) {
    let (metadata, spec, status) =
        (object.one("metadata"), object.one("spec"), object.one("status"));
    let ready = status.list("conditions").rfind(|one| one.text("type") == b"Ready");
    let ready = match ready.map(|one| one.text("status")) {
        None => "Unknown",
        Some(b"True") => "Ready",
        Some(_) => "NotReady",
    };
    let disabled = if spec.flag("unschedulable") { ",SchedulingDisabled" } else { "" };
    let roles: BTreeSet<&[u8]> = metadata
        .map("labels")
        .filter_map(|(key, value)| match key.strip_prefix(b"node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == b"kubernetes.io/role").then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let info = status.one("nodeInfo");
    cells.name(object);
    cells.text(format!("{ready}{disabled}"));
    cells.text(or(&join(roles), NONE));
    cells.age(object);
    cells.text(info.text("kubeletVersion"));
    for kind in ["InternalIP", "ExternalIP"] {
        let address = status.list("addresses").find(|one| one.text("type") == kind.as_bytes());
        cells.text(address.map_or(NONE, |address| address.text("address")));
    }
    cells.text(or(info.text("osImage"), UNKNOWN));
    let mut kernel = or(info.text("kernelVersion"), UNKNOWN).to_vec();
    let architecture = info.text("architecture");
    if !architecture.is_empty() {
        kernel.extend([b" (", architecture, b")"].concat());
    }
    cells.text(kernel);
    cells.text(or(info.text("containerRuntimeVersion"), UNKNOWN));
}

pub(super) fn config_map(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.number(count(object, "data") + count(object, "binaryData"));
    cells.age(object);
}

pub(super) fn secret(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.text("type"));
    cells.number(count(object, "data"));
    cells.age(object);
}

pub(super) fn namespace(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.one("status").text("phase"));
    cells.age(object);
}

pub(super) fn lease(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.one("spec").text("holderIdentity"));
    cells.age(object);
}

pub(super) fn quota(object: View<'_>, cells: &mut Cells<'_>) {
    let status = object.one("status");
    // In the order of names, each once.
    let of = |field: &str| status.quantities(field).collect::<BTreeMap<_, _>>();
    let (hard, used) = (of("hard"), of("used"));
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, most) in hard {
        let is = used.get(name).copied().unwrap_or(b"0");
        let column = if name.starts_with(b"limits.") { &mut limits } else { &mut requests };
        column.push([name, b": ", is, b"/", most].concat());
    }
    cells.name(object);
    cells.text(join_by(requests, b", "));
    cells.text(join_by(limits, b", "));
    cells.age(object);
}

pub(super) fn role_binding(object: View<'_>, cells: &mut Cells<'_>) {
    let role = object.one("roleRef");
    let named = |kind: &[u8]| {
        let subjects = object.list("subjects").filter(|subject| subject.text("kind") == kind);
        subjects.collect::<Vec<_>>()
    };
    cells.name(object);
    cells.text([role.text("kind"), b"/", role.text("name")].concat());
    cells.age(object);
    for kind in [&b"User"[..], b"Group"] {
        cells.text(join_by(named(kind).iter().map(|subject| subject.text("name")), b", "));
    }
    let accounts = named(b"ServiceAccount");
    let accounts = accounts
        .iter()
        .map(|subject| [subject.text("namespace"), b"/", subject.text("name")].concat());
    cells.text(join_by(accounts, b", "));
}

pub(super) fn priority_class(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.number(object.number("value"));
    cells.flag(object.flag("globalDefault"));
    cells.age(object);
    cells.text(object.text("preemptionPolicy"));
}

pub(super) fn runtime_class(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.text(object.text("handler"));
    cells.age(object);
}
