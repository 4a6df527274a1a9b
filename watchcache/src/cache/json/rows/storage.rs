//! The cells of storage and devices.

use super::cells::{Cells, NONE, UNSET, count, join, or};
use super::view::View;

/// Modes of access, and how they are shown, in this order.
const MODES: [(&[u8], &str); 4] = [
    (b"ReadWriteOnce", "RWO"),
    (b"ReadOnlyMany", "ROX"),
    (b"ReadWriteMany", "RWX"),
    (b"ReadWriteOncePod", "RWOP"),
];

pub(super) fn volume(object: View<'_>, cells: &mut Cells<'_>) {
    let (metadata, spec, status) =
        (object.one("metadata"), object.one("spec"), object.one("status"));
    let size = spec.quantities("capacity").filter(|(name, _)| *name == b"storage").last();
    let has = |mode: &[u8]| spec.texts("accessModes").any(|one| one == mode);
    let modes = MODES.iter().filter(|(mode, _)| has(mode)).map(|(_, shown)| *shown);
    let claim = spec
        .maybe("claimRef")
        .map(|claim| [claim.text("namespace"), b"/", claim.text("name")].concat());
    let class = metadata.entry("annotations", b"volume.beta.kubernetes.io/storage-class");
    let deleted = metadata.has("deletionTimestamp");
    cells.name(object);
    cells.text(size.map_or(&b"0"[..], |(_, size)| size));
    cells.text(join(modes));
    cells.text(spec.text("persistentVolumeReclaimPolicy"));
    cells.text(if deleted { b"Terminating" } else { status.text("phase") });
    cells.text(claim.unwrap_or_default());
    cells.text(class.unwrap_or_else(|| spec.text("storageClassName")));
    cells.text(spec.maybe_text("volumeAttributesClassName").unwrap_or(UNSET));
    cells.text(status.text("reason"));
    cells.age(object);
    cells.text(spec.maybe_text("volumeMode").unwrap_or(UNSET));
}

pub(super) fn storage_class(object: View<'_>, cells: &mut Cells<'_>) {
    let annotations: [&[u8]; 2] = [
        b"storageclass.kubernetes.io/is-default-class",
        b"storageclass.beta.kubernetes.io/is-default-class",
    ];
    cells.class_name(object, &annotations);
    cells.text(object.text("provisioner"));
    cells.text(object.maybe_text("reclaimPolicy").unwrap_or(b"Delete"));
    cells.text(object.maybe_text("volumeBindingMode").unwrap_or(b"Immediate"));
    cells.flag(object.flag("allowVolumeExpansion"));
    cells.age(object);
}

pub(super) fn attachment(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    cells.text(spec.text("attacher"));
    cells.text(spec.one("source").text("persistentVolumeName"));
    cells.text(spec.text("nodeName"));
    cells.flag(object.one("status").flag("attached"));
    cells.age(object);
}

pub(super) fn driver(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    cells.flag(spec.flag("attachRequired") || !spec.has("attachRequired"));
    cells.flag(spec.flag("podInfoOnMount"));
    cells.flag(spec.flag("storageCapacity"));
    let requests = join(spec.list("tokenRequests").map(|request| request.text("audience")));
    cells.text(if spec.has("tokenRequests") { &requests } else { UNSET });
    cells.flag(spec.flag("requiresRepublish"));
    cells.text(or(&join(spec.texts("volumeLifecycleModes")), NONE));
    cells.age(object);
}

pub(super) fn node(object: View<'_>, cells: &mut Cells<'_>) {
    cells.name(object);
    cells.number(count(object.one("spec"), "drivers"));
    cells.age(object);
}

pub(super) fn resource_claim(object: View<'_>, cells: &mut Cells<'_>) {
    let status = object.one("status");
    let deleted = object.one("metadata").has("deletionTimestamp");
    let allocated = status.has("allocation");
    let told = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (allocated && status.has("reservedFor"), "reserved"),
    ];
    cells.name(object);
    cells.text(join(told.iter().filter(|(holds, _)| *holds).map(|(_, state)| *state)));
    cells.age(object);
}

pub(super) fn resource_slice(object: View<'_>, cells: &mut Cells<'_>) {
    let spec = object.one("spec");
    cells.name(object);
    cells.text(spec.text("nodeName"));
    cells.text(spec.text("driver"));
    cells.text(spec.one("pool").text("name"));
    cells.age(object);
}
