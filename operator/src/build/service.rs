//! Services inside the control plane.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{self, Labels};
use super::names::Names;

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
