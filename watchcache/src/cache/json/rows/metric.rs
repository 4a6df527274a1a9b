//! The cells of a horizontal pod autoscaler.

use super::cells::{Cells, NONE, UNKNOWN, UNSET, join_by};
use super::view::View;

/// How many metrics are shown.
const SHOWN: usize = 2;

/// A quantity that Go would print: a missing one, too.
fn quantity<'a>(of: View<'a>, field: &str) -> &'a [u8] {
    of.quantity(field).unwrap_or(b"<nil>")
}

fn percent(of: View<'_>, other: &[u8]) -> Vec<u8> {
    match of.maybe_number("averageUtilization") {
        Some(number) => format!("{number}%").into_bytes(),
        None => other.to_vec(),
    }
}

/// A metric as it is and as it should be. None without its source, of which kube-apiserver makes
/// nothing.
fn metric(spec: View<'_>, status: Option<View<'_>>) -> Option<Vec<u8>> {
    let (source, named) = match spec.text("type") {
        b"External" => ("external", false),
        b"Object" => ("object", false),
        b"Pods" => ("pods", false),
        b"Resource" => ("resource", true),
        b"ContainerResource" => ("containerResource", true),
        _ => return Some(b"<unknown type>".to_vec()),
    };
    let wanted = spec.maybe(source)?;
    let target = wanted.one("target");
    let current = status.and_then(|status| status.maybe(source)).map(|one| one.one("current"));
    let is = |field: &str| current.map_or(UNKNOWN, |current| quantity(current, field));
    Some(match (target.quantity("averageValue"), named) {
        (Some(average), true) => {
            [wanted.text("name"), b": ", is("averageValue"), b"/", average].concat()
        }
        (None, true) => {
            let current = current.map_or_else(|| UNKNOWN.to_vec(), |one| percent(one, UNKNOWN));
            [wanted.text("name"), b": ", &current, b"/", &percent(target, b"<auto>")].concat()
        }
        (_, false) if source == "pods" => {
            [is("averageValue"), b"/", quantity(target, "averageValue")].concat()
        }
        (Some(average), false) => {
            let current = current.and_then(|current| current.quantity("averageValue"));
            [current.unwrap_or(UNKNOWN), b"/", average, b" (avg)"].concat()
        }
        (None, false) => [is("value"), b"/", quantity(target, "value")].concat(),
    })
}

fn metrics(spec: View<'_>, status: View<'_>) -> Option<Vec<u8>> {
    let statuses: Vec<_> = status.list("currentMetrics").collect();
    let all = spec.list("metrics").enumerate();
    let all = all.map(|(place, one)| metric(one, statuses.get(place).copied()));
    let all: Vec<_> = all.collect::<Option<_>>()?;
    if all.is_empty() {
        return Some(NONE.to_vec());
    }
    let mut text = join_by(all.iter().take(SHOWN), b", ");
    if all.len() > SHOWN {
        text.extend(format!(" + {} more...", all.len() - SHOWN).into_bytes());
    }
    Some(text)
}

pub(super) fn autoscaler(object: View<'_>, cells: &mut Cells<'_>) {
    let (spec, status) = (object.one("spec"), object.one("status"));
    let target = spec.one("scaleTargetRef");
    cells.name(object);
    cells.text([target.text("kind"), b"/", target.text("name")].concat());
    match metrics(spec, status) {
        Some(metrics) => cells.text(metrics),
        None => cells.wrong = Some("a metric without its source"),
    }
    match spec.maybe_number("minReplicas") {
        Some(number) => cells.text(number.to_string()),
        None => cells.text(UNSET),
    }
    cells.number(spec.number("maxReplicas"));
    cells.number(status.number("currentReplicas"));
    cells.age(object);
}
