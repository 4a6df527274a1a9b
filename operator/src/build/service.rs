//! Services inside the control plane.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{self, Labels};
use super::names::Names;

/// Label that the StatefulSet controller gives each pod: its name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";

/// One port; pods name it alike.
pub(super) fn port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

/// A Service whose DNS name gives the pods' own addresses. With `starting` they are given before
/// they are ready, for peers that must find each other first.
pub(super) fn headless(
    names: &Names,
    name: &str,
    labels: Labels,
    ports: Vec<ServicePort>,
    starting: bool,
) -> Service {
    Service {
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            ports: Some(ports),
            publish_not_ready_addresses: starting.then_some(true),
            selector: Some(labels::selector(&labels)),
            ..ServiceSpec::default()
        }),
        metadata: labels::labelled(names, name, labels),
        ..Service::default()
    }
}

/// A Service for the one pod `ordinal` of the StatefulSet `set`. Its address stays when the pod is
/// replaced: nobody has to wait until DNS forgets where the old pod was. Its name is the pod's.
pub(super) fn of_pod(
    names: &Names,
    set: &str,
    ordinal: u32,
    labels: Labels,
    ports: Vec<ServicePort>,
) -> Service {
    let pod = format!("{set}-{ordinal}");
    let mut selector = labels::selector(&labels);
    selector.insert(POD_NAME.to_owned(), pod.clone());
    Service {
        spec: Some(ServiceSpec {
            ports: Some(ports),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ..ServiceSpec::default()
        }),
        metadata: labels::labelled(names, &pod, labels),
        ..Service::default()
    }
}
