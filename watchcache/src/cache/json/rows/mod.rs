//! A `Table` of `meta.k8s.io/v1`, which kubectl asks for to show to people: rows of cells as
//! kube-apiserver's printers make them (`k8s.io/kubernetes/pkg/printers/internalversion`,
//! `k8s.io/apiserver/pkg/endpoints/handlers/response.go`), with the columns that
//! `columns.tsv` has from Kubernetes' own.

mod age;
mod cells;
mod event;
mod metric;
mod network;
mod other;
mod pod;
mod selector;
mod storage;
mod view;
mod workload;

use std::collections::HashMap;
use std::sync::LazyLock;

use self::cells::Cells;
use self::view::View;
use super::super::alone;
use super::super::kinds::Kind;
use super::super::wire::{ListMeta, Message, Unsupported};
use super::text;

pub use self::age::Now;

/// What a row has of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

static COLUMNS: LazyLock<HashMap<(&str, &str), &str>> = LazyLock::new(|| {
    let lines = include_str!("../columns.tsv").lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (group, rest) = line.split_once('\t')?;
            let (resource, columns) = rest.split_once('\t')?;
            Some(((group, resource), columns))
        })
        .collect()
});

/// Writes the cells of an object.
type Printer = fn(View<'_>, &mut Cells<'_>);

/// The printer of a resource; none where rows of it are for kube-apiserver to make.
fn printer(kind: &Kind) -> Option<Printer> {
    Some(match (kind.group, kind.resource) {
        ("", "pods") => pod::pod,
        ("", "nodes") => other::node,
        ("", "events") => event::event,
        ("", "configmaps") => other::config_map,
        ("", "secrets") => other::secret,
        ("", "services") => network::service,
        ("", "endpoints") => network::endpoints,
        ("", "namespaces") => other::namespace,
        ("", "persistentvolumes") => storage::volume,
        ("", "replicationcontrollers") => workload::replication_controller,
        ("", "resourcequotas") => other::quota,
        ("", "podtemplates") => workload::pod_template,
        ("apps", "deployments") => workload::deployment,
        ("apps", "replicasets") => workload::replica_set,
        ("apps", "statefulsets") => workload::stateful_set,
        ("apps", "daemonsets") => workload::daemon_set,
        ("apps", "controllerrevisions") => workload::controller_revision,
        ("autoscaling", "horizontalpodautoscalers") => metric::autoscaler,
        ("batch", "jobs") => workload::job,
        ("batch", "cronjobs") => workload::cron_job,
        ("coordination.k8s.io", "leases") => other::lease,
        ("discovery.k8s.io", "endpointslices") => network::endpoint_slice,
        ("networking.k8s.io", "ingresses") => network::ingress,
        ("networking.k8s.io", "ingressclasses") => network::ingress_class,
        ("networking.k8s.io", "networkpolicies") => network::network_policy,
        ("node.k8s.io", "runtimeclasses") => other::runtime_class,
        ("policy", "poddisruptionbudgets") => workload::disruption_budget,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            other::role_binding
        }
        ("resource.k8s.io", "resourceclaims") => storage::resource_claim,
        ("resource.k8s.io", "resourceslices") => storage::resource_slice,
        ("scheduling.k8s.io", "priorityclasses") => other::priority_class,
        ("storage.k8s.io", "storageclasses") => storage::storage_class,
        ("storage.k8s.io", "volumeattachments") => storage::attachment,
        ("storage.k8s.io", "csidrivers") => storage::driver,
        ("storage.k8s.io", "csinodes") => storage::node,
        ("", "serviceaccounts") | ("resource.k8s.io", "deviceclasses") => other::aged,
        _ if is_plain(kind) => other::plain,
        _ => return None,
    })
}

/// Whether kube-apiserver has no printer for a resource: a row is then a name and a time.
fn is_plain(kind: &Kind) -> bool {
    matches!(
        (kind.group, kind.resource),
        ("", "limitranges")
            | ("rbac.authorization.k8s.io", "roles" | "clusterroles")
            | ("storage.k8s.io", "csistoragecapacities")
    )
}

