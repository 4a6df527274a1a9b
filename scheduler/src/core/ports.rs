//! Host ports and when two of them collide (`HostPortInfo` of `k8s.io/kube-scheduler/framework`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::resources::is_sidecar;

const ANY_ADDRESS: &str = "0.0.0.0";

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address; `0.0.0.0` for all of them.
    pub address: Arc<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Arc<str>,
    /// 1 to 65535.
    pub port: i32,
}

impl HostPort {
    /// Whether the two can't be on one node.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address
                || &*self.address == ANY_ADDRESS
                || &*other.address == ANY_ADDRESS)
    }
}

/// The host ports of containers and sidecars; init containers that end don't count.
#[must_use]
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let or = |text: &Option<String>, default: &str| match text.as_deref() {
        None | Some("") => Arc::from(default),
        Some(text) => Arc::from(text),
    };
    sidecars
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                address: or(&port.host_ip, ANY_ADDRESS),
                protocol: or(&port.protocol, "TCP"),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_conflicts_with_each() {
        let port = |address: &str, protocol: &str, port| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        let any = port(ANY_ADDRESS, "TCP", 80);
        assert!(any.conflicts(&port("10.0.0.1", "TCP", 80)));
        assert!(port("10.0.0.1", "TCP", 80).conflicts(&any));
        assert!(port("10.0.0.1", "TCP", 80).conflicts(&port("10.0.0.1", "TCP", 80)));
        assert!(!port("10.0.0.1", "TCP", 80).conflicts(&port("10.0.0.2", "TCP", 80)));
        assert!(!any.conflicts(&port(ANY_ADDRESS, "UDP", 80)));
        assert!(!any.conflicts(&port(ANY_ADDRESS, "TCP", 81)));
    }
}
