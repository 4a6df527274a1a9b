//! What a pod asks for, summed as `k8s.io/component-helpers/resource` sums it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use super::quantity::Amount;
use super::validation;

/// CPU assumed for the least-allocated score where a container states none, in millicores
/// (`pkg/scheduler/util/pod_resources.go`).
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory assumed for the least-allocated score where a container states none, in bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
const PODS: &str = "pods";

/// Amounts of resources as the scheduler accounts them: integers, CPU in millicores, memory and
/// ephemeral storage in bytes, scalars (extended resources, huge pages, …) in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Millicores.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// How many pods a node takes; zero in a request.
    pub pods: i64,
    /// Whole units by resource name, sorted by name.
    pub scalars: Vec<(Arc<str>, i64)>,
}

/// CPU in millicores and memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuMemory {
    /// Millicores.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
}

type Quantities = BTreeMap<String, Quantity>;

/// Exact amounts by resource name. A pod names few resources, so a list beats a map.
#[derive(Clone, Debug, Default)]
struct Sums<'a>(Vec<(&'a str, Amount)>);

impl<'a> Sums<'a> {
    fn of(quantities: Option<&'a Quantities>) -> Self {
        // An API server never hands out a quantity that doesn't parse.
        let amount = |text: &str| Amount::parse(text).unwrap_or_default();
        Self(quantities.into_iter().flatten().map(|(k, q)| (k.as_str(), amount(&q.0))).collect())
    }

    fn get(&self, name: &str) -> Option<Amount> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, amount)| *amount)
    }

    fn set(&mut self, name: &'a str, amount: Amount) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, current)) => *current = amount,
            None => self.0.push((name, amount)),
        }
    }

    fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            self.set(name, self.get(name).unwrap_or_default() + *amount);
        }
    }

    fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            if self.get(name).is_none_or(|current| *amount > current) {
                self.set(name, *amount);
            }
        }
    }

    fn cpu_memory(&self) -> CpuMemory {
        CpuMemory {
            milli_cpu: self.get(CPU).unwrap_or_default().milli_value(),
            memory: self.get(MEMORY).unwrap_or_default().value(),
        }
    }

    /// `framework.Resource.Add`: names the scheduler doesn't account are dropped.
    fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for (name, amount) in &self.0 {
            match *name {
                CPU => resources.milli_cpu = amount.milli_value(),
                MEMORY => resources.memory = amount.value(),
                EPHEMERAL_STORAGE => resources.ephemeral_storage = amount.value(),
                PODS => resources.pods = amount.value(),
                name if validation::is_scalar_resource(name) => {
                    resources.scalars.push((Arc::from(name), amount.value()));
                }
                _ => {}
            }
        }
        resources.scalars.sort();
        resources
    }
}

/// The choices of `PodResourcesOptions` that the scheduler's plugins make.
#[derive(Clone, Copy, Default)]
struct Options {
    /// Count a resize in flight: the largest of spec, actuated and allocated.
    status: bool,
    /// Leave `spec.resources` of the pod out.
    skip_pod_level: bool,
    /// For a container that states no CPU.
    default_cpu: Option<Amount>,
    /// For a container that states no memory.
    default_memory: Option<Amount>,
}

impl Options {
    fn defaulting(self) -> Self {
        Self {
            default_cpu: Some(Amount::millis(DEFAULT_MILLI_CPU)),
            default_memory: Some(Amount::units(DEFAULT_MEMORY)),
            ..self
        }
    }
}

/// The amounts of one pod that the scheduler reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodResources {
    /// What the fit filter compares and the node's usage grows by.
    pub requests: Resources,
    /// What the node's non-zero usage grows by (`NodeInfo.NonZeroRequested`).
    pub non_zero: CpuMemory,
    /// What the least-allocated score adds: container requests with the defaults, without
    /// pod-level requests, since that scorer of 1.36 doesn't read them
    /// (`noderesources/fit.go`, the strategy map leaves `enablePodLevelResources` unset).
    pub least_allocated: CpuMemory,
}

/// What a pod that isn't bound yet asks for; a resize in its status counts for nothing.
#[must_use]
pub fn pending(pod: &Pod) -> PodResources {
    let options = Options::default();
    PodResources {
        least_allocated: requests(pod, Options { skip_pod_level: true, ..options }.defaulting())
            .cpu_memory(),
        ..accounted(pod, options)
    }
}