/// Whether rows of a resource can be made.
#[must_use]
pub fn has_rows(kind: &Kind) -> bool {
    printer(kind).is_some() && COLUMNS.contains_key(&(kind.group, kind.resource))
}

/// Begins a table, whose rows follow. Columns are told once in a watch.
pub fn begin(out: &mut Vec<u8>, kind: &Kind, meta: &ListMeta, columns: bool) {
    out.extend_from_slice(b"{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\"");
    super::put_list_meta(out, meta);
    let known = COLUMNS.get(&(kind.group, kind.resource)).filter(|_| columns);
    out.extend_from_slice(b",\"columnDefinitions\":");
    out.extend_from_slice(known.map_or(b"null", |known| known.as_bytes()));
    out.extend_from_slice(b",\"rows\":");
}

/// What stands for the rows where there are none.
#[must_use]
pub fn no_rows(kind: &Kind) -> &'static [u8] {
    if is_plain(kind) { b"null" } else { b"[]" }
}

/// Adds a row. `partial` is the kind of metadata alone.
pub fn put_row(
    out: &mut Vec<u8>,
    (kind, partial): (&Kind, &Kind),
    (message, version): (&Message, u64),
    include: Include,
    now: Now,
) -> Result<(), Unsupported> {
    let wrong = |problem| Unsupported { kind: kind.name, problem };
    let print = printer(kind).ok_or_else(|| wrong("no rows are made of it"))?;
    let object = View::of(kind, message.bytes()).ok_or_else(|| wrong("no schema"))?;
    out.extend_from_slice(b"{\"cells\":[");
    let mut cells = Cells::new(out, now);
    print(object, &mut cells);
    let (conditions, bad) = (cells.conditions, cells.wrong);
    if let Some(problem) = bad {
        return Err(wrong(problem));
    }
    out.push(b']');
    if let Some(conditions) = conditions {
        out.extend_from_slice(b",\"conditions\":[");
        out.extend_from_slice(conditions.as_bytes());
        out.push(b']');
    }
    out.extend_from_slice(b",\"object\":");
    match include {
        Include::Object => super::put_object(out, kind, message.shown(true), version)?,
        Include::None if !ends_initial_events(object) => out.extend_from_slice(b"null"),
        _ => {
            let message = alone::metadata(kind, message);
            super::put_object(out, partial, message.shown(false), version)?;
        }
    }
    out.push(b'}');
    Ok(())
}

/// Whether it is a bookmark after the initial events, whose metadata is always shown.
fn ends_initial_events(object: View<'_>) -> bool {
    let mut annotations = object.one("metadata").map("annotations");
    annotations.any(|entry| entry == (b"k8s.io/initial-events-end", b"true"))
}

/// Adds a table of one object.
pub fn put_table(
    out: &mut Vec<u8>,
    kinds: (&Kind, &Kind),
    (message, version): (&Message, u64),
    (include, columns): (Include, bool),
    now: Now,
) -> Result<(), Unsupported> {
    begin(out, kinds.0, &ListMeta { version, ..ListMeta::default() }, columns);
    out.push(b'[');
    put_row(out, kinds, (message, version), include, now)?;
    out.extend_from_slice(b"]}");
    Ok(())
}

/// Adds an event of a watch.
pub fn put_event(
    out: &mut Vec<u8>,
    kinds: (&Kind, &Kind),
    what: &str,
    object: (&Message, u64),
    wanted: (Include, bool),
    now: Now,
) -> Result<(), Unsupported> {
    out.extend_from_slice(b"{\"type\":");
    text::put_text(out, what.as_bytes());
    out.extend_from_slice(b",\"object\":");
    put_table(out, kinds, object, wanted, now)?;
    out.extend_from_slice(b"}\n");
    Ok(())
}
