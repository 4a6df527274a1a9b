//! The cells of a pod: `printPod` of `k8s.io/kubernetes/pkg/printers/internalversion/printers.go`.

use super::cells::{Cells, NONE, or};
use super::view::{View, ZERO};

const SUCCEEDED: &str = r#"{"type":"Completed","status":"True","reason":"Succeeded","message":"The pod has completed successfully."}"#;
const FAILED: &str =
    r#"{"type":"Completed","status":"True","reason":"Failed","message":"The pod failed."}"#;

/// How often containers were started again, and when the last one that was had ended.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<i128>,
}

impl Restarts {
    fn add(&mut self, container: View<'_>) {
        self.count += container.number("restartCount");
        let ended = container.one("lastState").maybe("terminated");
        // Nothing is before Go's zero but what lies before the year 1.
        let ended = ended.and_then(|ended| ended.time("finishedAt"));
        if ended.is_some_and(|ended| ended > self.last.unwrap_or(ZERO)) {
            self.last = ended;
        }
    }
}

/// What is told of a pod.
struct Told {
    reason: Vec<u8>,
    ready: usize,
    restarts: Restarts,
}

/// Why a container has ended.
fn ended(before: &[u8], terminated: View<'_>) -> Vec<u8> {
    let reason = terminated.text("reason");
    if !reason.is_empty() {
        return [before, reason].concat();
    }
    let (signal, code) = (terminated.number("signal"), terminated.number("exitCode"));
    let reason = if signal == 0 { format!("ExitCode:{code}") } else { format!("Signal:{signal}") };
    [before, reason.as_bytes()].concat()
}

pub(super) fn pod(object: View<'_>, cells: &mut Cells<'_>) {
    let (metadata, spec, status) =
        (object.one("metadata"), object.one("spec"), object.one("status"));
    let conditions: Vec<_> = status.list("conditions").collect();
    let is = |kind: &[u8]| {
        let found = conditions.iter().find(|one| one.text("type") == kind);
        found.is_some_and(|one| one.text("status") == b"True")
    };
    let phase = status.text("phase");
    let mut told = Told {
        reason: or(status.text("reason"), phase).to_vec(),
        ready: 0,
        restarts: Restarts::default(),
    };
    let is_gated = |one: &View<'_>| {
        one.text("type") == b"PodScheduled" && one.text("reason") == b"SchedulingGated"
    };
    if conditions.iter().any(is_gated) {
        told.reason = b"SchedulingGated".to_vec();
    }
    cells.conditions = match phase {
        b"Succeeded" => Some(SUCCEEDED),
        b"Failed" => Some(FAILED),
        _ => None,
    };
    let sidecars = initialize(&mut told, spec, status);
    if sidecars.done || is(b"Initialized") {
        told.restarts = sidecars.restarts;
        let ready = |one: &View<'_>| one.text("type") == b"Ready" && one.text("status") == b"True";
        run(&mut told, status, conditions.iter().any(ready));
    }
    let deleted = metadata.has("deletionTimestamp");
    if deleted && status.text("reason") == b"NodeLost" {
        told.reason = b"Unknown".to_vec();
    } else if deleted && !matches!(phase, b"Succeeded" | b"Failed") {
        told.reason = b"Terminating".to_vec();
    }

    let containers = spec.list("containers").count() + sidecars.count;
    cells.name(object);
    cells.text(format!("{}/{containers}", told.ready));
    cells.text(told.reason);
    let Restarts { count, last } = told.restarts;
    cells.text(match last {
        Some(_) if count != 0 => format!("{count} ({} ago)", cells.ago(last)),
        _ => count.to_string(),
    });
    cells.age(object);
    let address = status.list("podIPs").next();
    cells.text(or(address.map_or(b"", |one| one.text("ip")), NONE));
    cells.text(or(spec.text("nodeName"), NONE));
    cells.text(or(status.text("nominatedNodeName"), NONE));
    let gates: Vec<_> = spec.list("readinessGates").collect();
    if gates.is_empty() {
        cells.text(NONE);
    } else {
        let open = gates.iter().filter(|gate| is(gate.text("conditionType"))).count();
        cells.text(format!("{open}/{}", gates.len()));
    }
}

/// Init containers that go on beside the others.
struct Sidecars {
    count: usize,
    restarts: Restarts,
    /// All init containers have ended or go on.
    done: bool,
}

/// Looks at the init containers up to the first that is not done.
fn initialize(told: &mut Told, spec: View<'_>, status: View<'_>) -> Sidecars {
    let all: Vec<_> = spec.list("initContainers").collect();
    let goes_on = |one: &View<'_>| one.text("restartPolicy") == b"Always";
    let mut sidecars = Sidecars {
        count: all.iter().filter(|one| goes_on(one)).count(),
        restarts: Restarts::default(),
        done: false,
    };
    for (place, container) in status.list("initContainerStatuses").enumerate() {
        told.restarts.add(container);
        // Of two of one name Go's map has the last.
        let declared = all.iter().rfind(|one| one.text("name") == container.text("name"));
        let is_sidecar = declared.is_some_and(goes_on);
        if is_sidecar {
            sidecars.restarts.add(container);
        }
        let state = container.one("state");
        let terminated = state.maybe("terminated");
        if terminated.is_some_and(|terminated| terminated.number("exitCode") == 0) {
            continue;
        }
        if is_sidecar && container.flag("started") {
            told.ready += usize::from(container.flag("ready"));
            continue;
        }
        let waiting = state.one("waiting").text("reason");
        told.reason = match terminated {
            Some(terminated) => ended(b"Init:", terminated),
            None if !matches!(waiting, b"" | b"PodInitializing") => [b"Init:", waiting].concat(),
            None => format!("Init:{place}/{}", all.len()).into_bytes(),
        };
        return sidecars;
    }
    sidecars.done = true;
    sidecars
}

/// Looks at the containers, from the last to the first.
fn run(told: &mut Told, status: View<'_>, pod_is_ready: bool) {
    let (mut running, mut error) = (false, None);
    for container in status.list("containerStatuses").rev() {
        told.restarts.add(container);
        let state = container.one("state");
        let waiting = state.one("waiting").text("reason");
        if !waiting.is_empty() {
            told.reason = waiting.to_vec();
        } else if let Some(terminated) = state.maybe("terminated") {
            told.reason = ended(b"", terminated);
            if terminated.number("exitCode") != 0 {
                error = Some(told.reason.clone());
            }
        } else if container.flag("ready") && state.has("running") {
            running = true;
            told.ready += 1;
        }
    }
    if told.reason == b"Completed" {
        match error {
            _ if running && pod_is_ready => told.reason = b"Running".to_vec(),
            Some(error) if !error.is_empty() => told.reason = error,
            _ if running => told.reason = b"NotReady".to_vec(),
            _ => {}
        }
    }
}