/// What a bound pod takes from its node: the largest of spec, actuated and allocated while a
/// resize is in flight (`framework.PodInfo.CalculateResource`).
#[must_use]
pub fn assigned(pod: &Pod) -> PodResources {
    accounted(pod, Options { status: true, ..Options::default() })
}

fn accounted(pod: &Pod, options: Options) -> PodResources {
    let sums = requests(pod, options);
    // A resource that neither the pod nor a container states is defaulted for each container.
    let mut defaulting = options.defaulting();
    if has_pod_level_requests(pod) {
        if sums.get(CPU).is_some() {
            defaulting.default_cpu = None;
        }
        if sums.get(MEMORY).is_some() {
            defaulting.default_memory = None;
        }
    }
    PodResources {
        requests: Resources { pods: 0, ..sums.resources() },
        non_zero: requests(pod, defaulting).cpu_memory(),
        least_allocated: CpuMemory::default(),
    }
}

/// A node's allocatable resources.
#[must_use]
pub fn allocatable(quantities: Option<&Quantities>) -> Resources {
    Sums::of(quantities).resources()
}

/// `component-helpers/resource.PodRequests`.
fn requests(pod: &Pod, options: Options) -> Sums<'_> {
    let mut sums = container_requests(pod, options);
    let Some(spec) = &pod.spec else { return sums };
    if !options.skip_pod_level && has_pod_level_requests(pod) {
        let stated = Sums::of(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
        let status = pod.status.as_ref().filter(|_| options.status);
        let effective = status.and_then(|status| {
            let actuated = status.resources.as_ref()?.requests.as_ref();
            Some(effective(pod, stated.clone(), actuated, status.allocated_resources.as_ref()))
        });
        for (name, amount) in &stated.0 {
            if is_pod_level_resource(name) {
                let amount =
                    effective.as_ref().map_or(*amount, |e| e.get(name).unwrap_or_default());
                sums.set(name, amount);
            }
        }
    }
    sums.add(&Sums::of(spec.overhead.as_ref()));
    sums
}

/// `component-helpers/resource.AggregateContainerRequests`: containers and sidecars together, or
/// the widest moment of initialisation if that is more.
fn container_requests(pod: &Pod, options: Options) -> Sums<'_> {
    let mut running = Sums::default();
    let Some(spec) = &pod.spec else { return running };
    for container in &spec.containers {
        running.add(&container_request(pod, container, options, true));
    }
    let mut sidecars = Sums::default();
    let mut initialising = Sums::default();
    for container in spec.init_containers.iter().flatten() {
        let sidecar = is_sidecar(container);
        let mut request = container_request(pod, container, options, sidecar);
        if sidecar {
            running.add(&request);
            sidecars.add(&request);
            initialising.max(&sidecars);
        } else {
            request.add(&sidecars);
            initialising.max(&request);
        }
    }
    running.max(&initialising);
    running
}

/// An init container that keeps running beside the pod's containers.
pub(super) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn container_request<'a>(
    pod: &'a Pod,
    container: &'a Container,
    options: Options,
    resizable: bool,
) -> Sums<'a> {
    let mut request =
        Sums::of(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    if options.status
        && resizable
        && let Some(status) = container_status(pod, &container.name)
        && let Some(resources) = &status.resources
    {
        let allocated = status.allocated_resources.as_ref();
        request = effective(pod, request, resources.requests.as_ref(), allocated);
    }
    for (name, default) in [(CPU, options.default_cpu), (MEMORY, options.default_memory)] {
        if let Some(default) = default
            && request.get(name).is_none()
        {
            request.set(name, default);
        }
    }
    request
}

fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    all.into_iter().find(|status| status.name == name)
}

/// `determineEffectiveRequests`: an infeasible resize doesn't count.
fn effective<'a>(
    pod: &Pod,
    spec: Sums<'a>,
    actuated: Option<&'a Quantities>,
    allocated: Option<&'a Quantities>,
) -> Sums<'a> {
    let mut sums = if resize_is_infeasible(pod) { Sums::default() } else { spec };
    sums.max(&Sums::of(actuated));
    sums.max(&Sums::of(allocated));
    sums
}

fn resize_is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .find(|condition| condition.type_ == "PodResizePending")
        .is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"))
}

fn has_pod_level_requests(pod: &Pod) -> bool {
    let requests = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    requests.is_some_and(|requests| requests.keys().any(|name| is_pod_level_resource(name)))
}

fn is_pod_level_resource(name: &str) -> bool {
    name == CPU || name == MEMORY || name.starts_with("hugepages-")
}
